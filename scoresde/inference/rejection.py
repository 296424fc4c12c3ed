"""Draws outside the prior's support: rejected, counted, and told of."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ..common.errors import SolverError
from ..common.progress import part
from ..common.user_warnings import warn

DRAWS = 4096
"""By which the acceptance is estimated for log_prob."""
SEED = 2_718_281
"""Of these draws."""
QUICK = {"rtol": 1e-3, "atol": 1e-3}
"""Tolerances of the solves for it, whose errors are small beside the binomial one."""
AT_ONCE = 2**17
"""Most draws of a round beyond one for each sample."""
MOST_DRAWS = 500
"""For each sample wanted, and ten thousand more, before sampling gives up."""
SCARCE = 0.05
"""Acceptance below which there is a warning."""
CACHED = 10_000
"""Observations whose acceptance is remembered."""


class Draws(Protocol):
    """What rejection needs of a posterior."""

    sde: Any
    _prior: Any
    _shares: dict[bytes, float]

    def _draw(
        self,
        rows: Tensor,
        index: Tensor,
        generator: torch.Generator | None,
        how: dict[str, Any],
    ) -> Tensor:
        """Draws (N, D), one for each index of a row."""


@dataclass(frozen=True)
class Acceptance:
    """The share of a model's draws inside the prior's support, for each observation.

    Attributes
    ----------
    share : Tensor, shape () or (B,)
    stderr : Tensor, shape () or (B,)
        Standard error of the share, with a count of ½ added to the draws inside and outside.
    n : int
        Draws.

    Examples
    --------
    See `Posterior.acceptance`.
    """

    share: Tensor
    stderr: Tensor
    n: int

    @classmethod
    def of(cls, share: Tensor, n: int) -> Acceptance:
        """With the error of a binomial share."""
        smooth = (share * n + 0.5) / (n + 1)
        return cls(share, torch.sqrt(smooth * (1 - smooth) / n), n)


def share_inside(
    posterior: Draws,
    row: Tensor,
    n: int = DRAWS,
) -> float:
    """The share of n draws at one observation inside the support, from a seed of its own."""
    generator = torch.Generator(device=row.device).manual_seed(SEED)
    theta = posterior._draw(row, torch.zeros(n, dtype=torch.long), generator, dict(QUICK))
    return float(posterior._prior.contains(theta).double().mean())


def remembered_share(posterior: Draws, row: Tensor) -> float:
    """The acceptance at one observation, remembered; raise if it is 0."""
    shares = posterior._shares
    key = row.cpu().double().numpy().tobytes()
    if key not in shares:
        if len(shares) >= CACHED:
            shares.clear()
        shares[key] = share_inside(posterior, row)
    if not shares[key]:
        raise ValueError(
            "no draw of the model at this x lies in the prior's support, so that log_prob "
            "can't be normalized there; try normalized=False"
        )
    return shares[key]


def accepted(
    posterior: Draws,
    rows: Tensor,
    index: Tensor,
    generator: torch.Generator | None,
    how: dict[str, Any],
) -> Tensor:
    """Draws (N, D) inside the support, one for each index; raise if they are too rare."""
    out: Tensor | None = None
    waiting = torch.arange(len(index))
    budget = MOST_DRAWS * len(index) + 10_000
    copies = 1
    drawn = kept = 0
    while len(waiting):
        if drawn >= budget:
            raise SolverError(
                f"{kept} of {drawn} draws of the model lie in the prior's support, and "
                f"{len(waiting)} of {len(index)} samples are still outside; the model and the "
                "prior disagree at this x: train on more pairs, or with bounds='transform'"
            )
        chosen = index[waiting].repeat_interleave(copies)
        done_before = len(index) - len(waiting)
        # Some draws will be rejected, so the bar counts nine tenths of them.
        with part(done_before, done_before + 0.9 * len(waiting), len(index)):
            theta = posterior._draw(rows, chosen, generator, how)
        inside = posterior._prior.contains(theta).view(len(waiting), copies)
        out = theta.new_empty(len(index), theta.shape[1]) if out is None else out
        first = inside.int().argmax(1)
        done = inside.any(1)
        picked = theta.view(len(waiting), copies, -1)[done, first[done]]
        here = waiting.to(theta.device)
        out[here[done]] = picked
        drawn += len(theta)
        kept += int(inside.sum())
        share = (float(inside.sum()) + 0.5) / (len(theta) + 1)
        waiting = waiting[~done.to(waiting.device)]
        room = max(1, AT_ONCE // max(1, len(waiting)))
        copies = min(math.ceil(2 / share), room)
    if kept < SCARCE * drawn:
        warn(
            f"only {kept} of {drawn} draws of the model lie in the prior's support: the model and "
            "the prior disagree at this x"
        )
    assert out is not None
    return out
