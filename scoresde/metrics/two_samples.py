"""The classifier two-sample test: can a network tell two sets of samples apart?

A classifier learns on one half of the points which set each is from. If the distributions agree, it
is right on the other half as often as a coin: the tail of its number of hits is at most that of
Binomial(n_test, ½) (Lopez-Paz & Oquab 2017, section 3; Hoeffding 1956, theorem 4, for halves with
equally many points of each set). If they differ, accuracy − ½ bounds their total variation distance
from below: accuracy ≤ ½ + ½·TV, on average.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from scipy.special import bdtrc
from torch import Tensor

from ..common.checks import check_budget, check_generator, whole_number
from ..common.names import suggest_arguments
from ..common.seeds import takes_seed
from .points import points

BATCH_SIZE = 256
LEARNING_RATE = 3e-3
WEIGHT_DECAY = 1e-3


@dataclass(frozen=True)
class ClassifierTest:
    """How well a classifier tells two sets of samples apart.

    Attributes
    ----------
    accuracy : float
        Share of the held-out points that it assigns to the right set: ½ if the distributions agree,
        1 if they don't overlap.
    p_value : float
        Probability that a coin does as well or better, P(Binomial(n_test, ½) ≥ hits).
    n_test : int
        Held-out points, half of them from each set.

    Examples
    --------
    See `classifier_test`.
    """

    accuracy: float
    p_value: float
    n_test: int


@takes_seed
@suggest_arguments
def classifier_test(
    x: Tensor,
    y: Tensor,
    width: int = 64,
    steps: int = 500,
    generator: torch.Generator | None = None,
    *,
    seed: int | None = None,
) -> ClassifierTest:
    """Train a small network to tell x from y on half of the points, and test it on the others.

    If the distributions agree, P(p ≤ a) ≤ a for every a. A large p does not prove that they agree:
    the test is as sharp as the network, an MLP of two hidden layers on standardized points, which
    is poor at images.

    Parameters
    ----------
    x : Tensor, shape (n, *shape)
        n ≥ 8.
    y : Tensor, shape (m, *shape)
        m ≥ 8, in the same units; min(n, m) points of each set are used, chosen at random.
    width : int
        Units of a hidden layer.
    steps : int
        Steps of Adam, on up to 256 points each.
    generator : torch.Generator, optional
        The only source of randomness when given: the same generator gives the same result on the
        same machine.
    seed : int, optional
        An integer in place of the generator.

    Returns
    -------
    ClassifierTest

    Raises
    ------
    TypeError
        If x or y is not a tensor.
    ValueError
        For fewer than 8 points, width or steps < 1, or samples that `energy_distance` refuses.

    References
    ----------
    Lopez-Paz and Oquab, Revisiting classifier two-sample tests, ICLR 2017.

    Examples
    --------
    >>> x = torch.randn(500, 2, generator=torch.Generator().manual_seed(0))
    >>> test = classifier_test(x, x + 3.0, steps=100, generator=torch.Generator().manual_seed(1))
    >>> test.accuracy > 0.95, test.p_value < 1e-6, test.n_test
    (True, True, 500)
    """
    width = whole_number("width", width)
    steps = whole_number("steps", steps)
    check_generator(generator)
    x, y = points(x, y)
    parameters = width * (x.shape[1] + width + 3)
    check_budget(f"width={width} and its optimizer", 4 * 4.0 * parameters)
    check_budget(f"steps={steps}", calls=steps)
    n = min(len(x), len(y))
    if n < 8:
        raise ValueError(
            f"x holds {len(x)} points and y {len(y)}; half of them train a network, which needs at "
            "least 8 of each"
        )
    device = x.device if generator is None else generator.device
    shuffled = []
    for points_of_set in (x, y):
        order = torch.randperm(len(points_of_set), generator=generator, device=device)[:n]
        shuffled.append(points_of_set[order.to(points_of_set.device)])
    half = n // 2
    train = torch.cat([each[:half] for each in shuffled])
    test = torch.cat([each[half:] for each in shuffled])
    mean = train.mean(0)
    std = train.std(0)
    std = torch.where(std > 0, std, 1.0)
    train = (train - mean) / std
    test = (test - mean) / std
    with torch.enable_grad():
        weights = _train(train.float(), half, width, steps, generator, device)
    with torch.no_grad():
        says_x = _logit(test.float(), weights) > 0
    hits = int(says_x[: n - half].sum()) + int((~says_x[n - half :]).sum())
    return ClassifierTest(hits / len(test), float(bdtrc(hits - 1, len(test), 0.5)), len(test))


def _train(
    data: Tensor,
    half: int,
    width: int,
    steps: int,
    generator: torch.Generator | None,
    device: torch.device,
) -> list[Tensor]:
    """Weights of a classifier of rows: the first `half` are x's, the others y's."""
    sign = torch.ones(len(data), device=data.device)
    sign[half:] = -1
    sizes = [data.shape[1], width, width, 1]
    weights = []
    for fan_in, fan_out in itertools.pairwise(sizes):
        w = torch.randn(fan_in, fan_out, generator=generator, device=device) * math.sqrt(
            2 / fan_in
        )
        weights += [w.to(data.device), torch.zeros(fan_out, device=data.device)]
    for w in weights:
        w.requires_grad_()
    adam = torch.optim.AdamW(weights, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    size = (min(BATCH_SIZE, len(data)),)
    for _ in range(steps):
        pick = torch.randint(len(data), size, generator=generator, device=device).to(data.device)
        loss = torch.nn.functional.softplus(-sign[pick] * _logit(data[pick], weights)).mean()
        adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        adam.step()
    return weights


def _logit(x: Tensor, weights: list[Tensor]) -> Tensor:
    """log P(x's set)/P(y's set) of each row, by the network."""
    h = x
    for w, b in zip(weights[:-2:2], weights[1:-2:2], strict=True):
        h = torch.relu(h @ w + b)
    return (h @ weights[-2] + weights[-1]).squeeze(1)
