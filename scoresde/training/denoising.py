"""The objectives that are regressions at random noise levels: denoising, and distillation."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..common.checks import check_generator, whole_number
from ..common.names import choose
from ..common.random import draw_seed
from ..common.seeds import takes_seed
from ..model.condition_scales import standardized
from ..model.require import matched, require_model, trainable
from ..model.score_sde import ScoreSDE
from ..model.source import starts
from ..processes.base import Process
from .noise_levels import NOISES, AdaptiveLevels, check_noise, stratified_quantiles
from .objectives import OBJECTIVES, Condition, Objective
from .regression import (
    WEIGHTS,
    AdaptiveExamples,
    Examples,
    check_weight,
    denoising_examples,
    mean_error,
    network_output,
    squared_errors,
)


class Regression(Objective):
    """A regression of the network's output at random noise levels."""

    weight: str
    takes_gaps: ClassVar[bool] = True

    def levels(self, process: Process, q: Tensor) -> Tensor:
        """Return the noise levels of quantiles.

        Parameters
        ----------
        process : Process
        q : Tensor, shape (B,), float64

        Returns
        -------
        Tensor, shape (B,), float64
            φ, in radians.

        Examples
        --------
        >>> q = torch.tensor([0.5]).double()
        >>> scoresde.Denoising(noise="uniform").levels(scoresde.RectifiedFlow(), q)
        tensor([0.7854], dtype=torch.float64)
        """
        raise NotImplementedError

    def examples(  # noqa: D102
        self, sde: ScoreSDE, z0: Tensor, eps: Tensor, q: Tensor, condition: Condition
    ) -> Any:
        phi = self.levels(sde.process, q)
        return denoising_examples(sde, z0, eps, phi, self.weight, condition)

    def errors(self, out: Tensor, examples: Examples) -> Tensor:
        """Return the error of each example, whose mean is the loss: override it for another loss.

        Parameters
        ----------
        out : Tensor, shape (B, n)
            The network's output, flattened.
        examples : Examples
            With `target` (B, n), and `weight`: (B, 1), (B, n) where rows have gaps, or None.

        Returns
        -------
        Tensor, shape (B,)
            By default the squared error of the arc velocity, a mean over the n entries, times the
            weight: w(φ)·e².

        Examples
        --------
        The pseudo-Huber loss:

        >>> class Huber(scoresde.Denoising):
        ...     def errors(self, out, examples):
        ...         return (super().errors(out, examples) + 1e-4).sqrt()
        >>> sde = scoresde.build("rectified", "mlp", shape=(2,), width=8)
        >>> scoresde.fit(sde, torch.randn(100, 2), objective=Huber(), steps=5)
        History(steps=5, loss=..., seconds=...)
        """
        return squared_errors(out, examples)

    def loss(  # noqa: D102
        self,
        net: Callable[..., Any],
        sde: ScoreSDE,
        examples: Any,
        progress: float,
        generator: Callable[[], torch.Generator],
    ) -> Tensor:
        out = network_output(net, examples)
        if type(self).errors is Regression.errors:
            return mean_error(out, examples)  # the same, by one kernel
        return self.errors(out, examples).mean()

    def __call__(  # noqa: D102
        self,
        net: Callable[..., Any],
        sde: ScoreSDE,
        z0: Tensor,
        eps: Tensor,
        q: Tensor,
        condition: Condition,
        progress: float,
        generator: torch.Generator,
    ) -> Tensor:
        examples = self.examples(sde, z0, eps, q, condition)
        return self.loss(net, sde, examples, progress, lambda: generator)


@OBJECTIVES.register("denoising")
@dataclass
class Denoising(Regression):
    """Learn to denoise, and so the score or the velocity: the default of `fit`.

    Minimizes E w(φ)·‖arc-velocity error‖²/D, the formula of `scoresde.loss`: denoising score
    matching, and flow matching for a rectified flow. The model has a score, unless its data are
    `Pairs`, a coupling joins them with noise, or it has a source; then it has a velocity alone.

    Parameters
    ----------
    weight : str
        A key of `scoresde.WEIGHTS`.
    noise : str, optional
        The distribution of noise levels, a key of `scoresde.NOISES`. By default "lognormal", and
        "uniform" where much is to be learnt where paths begin: where x1 tells about x0, as in
        coupled pairs, and where entries of a row are seen, which tell about the others.

    Raises
    ------
    TypeError, ValueError
        For names that there are not.

    References
    ----------
    Vincent 2011; Song et al. 2021, eq. 7; Karras et al. 2022, eq. 8; Lipman et al. 2023, eq. 9.

    Examples
    --------
    >>> sde = scoresde.build("vp", "mlp", shape=(2,), width=8)
    >>> objective = scoresde.Denoising(weight="min_snr", noise="adaptive")
    >>> scoresde.fit(sde, scoresde.toy.Moons(), objective=objective, steps=5)
    History(steps=5, loss=..., seconds=...)
    """

    weight: str = "edm"
    noise: str | None = None
    kind = "score"
    per_rank: ClassVar[frozenset[str]] = frozenset({"sums"})

    def __post_init__(self) -> None:
        check_weight(self.weight)
        if self.noise is not None:
            check_noise(self.noise)
        self._adaptive: AdaptiveLevels | None = None

    def prepared(self, sde: ScoreSDE, *, paired: bool, joined: bool) -> Denoising:  # noqa: D102
        made = dataclasses.replace(self)
        coupled = paired or joined or sde.source is not None
        if coupled:
            made.kind = "velocity"
        if made.noise is None:
            made.noise = usual_noise(coupled or sde.interface.takes_gaps)
        if made.noise == "adaptive":
            made._adaptive = AdaptiveLevels(NOISES[made.noise], sde.scale.device)
        return made

    def validated_by(self) -> Denoising:  # noqa: D102
        noise = "likelihood" if self.noise == "adaptive" else self.noise
        return Denoising(self.weight, noise)

    def describe(self) -> dict[str, Any]:  # noqa: D102
        settings = {"weight": self.weight, "noise": self.noise}
        if type(self) is Denoising:  # however it was named
            settings["objective"] = "denoising"
        return settings

    def levels(self, process: Process, q: Tensor) -> Tensor:  # noqa: D102
        assert self.noise is not None
        return NOISES[self.noise](process, q)

    def examples(  # noqa: D102
        self, sde: ScoreSDE, z0: Tensor, eps: Tensor, q: Tensor, condition: Condition
    ) -> Any:
        if self._adaptive is None:
            return super().examples(sde, z0, eps, q, condition)
        phi, ratio, bins = self._adaptive(sde.process, q)
        inner = denoising_examples(sde, z0, eps, phi, self.weight, condition)
        return AdaptiveExamples(inner, ratio.to(z0), bins)

    def loss(  # noqa: D102
        self,
        net: Callable[..., Any],
        sde: ScoreSDE,
        examples: Any,
        progress: float,
        generator: Callable[[], torch.Generator],
    ) -> Tensor:
        if self._adaptive is None:
            return super().loss(net, sde, examples, progress, generator)
        errors = self.errors(network_output(net, examples.inner), examples.inner)
        self._adaptive.record(examples.bins, errors.detach())
        weighted: Tensor = examples.ratio * errors
        return weighted.mean()

    def update(self, total: Callable[[Tensor], None]) -> None:  # noqa: D102
        if self._adaptive is not None:
            total(self._adaptive.sums)
            self._adaptive.update()

    def state_dict(self) -> dict[str, Tensor]:  # noqa: D102
        if self._adaptive is None:
            return {}
        return {"moments": self._adaptive.moments, "sums": self._adaptive.sums}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:  # noqa: D102
        if self._adaptive is not None:
            self._adaptive.moments.copy_(state["moments"])
            self._adaptive.sums.copy_(state["sums"])


@OBJECTIVES.register("distilled")
@dataclass(frozen=True)
class Distilled(Regression):
    """Learn the k steps of "ddim" that lead from noise to data, from `Pairs`: distillation.

    Only the levels t = 1/k, 2/k … 1 are learnt. The model is sampled by these steps, and by
    nothing else.

    Parameters
    ----------
    steps : int
        k.
    weight : str
        A key of `scoresde.WEIGHTS`.

    Raises
    ------
    TypeError, ValueError
        Unless `steps` is a positive integer.

    References
    ----------
    Liu, Gong and Liu, Flow straight and fast, ICLR 2023, section 2.2: for k = 1, distillation of a
    rectified flow.

    Examples
    --------
    >>> teacher = scoresde.build("rectified", "mlp", shape=(2,), width=8)
    >>> _ = scoresde.fit(teacher, scoresde.toy.Moons(), steps=5)
    >>> pairs = scoresde.reflow(teacher, 64, progress=False)
    >>> student = scoresde.build("rectified", "mlp", shape=(2,), width=8)
    >>> _ = scoresde.fit(student, pairs, objective=scoresde.Distilled(2), steps=5)
    >>> scoresde.sample(student, 3).shape
    torch.Size([3, 2])
    """

    steps: int = 1
    weight: str = "edm"

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", whole_number("steps", self.steps, most=10**9 - 1))
        check_weight(self.weight)

    @property
    def kind(self) -> str:  # type: ignore[override]
        """What the trained model has learnt: these steps of "ddim"."""
        return f"nodes:{self.steps}"

    def prepared(self, sde: ScoreSDE, *, paired: bool, joined: bool) -> Distilled:  # noqa: D102
        if not paired:
            raise ValueError(
                f"{self} distils pairs of points and where the ODE takes them: "
                "fit(sde, reflow(teacher, n), ...)"
            )
        return self

    def validated_by(self) -> Objective:  # noqa: D102
        return Denoising(self.weight)

    def describe(self) -> dict[str, Any]:  # noqa: D102
        return {"objective": "denoising", "weight": self.weight, "noise": self.kind}

    def levels(self, process: Process, q: Tensor) -> Tensor:  # noqa: D102
        node = ((q * self.steps).floor() + 1).clamp_max(self.steps)
        return process.phi(node / self.steps)


@takes_seed
def loss(
    sde: ScoreSDE,
    x0: Tensor,
    *,
    weight: str = "edm",
    noise: str | None = None,
    generator: torch.Generator | None = None,
    seed: int | None = None,
    **condition: Tensor,
) -> Tensor:
    """Return the denoising score matching loss of a batch, E w(φ)·‖arc-velocity error‖²/D, as a
    scalar with gradients.

    For `RectifiedFlow()` with predict="v", weight="velocity" and noise="uniform" this is the
    flow-matching loss E‖net(x_t, t) − (ε − x0)‖²/D.

    Parameters
    ----------
    sde : ScoreSDE
        In train mode its raw network is used, in eval mode the averaged one.
    x0 : Tensor, shape (B, *shape)
        Data, in their own units.
    weight : str
        A key of `scoresde.WEIGHTS`.
    noise : str, optional
        A key of `scoresde.NOISES`: the distribution of the noise level; one stratified draw per
        batch. As in `fit`, by default "lognormal", and "uniform" for a model with a source or with
        a network for gaps.
    generator : torch.Generator, optional
        On the model's device.
    seed : int, optional
        An integer in place of the generator.
    **condition : Tensor
        Handed to the network by name, one row per sample.

    Returns
    -------
    Tensor, shape ()
        Dimensionless: in units of the standardized data's variance.

    Raises
    ------
    TypeError, ValueError
        For x0 of the wrong shape or dtype, or unknown names.

    References
    ----------
    Vincent 2011; Song et al. 2021, eq. 7; Karras et al. 2022, eq. 8; Lipman et al. 2023, eq. 9.

    Examples
    --------
    >>> import scoresde
    >>> sde = scoresde.build("vp", "mlp", shape=(2,))
    >>> loss(sde, torch.randn(64, 2)).requires_grad
    True
    """
    model, x0 = matched(require_model(sde, "loss"), x0)
    sde = trainable(model, "loss")
    check_generator(generator)
    if noise is None:
        noise = usual_noise(sde.source is not None or sde.interface.takes_gaps)
    choose("weight", weight, WEIGHTS)
    check_noise(noise)
    x0 = sde.accept(x0, "x0")
    n = len(x0)
    device = x0.device
    dtype = sde.state_dtype
    given = (model.given(**condition) if condition else model).slice_conditions(0, n, n)
    if sde.source is None:
        eps = torch.randn(n, sde.dim, generator=generator, device=device, dtype=dtype)
    else:
        eps = sde.from_start(starts(sde.source, draw_seed(generator), 0, n, sde.shape).to(x0))
    phi = NOISES[noise](sde.process, stratified_quantiles(1, n, generator, device))
    z0 = sde.from_data(x0).to(dtype)
    shown = standardized(sde, given.condition)
    examples = denoising_examples(sde, z0, eps, phi, weight, shown)
    net = sde.standardization.varying(sde.networks()[0])
    return mean_error(network_output(net, examples), examples)


def usual_noise(told: bool) -> str:
    """Return the distribution of noise levels, by whether something tells about x0 besides x_t."""
    return "uniform" if told else "lognormal"
