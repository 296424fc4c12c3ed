"""p(theta | x_1, …, x_k): one set of parameters, and several observations made with it.

For observations that are independent given theta,

    p(theta | x_1 … x_k) ∝ p(theta)^(1 − k) · Π p(theta | x_i),

and the model has each factor as an exact density. So the product is known up to a constant at any
point, and importance sampling draws from it: no score is composed, and nothing is approximated but
the integral. Far out in the tails of p(theta | x_i) the density of a model is little more than a
guess, and p(theta)^(1 − k) multiplies its error. So the product is 0 where some p(theta | x_i) is
below its floor, four nats below the least of 100 draws.

Observations come in groups of 1, 1, 2, 4, …, each tempered where weights would degenerate. A
mixture of t distributions fitted to the weighted points proposes new ones, whose weights begin
anew, so that the last weights are those of plain importance sampling. Their mean is

    Z = p(x_1 … x_k)/Π p(x_i).

Where observations were made with one theta, the mean of 1/Z is 1, and Z < 1/1000 has at most the
chance 1/1000. So observations with such a Z are said to contradict one another.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..common.checks import check_generator
from ..common.errors import SolverError
from ..common.random import draw_seed
from ..common.seeds import takes_seed
from ..common.user_warnings import warn
from ..density.exact import log_prob
from .mixtures import Mixture, fitted
from .observations import sample_size
from .rejection import remembered_share
from .support import Support

KEPT_SHARE = 0.5
"""Share of the effective size that a step of tempering leaves."""
GOOD_SHARE = 0.5
"""Effective share at the end below which the mixture is fitted again."""
MORE_ROUNDS = 3
"""Fits at the end, at most."""
MOST_ROUNDS = 40
"""Steps of tempering in one group of observations."""
FLOOR_DRAWS = 100
"""Draws of each p(theta | x_i), from whose least density its floor is found."""
FLOOR_MARGIN = 4.0
"""Nats from that least density down to the floor; 1e-4 or less of a Gaussian lies below it."""
SCARCE = 0.05
"""Effective share below which there is a warning."""
LEAST_AGREEMENT = 1e-3
"""Z below which observations contradict one another."""
SOLVE_STEPS = 24
"""Of each density. Its error is nearly the same at all theta, and cancels from the weights."""

NO_SOLVER = {"batch_size", "probes", "trace"}
"""Options with which the steps are still ours."""


class IIDPosterior:
    """p(theta | x_1, …, x_k) of k observations made with the same theta.

    A population of weighted points, exact for the model in the limit of many `draws`, with one
    exception: parameters that some observation all but excludes, the outermost 1e-4 or so of
    p(theta | x_i), have density 0. Errors of the model add up over the factors. They are largest
    where x says little about a parameter, as each factor must then equal the prior.

    Attributes
    ----------
    theta : Tensor, shape (draws, D)
        Parameters, all inside the prior's support.
    weights : Tensor, shape (draws,), float64
        Their weights, which sum to 1: a mean over the posterior is `weights @ f(theta)`.
    ess : float
        Effective number of points, 1/Σw².
    stderr : float
        Standard error of the constant in `log_prob`, in nats.

    References
    ----------
    Geffner et al., Compositional score modeling for simulation-based inference, ICML 2023 (the
    product). Cappé et al., Population Monte Carlo, 2004. Chopin, A sequential particle filter
    method for static models, 2002.

    Examples
    --------
    See `Posterior.iid`.
    """

    def __init__(
        self,
        product: Product,
        draws: int,
        generator: torch.Generator | None,
    ) -> None:
        self._product = product
        chance = torch.Generator().manual_seed(draw_seed(generator))
        u, log_weights = populated(product, draws, chance)
        self.weights = log_weights.softmax(0)
        # Points without weight may lie outside the support.
        u = torch.where((self.weights > 0).unsqueeze(1), u, u[self.weights.argmax()])
        self.theta = product.theta(u)
        self.ess = float(1 / self.weights.square().sum())
        self._log_mass = float(log_weights.logsumexp(0)) - math.log(draws)
        self.stderr = math.sqrt(max(0.0, 1 / self.ess - 1 / draws))
        least = math.log(LEAST_AGREEMENT)
        if len(product.rows) > 1 and self._log_mass < least:
            agreement = self._log_mass - product.log_share(len(product.rows))
            if agreement < least:
                warn(
                    "the observations contradict one another: a theta for each makes them "
                    f"e^{-agreement:.0f} times as probable as one for all; check that all were "
                    "made with one theta"
                )
        if self.ess < SCARCE * draws:
            warn(
                f"the {draws} points of this posterior have an effective number of {self.ess:.0f}: "
                "its draws repeat a few points; take more draws=, or check that all observations "
                "were made with one theta"
            )

    def __repr__(self) -> str:
        """How many observations, and how good the points are."""
        k = len(self._product.rows)
        return f"IIDPosterior({k} observations, {len(self.theta)} points, ess {self.ess:.0f})"

    @takes_seed
    def sample(
        self,
        sample_shape: Any = (),
        *,
        generator: torch.Generator | None = None,
        seed: int | None = None,
    ) -> Tensor:
        """Draw points by their weights, with replacement.

        Parameters
        ----------
        sample_shape : tuple of int, or int
        generator : torch.Generator, optional
            The only source of randomness when given.
        seed : int, optional
            An integer in place of the generator.

        Returns
        -------
        Tensor, shape (*sample_shape, D)

        Raises
        ------
        TypeError, ValueError
            If sample_shape is no shape.

        Warns
        -----
        UserWarning
            For more draws than points, some of which are then equal.

        Examples
        --------
        See `Posterior.iid`.
        """
        check_generator(generator)
        shape = sample_size(sample_shape, self.theta.shape[1])
        n = math.prod(shape)
        if n > len(self.theta):
            warn(
                f"{n} draws of {len(self.theta)} weighted points repeat some: make the posterior "
                f"with draws={2 * n}, or take `weights`"
            )
        chance = torch.Generator().manual_seed(draw_seed(generator))
        drawn = torch.rand(n, generator=chance, dtype=torch.float64)
        edges = self.weights.cumsum(0)[:-1]
        chosen = torch.bucketize(drawn, edges, right=True)
        return self.theta[chosen.to(self.theta.device)].reshape(*shape, self.theta.shape[1])

    def log_prob(self, theta: Any) -> Tensor:
        """Return log p(theta | x_1, …, x_k), −∞ outside the prior's support.

        Parameters
        ----------
        theta : Tensor or array, shape (…, D)

        Returns
        -------
        Tensor, shape (…), float64
            Nats; the constant errs by `stderr`.

        Raises
        ------
        TypeError, ValueError
            For theta of another shape.

        Examples
        --------
        See `Posterior.iid`.
        """
        theta = self._product.posterior._parameters(theta)
        dim = self.theta.shape[1]
        if not theta.ndim or theta.shape[-1] != dim:
            raise ValueError(f"theta has shape {tuple(theta.shape)}, wanted (…, {dim})")
        if bool(theta.isnan().any()):
            raise ValueError("theta has NaN values")
        flat = theta.reshape(-1, dim).detach().double().cpu()
        value = torch.full(flat.shape[:1], -math.inf, dtype=torch.float64)
        inside = self._product.supports(flat)
        if bool(inside.any()):
            u, slope = self._product.support.forward(flat[inside])
            each = self._product.factors(u, 0, len(self._product.rows))
            found = self._product.joined(each, self._product.log_prior(u))
            value[inside] = found + slope - self._log_mass
        return value.reshape(theta.shape[:-1])


class Product:
    """p(theta)^(1 − k) · Π p(theta | x_i) up to a constant, in coordinates without bounds."""

    def __init__(self, posterior: Any, rows: Tensor, how: dict[str, Any]) -> None:
        self.posterior = posterior
        self.rows = rows
        prior = posterior._prior
        free = torch.full((prior.dim,), math.inf, dtype=torch.float64)
        self.support: Support = Support(-free, free)
        if posterior.coordinates is not None:
            self.support = posterior.coordinates.support
        self.how = how
        if how.keys() <= NO_SOLVER:
            self.how = {**how, "steps": SOLVE_STEPS}
        self.floors = torch.full((len(rows),), -math.inf, dtype=torch.float64)

    def theta(self, u: Tensor) -> Tensor:
        """The parameters of u, in the model's dtype."""
        sde = self.posterior.sde
        return self.support.inverse(u, sde.state_dtype).to(sde.scale.device)

    def supports(self, theta: Tensor) -> Tensor:
        """Whether theta (N, D) is inside."""
        inside: Tensor = self.posterior._prior.contains(theta) & self.support.contains(theta)
        return inside & theta.isfinite().all(1)

    def first(self, n: int, generator: torch.Generator) -> Tensor:
        """Draws of u (n, D) given the first observation."""
        where = torch.zeros(n, dtype=torch.long)
        theta = self.posterior._sampled(self.rows[:1], where, generator, {})
        u, _ = self.support.forward(theta.double().cpu())
        return u

    def log_share(self, count: int) -> float:
        """The log of the shares of the model inside the support at the first observations."""
        if not self.posterior.leaks:
            return 0.0
        rows = torch.split(self.rows[:count], 1)
        return sum(math.log(remembered_share(self.posterior, row)) for row in rows)

    def log_prior(self, u: Tensor) -> Tensor:
        """log p(u) of the prior, (N,); −∞ outside its support."""
        prior = self.posterior._prior
        value: Tensor = prior.log_prob(self.support.inverse(u, torch.float64))
        return value - self.support.log_slope(u)

    def factors(self, u: Tensor, first: int, last: int) -> Tensor:
        """log p(u | x_i) of observations first … last − 1, (N, last − first)."""
        count = last - first
        index = torch.arange(first, last).repeat_interleave(len(u))
        return self.paired(u.repeat(count, 1), index).view(count, len(u)).T

    def paired(self, u: Tensor, index: Tensor) -> Tensor:
        """log p(u | x_i) of each u (N, D) for the observation of its index."""
        posterior = self.posterior
        model, chosen = posterior._under(self.rows, index)
        w = u.to(self.rows.device)
        log_det = torch.zeros((), dtype=torch.float64)
        if posterior.coordinates is not None:
            log_det = posterior.coordinates.log_det(w, chosen.flatten(1))
            w = posterior.coordinates.from_u(w, chosen.flatten(1))
        found = log_prob(model, w.to(posterior.sde.state_dtype), **self.how)
        return found.double().cpu() + log_det.cpu()

    def draw_floors(self, generator: torch.Generator) -> None:
        """Find the floor of each observation: below it, log p(u | x_i) counts as −∞."""
        total = len(self.rows)
        if total == 1:
            return
        index = torch.arange(total).repeat_interleave(FLOOR_DRAWS)
        theta = self.posterior._sampled(self.rows, index, generator, {})
        u, _ = self.support.forward(theta.double().cpu())
        found = self.paired(u, index).view(total, FLOOR_DRAWS)
        self.floors = found.amin(1) - FLOOR_MARGIN

    def joined(self, each: Tensor, log_prior: Tensor) -> Tensor:
        """The product of factors (N, count) up to a constant; −∞ where one is below its floor."""
        count = each.shape[1]
        if count == 1 and len(self.rows) == 1:
            return each[:, 0]
        found = each.sum(1) - (count - 1) * log_prior
        below = (each < self.floors[:count]).any(1) | log_prior.isinf()
        return found.masked_fill(below, -math.inf)


@torch.no_grad()
def populated(product: Product, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Points u (n, D) and the log of their importance weights for the product."""
    total = len(product.rows)
    product.draw_floors(generator)
    u = product.first(n, generator)
    weights = torch.full((n,), product.log_share(1), dtype=torch.float64)
    done = 1
    while done < total:
        until = min(2 * done, total)
        u, weights = _with_more(product, u, weights, done, until, generator)
        done = until
    for i in range(MORE_ROUNDS):
        if total == 1 or (i and _share(weights) >= GOOD_SHARE):
            break
        u, weights, _ = _proposed(product, u, weights, total, total, 1.0, generator)
    return u, weights


def _with_more(
    product: Product,
    u: Tensor,
    weights: Tensor,
    done: int,
    until: int,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Points and log weights with observations done … until − 1 as well, by tempering."""
    added = product.factors(u, done, until).sum(1) - (until - done) * product.log_prior(u)
    power = 0.0
    for _ in range(MOST_ROUNDS):
        step = _largest_step(weights, added, 1 - power)
        weights = weights + step * added
        power = power + step
        if power > 1 - 1e-9 and _share(weights) >= GOOD_SHARE * KEPT_SHARE:
            return u, weights
        u, weights, added = _proposed(product, u, weights, done, until, power, generator)
        if power > 1 - 1e-9:
            return u, weights
    raise SolverError(
        f"observations {done} to {until - 1} (from 0) agree with no parameters that the others "
        "allow: check that all were made with one theta"
    )


def _proposed(
    product: Product,
    u: Tensor,
    weights: Tensor,
    done: int,
    until: int,
    power: float,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor, Tensor]:
    """New points, their log weights, and what the later observations add at full power."""
    try:
        mixture: Mixture = fitted(u, weights.softmax(0), generator)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        raise SolverError(
            f"the points that observations 0 to {until - 1} allow are so far out that their "
            "spread is rounded away: check the observations and their scale"
        ) from None
    u = mixture.sample(len(u), generator)
    each = product.factors(u, 0, until)
    prior = product.log_prior(u)
    added = each[:, done:].sum(1) - (until - done) * prior
    target = product.joined(each[:, :done], prior) + power * added
    outside = ~target.isfinite()
    weights = (target - mixture.log_prob(u)).masked_fill(outside, -math.inf)
    if bool(outside.all()):
        raise SolverError(
            "no point that the observations allow lies in the prior's support: train on more "
            "pairs, or check the observations"
        )
    return u, weights, added.masked_fill(outside, 0.0)


def _largest_step(weights: Tensor, added: Tensor, most: float) -> float:
    """The largest power, up to `most`, that keeps half of the effective size; by bisection."""
    wanted = KEPT_SHARE * _share(weights)
    if _share(weights + most * added) >= wanted:
        return most
    low, high = 0.0, most
    for _ in range(30):
        middle = 0.5 * (low + high)
        if _share(weights + middle * added) >= wanted:
            low = middle
        else:
            high = middle
    return high


def _share(weights: Tensor) -> float:
    """The effective share of points with these log weights."""
    return float(1 / weights.softmax(0).square().sum()) / len(weights)
