"""Models p(x)·g(x) by a gradient: v ← v − tan φ·∇log ψ(z, φ), with ψ ≈ E[g(x0) | z].

The exact ψ makes the marginals of p(z)·ψ(z, φ) those of p(x0)·g(x0), and every solver right.
Methods differ in the ψ that they take (a *twist*). Where it is only near E[g(x0) | z], samples are
biased, mostly in the weights of modes, at any number of steps; `particles` corrects this.
"""

from __future__ import annotations

import abc
import contextlib
import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..common.modules import leave_inference
from ..model.protocol import Model
from .guided import Guided, below_noise, cosine_and_sine, inside

STEPS_OF_A_PASS = 100
"""Steps of a pass of `particles`, at the least where there are two."""

Twist = Callable[..., tuple[Tensor, Tensor, Tensor]]
"""(z, φ, rows) -> the part's velocity (B, n), log ψ (B,), and its gradient ∇_z log ψ (B, n)."""

CurvedTwist = Callable[..., tuple[Tensor, Tensor, Tensor, Tensor | None]]
"""A twist that also returns rows T (B, k, n), TᵀT ≈ −∇²_z log ψ, or None where none are known."""


class Tilted(Guided):
    """p(x)·g(x): a model, its `twist`, and `log_g`, which the twist ends in at the data."""

    keeps_categories = False

    def __init__(
        self, model: Model, interval: tuple[float, float] = (0.0, math.inf), **tensors: Tensor
    ) -> None:
        super().__init__(model, **tensors)
        for trained in model.trained():
            leave_inference(trained)  # gradients pass the network
        self.interval = interval

    @property
    def plugs_in(self) -> bool:
        """Whether ψ is g(x̂0), as if x0 were known: `particles` then damps the gradient."""
        return False

    @property
    def steps_of_a_pass(self) -> int:
        """Steps of a pass of `particles`, at the least where there are two."""
        return STEPS_OF_A_PASS

    @property
    def curvature_rows(self) -> int:
        """Rows of T that `curved_twist` holds for each state."""
        return 0

    @abc.abstractmethod
    def twist(self, *, raw: bool = False) -> Twist:
        """Velocity of the part, log ψ and ∇_z log ψ, as a function of states and angles."""

    def curved_twist(self) -> CurvedTwist:
        """As `twist`, and what is known of −∇²log ψ: here nothing."""
        twist = self.twist()
        return lambda *args: (*twist(*args), None)

    @abc.abstractmethod
    def log_g(self, z: Tensor, rows: Tensor | None = None) -> Tensor:
        """log g (B,) of standardized data z (B, n), up to a constant that all samples share."""

    def velocity_fn(self, *, raw: bool = False) -> Callable[..., Tensor]:
        """Return v − tan φ·∇log ψ, within the interval of noise levels; see `Model`."""
        plain: Callable[..., Tensor] = self.model.velocity_fn(raw=raw)
        twist = self.twist(raw=raw)

        def velocity(z: Tensor, phi: Tensor | float, rows: Tensor | None = None) -> Tensor:
            within = inside(phi, self.interval)
            if within is False:
                return plain(z, phi, rows)
            angle = below_noise(phi)
            v, _, gradient = twist(z, angle, rows)
            v = _beyond(phi > angle, v, lambda: plain(z, phi, rows))
            cos, sin = cosine_and_sine(angle, z)
            pull: Tensor = (sin / cos) * gradient
            if isinstance(within, Tensor):
                pull = torch.where(within, pull, 0)
            guided: Tensor = v - pull
            return guided

        return velocity


def first_three(twist: CurvedTwist) -> Twist:
    """A twist without its curvature."""

    def plain(
        z: Tensor, phi: Tensor | float, rows: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        return twist(z, phi, rows)[:3]

    return plain


def _beyond(clamped: Tensor | bool, v: Tensor, exact: Callable[[], Tensor]) -> Tensor:
    """Velocities, those at clamped angles by another function, which is called if there are any."""
    if not isinstance(clamped, Tensor):
        return exact() if clamped else v
    if not bool(clamped.any()):
        return v
    return torch.where(clamped.reshape(-1, 1), exact(), v)


def differentiated(
    f: Callable[[Tensor], tuple[Tensor, ...]], z: Tensor
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """∇_z of Σ f(z)[0] and what f returned; rows of f do not mix.

    It keeps a graph only where a caller differentiates through the result.
    """
    graph = torch.is_grad_enabled() and z.requires_grad
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        if graph:
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))  # others have no second derivative
            source = z
        else:
            source = z.detach().clone().requires_grad_()
        found = f(source)
        (gradient,) = torch.autograd.grad(found[0].sum(), source, create_graph=graph)
    if graph:
        return gradient, found
    return gradient, tuple(part.detach() for part in found)
