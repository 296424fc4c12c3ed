"""One evaluation of a twist of `scoresde.guidance.observed`: its methods, C, S and the gradient."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..density.trace import jacobian
from ..model.standardization import wide
from .guided import cosine_and_sine
from .linear_systems import Factored, conjugate_gradients, factored, information_terms
from .linearized import Linearized, Map

EXACT = 64
"""Up to how many measured numbers S is built and factorized; above, conjugate gradients."""

MOST_PRODUCTS = 100
"""Products with S in one solve by conjugate gradients, at most."""


@dataclass(frozen=True)
class Method:
    """A method as a row of `METHODS`."""

    covariance: str  # C: "jacobian", "sums" (its row sums, a diagonal), "sin2", "u2" or "none"
    through: bool = True  # whether the gradient goes through the network
    tempered: bool = True  # whether log ψ of a nonlinear A is multiplied by cos³φ


METHODS = {
    "mmps": Method("jacobian"),
    "pigdm": Method("sin2"),
    "tmpd": Method("sums"),
    "diffpir": Method("u2", through=False, tempered=False),
    "likelihood": Method("none", tempered=False),
}


def jacobian_of(measured: int, dim: int, graph: bool = False) -> str:
    """What "mmps" has the Jacobian of: "measured" A(x̂0), "denoised" x̂0, or "products" alone."""
    if min(measured, dim) > EXACT and not graph:
        return "products"
    return "denoised" if dim < measured else "measured"


def most_products(measured: int, dim: int) -> int:
    """Products with S in one solve by conjugate gradients, at most."""
    return min(MOST_PRODUCTS, 2 * min(measured, dim + 1))


class Evaluation:
    """One evaluation of a twist, at an angle: one forward pass, and products with its Jacobian.

    With `curved`, it leaves rows T (B, k, n) in `curvature`, TᵀT = GᵀS⁻¹G for G = ∂A(x̂0)/∂z, where
    it has them: −∇²log ψ but for derivatives of G and S.
    """

    curved = False
    curvature: Tensor | None = None

    def __init__(
        self,
        f: Map,
        noise: float,
        row: Method,
        y: Tensor,
        phi: Tensor | float,
        graph: bool,
        matrix: Callable[[Linearized, Tensor], Tensor],
    ) -> None:
        self.map = f
        self.noise2 = noise**2
        self.row = row
        self.y = y
        self.cos, self.sin = cosine_and_sine(phi, y)
        self.graph = graph
        self.matrix = matrix

    def __call__(
        self, velocity: Callable[[Tensor], Tensor], z: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Velocity, log N(r; 0, S) and the gradient."""
        exact = self.graph or self.y.shape[1] <= EXACT
        if self.row.covariance == "jacobian":
            way = jacobian_of(self.y.shape[1], z.shape[1], self.graph)
            if way == "denoised" and self.noise2:
                return self._by_whole_jacobian(velocity, z)
            if way != "products":
                return self._by_jacobian(velocity, z)
        v, x0, pull = self._forward(velocity, z)
        at = Linearized(self.map, x0, self.graph)
        r = self.y - at.value
        if self.row.covariance == "none":
            w = r / self.noise2
            log_psi = -0.5 * (r * w + math.log(2 * math.pi * self.noise2)).sum(1)
        elif exact:
            H = self.matrix(at, z)
            w, log_psi = self._factored(self._covariance(pull, x0)(H), H, r.dtype).terms(r)
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
            return self.map(x0)

        value, G = jacobian(composed, z, self.y.shape[1], create_graph=self.graph)
        v, x0 = seen[0]
        if not self.graph:
            v = v.detach()
            x0 = x0.detach()
        H = self.matrix(Linearized(self.map, x0, self.graph), z)
        S = self._factored(self._scale(3) * G, H, z.dtype)
        w, log_psi = S.terms(self.y - value)
        if self.curved:
            self.curvature = S.whitened(G)
        return v, log_psi, (G * w.unsqueeze(2)).sum(1)

    def _by_whole_jacobian(
        self, velocity: Callable[[Tensor], Tensor], z: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """C from the Jacobian of x̂0(z), where it is smaller than S."""
        seen: list[Tensor] = []

        def denoised(z: Tensor) -> Tensor:
            v = velocity(z)
            seen.append(v)
            x0: Tensor = self.cos * z - self.sin * v
            return x0

        x0, J = jacobian(denoised, z, z.shape[1], create_graph=self.graph)
        v = seen[0] if self.graph else seen[0].detach()
        at = Linearized(self.map, x0, self.graph)
        H = self.matrix(at, z)
        # J, not C: at φ = 0 the gradient is a limit, 0/0
        shift, log_psi = information_terms(self.y - at.value, H, J, self._scale(3), self.noise2)
        if self.curved:
            self.curvature = self._curvature(H, J)
        return v, log_psi, shift

    def _curvature(self, H: Tensor, J: Tensor) -> Tensor:
        """T by systems in n dimensions: F⁻¹·Vᵀ·J, F·Fᵀ = I + Vᵀ·C·V, of HᵀH = noise²·V·Vᵀ."""
        H = H.to(torch.promote_types(H.dtype, wide(H.device)))
        M = H.mT @ H / self.noise2
        slack = 1e-12 * M.diagonal(dim1=1, dim2=2).mean(1)
        eye = torch.eye(M.shape[1], dtype=M.dtype, device=M.device)
        V = torch.linalg.cholesky_ex(M + slack[:, None, None] * eye).L
        CV = (self._scale(3) * J).to(M) @ V
        square = self.sin * self.sin
        if isinstance(square, Tensor):
            square = square.unsqueeze(2)
        return (
            factored(V.mT @ CV, 1.0, square * (V.mT @ V), J.dtype).whitened(V.mT @ J.to(V)).to(J)
        )

    def _scale(self, ndim: int) -> Any:
        """sin²φ/cos φ, by which ∂x̂0/∂z is Cov[x0 | z]."""
        scale = self.sin * self.sin / self.cos
        if isinstance(scale, Tensor):
            scale = scale.reshape(-1, *(1,) * (ndim - 1))
        return scale

    def _forward(
        self, velocity: Callable[[Tensor], Tensor], z: Tensor
    ) -> tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]:
        """v, x̂0, and u ↦ (∂x̂0/∂z)ᵀ·u."""
        if not self.row.through:
            v = velocity(z)
            return v, self.cos * z - self.sin * v, lambda u: u
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.enable_grad())
            if self.graph or self.row.covariance == "jacobian":
                stack.enter_context(sdpa_kernel(SDPBackend.MATH))  # others differentiate once
            if self.graph and z.requires_grad:
                source = z
            else:
                source = z.detach().clone().requires_grad_()
            state = source.clone()  # a network may write into what it is given
            v = velocity(state)
            x0 = self.cos * source - self.sin * v

        if self.row.covariance == "jacobian":
            pull = _symmetric(x0, source)
        else:
            pull = _transposed(x0, source, self.graph)
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
            found: Tensor = (scale.unsqueeze(1) if wide else scale) * u
            return found

        return product

    def _factored(self, CH: Tensor, H: Tensor, dtype: torch.dtype) -> Factored:
        """S = noise²·I + H·C·Hᵀ, from the rows C·Hᵀ·e_i and Hᵀ·e_i."""
        square = self.sin * self.sin
        if isinstance(square, Tensor):
            square = square.unsqueeze(2)
        return factored(CH @ H.mT, self.noise2, square * (H @ H.mT), dtype)

    def _iterated(
        self, at: Linearized, r: Tensor, covariance: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """S⁻¹·r by conjugate gradients, and log N(r; 0, S) but for log det S.

        In its place is that of noise² + sin²φ times I, a number for all samples, which leaves the
        weights of `particles` as they are.
        """
        tolerance = torch.finfo(r.dtype).eps ** 0.8
        w = conjugate_gradients(
            lambda w: self.noise2 * w + at.product(covariance(at.transposed(w))),
            r,
            most_products(self.y.shape[1], at.size),
            tolerance,
            0.5 * self.noise2,
        )
        variance = torch.as_tensor(self.noise2 + self.sin * self.sin, dtype=r.dtype).to(r.device)
        log_det = r.shape[1] * (2 * math.pi * variance).log().reshape(-1)
        return w, -0.5 * ((r * w).sum(1) + log_det)


def _transposed(value: Tensor, source: Tensor, graph: bool) -> Callable[[Tensor], Tensor]:
    """u ↦ Jᵀ·u of rows, J = ∂value/∂source."""

    def product(u: Tensor) -> Tensor:
        (found,) = torch.autograd.grad(value, source, u, retain_graph=True, create_graph=graph)
        return found

    return product


def _symmetric(value: Tensor, source: Tensor) -> Callable[[Tensor], Tensor]:
    """u ↦ ½·(Jᵀ + J)·u of rows, J = ∂value/∂source; J·u by the derivative of Jᵀ·w by w."""
    with torch.inference_mode(False), torch.enable_grad():
        w = torch.zeros_like(value, requires_grad=True)
        (pulled,) = torch.autograd.grad(value, source, w, create_graph=True)

    def product(u: Tensor) -> Tensor:
        (back,) = torch.autograd.grad(value, source, u, retain_graph=True)
        (forth,) = torch.autograd.grad(pulled, w, u, retain_graph=True)
        return 0.5 * (back + forth)

    return product
