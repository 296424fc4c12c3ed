"""The classifier two-sample test: can a network tell two sets of samples apart?

A classifier is trained on one half of the points to say which set each is from. If the laws agree
it is right on the other half as often as a coin: its number of hits is at most Binomial(n_test, ½)
in the tail (Lopez-Paz & Oquab 2017, section 3; Hoeffding 1956, theorem 4, for halves that hold as
many points of each set). If they don't, accuracy − ½ bounds their total variation distance from
below: accuracy ≤ ½ + ½·TV, on average.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from scipy.stats import binom
from torch import Tensor

from ..checks import affordable, check_generator, whole
from ..registry import explained
from .points import points

_BATCH, _RATE, _DECAY = 256, 3e-3, 1e-3


@dataclass(frozen=True)
class ClassifierTest:
    """What a classifier made of two sets.

    Attributes
    ----------
    accuracy : float
        Share of the held-out points that it put into the right set: ½ if the laws agree, 1 if they don't overlap.
    p_value : float
        Probability that a coin does as well or better: P(Binomial(n_test, ½) ≥ hits).
    n_test : int
        Held-out points, half of them from each set.

    Examples
    --------
    See `classifier_test`.
    """

    accuracy: float
    p_value: float
    n_test: int


@explained
def classifier_test(
    x: Tensor, y: Tensor, width: int = 64, steps: int = 500, generator: torch.Generator | None = None
) -> ClassifierTest:
    """Train a small network to tell x from y on half of the points; return its accuracy on the others, and a p-value.

    If the laws agree, P(p ≤ a) ≤ a for every a. A large p is no proof of equality: the test is as sharp as the network, an MLP
    of two hidden layers on standardized points, which is poor at images.

    Parameters
    ----------
    x : Tensor, shape (n, *shape)
        n ≥ 8.
    y : Tensor, shape (m, *shape)
        m ≥ 8, in the same units; min(n, m) points of each set are used, chosen at random.
    width : int
        Of the hidden layers.
    steps : int
        Of Adam, on up to 256 points each.
    generator : torch.Generator, optional
        The only source of randomness when given: the same generator, the same result on the same machine.

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
    width, steps = whole("width", width), whole("steps", steps)
    check_generator(generator)
    x, y = points(x, y)
    parameters = width * (x.shape[1] + width + 3)
    affordable(f"width={width} and its optimizer", 4 * 4.0 * parameters)
    affordable(f"steps={steps}", calls=steps)
    n = min(len(x), len(y))
    if n < 8:
        raise ValueError(f"x holds {len(x)} points and y {len(y)}; half of them train a network: wanted at least 8 of each")
    device = x.device if generator is None else generator.device
    sets = [u[torch.randperm(len(u), generator=generator, device=device)[:n].to(u.device)] for u in (x, y)]
    half = n // 2
    train, test = (torch.cat([u[part] for u in sets]) for part in (slice(half), slice(half, n)))
    mean, std = train.mean(0), train.std(0)
    train, test = ((u - mean) / torch.where(std > 0, std, 1.0) for u in (train, test))
    with torch.enable_grad():
        weights = _train(train.float(), half, width, steps, generator, device)
    with torch.no_grad():
        says_x = _logit(test.float(), weights) > 0
    hits = int(says_x[: n - half].sum()) + int((~says_x[n - half :]).sum())
    return ClassifierTest(hits / len(test), float(binom.sf(hits - 1, len(test), 0.5)), len(test))


def _train(
    data: Tensor, half: int, width: int, steps: int, generator: torch.Generator | None, device: torch.device
) -> list[Tensor]:
    sign = torch.ones(len(data), device=data.device)
    sign[half:] = -1
    sizes = [data.shape[1], width, width, 1]
    weights = []
    for fan_in, fan_out in itertools.pairwise(sizes):
        w = torch.randn(fan_in, fan_out, generator=generator, device=device) * math.sqrt(2 / fan_in)
        weights += [w.to(data.device), torch.zeros(fan_out, device=data.device)]
    for w in weights:
        w.requires_grad_()
    adam = torch.optim.AdamW(weights, lr=_RATE, weight_decay=_DECAY)
    for _ in range(steps):
        pick = torch.randint(len(data), (min(_BATCH, len(data)),), generator=generator, device=device).to(data.device)
        loss = torch.nn.functional.softplus(-sign[pick] * _logit(data[pick], weights)).mean()
        adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        adam.step()
    return weights


def _logit(x: Tensor, weights: list[Tensor]) -> Tensor:
    h = x
    for w, b in zip(weights[:-2:2], weights[1:-2:2], strict=True):
        h = torch.relu(h @ w + b)
    return (h @ weights[-2] + weights[-1]).squeeze(1)
