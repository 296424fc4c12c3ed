"""Posteriors p(x | y) of measurements y = A(x) + noise·n, by twists that need no training.

In standardized states, with the estimate x̂0 = E[x0 | z], r = y − A(x̂0), H = ∂A/∂x̂0 and an
estimate C of Cov[x0 | z],

    log ψ = log N(r; 0, S),   S = noise²·I + H·C·Hᵀ,   ∇_z log ψ ≈ (∂x̂0/∂z)ᵀ·Hᵀ·S⁻¹·r.

Methods differ in C, and in whether the gradient goes through the network: see `METHODS`. Since
Cov[x0 | z] = (sin²φ/cos φ)·∂x̂0/∂z, "mmps" is exact for a Gaussian p(x) and a linear A.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..common.capabilities import Capability
from ..common.names import choose
from ..density.trace import jacobian
from ..model.protocol import Model
from ..solvers import Measured
from .coordinates import measured_coordinates
from .guided import below_noise, cosine_and_sine, require_part
from .linear_systems import conjugate_gradients, gaussian_terms
from .linearized import Linearized, matrix_of_linear
from .measured import Measurement, require_measurement
from .tilted import Tilted, Twist

EXACT = 64
"""Up to how many measured numbers S is built and factorized; above, conjugate gradients."""

MOST_PRODUCTS = 100
"""Products with S in one solve by conjugate gradients, at most."""


@dataclass(frozen=True)
class Method:
    """A method as a row of `METHODS`."""

    covariance: str  # C: "jacobian", "sums" (its row sums, a diagonal), "sin2", "u2" or "none"
    through: bool = True  # whether the gradient goes through the network
    tempered: bool = True  # whether log ψ of a nonlinear A is multiplied by cos²φ = 1/(1 + u²)


METHODS = {
    "mmps": Method("jacobian"),
    "pigdm": Method("sin2"),
    "tmpd": Method("sums"),
    "diffpir": Method("u2", through=False, tempered=False),
    "likelihood": Method("none", tempered=False),
}


def observe(sde: Model, measurement: Measurement, y: Any, method: str = "mmps") -> Model:
    """Return a model of p(x | y), for a measurement y = A(x) + noise·n of x.

    Parameters
    ----------
    sde : ScoreSDE
        A model of p(x), with a score.
    measurement : measurements.Measurement
        A and its noise: `measurements.Inpaint(mask)`, `Blur`, `Linear`, …
    y : Tensor or array, shape (*m) or (n, *m)
        What was measured, in the units of A(x): one for all samples, or a row for each.
    method : str
        "mmps", "pigdm", "tmpd", "diffpir" or "likelihood".

    Returns
    -------
    Model

    Examples
    --------
    >>> gaussian = scoresde.toy.GaussianMixture(torch.zeros(1, 2), 1.0)
    >>> sde = scoresde.oracle(gaussian, scoresde.VPSDE())
    >>> total = scoresde.measurements.Linear([[1.0, 1.0]], noise=1.0)
    >>> posterior = scoresde.observe(sde, total, y=[3.0])
    >>> scoresde.sample(posterior, 1000).mean(0)  # (1, 1) in closed form
    tensor([...])
    """
    model = require_part(sde, "observe", Capability.SCORE)
    choose("method", method, METHODS)
    measurement = require_measurement(measurement)
    if not measurement.noise and METHODS[method].covariance == "none":
        raise ValueError("method='likelihood' divides by noise², and this has noise 0: try 'mmps'")
    return Observed(model, measurement, measurement.accept(y, model), method)


class Observed(Tilted):
    """p(x | y), by one of `METHODS`."""

    def __init__(self, model: Model, measurement: Measurement, y: Tensor, method: str) -> None:
        super().__init__(model, y=measurement.flat(y))
        self.measurement = measurement
        self.method = method

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
            calls = 1 + self.measured
            if self.measured > EXACT:
                calls = 2 + self.most_products
        return calls * self.model.cost

    @property
    def most_products(self) -> int:
        """Products with S in a solve by conjugate gradients, at most."""
        return min(MOST_PRODUCTS, 2 * min(self.measured, self.dim + 1))

    @property
    def phi_min(self) -> float:
        """Where solves end: without noise, at `Process.phi_floor` at the least."""
        least = super().phi_min
        return least if self.measurement.noise else max(least, self.process.phi_floor)

    def map(self, z: Tensor) -> Tensor:
        """A (B, k) of standardized data (B, n): the elements that count."""
        return self.measurement.flat(self.measurement(self.model.to_data(z)))

    def log_g(self, z: Tensor, rows: Tensor | None = None) -> Tensor:
        """log p(y | x0) (B,), in nats.

        Without noise, the density of y − x at the noise where solves end, sin φ of
        `Process.phi_floor` in standard deviations of the data.
        """
        residual = self.tensor("y", rows, z).to(z.dtype) - self.map(z)
        noise: Any = self.measurement.noise
        if not noise:
            scale = self.measurement.flat(self.scale.expand(1, *self.shape))
            noise = math.sin(self.phi_min) * scale.to(z)
        log_noise = torch.as_tensor(noise, dtype=z.dtype, device=z.device).log()
        terms = 0.5 * (residual / noise).square() + log_noise + 0.5 * math.log(2 * math.pi)
        return -terms.expand_as(residual).sum(1)

    def twist(self, *, raw: bool = False) -> Twist:
        """Velocity of the part, log ψ and ∇_z log ψ."""
        plain = self.model.velocity_fn(raw=raw)
        row = METHODS[self.method]
        linear = self.measurement.linear
        matrices: dict[torch.dtype, Tensor] = {}

        def matrix(at: Linearized, like: Tensor) -> Tensor:
            if not linear:
                return at.matrix()
            if like.dtype not in matrices:
                matrices[like.dtype] = matrix_of_linear(self.map, like)
            return matrices[like.dtype]

        def twist(
            z: Tensor, phi: Tensor | float, rows: Tensor | None = None
        ) -> tuple[Tensor, Tensor, Tensor]:
            phi = self._above_data(below_noise(phi))
            y = self.tensor("y", rows, z).to(z.dtype)
            graph = torch.is_grad_enabled() and (z.requires_grad or y.requires_grad)
            at = Evaluation(self, row, y, phi, graph, matrix)
            v, log_psi, gradient = at(lambda z: plain(z, phi, rows), z)
            if not linear and row.tempered:
                temper = cosine_and_sine(phi, z)[0] ** 2
                gradient = temper * gradient
                log_psi = log_psi * (temper.squeeze(1) if isinstance(temper, Tensor) else temper)
            return v, log_psi, gradient

        return twist

    def _above_data(self, phi: Tensor | float) -> Tensor | float:
        """Angles, at least where solves end, where there is no noise."""
        if self.measurement.noise:
            return phi
        least = self.phi_min
        return phi.clamp_min(least) if isinstance(phi, Tensor) else max(phi, least)


class Evaluation:
    """One evaluation of a twist, at an angle: one forward pass, and products with its Jacobian."""

    def __init__(
        self,
        model: Observed,
        row: Method,
        y: Tensor,
        phi: Tensor | float,
        graph: bool,
        matrix: Callable[[Linearized, Tensor], Tensor],
    ) -> None:
        self.model = model
        self.row = row
        self.y = y
        self.cos, self.sin = cosine_and_sine(phi, y)
        self.graph = graph
        self.matrix = matrix
        self.noise2 = model.measurement.noise**2

    def __call__(
        self, velocity: Callable[[Tensor], Tensor], z: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Velocity, log N(r; 0, S) and the gradient."""
        exact = self.graph or self.model.measured <= EXACT
        if self.row.covariance == "jacobian" and exact:
            return self._by_jacobian(velocity, z)
        v, x0, pull = self._forward(velocity, z)
        at = Linearized(self.model.map, x0, self.graph)
        r = self.y - at.value
        if self.row.covariance == "none":
            w = r / self.noise2
            log_psi = -0.5 * (r * w + math.log(2 * math.pi * self.noise2)).sum(1)
        elif exact:
            H = self.matrix(at, z)
            w, log_psi = self._solved(r, self._covariance(pull, x0)(H), H)
        else:
            w, log_psi = self._iterated(at, r, self._covariance(pull, x0))
        u = at.transposed(w)
        gradient = pull(u) if self.row.through else u / self.cos
        return v, log_psi, gradient

    def _by_jacobian(
        self, velocity: Callable[[Tensor], Tensor], z: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """C from the Jacobian of A(x̂0(z)), all of whose rows also give the gradient."""
        seen: list[tuple[Tensor, Tensor]] = []

        def composed(z: Tensor) -> Tensor:
            v = velocity(z)
            x0 = self.cos * z - self.sin * v
            seen.append((v, x0))
            return self.model.map(x0)

        value, G = jacobian(composed, z, self.model.measured, create_graph=self.graph)
        v, x0 = seen[0]
        if not self.graph:
            v = v.detach()
            x0 = x0.detach()
        H = self.matrix(Linearized(self.model.map, x0, self.graph), z)
        scale = self.sin * self.sin / self.cos
        if isinstance(scale, Tensor):
            scale = scale.unsqueeze(2)
        w, log_psi = self._solved(self.y - value, scale * G, H)
        return v, log_psi, (G * w.unsqueeze(2)).sum(1)

    def _forward(
        self, velocity: Callable[[Tensor], Tensor], z: Tensor
    ) -> tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]:
        """v, x̂0, and u ↦ (∂x̂0/∂z)ᵀ·u."""
        if not self.row.through:
            v = velocity(z)
            return v, self.cos * z - self.sin * v, lambda u: u
        with torch.inference_mode(False), torch.enable_grad():
            if self.graph and z.requires_grad:
                source = z
            else:
                source = z.detach().clone().requires_grad_()
            state = source.clone()  # a network may write into what it is given
            v = velocity(state)
            x0 = self.cos * source - self.sin * v

        def pull(u: Tensor) -> Tensor:
            (found,) = torch.autograd.grad(
                x0, source, u, retain_graph=True, create_graph=self.graph
            )
            return found

        if self.graph:
            return v, x0, pull
        return v.detach(), x0.detach(), pull

    def _covariance(
        self, pull: Callable[[Tensor], Tensor], x0: Tensor
    ) -> Callable[[Tensor], Tensor]:
        """u ↦ C·u, for u (B, n) or (B, m, n)."""
        scale: Any = self.sin * self.sin
        kind = self.row.covariance
        if kind != "sin2":
            scale = scale / self.cos
        if kind == "u2":
            scale = scale / self.cos
        if kind == "sums":
            scale = scale * pull(torch.ones_like(x0)).clamp_min(0)
        if kind == "jacobian":
            return lambda u: scale * pull(u)

        def product(u: Tensor) -> Tensor:
            wide = isinstance(scale, Tensor) and u.ndim == 3
            return (scale.unsqueeze(1) if wide else scale) * u

        return product

    def _solved(self, r: Tensor, CH: Tensor, H: Tensor) -> tuple[Tensor, Tensor]:
        """S⁻¹·r and log N(r; 0, S), S = noise²·I + H·C·Hᵀ, from the rows C·Hᵀ·e_i and Hᵀ·e_i."""
        S = CH @ H.mT
        S = S + self.noise2 * torch.eye(S.shape[1], dtype=S.dtype, device=S.device)
        return gaussian_terms(r, S, self.noise2)

    def _iterated(
        self, at: Linearized, r: Tensor, covariance: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """S⁻¹·r by conjugate gradients, and log N(r; 0, S) but for log det S.

        In its place is that of noise² + sin²φ times I, a number for all samples, which leaves the
        weights of `particles` as they are.
        """
        tolerance = torch.finfo(r.dtype).eps ** 0.7
        w = conjugate_gradients(
            lambda w: self.noise2 * w + at.product(covariance(at.transposed(w))),
            r,
            self.model.most_products,
            tolerance,
        )
        variance = torch.as_tensor(self.noise2 + self.sin * self.sin, dtype=r.dtype).to(r.device)
        log_det = r.shape[1] * (2 * math.pi * variance).log().reshape(-1)
        return w, -0.5 * ((r * w).sum(1) + log_det)
