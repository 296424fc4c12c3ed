"""The exact score of a known density, as a ScoreSDE: the test bench of every solver and likelihood."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .process import Process
from .sde import ScoreSDE
from .toy import GaussianMixture


class MixtureDenoiser(nn.Module):
    """The `edm` output sin φ·E[x0|x_t] − cos φ·E[ε|x_t] of a Gaussian mixture in closed form; sees raw (x_t, t).

    Parameters
    ----------
    mixture : GaussianMixture
    process : Process

    Examples
    --------
    >>> net = MixtureDenoiser(GaussianMixture(torch.zeros(1, 2), 1.0), Process.__subclasses__()[-1]())
    >>> net(torch.ones(1, 2), torch.tensor([0.5])).abs() < 1e-6
    tensor([[True, True]])
    """

    def __init__(self, mixture: GaussianMixture, process: Process) -> None:
        super().__init__()
        self.mixture, self.process = mixture, process

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Return the output at (x_t, t).

        Parameters
        ----------
        x : Tensor, shape (B, *shape)
        t : Tensor, shape (B,)

        Returns
        -------
        Tensor, shape (B, *shape)

        Examples
        --------
        See `MixtureDenoiser`.
        """
        alpha, sigma = self.process.alpha(t), self.process.sigma(t)
        radius = torch.hypot(alpha, sigma)
        x0, eps = self.mixture.denoise(x, alpha, sigma)
        sin, cos = ((c / radius).reshape(-1, *(1,) * (x.ndim - 1)) for c in (sigma, alpha))
        return sin * x0 - cos * eps


def oracle(mixture: GaussianMixture, process: Process) -> ScoreSDE:
    """Return the ScoreSDE whose score is exactly that of a mixture under a process, in any dimension.

    It is not standardized: x_t = α·x0 + σ·ε for x0 in the mixture's own units. p(x_t) is `mixture.perturb(α(t), σ(t))`, which
    at t = 1 is the prior to hand to `log_prob` where only the solver is on trial. `.double()` makes it sample in float64.

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
        raise TypeError(f"the exact score is known for Gaussian mixtures, got {type(mixture).__name__}")
    return ScoreSDE(process, MixtureDenoiser(mixture, process), shape=tuple(mixture.shape), sees="raw")
