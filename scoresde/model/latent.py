"""A score model of latents, together with the first stage that encodes and decodes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Self

from torch import Tensor

from ..common.capabilities import Capability
from .autoencoder import FirstStage
from .derived import Derived
from .protocol import Model
from .schema import Schema
from .standardization import Standardization

TAKEN_BY = frozenset(
    (
        "bits_per_dim",
        "classifier_free",
        "compose",
        "edit",
        "evaluate",
        "fit",
        "sample",
        "save",
        "solve",
        "summary",
        "temper",
        "toward",
    )
)
"""Functions that take such a model as they take any other, or say themselves what they take."""

REFUSAL = (
    "{verb} does not take a Latent: its decoder has no inverse and no log-determinant. "
    "scoresde.latent_bound(model, x) bounds log p(x) from below, and {verb} takes the score model "
    "of the latents, model.model, with latents stage.encode(x).mean"
)


class SharedSchema(Schema):
    """The columns of a first stage, the words and columns of a score model's conditions."""

    def __init__(self, stage: FirstStage, latents: Model) -> None:
        self._stage = stage
        self._latents = latents

    @property
    def columns(self) -> tuple[str, ...]:
        """Those of a sample of x."""
        return self._stage.schema.columns

    @columns.setter
    def columns(self, columns: tuple[str, ...]) -> None:
        self._stage.schema.columns = columns

    @property
    def words(self) -> dict[str, tuple[str, ...]]:
        """Those of each condition's classes."""
        return self._latents.schema.words

    @words.setter
    def words(self, words: dict[str, tuple[str, ...]]) -> None:
        self._latents.schema.words = words

    @property
    def parts(self) -> dict[str, tuple[str, ...]]:
        """The columns of each condition."""
        return self._latents.schema.parts

    @parts.setter
    def parts(self, parts: dict[str, tuple[str, ...]]) -> None:
        self._latents.schema.parts = parts


class Latent(Derived):
    """A model of data x = decode(z) whose latents z have a score model.

    p(x) = ∫ p(x|z)·p(z) dz with the decoder's p(x|z) and the score model's p(z). `sample` draws
    latents and returns the decoder's means, without its noise. `given` and guidance act on the
    latents. It has no `log_prob` and no `score` of x: see `scoresde.latent_bound`.

    `fit(model, data)` encodes the data once, in parts, and trains the score model on the encoder's
    distributions: a fresh latent from q(z|x) whenever a row is used, or the latent before it is
    quantized. The score model standardizes latents by itself, so that there is no scale factor.
    The first stage stays as it is; if it is trained further, its latents move, and the score model
    has to be fitted anew. `fit_joint(model, data)` trains both by the bound that they have
    together.

    Parameters
    ----------
    stage : FirstStage
    sde : Model
        A score model of shape `stage.latent`, its `model` from here on.

    Raises
    ------
    TypeError, ValueError
        For parts of another kind or shape.

    Examples
    --------
    >>> stage = scoresde.first_stage("vae", shape=(6,), latent=(2,), width=16)
    >>> history = scoresde.fit_stage(stage, torch.randn(200, 6), steps=20, progress=False)
    >>> model = Latent(stage, scoresde.build("vp", "mlp", shape=stage.latent, width=16))
    >>> history = scoresde.fit(model, torch.randn(200, 6), steps=20, progress=False)
    >>> scoresde.sample(model, 4).shape
    torch.Size([4, 6])
    """

    def __init__(self, stage: FirstStage, sde: Model) -> None:
        if not isinstance(stage, FirstStage):
            hint = "write Latent(stage, sde)"
            if isinstance(sde, FirstStage):
                hint = "the first stage comes first, Latent(stage, sde)"
            raise TypeError(f"stage is a FirstStage, got {type(stage).__name__}: {hint}")
        super().__init__(sde)
        if isinstance(sde, Latent):
            raise TypeError("sde is a score model of latents, got a Latent, which has a stage")
        if sde.shape != stage.latent:
            raise ValueError(
                f"the latents of this stage have shape {stage.latent}, and the score model has "
                f"{sde.shape}: build it with shape=stage.latent"
            )
        if sde.table is not None:
            raise TypeError("this score model has learnt a table, and latents are tensors")
        self.stage = stage
        self._units: DecodedUnits | None = None

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """Of one sample of the data."""
        return self.stage.shape

    @property
    def schema(self) -> Schema:  # type: ignore[override]
        """The columns of the stage, and the names of the score model's conditions."""
        return SharedSchema(self.stage, self.model)

    @property
    def standardization(self) -> Standardization:
        """Between data and the states of latents, made anew once those of latents are."""
        latents = self.model.standardization
        held = self._units
        if held is None or held.latents is not latents or held.stage is not self.stage:
            held = DecodedUnits(latents, self.stage)
            self._units = held
        return held

    @property
    def capabilities(self) -> frozenset[str]:
        """Those of a model made from others, and the variance that the score model has learnt."""
        return super().capabilities | (self.model.capabilities & {Capability.VARIANCE})

    def variance_fn(self, *, raw: bool = False) -> Callable[..., Tensor]:
        """Return that of the score model, in latents.

        Parameters
        ----------
        raw : bool
            As for `network_fn`.

        Returns
        -------
        callable (z, φ, rows) -> Tensor (B, n)

        Examples
        --------
        See `scoresde.build`.
        """
        model: Any = self.model
        found: Callable[..., Tensor] = model.variance_fn(raw=raw)
        return found

    def _evaluated(self) -> Iterator[Any]:
        """The trained models beneath, and the first stage."""
        yield from super()._evaluated()
        yield self.stage

    def _in_place(self, name: str, *args: Any, **kwargs: Any) -> Self:
        """Move, convert or set the mode of both parts."""
        getattr(self.stage, name)(*args, **kwargs)
        return super()._in_place(name, *args, **kwargs)

    def _refusal(self, verb: str) -> str | None:
        """Why a function can't take it."""
        return None if verb in TAKEN_BY else REFUSAL.format(verb=verb)


class DecodedUnits(Standardization):
    """The map between states of latents and data: a decoder after an affine map, and an encoder."""

    def __init__(self, latents: Standardization, stage: FirstStage) -> None:
        super().__init__(latents.mean, latents.scale, latents.shape, latents.root)
        self.latents = latents
        self.stage = stage

    def to_data(self, z: Tensor) -> Tensor:
        """States (B, n) as data (B, *shape): the decoder's means."""
        return self.stage.decode(super().to_data(z))

    def from_data(self, x: Tensor) -> Tensor:
        """Data (B, *shape) as states (B, n), by the encoder's means."""
        return super().from_data(self.stage.encode(x).mean)

    @property
    def log_scale(self) -> float:
        """Refused: a decoder has no log-determinant."""
        raise TypeError(REFUSAL.format(verb="a log-density of x"))

    def to_rates(self, v: Tensor) -> Tensor:
        """Refuse changes of data, which differ from point to point."""
        raise TypeError(REFUSAL.format(verb="a velocity of x"))

    def to_gradients(self, g: Tensor) -> Tensor:
        """Refuse gradients by data."""
        raise TypeError(REFUSAL.format(verb="a score of x"))

    def off_constants(self, x: Tensor) -> Tensor | None:
        """None: constants of latents are none of the data."""
        return None
