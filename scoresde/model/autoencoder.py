"""First stages: models that encode samples as latents, in which a score model is cheaper.

In standardized units, q(z|x) = N(m(x), s(x)²) and p(x|z) = N(x̂(z), noise²·I): see
`scoresde.backbones.stages`. `scoresde.Latent` joins one with a score model of its latents.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, Unpack

import torch
from torch import Tensor, nn

from ..backbones import FIRST_STAGES, StageNet
from ..backbones.discretized import Bins
from ..backbones.keywords import StageOptions
from ..common.checks import check_generator
from ..common.inputs import as_floats, event_shape
from ..common.seeds import takes_seed
from .trainable import Trainable

EDGE_ROUNDING = 2.0
"""Of x in [0, 1], in units of its dtype's precision, when it is standardized and back."""


class Encoded(NamedTuple):
    """q(z|x): mean and standard deviation (B, *latent); a scale of None is one of 0."""

    mean: Tensor
    scale: Tensor | None

    @takes_seed
    def sample(
        self, generator: torch.Generator | None = None, *, seed: int | None = None
    ) -> Tensor:
        """Draw z, one for each x.

        Parameters
        ----------
        generator : torch.Generator, optional
            On any device.
        seed : int, optional
            An integer in place of the generator.

        Returns
        -------
        Tensor, shape (B, *latent)

        Examples
        --------
        >>> Encoded(torch.ones(1, 2), None).sample()
        tensor([[1., 1.]])
        """
        if self.scale is None:
            return self.mean
        check_generator(generator)
        device = self.mean.device if generator is None else generator.device
        noise = torch.randn(
            self.mean.shape, generator=generator, device=device, dtype=self.mean.dtype
        )
        return self.mean + self.scale * noise.to(self.mean.device)


class FirstStage(Trainable):
    """An encoder and a decoder, which `fit` and `fit_stage` train.

    It has no density and no score of its own: `scoresde.Latent(stage, sde)` has samples and a
    bound on log p.

    Parameters
    ----------
    net : StageNet
        With `latent`, `encode`, `decode` and `log_noise`.
    shape : tuple of int
        Shape of one sample.
    standardize : str
        What `fit` measures of the data first: "scale" (the default), "whiten" or "none".

    Raises
    ------
    TypeError
        For a network that is no StageNet; `scoresde.first_stage` takes names.

    Examples
    --------
    >>> stage = scoresde.first_stage("vae", shape=(6,), latent=(2,), width=16)
    >>> history = scoresde.fit(stage, torch.randn(200, 6), steps=20, progress=False)
    >>> stage.encode(torch.randn(3, 6)).mean.shape
    torch.Size([3, 2])
    """

    stored_as = "first_stage"
    networks_by_name = FIRST_STAGES
    verbs = (
        "write stage.reconstruct(x) or stage.decode(z); scoresde.Latent(stage, sde) joins it with "
        "a score model of its latents, which has samples and a bound on log p"
    )
    objective = "first_stage"

    def __init__(
        self, net: nn.Module, *, shape: tuple[int, ...], standardize: str = "scale"
    ) -> None:
        if not isinstance(net, StageNet):
            raise TypeError(
                f"a first stage's network is a scoresde.StageNet, got {type(net).__name__}; "
                "scoresde.first_stage takes names"
            )
        if net.levels and standardize == "whiten":
            raise ValueError(
                'standardize="whiten" mixes columns, and levels= describe single ones: try "scale"'
            )
        super().__init__(net, shape=shape, standardize=standardize)

    @property
    def latent(self) -> tuple[int, ...]:
        """Shape of one latent."""
        found: tuple[int, ...] = self._stage_net.latent
        return found

    @property
    def noise(self) -> float:
        """Standard deviation of a Gaussian p(x|z), in units of the standardized data."""
        if self._stage_net.levels:
            raise TypeError("p(x|z) of integers has no one noise: its scales depend on z")
        return float(self._stage_net.log_noise.detach().exp())

    @property
    def perplexity(self) -> float:
        """The effective number of codes in use, of a vector-quantized stage.

        Raises AttributeError for one without a codebook.
        """
        net: Any = self._stage_net
        found: float = net.perplexity
        return found

    @property
    def _stage_net(self) -> Any:
        """The network in use."""
        return self.networks()[0]

    def accept_latent(self, z: Any) -> Tensor:
        """Check a batch of latents, and return it on the model's device.

        Parameters
        ----------
        z : Tensor, shape (B, *latent)

        Returns
        -------
        Tensor, shape (B, *latent)

        Raises
        ------
        TypeError, ValueError
            For another shape, integers, or numbers that are not finite.

        Examples
        --------
        >>> stage = scoresde.first_stage("vae", shape=(6,), latent=(2,), width=16)
        >>> stage.decode(torch.zeros(3, 6))
        Traceback (most recent call last):
        ValueError: z has shape (3, 6), wanted (batch, 2)
        """
        return as_floats(z, self.latent, "z").to(self.scale.device)

    def encode(self, x: Tensor) -> Encoded:
        """Return q(z|x).

        Parameters
        ----------
        x : Tensor, shape (B, *shape)
            In the units of the data.

        Returns
        -------
        Encoded
            mean and scale, (B, *latent); scale is None for a vector-quantized stage, whose mean is
            the latent before it is quantized.

        Examples
        --------
        See `FirstStage`.
        """
        standardization = self.standardization
        x = standardization.spread(standardization.from_data(self.accept(x)))
        return Encoded(*self._stage_net.encode(x.to(self.net_dtype)))

    @property
    def net_dtype(self) -> torch.dtype:
        """The dtype of the network's weights."""
        weight = next(self.net.parameters(), None)
        return self.state_dtype if weight is None else weight.dtype

    @takes_seed
    def sample_latent(
        self, x: Tensor, generator: torch.Generator | None = None, *, seed: int | None = None
    ) -> Tensor:
        """Draw one z from q(z|x) for each x.

        Parameters
        ----------
        x : Tensor, shape (B, *shape)
        generator : torch.Generator, optional
        seed : int, optional
            An integer in place of the generator.

        Returns
        -------
        Tensor, shape (B, *latent)

        Examples
        --------
        >>> stage = scoresde.first_stage("vae", shape=(6,), latent=(2,), width=16)
        >>> stage.sample_latent(torch.zeros(3, 6)).shape
        torch.Size([3, 2])
        """
        return self.encode(x).sample(generator)

    def decode(self, z: Tensor) -> Tensor:
        """Return the mean of p(x|z), in the units of the data.

        Parameters
        ----------
        z : Tensor, shape (B, *latent)
            A vector-quantized stage takes the nearest codes.

        Returns
        -------
        Tensor, shape (B, *shape)

        Examples
        --------
        See `StageNet`.
        """
        return self.to_data(self._states(self.accept_latent(z)))

    def reconstruct(self, x: Tensor) -> Tensor:
        """Return decode(encode(x).mean).

        Parameters
        ----------
        x : Tensor, shape (B, *shape)

        Returns
        -------
        Tensor, shape (B, *shape)

        Examples
        --------
        See `StageNet`.
        """
        return self.decode(self.encode(x).mean)

    def log_likelihood(self, x: Tensor, z: Tensor) -> Tensor:
        """Return log p(x|z) in nats, in the units of the data.

        Parameters
        ----------
        x : Tensor, shape (B, *shape)
        z : Tensor, shape (B, *latent)

        Returns
        -------
        Tensor, shape (B,)
            −∞ where x lies off a constant of the data.

        Examples
        --------
        >>> stage = scoresde.first_stage("vae", shape=(6,), latent=(2,), width=16)
        >>> stage.log_likelihood(torch.zeros(3, 6), torch.zeros(3, 2)).shape
        torch.Size([3])
        """
        x = self.accept(x)
        net = self._stage_net
        out = net.outputs(self.accept_latent(z).to(self.net_dtype))
        value = self._log_of_states(net, self.from_data(x), out) - self.log_scale
        off = self.off_constants(x)
        return value if off is None else value.masked_fill(off, -math.inf)

    def _log_of_states(self, net: Any, z0: Tensor, out: Tensor) -> Tensor:
        """log p(x|z) (B,) of standardized states (B, n), in standardized units, from `outputs`."""
        if not net.levels:
            return log_normal(z0, flat(out, self.free).to(z0.dtype), net.log_noise)
        mass: Tensor = net.log_mass(out.to(z0.dtype), self._bins(z0, net.levels), self.free)
        return mass + self.dim * math.log(net.levels) + self.log_scale

    def _bins(self, z0: Tensor, levels: int) -> Bins:
        """The bins of dequantized integers that states lie in; edges may have been rounded."""
        x = self.to_data(z0) * levels
        rounding = min(EDGE_ROUNDING * torch.finfo(x.dtype).eps * levels, 0.5)
        v = (x + rounding).floor()
        outside = (v < 0) | (x > levels + rounding)
        v = v.clamp(max=levels - 1)
        if bool(outside.any()):
            raise ValueError(
                f"a decoder of levels={levels} takes x = (v + u)/{levels} in [0, 1): "
                'fit(..., transforms="dequantize") makes it of integers; got x outside'
            )
        low = self.from_data(v / levels)
        high = self.from_data((v + 1) / levels)
        v = flat(v, self.free)
        return Bins(low, high, v == 0, v == levels - 1)

    def _states(self, z: Tensor) -> Tensor:
        """The mean of p(x|z) as standardized, flattened states (B, n)."""
        return flat(self._stage_net.decode(z.to(self.net_dtype)), self.free).to(self.state_dtype)


def flat(x: Tensor, free: Tensor | None) -> Tensor:
    """A network's x̂ (B, *shape) as (B, n), the elements that vary."""
    x = x.flatten(1)
    return x if free is None else x.index_select(1, free)


def log_normal(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """log N(x; mean, scale²·I) of rows (B, n)."""
    log_scale = log_scale.to(x.dtype)
    squares = ((x - mean) / log_scale.exp()).square().sum(1)
    return -0.5 * squares - x.shape[1] * (log_scale + 0.5 * math.log(2 * math.pi))


def first_stage(
    name: str | nn.Module = "vae",
    *,
    shape: tuple[int, ...],
    standardize: str = "scale",
    **options: Unpack[StageOptions],
) -> FirstStage:
    """Build a first stage from names.

    Parameters
    ----------
    name : str or StageNet
        A name of `scoresde.FIRST_STAGES`, "vae" or "vq", or a network.
    shape : tuple of int
        Shape of one sample: convolutions for (C, n), (C, n, n) and volumes, perceptrons for (d,).
    standardize : str
        See `FirstStage`.
    **options
        Of the named network: latent=(4, 7, 7), channels=32, codes=512, …

    Returns
    -------
    FirstStage
        Untrained.

    Raises
    ------
    TypeError, ValueError
        For unknown names or options, or a latent that does not go with the shape.

    Examples
    --------
    >>> stage = first_stage("vae", shape=(1, 28, 28), latent=(4, 7, 7), channels=8)
    >>> stage.decode(torch.zeros(2, 4, 7, 7)).shape
    torch.Size([2, 1, 28, 28])
    >>> first_stage("vae", shape=(1, 28, 28), latent=(4, 9, 9))
    Traceback (most recent call last):
    ValueError: latent=(4, 9, 9) of samples (1, 28, 28): each size is that of the sample ...
    """
    shape = event_shape(shape)
    net: Any = name
    if isinstance(name, str):
        net = FIRST_STAGES.build(name, shape, **options)
    elif options:
        raise TypeError(
            f"options {sorted(options)} go with a first stage's name; give them to the network "
            "itself"
        )
    return FirstStage(net, shape=shape, standardize=standardize)
