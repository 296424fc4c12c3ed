"""Posteriors p(x | y) of measurements y = A(x) + noise·n, by twists that need no training.

In standardized states, with the estimate x̂0 = E[x0 | z], r = y − A(x̂0), H = ∂A/∂x̂0 and an
estimate C of Cov[x0 | z],

    log ψ = log N(r; 0, S),   S = noise²·I + H·C·Hᵀ,   ∇_z log ψ ≈ (∂x̂0/∂z)ᵀ·Hᵀ·S⁻¹·r.

Methods differ in C, and in whether the gradient goes through the network: see
`scoresde.guidance.evaluation.METHODS`. Since
Cov[x0 | z] = (sin²φ/cos φ)·∂x̂0/∂z, "mmps" is exact for a Gaussian p(x) and a linear A.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..common.capabilities import Capability
from ..common.names import choose
from ..model.protocol import Model
from ..model.standardization import wide
from ..solvers import Measured
from .coordinates import measured_coordinates
from .evaluation import EXACT, METHODS, Evaluation, jacobian_of, most_products
from .guided import below_noise, cosine_and_sine, require_part
from .linearized import Linearized, matrix_of_linear
from .measured import Measurement, require_measurement
from .tilted import CurvedTwist, Tilted, Twist, first_three

LARGEST_JACOBIAN = 2**24
"""Numbers in the Jacobians of A(x̂0) that are held at once; more states are taken in parts."""
STEPS_OF_A_ROUGH_PASS = 50
"""Steps of a pass of `particles` where A is not linear."""
ODE_STEPS = 200
"""Steps of log p, `encode` and `decode` if neither steps= nor a tolerance is given."""


def observe(sde: Model, measurement: Measurement, y: Any, method: str = "mmps") -> Model:
    """Return a model of p(x | y) for a measurement y = A(x) + noise·n: its samples solve the
    inverse problem.

    With r = y − A(x̂0), x̂0 = E[x0 | x_t], the score gains the gradient of log N(r; 0, S) with
    S = noise²·I + H·C·Hᵀ, where H = ∂A/∂x0 and C stands for Cov[x0 | x_t]. In standard deviations
    of the data, u = σ/α, φ = atan u, J = ∂x̂0/∂z, m numbers measured of n:

    =============== ===================== =================================== ===================
    method          C                     source                              calls a step
    =============== ===================== =================================== ===================
    "mmps"          sin²φ/cos φ·J         Rozet et al. 2024                   1 + min(m, n), or 4
                                                                              to 204 above 64
    "tmpd"          the row sums of that, Boys et al. 2024                    3
                    on the diagonal
    "pigdm"         sin²φ·I               Song et al. 2023                    2
    "diffpir"       u²·I, and none of the Zhu et al. 2023, λ = 1              1
                    gradient through the
                    network
    "likelihood"    0                     Chung et al. 2023, without its ζ    2
    =============== ===================== =================================== ===================

    **No method samples p(x | y)**, except "mmps" where p(x) is Gaussian and A linear: there it is
    exact. For a mixture all get the weights of the modes wrong (by .14 in total variation for
    "mmps" in 16 dimensions), and more steps do not help. `scoresde.particles` takes what they do
    as a proposal, and is right in the limit.

    Parameters
    ----------
    sde : ScoreSDE
        A model of p(x), with a score.
    measurement : measurements.Measurement
        A and its noise: `measurements.Inpaint(mask)`, `Blur`, `Linear`, … For a function of your
        own, `measurements.Measurement(f, noise=0.1)`; say linear=True if it is. For one that is
        not, A is linearized at x̂0, and log N(r; 0, S) is multiplied by cos³φ for "mmps", "tmpd"
        and "pigdm": it would be too sure of itself close to pure noise.
    y : Tensor or array, shape (*m) or (n, *m)
        What was measured, in the units of A(x): one for all samples, or a row for each.
    method : str
        A row of the table.

    Returns
    -------
    Model
        It works with every verb but `fit` and `save`, by default with 50 steps of "dpmpp_2m": the
        pull of a trained network may have kinks, at which adaptive solvers take tiny steps.
        `log_prob` is the density of its ODE, by default with 200 fixed steps of "adams" (in the
        median within 0.02 nats for a small trained network). With two small trained networks its
        `solver_error` in `likelihood` held the true error, up to 4e-3 nats, at 95 and 100% of
        points.
        "adams" is adaptive if rtol= or atol= is given; other adaptive solvers always are.
        `Solution.nfe` counts forward and backward passes through the network, and for conjugate
        gradients (m and n above 64) as many as there can be. `log_prob` builds S whatever m.

    Raises
    ------
    TypeError, ValueError
        Before any work: for a model without a score, a y that has not the shape of A(x) or is not
        finite, an A that has no gradient, mixes rows or does not take samples of this model, noise
        0 with "likelihood", or an unknown method.

    Notes
    -----
    C of a network need not be a covariance. "mmps" makes it symmetric, and takes no pull from
    directions in which it is negative; without that its samples diverge where noise is small, as
    those of "likelihood" do (which does not scale its steps), and of "tmpd" with many accurate
    measurements of few numbers.

    Without noise (`Inpaint` alone), samples have the observed elements exactly. Their ODE is
    singular at the data, where it ends at `Process.phi_floor`, as if y had a noise of 1e-4
    standard deviations. "adams", "rk45", "ddim", "dpmpp_2m" and all stochastic solvers reach that;
    Runge–Kutta methods on few fixed steps ("heun", "midpoint") do not: the others are off by a
    standard deviation after 20 steps.

    References
    ----------
    Rozet et al., Learning diffusion priors from observations by expectation maximization, NeurIPS
    2024. Boys et al., Tweedie moment projected diffusions for inverse problems, TMLR 2024. Song et
    al., Pseudoinverse-guided diffusion models for inverse problems, ICLR 2023. Zhu et al.,
    Denoising diffusion models for plug-and-play image restoration, CVPRW 2023. Chung et al.,
    Diffusion posterior sampling for general noisy inverse problems, ICLR 2023.

    Examples
    --------
    Two numbers from N(0, I), whose sum was measured as 3 ± 1, have means of 1:

    >>> gaussian = scoresde.toy.GaussianMixture(torch.zeros(1, 2), 1.0)
    >>> sde = scoresde.oracle(gaussian, scoresde.VPSDE())
    >>> total = scoresde.measurements.Linear([[1.0, 1.0]], noise=1.0)
    >>> posterior = scoresde.observe(sde, total, y=[3.0])
    >>> x = scoresde.sample(posterior, 4000, generator=torch.Generator().manual_seed(0))
    >>> x.mean(0).round(decimals=1)
    tensor([1., 1.])
    """
    model = require_part(sde, "observe", Capability.SCORE)
    choose("method", method, METHODS)
    measurement = require_measurement(measurement)
    y = measurement.accept(y, model)
    if not measurement.noise and METHODS[method].covariance == "none":
        raise ValueError("method='likelihood' divides by noise², and this has noise 0: try 'mmps'")
    scale = model.scale.expand(1, *model.shape)
    if not measurement.noise and not bool(measurement.flat(scale).all()):
        raise ValueError(
            "the mask observes features that are constant in this model: leave them out of it"
        )
    return Observed(model, measurement, y, method)


class Observed(Tilted):
    """p(x | y), by one of `METHODS`."""

    def __init__(self, model: Model, measurement: Measurement, y: Tensor, method: str) -> None:
        super().__init__(model, y=measurement.flat(y))
        self.measurement = measurement
        self.method = method

    @property
    def default_solver(self) -> str:
        """One of fixed steps: where the Jacobian of a network is no covariance, C has kinks."""
        return "dpmpp_2m"

    @property
    def ode_steps(self) -> int:  # type: ignore[override]
        """Fixed steps of "adams" without a tolerance: adaptive steps would not end at kinks."""
        return ODE_STEPS

    @property
    def capabilities(self) -> frozenset[str]:
        """Those of the prior; and solvers that need a measurement take it, if that is linear."""
        found = super().capabilities
        return found | {Capability.MEASUREMENT} if self.measurement.linear else found

    def measured_states(self) -> Measured:
        """Return what was measured as coordinates of states, for solvers that need that."""
        like = self.scale.new_empty(0, dtype=self.state_dtype)
        y = self._tensors[self._names["y"]].to(like)
        return measured_coordinates(self.model, self.measurement, y)

    @property
    def measured(self) -> int:
        """How many numbers were measured of a sample."""
        return self._tensors[self._names["y"]].shape[1]

    @property
    def cost(self) -> int:  # type: ignore[override]
        """Calls of the network an evaluation, forward or backward; at most, above `EXACT`."""
        row = METHODS[self.method]
        calls = 1 + int(row.through)
        if row.covariance == "sums":
            calls += 1
        if row.covariance == "jacobian":
            calls = 1 + min(self.measured, self.dim)
            if jacobian_of(self.measured, self.dim) == "products":
                calls = 4 + 2 * most_products(self.measured, self.dim)
        return calls * self.model.cost

    @property
    def plugs_in(self) -> bool:
        """Whether the method is "likelihood", p(y | x̂0)."""
        return METHODS[self.method].covariance == "none"

    @property
    def steps_of_a_pass(self) -> int:
        """Fewer for a nonlinear A: the error of its twist exceeds that of the steps."""
        return super().steps_of_a_pass if self.measurement.linear else STEPS_OF_A_ROUGH_PASS

    @property
    def phi_min(self) -> float:
        """Where solves end: without noise, at `Process.phi_floor` at the least."""
        least = super().phi_min
        return least if self.measurement.noise else max(least, self.process.phi_floor)

    @property
    def curvature_rows(self) -> int:
        """Rows of T that `curved_twist` holds for each state."""
        smaller = min(self.measured, self.dim)
        known = METHODS[self.method].covariance == "jacobian" and smaller <= EXACT
        return smaller if known else 0

    def map(self, z: Tensor) -> Tensor:
        """A (B, k) of standardized data (B, n): the elements that count.

        Without noise in standard deviations from the mean, so that S has elements of one size.
        """
        if not self.measurement.noise:
            return self.measurement.flat(self.standardization.columns(z))
        found = self.measurement.flat(self.measurement(self.model.to_data(z)))
        return found.to(z.dtype) if found.is_floating_point() else found

    def _y(self, rows: Tensor | None, z: Tensor) -> Tensor:
        """What `map` would give without noise, (B or 1, k)."""
        if self.measurement.noise:
            return self.tensor("y", rows, z).to(z.dtype)
        precise = z.new_empty(0, dtype=torch.promote_types(z.dtype, wide(z.device)))
        y = self.tensor("y", rows, precise)
        units = self.standardization.mean, self.standardization.scale
        mean, scale = (self.measurement.flat(x.expand(1, *self.shape)) for x in units)
        return ((y - mean.to(y)) / scale.to(y)).to(z.dtype)

    def at_data(self, x: Tensor) -> Tensor:
        """Return samples with the elements that were observed without noise; see `Model`."""
        x = super().at_data(x)
        return self.measurement.with_exact(x, self.tensor("y", None, x))

    def log_g(self, z: Tensor, rows: Tensor | None = None) -> Tensor:
        """log p(y | x0) (B,), in nats.

        Without noise, the density of y − x at the noise where solves end, sin φ of
        `Process.phi_floor` in standard deviations of the data.
        """
        residual = self._y(rows, z) - self.map(z)
        noise = self.measurement.noise
        log_unit = z.new_zeros(())
        if not noise:
            noise = math.sin(self.phi_min)
            log_unit = self.measurement.flat(self.scale.expand(1, *self.shape)).log().to(z)
        terms = 0.5 * (residual / noise).square() + log_unit
        terms = terms + math.log(noise) + 0.5 * math.log(2 * math.pi)
        found: Tensor = -terms.expand_as(residual).sum(1)
        return found

    def twist(self, *, raw: bool = False) -> Twist:
        """Velocity of the part, log ψ and ∇_z log ψ."""
        return first_three(self._twist(raw, curved=False))

    def curved_twist(self) -> CurvedTwist:
        """As `twist`, and what is known of −∇²log ψ."""
        return self._twist(False, curved=True)

    def _twist(self, raw: bool, curved: bool) -> CurvedTwist:
        """`twist` and, if wanted, its curvature."""
        plain = self.model.velocity_fn(raw=raw)
        row = METHODS[self.method]
        linear = self.measurement.linear
        # made now: a cache that fills later would trip the checkpoints of `log_prob`
        ready = None
        few = self.measured <= EXACT or (row.covariance == "jacobian" and self.dim <= EXACT)
        if linear and row.covariance != "none" and few:
            like = self.scale.new_empty(1, self.dim, dtype=self.state_dtype)
            ready = matrix_of_linear(self.map, like)

        def matrix(at: Linearized, like: Tensor) -> Tensor:
            if not linear:
                return at.matrix()
            if ready is None or ready.dtype != like.dtype:
                return matrix_of_linear(self.map, like)
            return ready

        def twist(
            z: Tensor, phi: Tensor | float, rows: Tensor | None = None
        ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
            phi = self._above_data(below_noise(phi))
            y = self._y(rows, z)
            graph = torch.is_grad_enabled() and (z.requires_grad or y.requires_grad)
            numbers = self.dim * min(self.dim, self.measured)
            if not linear:  # H by copies of A
                numbers = self.measured * max(self.dim, self.measured)
            most = max(1, LARGEST_JACOBIAN // numbers)
            if len(z) > most and not graph and min(self.measured, self.dim) <= EXACT:
                return _in_parts(twist, z, phi, rows, most)
            at = Evaluation(self.map, self.measurement.noise, row, y, phi, graph, matrix)
            at.curved = curved
            v, log_psi, gradient = at(lambda z: plain(z, phi, rows), z)
            bend = at.curvature
            if not linear and row.tempered:
                temper: Any = cosine_and_sine(phi, z)[0] ** 3
                gradient = temper * gradient
                if bend is not None:
                    root = temper**0.5
                    bend = bend * (root.unsqueeze(2) if isinstance(root, Tensor) else root)
                log_psi = log_psi * (temper.squeeze(1) if isinstance(temper, Tensor) else temper)
            return v, log_psi, gradient, bend

        return twist

    def _above_data(self, phi: Tensor | float) -> Tensor | float:
        """Angles, at least where solves end, where there is no noise."""
        if self.measurement.noise:
            return phi
        least = self.phi_min
        return phi.clamp_min(least) if isinstance(phi, Tensor) else max(phi, least)


def _in_parts(
    twist: CurvedTwist, z: Tensor, phi: Tensor | float, rows: Tensor | None, size: int
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """A twist of many states, some at a time."""
    if rows is None:
        rows = torch.arange(len(z), device=z.device)
    one = not isinstance(phi, Tensor) or not phi.ndim
    found = []
    for start in range(0, len(z), size):
        some = slice(start, start + size)
        angle: Any = phi
        if not one:
            angle = angle[some]
        found.append(twist(z[some], angle, rows[some]))
    *columns, bends = zip(*found, strict=True)
    v, log_psi, gradient = (torch.cat(column) for column in columns)
    bend = None
    if bends[0] is not None:
        bend = torch.cat(bends)
    return v, log_psi, gradient, bend
