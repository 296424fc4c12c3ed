"""C2ST: the cross-validated accuracy of a classifier, with the settings of the sbibm benchmark.

The network of each fold has two hidden layers of 10·D units and ReLU. Adam (rate 1e-3, batches of
200) trains it until the loss of an epoch is, for more than 10 epochs in a row, no better than the
best one by 1e-4. These are the settings of sbibm's `metrics/c2st.py`, which builds an MLPClassifier
of scikit-learn. All folds train at once here: their weights are stacked.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from ..common.checks import check_budget, check_generator, whole_number
from ..common.names import suggest_arguments
from ..common.seeds import takes_seed
from .points import points, reach

UNITS_PER_DIMENSION = 10
BATCH_SIZE = 200
LEARNING_RATE = 1e-3
WEIGHT_DECAY = 1e-4 / BATCH_SIZE
LEAST_GAIN = 1e-4
PATIENCE_EPOCHS = 10
MOST_EPOCHS = 10_000
FARTHEST = 1e6
"""Standard deviations of x from its mean, at which points beyond are put: float32 holds them."""


@takes_seed
@suggest_arguments
@torch.inference_mode(False)
def c2st(
    x: Tensor,
    y: Tensor,
    folds: int = 5,
    generator: torch.Generator | None = None,
    *,
    seed: int | None = None,
) -> float:
    """Return the accuracy with which a network tells x from y, on points it has not seen.

    ½ if the distributions agree, 1 if they do not overlap. Each point is classified by a network
    that trained on the other folds. The settings are those of the benchmark sbibm, so that numbers
    compare with published ones, which use 10,000 points of each. Of sets of different sizes, a
    random part of the larger one is used, as many points as the smaller has: then ½ is the
    accuracy of a constant answer too. There is no p-value, since the folds share their training
    points: `classifier_test` has one.

    Parameters
    ----------
    x : Tensor, shape (n, *shape)
        n ≥ folds. Both sets are standardized by the mean and standard deviation of x, of the
        min(n, m) points in use.
    y : Tensor, shape (m, *shape)
        m ≥ folds.
    folds : int
        At least 2.
    generator : torch.Generator, optional
        The only source of randomness when given.
    seed : int, optional
        An integer in place of the generator.

    Returns
    -------
    float
        From 0 to 1.

    Raises
    ------
    TypeError
        If x or y is not a tensor.
    ValueError
        For fewer points than folds, or samples that `energy_distance` refuses.

    References
    ----------
    Lueckmann, Boelts, Greenberg, Gonçalves and Macke, Benchmarking simulation-based inference,
    AISTATS 2021.

    Examples
    --------
    >>> g = torch.Generator().manual_seed(0)
    >>> x = torch.randn(300, 2, generator=g)
    >>> c2st(x, x + 4.0, generator=g) > 0.95
    True
    """
    folds = whole_number("folds", folds, 2)
    check_generator(generator)
    x, y = points(x, y)
    if min(len(x), len(y)) < folds:
        raise ValueError(
            f"x holds {len(x)} points and y {len(y)}; wanted at least as many as folds={folds}"
        )
    units = UNITS_PER_DIMENSION * x.shape[1]
    check_budget(f"{folds} networks of {units} units", 16.0 * folds * units * (x.shape[1] + units))
    device = x.device if generator is None else generator.device
    x, y = _equally_many(x, y, generator, device)
    unit = reach(x)
    x = x / unit
    mean = x.mean(0)
    std = x.std(0)
    std = torch.where(std > 0, std, 1.0)
    data = ((torch.cat([x, y / unit]) - mean) / std).clamp(-FARTHEST, FARTHEST).float()
    label = torch.ones(len(data), device=data.device)
    label[len(x) :] = -1
    order = torch.randperm(len(data), generator=generator, device=device).to(data.device)
    held = torch.tensor_split(order, folds)
    others = [torch.cat(held[:i] + held[i + 1 :]) for i in range(folds)]
    least = min(map(len, others))
    train = torch.stack([each[:least] for each in others])
    with torch.enable_grad():
        weights = _train(data, label, train, units, generator, device)
    found = []
    for i, test in enumerate(held):
        says_x = _logit(data[test][None], [w[i : i + 1] for w in weights])[0] > 0
        found.append(float((says_x == (label[test] > 0)).double().mean()))
    return sum(found) / folds


def _equally_many(
    x: Tensor, y: Tensor, generator: torch.Generator | None, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Both sets as they are if they are of one size, else a random part of the larger one."""
    n = min(len(x), len(y))
    kept = []
    for part in (x, y):
        if len(part) > n:
            chosen = torch.randperm(len(part), generator=generator, device=device)[:n]
            part = part[chosen.to(part.device)]
        kept.append(part)
    return kept[0], kept[1]


def _train(
    data: Tensor,
    label: Tensor,
    rows: Tensor,
    units: int,
    generator: torch.Generator | None,
    device: torch.device,
) -> list[Tensor]:
    """Stacked weights of one classifier for each row of indices (folds, m)."""
    folds, m = rows.shape
    weights = []
    for fan_in, fan_out in itertools.pairwise([data.shape[1], units, units, 1]):
        bound = math.sqrt(6 / (fan_in + fan_out))
        for size in (fan_in, 1):
            u = torch.rand(folds, size, fan_out, generator=generator, device=device)
            weights.append((bound * (2 * u - 1)).to(data.device).requires_grad_())
    kept = [w.detach().clone() for w in weights]
    adam = torch.optim.Adam(weights, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    best = torch.full((folds,), torch.inf, device=data.device)
    stalled = torch.zeros(folds, device=data.device)
    running = torch.ones(folds, dtype=torch.bool, device=data.device)
    for _ in range(MOST_EPOCHS):
        order = torch.rand(folds, m, generator=generator, device=device).argsort(1)
        shuffled = rows.gather(1, order.to(data.device))
        total = torch.zeros(folds, device=data.device)
        for batch in torch.split(shuffled, BATCH_SIZE, 1):
            error = torch.nn.functional.softplus(-label[batch] * _logit(data[batch], weights))
            adam.zero_grad()
            error.mean(1).sum().backward()  # type: ignore[no-untyped-call]
            adam.step()
            total += error.detach().sum(1)
        loss = total / m
        stalled = torch.where(loss > best - LEAST_GAIN, stalled + 1, 0.0)
        best = torch.minimum(best, loss)
        for keep, w in zip(kept, weights, strict=True):
            keep[running] = w.detach()[running]
        running &= stalled <= PATIENCE_EPOCHS
        if not bool(running.any()):
            break
    return kept


def _logit(x: Tensor, weights: list[Tensor]) -> Tensor:
    """log P(x's set)/P(y's set) of the points (folds, B, D), each by the network of its fold."""
    h = x
    for w, b in zip(weights[:-2:2], weights[1:-2:2], strict=True):
        h = torch.relu(torch.baddbmm(b, h, w))
    return torch.baddbmm(weights[-1], h, weights[-2]).squeeze(2)
