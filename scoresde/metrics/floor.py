"""The noise floor of a metric: its value between two sets of true samples.

No measurement shows a model closer to the truth than the truth is to itself. So a metric of n
against n samples is read as a multiple of its root mean square between two independent sets of n
true ones,

    floor = √(E metric(X, X′)²),

for metrics that scatter about 0 (energy distance, MMD²) and metrics that are biased upwards
(Wasserstein) alike.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..common.checks import check_budget, check_generator, real_number, whole_number
from ..common.inputs import as_tensor
from ..common.names import suggest_arguments
from ..common.random import draw_seed, seeded
from ..common.seeds import takes_seed
from ..model.source import draw

Metric = Callable[[Tensor, Tensor], "Tensor | float"]


class Law(Protocol):
    """Anything with sample(n, generator=), such as a toy density."""

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
        """Mean of the values: about 0 for unbiased metrics."""
        return float(self.values.mean())

    @property
    def std(self) -> float:
        """Standard deviation of the values."""
        return float(self.values.std())

    @property
    def rms(self) -> float:
        """Root mean square of the values, √(mean v²): the floor."""
        return float(self.values.square().mean().sqrt())

    def quantile(self, q: float) -> float:
        """Return the number below which a share q of the values lies.

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
        return float(self.values.quantile(real_number("q", q, 0, 1, closed=True)))

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


@takes_seed
@suggest_arguments
def noise_floor(
    metric: Metric,
    law: Law | Tensor,
    n: int,
    repeats: int = 20,
    generator: torch.Generator | None = None,
    *,
    seed: int | None = None,
) -> NoiseFloor:
    """Return a metric's values between `repeats` pairs of independent sets of n true samples.

    Parameters
    ----------
    metric : callable (x, y) -> number
        `energy_distance`, `wasserstein`, one of them with options by functools.partial, or any
        other function.
    law : object with sample(n), or Tensor of shape (N, *shape)
        The truth. Of a tensor of N ≥ 2n true samples, each pair of sets is drawn without
        replacement, and pairs overlap.
    n : int
        Samples of a set: as many as the model's, since every floor depends on n.
    repeats : int
        Pairs of sets. Where the metric scatters about 0, the relative error of the floor is about
        1/√(2·repeats).
    generator : torch.Generator, optional
        If given, the only source of randomness, apart from the metric's; pair i depends only on it
        and on i.
    seed : int, optional
        An integer in place of the generator.

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
    n = whole_number("n", n, 2)
    repeats = whole_number("repeats", repeats, 2)
    check_generator(generator)
    check_budget(f"repeats={repeats}", calls=repeats)
    if isinstance(law, Tensor):
        as_tensor(law, "law")
        if law.ndim < 1 or len(law) < 2 * n:
            raise ValueError(
                f"law holds samples of shape {tuple(law.shape)}; two sets of n = {n} need at least "
                f"{2 * n}"
            )
    elif not callable(getattr(law, "sample", None)):
        raise TypeError(
            f"law is a {type(law).__name__}; wanted true samples, or an object with sample(n)"
        )
    device = torch.device("cpu") if generator is None else generator.device
    seed = draw_seed(generator)

    def value(i: int) -> float:
        own = seeded(device, seed, i)
        if isinstance(law, Tensor):
            order = torch.randperm(len(law), generator=own, device=device).to(law.device)
            x = law[order[:n]]
            y = law[order[n : 2 * n]]
        else:
            x, y = (
                as_tensor(draw(law, n, own.initial_seed(), j), "law.sample(n)") for j in (0, 1)
            )
        return float(metric(x, y))

    values = [value(i) for i in range(repeats)]
    return NoiseFloor(torch.tensor(values, dtype=torch.float64, device="cpu"))
