"""The noise floor of a metric: its value between two sets of true samples.

No model can be seen to be closer to the truth than the truth is to itself. A metric of n against n samples is therefore read
as a multiple of its root mean square between two independent sets of n true ones,

    floor = √(E metric(X, X′)²),

which serves metrics that scatter about 0 (energy distance, MMD²) and those that are biased upwards (Wasserstein) alike.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..checks import affordable, check_generator, number, whole
from ..inputs import as_tensor
from ..random import draw_seed, seeded
from ..registry import explained
from ..source import draw

Metric = Callable[[Tensor, Tensor], "Tensor | float"]


class Law(Protocol):
    """Anything with sample(n, generator=): a toy density, or one's own."""

    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        """Return n samples, shape (n, *shape)."""


@dataclass(frozen=True)
class NoiseFloor:
    """Values of a metric between two sets of true samples.

    Attributes
    ----------
    values : Tensor, shape (repeats,), float64
        In the metric's units.

    Examples
    --------
    >>> floor = NoiseFloor(torch.tensor([3.0, -4.0], dtype=torch.float64))
    >>> floor.mean, round(floor.rms, 4), round(floor.times(7.0), 4)
    (-0.5, 3.5355, 1.9799)
    """

    values: Tensor

    @property
    def mean(self) -> float:
        """Their mean: about 0 for unbiased metrics."""
        return float(self.values.mean())

    @property
    def std(self) -> float:
        """Their standard deviation."""
        return float(self.values.std())

    @property
    def rms(self) -> float:
        """Their root mean square √(mean v²), which is called the floor."""
        return float(self.values.square().mean().sqrt())

    def quantile(self, q: float) -> float:
        """Return the value below which a share q of them lies.

        Parameters
        ----------
        q : float
            From 0 to 1.

        Returns
        -------
        float

        Examples
        --------
        >>> NoiseFloor(torch.arange(5.0)).quantile(0.75)
        3.0
        """
        return float(self.values.quantile(number("q", q, 0, 1, closed=True)))

    def times(self, value: Tensor | float) -> float:
        """Return a value of the metric as a multiple of the floor.

        Parameters
        ----------
        value : Tensor of shape (), or float

        Returns
        -------
        float
            value/rms.

        Examples
        --------
        See `noise_floor`.
        """
        return float(value) / self.rms


@explained
def noise_floor(
    metric: Metric, law: Law | Tensor, n: int, repeats: int = 20, generator: torch.Generator | None = None
) -> NoiseFloor:
    """Return a metric's values between `repeats` pairs of independent sets of n true samples.

    Parameters
    ----------
    metric : callable (x, y) -> number
        `energy_distance`, `wasserstein`, a functools.partial or lambda of one with options, or one's own.
    law : object with sample(n), or Tensor of shape (N, *shape)
        The truth; of a tensor, N ≥ 2n true samples, each pair of sets is drawn without replacement, and pairs overlap.
    n : int
        Samples of a set: as many as there are of the model's, since every floor depends on n.
    repeats : int
        Pairs of sets. The floor is known to about 1/√(2·repeats) of itself where the metric scatters about 0.
    generator : torch.Generator, optional
        The only source of randomness when given; pair i depends on it and on i alone. (That of the metric is its own.)

    Returns
    -------
    NoiseFloor

    Raises
    ------
    TypeError
        If law can't sample, or a number is no integer.
    ValueError
        For n < 2, repeats < 2, or a tensor with fewer than 2n rows.

    Examples
    --------
    >>> import scoresde
    >>> moons, g = scoresde.toy.Moons(), torch.Generator().manual_seed(0)
    >>> floor = noise_floor(scoresde.energy_distance, moons, 500, generator=g)
    >>> shifted = moons.sample(500, generator=g) + 0.5
    >>> floor.times(scoresde.energy_distance(shifted, moons.sample(500, generator=g))) > 20
    True
    """
    n, repeats = whole("n", n, 2), whole("repeats", repeats, 2)
    check_generator(generator)
    affordable(f"repeats={repeats}", calls=repeats)
    if isinstance(law, Tensor):
        as_tensor(law, "law")
        if law.ndim < 1 or len(law) < 2 * n:
            raise ValueError(f"law holds samples of shape {tuple(law.shape)}; two sets of n = {n} want at least {2 * n}")
    elif not callable(getattr(law, "sample", None)):
        raise TypeError(f"law is a {type(law).__name__}; wanted true samples, or an object with sample(n)")
    device = torch.device("cpu") if generator is None else generator.device
    seed = draw_seed(generator)

    def value(i: int) -> float:
        own = seeded(device, seed, i)
        if isinstance(law, Tensor):
            order = torch.randperm(len(law), generator=own, device=device).to(law.device)
            x, y = law[order[:n]], law[order[n : 2 * n]]
        else:
            x, y = (as_tensor(draw(law, n, own.initial_seed(), j), "law.sample(n)") for j in (0, 1))
        return float(metric(x, y))

    return NoiseFloor(torch.tensor([value(i) for i in range(repeats)], dtype=torch.float64, device="cpu"))
