"""Training of a denoiser with the variance of its reverse steps: the hybrid loss of improved DDPM.

A grid with T steps, equally long in λ = log(α/σ), has h = β/β̃ − 1 = (e^{2Δ} − 1)·cos²φ for a step
that starts at φ, with Δ = 11/T (see `scoresde.processes.spacings`). With the share w of the
variance and the squared error e² of the arc velocity, each element costs in nats

    KL = ½·[log(1 + h·w) + h·(e² − w)/(1 + h·w)],

and T·E KL is the bound of all T steps, if levels are uniform in λ; other distributions of levels
weigh them by their density. The least KL at each state has w = E[e² | z] = Var[x0 | z]/sin²φ,
whatever the weights and T. The gradient of e² is stopped, so that the bound trains w alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..backbones.learnedvariance import HEAD
from ..common.checks import real_number, whole_number
from ..model.network import misshapen
from ..model.score_sde import ScoreSDE
from ..processes.spacings import LAMBDA_RANGE
from .denoising import Denoising
from .objectives import OBJECTIVES, Condition, expand_rows
from .regression import AdaptiveExamples, Examples, denoising_examples


@dataclass(frozen=True)
class HybridExamples:
    """Rows of a denoising regression, and what the variance of their steps is trained with."""

    inner: Examples | AdaptiveExamples
    growth: Tensor  # (B, 1), h
    factor: Tensor  # (B, 1), 1/det², by which e² is the squared error of the output

    def __getitem__(self, rows: slice) -> HybridExamples:
        """Return some of the rows."""
        return HybridExamples(self.inner[rows], self.growth[rows], self.factor[rows])


@OBJECTIVES.register("hybrid")
@dataclass
class Hybrid(Denoising):
    """Learn to denoise, and the variance of reverse steps: the default with variance="learned".

    Minimizes the loss of `Denoising` plus `vlb_weight`·T·E KL/D, the variational bound of T
    reverse steps in nats a dimension, with the gradient stopped at the mean. Levels are drawn as
    for denoising. The model also has a score.

    Parameters
    ----------
    weight, noise
        As for `Denoising`.
    vlb_weight : float
        Of the bound; at most a few hundredths leaves the denoiser as it is without, where both
        share layers.
    vlb_steps : int
        T. It says which errors of the variance count, not which grids it is for: one variance
        serves steps of every length.

    Raises
    ------
    TypeError, ValueError
        For names that there are not, and numbers that are not positive.

    References
    ----------
    Nichol & Dhariwal, Improved denoising diffusion probabilistic models, ICML 2021, eq. 16.

    Examples
    --------
    >>> sde = scoresde.build("vp", "mlp", shape=(2,), width=8, variance="learned")
    >>> scoresde.fit(sde, scoresde.toy.Moons(), objective=scoresde.Hybrid(vlb_steps=50), steps=5)
    History(steps=5, loss=..., seconds=...)
    >>> x = scoresde.sample(sde, 3, solver="ancestral", steps=20)
    """

    vlb_weight: float = 0.01
    vlb_steps: int = 100
    learns_variance: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        real_number("vlb_weight", self.vlb_weight, 0, math.inf, hint="try 0.01")
        whole_number("vlb_steps", self.vlb_steps)

    def check(self, sde: ScoreSDE) -> None:  # noqa: D102
        if not sde.interface.has_variance:
            raise ValueError(
                f"a variance is learnt by a second output, which {sde.interface.name} does not "
                "have; try build(..., variance='learned')"
            )

    def prepared(self, sde: ScoreSDE, *, paired: bool, joined: bool) -> Denoising:  # noqa: D102
        made = super().prepared(sde, paired=paired, joined=joined)
        if made.kind != "score":
            raise ValueError(
                "a learned variance is that of the reverse SDE, which a model of coupled pairs or "
                "from a source does not have; build it without variance="
            )
        return made

    def describe(self) -> dict[str, Any]:  # noqa: D102
        own: dict[str, Any] = {"vlb_weight": self.vlb_weight, "vlb_steps": self.vlb_steps}
        if type(self) is Hybrid:
            own["objective"] = "hybrid"
        return {**super().describe(), **own}

    def examples(  # noqa: D102
        self, sde: ScoreSDE, z0: Tensor, eps: Tensor, q: Tensor, condition: Condition
    ) -> Any:
        adaptive = self._adaptive
        if adaptive is None:
            phi = self.levels(sde.process, q)
        else:
            phi, ratio, bins = adaptive(sde.process, q)
        rows = denoising_examples(sde, z0, eps, phi, self.weight, condition)
        inner: Examples | AdaptiveExamples = rows
        if adaptive is not None:
            inner = AdaptiveExamples(rows, ratio.to(z0), bins)
        step = (LAMBDA_RANGE[1] - LAMBDA_RANGE[0]) / self.vlb_steps
        growth = math.expm1(2 * step) * torch.cos(phi).square()
        det = sde.coefficients(phi).to(z0).det
        factor = torch.as_tensor(det, dtype=z0.dtype, device=z0.device) ** -2
        return HybridExamples(inner, growth.to(z0).unsqueeze(1), factor.expand(len(z0), 1))

    def loss(  # noqa: D102
        self,
        net: Callable[..., Any],
        sde: ScoreSDE,
        examples: Any,
        progress: float,
        generator: Callable[[], torch.Generator],
    ) -> Tensor:
        inner = examples.inner
        rows = inner.inner if isinstance(inner, AdaptiveExamples) else inner
        out, logit = _both_outputs(net, rows)
        denoising = super().loss(lambda *_, **__: out, sde, inner, progress, generator)
        square = (out.detach() - rows.target).square() * examples.factor
        bound = step_costs(logit, square, examples.growth).mean()
        return denoising + self.vlb_weight * self.vlb_steps * bound


def _both_outputs(net: Callable[..., Any], rows: Examples) -> Tensor:
    """A network's output and logit w for examples, (2, B, n), in the target's dtype."""
    x = rows.x
    both = net(x, rows.t, **expand_rows(rows.condition, len(x)), **{HEAD: True})
    if not isinstance(both, Tensor) or both.shape not in ((2, *x.shape), (2, *rows.target.shape)):
        raise ValueError(misshapen(x, both, with_variance=True))
    return both.reshape(2, *rows.target.shape).to(rows.target.dtype)


def step_costs(logit: Tensor, square: Tensor, growth: Tensor) -> Tensor:
    """KL of each element in nats, (B, n), from logit w, e² and h."""
    share = growth * logit.sigmoid()
    return 0.5 * (torch.log1p(share) + (growth * square - share) / (1 + share))
