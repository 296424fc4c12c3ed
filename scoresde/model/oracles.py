"""The exact score of a known density as a ScoreSDE, on which to test solvers and likelihoods."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..processes.base import Process
from ..toy import GaussianMixture
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


def oracle(mixture: GaussianMixture, process: Process) -> ScoreSDE:
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

    Returns
    -------
    ScoreSDE

    Raises
    ------
    TypeError
        For a density that is not a mixture.

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
    return ScoreSDE(
        process,
        MixtureDenoiser(mixture, process),
        shape=tuple(mixture.shape),
        input_convention="raw",
    )
