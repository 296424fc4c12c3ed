"""Bits per dimension of discrete data under a continuous model.

With x_j in the bin of v, drawn from q(x|v) by a `scoresde.dequantize.Dequantization`, and any model density p,

    log P(v) = log ∫ p(x) dx over the bin ≥ E log (1/k)·Σ_j p(x_j)/q(x_j|v) ≥ E[log p(x) − log q(x|v)]

(Theis et al. 2016; Burda et al. 2016). Bits per dimension are that over −D·ln 2.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .checks import affordable, check_generator, said, whole
from .dequantize import Dequantization
from .exact import likelihood
from .inputs import as_floats
from .ranks import together
from .sde import ScoreSDE, matched, require_sde


@dataclass(frozen=True)
class Bits:
    """What `bits_per_dim` returns: all but `nfe` in bits per dimension.

    Attributes
    ----------
    bits : Tensor, shape (B,)
        Bits per dimension of each sample: an upper bound on −log₂ P(v)/D of the model, up to the two errors below.
    stderr : Tensor, shape (B,)
        Standard error of each: that of an estimated trace (NaN for probes=1), and for several draws that of their mean (a single
        draw does not tell how much others would differ: `mean_stderr` has it).
    solver_error : Tensor, shape (B,)
        Estimated error of the solve, as `Likelihood` has it.
    prior_gap : Tensor, shape (B,)
        How far the bits may move with the model's own p(z_1) for the prior, as `Likelihood` has it.
    nfe : Tensor of int, shape (B,)
        Network evaluations of each sample, over all its draws.

    Examples
    --------
    >>> zero = torch.zeros(2)
    >>> bits = Bits(torch.tensor([1.0, 3.0]), zero, zero, zero, torch.tensor([50, 60]))
    >>> bits.mean, bits.mean_stderr
    (2.0, 1.0)
    """

    bits: Tensor
    stderr: Tensor
    solver_error: Tensor
    prior_gap: Tensor
    nfe: Tensor

    @property
    def mean(self) -> float:
        """Mean over the samples."""
        return float(self.bits.double().mean())

    @property
    def mean_stderr(self) -> float:
        """Standard error of the mean as an estimate over all data: samples, dequantization and trace, all in their spread.

        NaN for one sample.
        """
        n = len(self.bits)
        return float(self.bits.double().std()) / math.sqrt(n) if n > 1 else math.nan


@together()
def bits_per_dim(
    sde: ScoreSDE,
    values: Any,
    dequantization: Dequantization | None,
    *,
    draws: int = 1,
    generator: torch.Generator | None = None,
    **how: Any,
) -> Bits:
    """Return bits per dimension of discrete data, an upper bound on −log₂ P(v)/D of the model, by its probability-flow ODE.

    −log (1/k)·Σ_j p(x_j)/q(x_j|v) over D·ln 2: with k = 1 the usual number; it falls to −log₂ P(v)/D as k grows. It is a bound up
    to `solver_error` and `prior_gap` of the result. The model is one of data on the unit scale, as
    `dequantization.dataset(values)` has them; a UserWarning says if values look unlike what it was trained on. An estimated
    trace with k > 1 would count too few bits, since the mean of exp(log p + error) is too large: take the exact one.

    Parameters
    ----------
    sde : ScoreSDE
    values : Tensor or array of integers 0 … L − 1, shape (B, *shape)
        For dequantization=None floating-point data in their own units.
    dequantization : Dequantization or None
        The data's scale and noise: `Uniform(levels)` or `TruncatedNormal(levels, std)` of `scoresde.dequantize`; None for
        continuous data, whose bits −log p(x)/(D·ln 2) depend on their units and may be negative.
    draws : int
        k, of the importance-weighted bound. More than one want noise that reaches all of the bin: Uniform, or a std of at
        least 0.25. Narrower noise than the model's own density in the bin hardly ever draws the points that weigh most, and
        `stderr` does not know of them.
    generator : torch.Generator, optional
        The randomness, of noise and of probes: that of sample i does not depend on its mates.
    **how
        For `likelihood`: solver=, trace=, rtol=, …

    Returns
    -------
    Bits

    Raises
    ------
    TypeError, ValueError
        For values that are no integers 0 … L − 1 or not of the model's shape, or other bad arguments.
    SolverError
        As `likelihood`.

    References
    ----------
    Theis et al., ICLR 2016. Burda et al., Importance weighted autoencoders, ICLR 2016, eq. 8. Song et al., ICLR 2021, sec. 4.3.

    Examples
    --------
    >>> sde = scoresde.oracle(scoresde.toy.GaussianMixture([[0.5, 0.5]], stds=0.2), scoresde.VPSDE())
    >>> scoresde.bits_per_dim(sde, torch.tensor([[128, 128]]), scoresde.dequantize.Uniform(256)).bits  # log2(256·0.2·√2π)
    tensor([7.0...])
    """
    if isinstance(sde, Tensor):
        raise TypeError(
            "bits_per_dim takes a model and finds log p itself, got a Tensor; for a log p found elsewhere there is "
            "scoresde.dequantize.Uniform(256).bits(log_prob, log_q, dim)"
        )
    sde, values = matched(require_sde(sde, "bits_per_dim"), values)
    draws = whole("draws", draws)
    check_generator(generator)
    if dequantization is None:
        if draws > 1:
            raise ValueError(f"draws={draws} are of the noise in a bin, and continuous data (dequantization=None) have none")
        x = as_floats(values, sde.shape, "values")
        log_q = x.new_zeros(len(x))
    elif isinstance(dequantization, Dequantization):
        v = dequantization._accept(values)
        if tuple(v.shape[1:]) != sde.shape:
            raise ValueError(f"values has shape {tuple(v.shape)}, wanted ({', '.join(map(str, ('batch', *sde.shape)))})")
        sde.rows(0, len(v), len(v))
        affordable(f"draws={draws} of {len(v)} values", 4.0 * v.numel() * draws, device=sde.scale.device)
        # All draws in one solve; those of a sample side by side, so that its random numbers are its own.
        x, log_q = dequantization.noisy(v.repeat_interleave(draws, 0), generator)
        sde = sde.holding({k: c if len(c) == 1 else c.repeat_interleave(draws, 0) for k, c in sde.condition.items()})
        _compare(sde, x, dequantization)
    else:
        raise TypeError(f"dequantization is an object such as Uniform(256), or None, got {said(dequantization)}")
    found = likelihood(sde, x, generator=generator, **how)

    def per_draw(column: Tensor) -> Tensor:
        return column.reshape(-1, draws)

    log_w = per_draw(found.log_prob - log_q.to(found.log_prob))
    share = log_w.softmax(1)  # of each draw in the mean of exp(log w), through which its errors come in
    stderr = (share * per_draw(found.stderr)).square().sum(1).sqrt()
    if draws > 1:
        stderr = torch.hypot(stderr, (draws * share - 1).square().sum(1).div(draws * (draws - 1)).sqrt())
    nats = sde.dim * math.log(2)
    return Bits(
        (math.log(draws) - log_w.logsumexp(1)) / nats,
        stderr / nats,
        (share * per_draw(found.solver_error)).sum(1) / nats,
        (share * per_draw(found.prior_gap)).sum(1) / nats,
        per_draw(found.nfe).sum(1),
    )


def _compare(sde: ScoreSDE, x: Tensor, dequantization: Dequantization) -> None:
    """Warn if x is far from what the model was fitted to: another number of levels, or another scale such as 2x − 1."""
    z = sde.from_data(x.to(sde.scale)).reshape(
        len(x), int((sde.scale != 0).sum()), -1
    )  # features or channels, as `fit` scales them
    if not bool(sde.measured) or z[:, 0].numel() < 32:
        return
    mean, std = float(z.mean()), math.sqrt(float(z.var((0, 2)).mean()))
    shift, factor = (0.7, 1.7) if len(x) >= 32 else (3.0, 10.0)  # few samples may well be all dark, or all alike
    if not (abs(mean) < shift and 1 / factor < std < factor):
        warnings.warn(
            f"under {dequantization} these values have mean {mean:.2g} and standard deviation {std:.2g} where the model's data "
            "have 0 and 1; was it trained on these levels and on the unit scale, as dequantization.dataset(values) has them?",
            UserWarning,
            stacklevel=4,  # its caller's caller, beyond the decorator
        )
