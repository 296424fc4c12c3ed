"""Tasks of the benchmark of simulation-based inference, Lueckmann et al. 2021 (AISTATS).

Priors and simulators are written anew from the paper's appendix T and its code, in a few lines
each, and vectorized. Observations 1 to 10 and 10,000 draws of each reference posterior come from
the files of the wheel: `pip install --no-deps sbibm==1.1.0`. The package is not imported.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from real_data import folder
from torch import Tensor
from torch.distributions import (
    Distribution,
    Independent,
    LogNormal,
    MultivariateNormal,
    Uniform,
)

SPREAD = math.sqrt(0.1)  # of simulator and prior in both linear tasks, whose variances are 0.1
PEOPLE, TESTED = 1e6, 1000  # of `sir`
SIR_STEPS_A_DAY = 4


@dataclass(frozen=True)
class Task:
    """A prior, a simulator theta (n, D) -> x (n, E), and where its files are."""

    name: str
    prior: Distribution
    simulate: Callable[[Tensor], Tensor]

    def file(self, observation: int, name: str) -> Tensor:
        """Read a table of an observation."""
        import pandas as pd

        path = folder("sbibm") / "tasks" / self.name / "files" / f"num_observation_{observation}"
        return torch.as_tensor(pd.read_csv(path / name).to_numpy(), dtype=torch.float32)

    def observation(self, number: int) -> Tensor:
        """Return x, shape (1, E)."""
        return self.file(number, "observation.csv")

    def reference(self, number: int) -> Tensor:
        """Return 10,000 draws of the true posterior."""
        return self.file(number, "reference_posterior_samples.csv.bz2")

    def inside(self, theta: Tensor) -> Tensor:
        """Tell which draws the prior allows."""
        allowed: Tensor = self.prior.support.check(theta)  # type: ignore[union-attr]
        return allowed & theta.isfinite().all(-1)


def box(dim: int, bound: float) -> Distribution:
    """Return the uniform law on [−bound, bound]^D."""
    corner = torch.full((dim,), bound)
    return Independent(Uniform(-corner, corner, validate_args=False), 1, validate_args=False)


def two_moons(theta: Tensor) -> Tensor:
    """A crescent, moved by |θ_1 + θ_2| and θ_2 − θ_1."""
    angle = math.pi * (torch.rand(len(theta)) - 0.5)
    radius = 0.1 + 0.01 * torch.randn(len(theta))
    first = radius * angle.cos() + 0.25 - (theta[:, 0] + theta[:, 1]).abs() / math.sqrt(2)
    second = radius * angle.sin() + (theta[:, 1] - theta[:, 0]) / math.sqrt(2)
    return torch.stack([first, second], 1)


def gaussian_mixture(theta: Tensor) -> Tensor:
    """One of two Gaussians about θ, of spread 1 and 0.1."""
    spread = torch.where(torch.rand(len(theta), 1) < 0.5, 1.0, 0.1)
    return theta + spread * torch.randn_like(theta)


def gaussian_linear(theta: Tensor) -> Tensor:
    """A Gaussian about θ."""
    return theta + SPREAD * torch.randn_like(theta)


def slcp(theta: Tensor) -> Tensor:
    """Four draws of a Gaussian in 2-D whose mean, spreads and correlation are θ."""
    noise = torch.randn(len(theta), 4, 2)
    first, second = theta[:, 2].square(), theta[:, 3].square()
    correlation = theta[:, 4].tanh()
    covariance = torch.stack(
        [
            torch.stack([first.square() + 1e-6, correlation * first * second], 1),
            torch.stack([correlation * first * second, second.square() + 1e-6], 1),
        ],
        1,
    )
    factor = torch.linalg.cholesky(covariance.double()).float()
    drawn = theta[:, None, :2] + torch.einsum("nij,nkj->nki", factor, noise)
    return drawn.flatten(1)


def bernoulli_design() -> Tensor:
    """Return the inputs of the linear model, shape (100, 10): a 1, and nine delays of a noise."""
    path = folder("sbibm") / "tasks" / "bernoulli_glm" / "files" / "design_matrix.pt"
    design: Tensor = torch.load(path, weights_only=True)
    return design


def bernoulli_glm(theta: Tensor) -> Tensor:
    """Spikes of a logistic linear model, summed against its inputs: a sufficient statistic."""
    design = bernoulli_design()
    spikes = torch.bernoulli((theta @ design.T).sigmoid())
    return spikes @ design


def bernoulli_prior() -> Distribution:
    """Return a Gaussian: a wide offset, and a filter that is smooth in second differences."""
    size = 9
    differences = torch.eye(size) - torch.diag(torch.ones(size - 1), -1)
    smooth = differences @ differences + torch.diag(torch.arange(size) / size).sqrt()
    precision = torch.zeros(size + 1, size + 1)
    precision[0, 0] = 0.5
    precision[1:, 1:] = smooth.T @ smooth
    return MultivariateNormal(torch.zeros(size + 1), precision_matrix=precision)


def sir(theta: Tensor) -> Tensor:
    """Infected among 1,000 tested every 17 days of an epidemic of contact and recovery rates θ."""
    contact, recovery = theta.double().unbind(1)
    healthy = torch.full_like(contact, (PEOPLE - 1) / PEOPLE)
    state = torch.stack([healthy, torch.full_like(contact, 1 / PEOPLE)])
    size = 1 / SIR_STEPS_A_DAY

    def slope(state: Tensor) -> Tensor:
        caught = contact * state[0] * state[1]
        return torch.stack([-caught, caught - recovery * state[1]])

    found = []
    for day in range(154):
        if day % 17 == 0:
            found.append(state[1])
        for _ in range(SIR_STEPS_A_DAY):
            k1 = slope(state)
            k2 = slope(state + 0.5 * size * k1)
            k3 = slope(state + 0.5 * size * k2)
            k4 = slope(state + size * k3)
            state = state + size / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    share = torch.stack(found, 1).clamp(0, 1)
    return torch.binomial(torch.full_like(share, TESTED), share).float()


def sir_prior() -> Distribution:
    """Return the law of positive rates, about 0.4 and 0.125 a day."""
    location = torch.tensor([math.log(0.4), math.log(0.125)])
    return Independent(LogNormal(location, torch.tensor([0.5, 0.2])), 1, validate_args=False)


TASKS: dict[str, Callable[[], Task]] = {
    "two_moons": lambda: Task("two_moons", box(2, 1.0), two_moons),
    "gaussian_mixture": lambda: Task("gaussian_mixture", box(2, 10.0), gaussian_mixture),
    "slcp": lambda: Task("slcp", box(5, 3.0), slcp),
    "gaussian_linear_uniform": lambda: Task(
        "gaussian_linear_uniform", box(10, 1.0), gaussian_linear
    ),
    "gaussian_linear": lambda: Task(
        "gaussian_linear",
        MultivariateNormal(torch.zeros(10), 0.1 * torch.eye(10)),
        gaussian_linear,
    ),
    "bernoulli_glm": lambda: Task("bernoulli_glm", bernoulli_prior(), bernoulli_glm),
    "sir": lambda: Task("sir", sir_prior(), sir),
}
