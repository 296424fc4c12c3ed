"""The exact score of a known density as a ScoreSDE, on which to test solvers and likelihoods."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..common.names import choose
from ..processes.base import Process
from ..toy import GaussianMixture
from ..toy.denoised_variance import denoised_variance
from .score_sde import ScoreSDE


class MixtureDenoiser(nn.Module):
    """The `edm` output sin φ·E[x0|x_t] − cos φ·E[ε|x_t] of a Gaussian mixture, from (x_t, t)."""

    def __init__(self, mixture: GaussianMixture, process: Process) -> None:
        super().__init__()
        self.mixture = mixture
        self.process = process

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Return the output at (x_t, t)."""
        alpha = self.process.alpha(t)
        sigma = self.process.sigma(t)
        radius = torch.hypot(alpha, sigma)
        x0, eps = self.mixture.denoise(x, alpha, sigma)
        per_sample = (-1,) + (1,) * (x.ndim - 1)
        sin = (sigma / radius).reshape(per_sample)
        cos = (alpha / radius).reshape(per_sample)
        return sin * x0 - cos * eps


class MixtureWithVariance(MixtureDenoiser):
    """The same, and logit w with w = Var[x0|x_t]/sin²φ of each element, at most 1."""

    def __init__(self, mixture: GaussianMixture, process: Process, isotropic: bool) -> None:
        super().__init__(mixture, process)
        self.isotropic = isotropic

    def forward(self, x: Tensor, t: Tensor, with_variance: bool = False) -> Tensor:
        """Return the output at (x_t, t), or both outputs, stacked."""
        out = super().forward(x, t)
        if not with_variance:
            return out
        alpha = self.process.alpha(t)
        sigma = self.process.sigma(t)
        variance = denoised_variance(self.mixture, x, alpha, sigma)
        if self.isotropic:
            variance = variance.flatten(1).mean(1).reshape(-1, *(1,) * (x.ndim - 1))
        sin2 = (sigma / torch.hypot(alpha, sigma)).square().double()
        share = variance.expand(x.shape) / sin2.reshape(-1, *(1,) * (x.ndim - 1))
        return torch.stack([out, torch.logit(share, eps=1e-7).to(out)])


VARIANCES = ("isotropic", "elementwise")


def oracle(mixture: GaussianMixture, process: Process, *, variance: str | None = None) -> ScoreSDE:
    """Return the ScoreSDE whose score is exactly that of a mixture under a process, in any
    dimension.

    It is not standardized: x_t = α·x0 + σ·ε for x0 in the mixture's own units. p(x_t) is
    `mixture.perturb(α(t), σ(t))`; at t = 1 it is the prior to hand to `log_prob` in a test of the
    solver alone. `.double()` makes it sample in float64.

    Parameters
    ----------
    mixture : GaussianMixture
        Or a toy density that is one: Moons, Rings, EightGaussians, …
    process : Process
    variance : str, optional
        Makes it a model with the exact variance of reverse steps too, as far as that lies between
        β̃ and β (see `LearnedVariance`): "elementwise", from the diagonal of Cov[x0 | x_t], or
        "isotropic", from its mean tr Cov[x0 | x_t]/D.

    Returns
    -------
    ScoreSDE

    Raises
    ------
    TypeError, ValueError
        For a density that is not a mixture, or an unknown variance.

    Examples
    --------
    >>> import scoresde
    >>> mixture = scoresde.toy.EightGaussians()
    >>> sde = oracle(mixture, scoresde.VESDE())
    >>> x = mixture.sample(3)
    >>> torch.allclose(sde.score(x, 0.0), mixture.perturb(1.0, 0.01).score(x), rtol=1e-3)
    True
    """
    if not isinstance(mixture, GaussianMixture):
        raise TypeError(
            f"the exact score is known for Gaussian mixtures, got {type(mixture).__name__}"
        )
    net = MixtureDenoiser(mixture, process)
    if variance is not None:
        choose("variance", variance, VARIANCES)
        net = MixtureWithVariance(mixture, process, variance == "isotropic")
    return ScoreSDE(
        process,
        net,
        shape=tuple(mixture.shape),
        input_convention="raw",
    )
