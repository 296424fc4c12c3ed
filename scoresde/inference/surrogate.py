"""A learnt simulator, which makes more pairs where those that were given are too few.

With a few thousand pairs, a network overfits before it has learnt the posterior.
The law of x given theta is often simpler than that of theta given x.
So a second model is trained on the same pairs,

    q(x | theta),      and then      theta′ ~ prior,   x′ ~ q(x | theta′)

gives as many pairs as wanted. A new network of the posterior is trained on both.

Held-out pairs end this training. Its network replaces the first if their loss is lower.
It is higher where q is wrong.

Wiqvist, Frellsen & Picchini 2021 train posteriors on draws of a likelihood model too:
Sequential neural posterior and likelihood approximation.
"""

from __future__ import annotations

import copy
import math
import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..common.errors import CheckpointError
from ..common.random import draw_seed, isolated
from ..common.user_warnings import warn
from ..model.score_sde import ScoreSDE
from ..sampling.trajectory import sample
from ..training.options import PATIENT_STEPS
from .amortized import Posterior
from .coordinates import Coordinates
from .pairs import Pairs, Training, default_model

MULTIPLE = 20
"""Pairs of the learnt simulator for each that was given."""
MOST_PAIRS = 200_000
MOST_NUMBERS = 50
"""The most numbers in an observation for which a simulator is learnt."""
MOST_MEASURED = 20_000
"""Pairs from which the coordinates of x are measured."""
LONGER = (3, 4)
"""Factors on `steps` and `patience` in the third training."""
LATE = PATIENT_STEPS
"""Pairs are too few if the lowest loss comes so many steps before the end."""
ROWS_AT_ONCE = 10_000
SOLVE: dict[str, Any] = {
    "solver": "dpmpp_2m",
    "steps": 16,
    "progress": False,
}
"""How x′ is drawn: to a hundredth of a standard deviation, at a tenth of the default's cost."""


def wanted(posterior: Posterior, pairs: Pairs) -> bool:
    """Whether the pairs were too few, and a simulator may be learnt from them."""
    history = posterior.history
    coordinates = posterior.coordinates
    assert history is not None
    assert coordinates is not None
    if not history.best or history.step[-1] < history.best + LATE:
        return False
    heavy = coordinates.numbers["heavy"]
    seen = pairs.x[pairs.kept]
    if len(heavy) or seen.shape[1] > MOST_NUMBERS:
        return False
    return bool(_varying(seen).any())


def retrained(
    posterior: Posterior, pairs: Pairs, training: Training, chance: torch.Generator
) -> Posterior:
    """A posterior that has learnt from more pairs, or the given one if its loss is lower."""
    try:
        again = _retrained(posterior, pairs, training, chance)
    except CheckpointError:
        raise
    except (ValueError, RuntimeError) as error:  # also of a prior that can't be drawn from
        warn(
            "the posterior uses the given pairs alone, because learning from more of a learnt "
            f"simulator failed: {error or type(error).__name__}"
        )
        return posterior
    return again if _lowest(again) < _lowest(posterior) else posterior


def _retrained(
    posterior: Posterior, pairs: Pairs, training: Training, chance: torch.Generator
) -> Posterior:
    """A posterior that has learnt from more pairs."""
    coordinates = posterior.coordinates
    assert coordinates is not None
    _drawn(posterior, 1, 0)  # fails early if the prior can't be drawn from
    simulator = Simulator(pairs, training.within("simulator"), chance)
    many = min(MULTIPLE * len(pairs.kept), MOST_PAIRS)
    theta = _drawn(posterior, many, draw_seed(chance)).to(pairs.theta)
    x = simulator.sample(theta, chance)
    more, _ = coordinates.forward(theta, x)
    more_told = coordinates.told(x)
    usable = more.isfinite().all(1) & more_told.isfinite().all(1)
    w, _ = coordinates.forward(pairs.theta, pairs.x)
    told = coordinates.told(pairs.x)
    model = _untrained(posterior.sde, chance)
    made = Posterior(model, posterior.prior, coordinates=coordinates)
    made._names = posterior._names
    made.surrogate_pairs = int(usable.sum())
    training = training.within("surrogate").longer(*LONGER)
    made.history = training.fit(
        model,
        made.condition,
        w,
        told,
        pairs,
        chance,
        more=(more[usable], more_told[usable]),
    )
    return made


class Simulator:
    """A model q(x | theta), trained on pairs.

    Each x is clipped to the range of its column. If that has at most half as many distinct values
    as rows, as counts do, x is rounded to the nearest of them.
    """

    def __init__(self, pairs: Pairs, training: Training, chance: torch.Generator) -> None:
        seen = pairs.x[pairs.kept]
        self.columns: list[int] = _varying(seen).nonzero()[:, 0].tolist()
        """Those that vary."""
        self.low = seen.amin(0)
        self.high = seen.amax(0)
        self.values = [_repeated(column) for column in seen.T]
        x = pairs.x[:, self.columns]
        turned = Pairs(x, pairs.theta, pairs.kept, pairs.held)
        some = Pairs(x, pairs.theta, pairs.kept[:MOST_MEASURED], pairs.held)
        free = torch.full((len(self.columns),), math.inf, dtype=torch.float64)
        self.coordinates: Coordinates = some.measured(-free, free)
        told = self.coordinates.told(turned.x)
        w, _ = self.coordinates.forward(turned.theta, turned.x)
        self.model = default_model(len(free), told.shape[1], chance)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "the values of .* clump", UserWarning)
            training.fit(self.model, "vector", w, told, turned, chance)

    def sample(self, theta: Tensor, chance: torch.Generator) -> Tensor:
        """One x for each of theta (N, D), (N, K)."""
        x = self.low.repeat(len(theta), 1)
        for start in range(0, len(theta), ROWS_AT_ONCE):
            rows = slice(start, start + ROWS_AT_ONCE)
            part = theta[rows]
            told = self.coordinates.told(part)
            given = self.model.given(vector=told)
            w = sample(given, len(part), generator=chance, **SOLVE)
            drawn = self.coordinates.inverse(w.cpu(), part).to(x)
            x[rows, self.columns] = drawn
        x = x.clamp(self.low, self.high)
        for column, values in enumerate(self.values):
            if values is not None:
                x[:, column] = _nearest(x[:, column], values)
        return x


def _varying(x: Tensor) -> Tensor:
    """Which columns of x (N, K) vary."""
    return x.amax(0) > x.amin(0)


def _repeated(column: Tensor) -> Tensor | None:
    """The distinct values, sorted, if they are at most half as many as the rows."""
    distinct: Tensor = torch.unique(column)
    return distinct if 2 * len(distinct) <= len(column) else None


def _nearest(x: Tensor, values: Tensor) -> Tensor:
    """The nearest of sorted values."""
    above = torch.searchsorted(values, x.contiguous())
    low = values[(above - 1).clamp_min(0)]
    high = values[above.clamp_max(len(values) - 1)]
    return torch.where(x - low < high - x, low, high)


def _drawn(posterior: Posterior, n: int, seed: int) -> Tensor:
    """theta′ (n, D), from the prior, which may draw with numpy."""
    with isolated():
        torch.default_generator.manual_seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        drawn: Tensor = posterior.prior.sample((n,))
    return drawn.cpu()


def _untrained(sde: ScoreSDE, chance: torch.Generator) -> ScoreSDE:
    """The model with a new network, and with the same means and scales, so that losses compare."""
    again = copy.deepcopy(sde)
    told = again.interface.condition_shapes
    assert told is not None
    fresh = default_model(again.dim, told["vector"][0], chance)
    again.net.load_state_dict(fresh.net.state_dict())
    again.ema = None
    return again


def _lowest(posterior: Posterior) -> float:
    """The lowest loss on the held-out pairs."""
    assert posterior.history is not None
    return min(posterior.history.validation)
