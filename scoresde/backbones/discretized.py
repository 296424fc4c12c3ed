"""Decoders of integers: the probability of each level, by mixtures of logistics.

A logistic of mean μ and scale s has the distribution function F(x) = 1/(1 + exp(−(x − μ)/s)). The
level whose bin is [a, b) has the probability F(b) − F(a) (Kingma et al. 2016, Salimans et al.
2017); bins of the lowest and of the highest level reach to ∓∞. With α = (a − μ)/s, β = (b − μ)/s,

    F(b) − F(a) = S(β)·S(−α)·(1 − exp(α − β)),        S(u) = 1/(1 + exp(−u)),

a product of factors whose logarithms have no cancellation.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LOG_SCALE_RANGE = (-7.0, 5.0)
"""Range of log s in standardized units, in which bins are some hundredths wide."""

FIRST_LOG_SCALE = -1.0
"""log s of an untrained decoder."""


class Bins(NamedTuple):
    """Edges of bins, standardized, (B, n) each, and which bins are the lowest and highest."""

    low: Tensor
    high: Tensor
    lowest: Tensor
    highest: Tensor


class Logistics(NamedTuple):
    """Logarithms of weights, means and logarithms of scales, (B, K, n) each."""

    log_weight: Tensor
    mean: Tensor
    log_scale: Tensor


def logistics(out: Tensor, components: int) -> Logistics:
    """Mixtures of K logistics from a decoder's output, 3·K numbers for each of n."""
    weight, mean, log_scale = out.reshape(len(out), 3, components, -1).unbind(1)
    return Logistics(weight.log_softmax(1), mean, log_scale.clamp(*LOG_SCALE_RANGE))


def mixture_mean(mixture: Logistics) -> Tensor:
    """The mean of each number, (B, n)."""
    return (mixture.log_weight.exp() * mixture.mean).sum(1)


def log_mass(mixture: Logistics, bins: Bins) -> Tensor:
    """log P of the bins, summed over the numbers, (B,)."""
    low, high, lowest, highest = (part.unsqueeze(1) for part in bins)
    rate = (-mixture.log_scale).exp()
    below = F.logsigmoid((high - mixture.mean) * rate).masked_fill(highest, 0)
    above = F.logsigmoid((mixture.mean - low) * rate).masked_fill(lowest, 0)
    inside = (-torch.expm1((low - high) * rate)).log().masked_fill(lowest | highest, 0)
    return (mixture.log_weight + below + above + inside).logsumexp(1).sum(1)


def start_mixture(layer: nn.Module, components: int) -> None:
    """Set the bias of a decoder's last layer: components of different means, narrow scales."""
    bias = layer.get_parameter("bias")
    with torch.no_grad():
        _, mean, log_scale = bias.view(3, components, -1).unbind(0)
        log_scale.fill_(FIRST_LOG_SCALE)
        if components > 1:
            mean.copy_(torch.linspace(-1, 1, components).unsqueeze(1).expand_as(mean))
