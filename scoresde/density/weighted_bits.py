"""Bits per dimension of integers from noisy draws in their bins, importance-weighted.

With x_j in the bin of v, drawn from q(x|v), and any model density p,

    log P(v) = log ∫ p(x) dx over the bin ≥ E log (1/k)·Σ_j p(x_j)/q(x_j|v)
             ≥ E[log p(x) − log q(x|v)]

(Theis et al. 2016; Burda et al. 2016). Bits per dimension are that over −D·ln 2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ..common.checks import check_budget
from ..common.result_tables import Grid, ShownAsTable, by_sample, counted
from ..common.sharding import together
from ..common.user_warnings import warn
from ..model.latent import Latent
from ..model.protocol import Model
from ..model.require import matched
from .exact import likelihood
from .latent import one_draw

SHIFT_FEW = 3.0
SHIFT_MANY = 0.7
"""How far the mean of standardized values may lie from 0, in standard deviations of the data: few
samples may well be all dark."""

FACTOR_FEW = 10.0
FACTOR_MANY = 1.7
"""By which factor the standard deviation of standardized values may differ from 1: few samples
may well be all alike."""

MANY = 32
"""Samples, or elements of a channel, that are no longer few."""


class BinNoise(Protocol):
    """What this module needs of a `scoresde.dequantize.Dequantization`."""

    def _accept(self, values: Any) -> Tensor:
        """The integers, checked."""

    def noisy(
        self, values: Any, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """x and log q(x|v) (B,) of integers v."""


@dataclass(frozen=True, repr=False)
class Bits(ShownAsTable):
    """What `bits_per_dim` returns: all but `nfe` in bits per dimension.

    Attributes
    ----------
    bits : Tensor, shape (B,)
        Bits per dimension of each sample: an upper bound on −log₂ P(v)/D of the model, up to the
        two errors below.
    stderr : Tensor, shape (B,)
        Standard error of each: that of an estimated trace (NaN for probes=1), and for several
        draws that of their mean. A single draw does not tell how much others would differ:
        `mean_stderr` does.
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
    >>> bits
    Bits of 2 samples, in bits per dimension
           bits  ± trace  ± solver  ± prior  nfe
    0         1        0         0        0   50
    1         3        0         0        0   60
    mean  2 ± 1        0         0        0   55
    """

    bits: Tensor
    stderr: Tensor
    solver_error: Tensor
    prior_gap: Tensor
    nfe: Tensor

    def _grid(self) -> Grid:
        title = f"Bits of {counted(len(self.bits), 'sample')}, in bits per dimension"
        columns = {
            "bits": self.bits,
            "± trace": self.stderr,
            "± solver": self.solver_error,
            "± prior": self.prior_gap,
            "nfe": self.nfe,
        }
        return by_sample(title, columns)

    @property
    def mean(self) -> float:
        """Mean over the samples."""
        return float(self.bits.double().mean())

    @property
    def mean_stderr(self) -> float:
        """Standard error of the mean as an estimate over all data; NaN for one sample.

        The spread over the samples holds that of dequantization and trace as well.
        """
        n = len(self.bits)
        return float(self.bits.double().std()) / math.sqrt(n) if n > 1 else math.nan


@together()
def bits_of_integers(
    sde: Model,
    values: Any,
    noise: BinNoise,
    draws: int,
    generator: torch.Generator | None,
    how: dict[str, Any],
) -> Bits:
    """The importance-weighted bound of integers under a model, with noise in their bins."""
    sde, values = matched(sde, values)
    v = noise._accept(values)
    if tuple(v.shape[1:]) != sde.shape:
        wanted = ", ".join(map(str, ("batch", *sde.shape)))
        raise ValueError(f"values has shape {tuple(v.shape)}, wanted ({wanted})")
    sde.slice_conditions(0, len(v), len(v))
    nbytes = 4.0 * v.numel() * draws
    check_budget(f"draws={draws} of {len(v)} values", nbytes, device=sde.scale.device)
    # All draws go into one solve. Those of a sample lie side by side, so that its random numbers
    # do not depend on the other samples.
    x, log_q = noise.noisy(v.repeat_interleave(draws, 0), generator)
    rows = torch.arange(len(v), device="cpu").repeat_interleave(draws)
    sde = sde.select_conditions(rows)
    _warn_of_other_scale(sde, x, noise)
    return weighted_bits(sde, x, log_q, draws, generator, how)


def weighted_bits(
    sde: Model,
    x: Tensor,
    log_q: Tensor,
    draws: int,
    generator: torch.Generator | None,
    how: dict[str, Any],
) -> Bits:
    """−log (1/k)·Σ_j p(x_j)/q_j over D·ln 2, for k draws x_j of each sample, side by side."""
    found: Any
    if isinstance(sde, Latent):  # p(x|z)·p(z)/q(z|x), one z per x
        found = one_draw(sde, x, generator, how)
        dim = sde.stage.dim
    else:
        found = likelihood(sde, x, generator=generator, **how)
        dim = sde.dim

    def per_draw(column: Tensor) -> Tensor:
        return column.reshape(-1, draws)

    log_w = per_draw(found.log_prob - log_q.to(found.log_prob))
    # The share of each draw in the mean of exp(log w), and of its error in that of the mean.
    share = log_w.softmax(1)
    stderr = (share * per_draw(found.stderr)).square().sum(1).sqrt()
    if draws > 1:
        spread = (draws * share - 1).square().sum(1).div(draws * (draws - 1)).sqrt()
        stderr = torch.hypot(stderr, spread)
    nats = dim * math.log(2)
    return Bits(
        (math.log(draws) - log_w.logsumexp(1)) / nats,
        stderr / nats,
        (share * per_draw(found.solver_error)).sum(1) / nats,
        (share * per_draw(found.prior_gap)).sum(1) / nats,
        per_draw(found.nfe).sum(1),
    )


def _warn_of_other_scale(sde: Model, x: Tensor, noise: BinNoise) -> None:
    """Warn if x is far from the training data: of other levels, or on a scale such as 2x − 1."""
    if not all(bool(trained.measured) for trained in sde.trained()):
        return
    # Features or channels, as `fit` standardizes them.
    units: Any = sde.stage if isinstance(sde, Latent) else sde
    z = units.from_data(x.to(units.scale)).reshape(len(x), int((units.scale != 0).sum()), -1)
    if z[:, 0].numel() < MANY:
        return
    mean = float(z.mean())
    std = math.sqrt(float(z.var((0, 2)).mean()))
    many = len(x) >= MANY
    shift = SHIFT_MANY if many else SHIFT_FEW
    factor = FACTOR_MANY if many else FACTOR_FEW
    if abs(mean) < shift and 1 / factor < std < factor:
        return
    warn(
        f"under {noise} these values have mean {mean:.2g} and standard deviation {std:.2g} where "
        "the model's data have 0 and 1; was it trained on these levels and on the unit scale, as "
        "dequantization.dataset(values) has them?",
        UserWarning,
        # The user's line: beyond `bits_of_integers`, its caller, and their decorators.
    )
