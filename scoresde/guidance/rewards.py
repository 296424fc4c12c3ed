"""Guidance towards what a function of samples rewards: p(x)·g(x)^β by log g(x̂0)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..common.capabilities import Capability
from ..common.checks import brief_repr, real_number
from ..common.names import choose
from ..model.protocol import Model
from .guided import cosine_and_sine, noise_range, own_tensor, require_part
from .tilted import Tilted, Twist, differentiated

THROUGH = ("network", "denoised")
"""How ∇log g(x̂0) reaches the state: by the network's Jacobian, or by ∂x̂0/∂z ≈ cos φ."""


def toward(
    sde: Model,
    log_g: Callable[..., Tensor],
    scale: float = 1.0,
    *,
    through: str = "network",
    interval: tuple[float, float] = (0.0, math.inf),
    **tensors: Any,
) -> Model:
    """Return a model of about p(x)·g(x)^β, by the gradient of log g at the denoised sample x̂0.

    With ψ(z, φ) = g(x̂0(z, φ))^β in place of E[g(x0)^β | z]: v ← v − tan φ·∇log ψ on the arc. The
    two agree where log g is linear over what x0 can be, given z. Otherwise samples are biased,
    most where g is narrow, and `scoresde.particles` corrects them, with g itself as the target.

    Parameters
    ----------
    sde : ScoreSDE
        A model with a score.
    log_g : callable (x0, **tensors) -> Tensor (B,)
        The reward of samples x0 (B, *shape) in the units of the data (rows as `Table.encode` gives
        them), differentiable, row by row: `scoresde.energies` has some.
    scale : float
        β, negative to avoid what is rewarded.
    through : str
        "network" differentiates through the denoiser, ∇_z log g(x̂0(z)), which takes a backward
        pass. "denoised" takes ∇_x0 log g alone, with ∂x̂0/∂z ≈ cos φ, so that
        x̂0 ← x̂0 + sin²φ·β·∇log g in standardized units: cheaper, and no Jacobian, which holds
        samples to the data; it suits images and weak guidance.
    interval : pair of float
        The noise levels σ/α where guidance acts.
    **tensors : Tensor or array
        What log_g is given by name, the rows of its samples: shape (n, …), a row a sample, or
        (1, …), one row for all. Numbers in the dtype of x0.

    Returns
    -------
    Model
        It works with every verb but `fit` and `save`.

    Raises
    ------
    TypeError, ValueError
        For a model without a score, or a log_g that does not return (B,), is not finite at the
        mean, has no gradient or mixes rows.

    References
    ----------
    Chung et al., Diffusion posterior sampling for general noisy inverse problems, ICLR 2023. Bansal
    et al., Universal guidance for diffusion models, 2023.

    Examples
    --------
    N(0, 1)·exp(2x) is N(2, 1), up to a factor:

    >>> gaussian = scoresde.toy.GaussianMixture(torch.zeros(1, 1), 1.0)
    >>> sde = scoresde.oracle(gaussian, scoresde.RectifiedFlow())
    >>> guided = scoresde.toward(sde, lambda x0, slope: slope * x0[:, 0], slope=2.0)
    >>> scoresde.log_prob(guided, torch.tensor([[2.0]]))
    tensor([-0.9189])
    """
    model = require_part(sde, "toward", Capability.SCORE)
    if not callable(log_g):
        raise TypeError(
            f"log_g is a function of samples, (x0, **tensors) -> (B,), got {brief_repr(log_g)}"
        )
    scale = real_number("scale", scale, -math.inf, math.inf)
    choose("through=", through, THROUGH)
    checked = {name: own_tensor(name, value) for name, value in tensors.items()}
    made = Rewarded(model, log_g, scale, through, noise_range(interval), checked)
    made.probe()
    return made


class Rewarded(Tilted):
    """p(x)·g(x)^β."""

    def __init__(
        self,
        model: Model,
        function: Callable[..., Tensor],
        beta: float,
        through: str,
        interval: tuple[float, float],
        tensors: dict[str, Tensor],
    ) -> None:
        super().__init__(model, interval, **tensors)
        self.function = function
        self.beta = beta
        self.through = through

    @property
    def plugs_in(self) -> bool:
        """ψ = g(x̂0)^β."""
        return True

    def log_g(self, z: Tensor, rows: Tensor | None = None) -> Tensor:
        """β·log g (B,) of standardized data z (B, n)."""
        shown = {}
        for name in self._names:
            value = self.tensor(name, rows, z)
            shown[name] = value.expand(len(z), *value.shape[1:])
        return self.beta * self._called(self.to_data(z), shown)

    def _called(self, x0: Tensor, shown: dict[str, Tensor]) -> Tensor:
        """log_g as the user wrote it, whose result has one number a sample."""
        found = self.function(x0, **shown)
        if not isinstance(found, Tensor) or found.shape != (len(x0),):
            got = type(found).__name__
            if isinstance(found, Tensor):
                got = f"shape {tuple(found.shape)}"
            raise ValueError(
                f"log_g returned {got} for {len(x0)} samples, wanted ({len(x0)},): sum over all "
                "axes but the first"
            )
        return found.to(x0.dtype)

    def twist(self, *, raw: bool = False) -> Twist:
        """Velocity of the part, β·log g(x̂0) and its gradient by z."""
        velocity = self.model.velocity_fn(raw=raw)

        def denoised(z: Tensor, v: Tensor, phi: Tensor | float) -> Tensor:
            cos, sin = cosine_and_sine(phi, z)
            x0: Tensor = cos * z - sin * v
            return x0

        def by_network(z: Tensor, phi: Tensor | float, rows: Tensor | None = None) -> Any:
            def both(z: Tensor) -> tuple[Tensor, Tensor]:
                v = velocity(z, phi, rows)
                return self.log_g(denoised(z, v, phi), rows), v

            gradient, (value, v) = differentiated(both, z)
            return v, value, gradient

        def by_denoised(z: Tensor, phi: Tensor | float, rows: Tensor | None = None) -> Any:
            v = velocity(z, phi, rows)
            x0 = denoised(z, v, phi)
            gradient, (value,) = differentiated(lambda x0: (self.log_g(x0, rows),), x0)
            return v, value, cosine_and_sine(phi, z)[0] * gradient

        return by_network if self.through == "network" else by_denoised

    def probe(self) -> None:
        """Raise unless log_g is finite near the mean, has a gradient, and does not mix rows."""
        z = 0.1 * torch.cos(1 + torch.arange(2.0 * self.dim, device=self.device)).reshape(2, -1)
        z = z.to(self.state_dtype)
        sizes = {len(value) for value in self._tensors.values()} - {1}
        if len(sizes) > 1:
            names = ", ".join(f"{n}: {len(self._tensors[k])}" for n, k in self._names.items())
            raise ValueError(f"the tensors of log_g have different numbers of rows ({names})")
        both = torch.arange(2, device=self.device).clamp_max(max(sizes, default=2) - 1)
        with torch.inference_mode(False), torch.enable_grad():
            z = z.clone().requires_grad_()
            found = self.log_g(z, both)
            if not bool(found.isfinite().all()):
                raise ValueError(
                    "log_g is NaN or infinite near the mean of the model: "
                    f"{found.tolist()}; it is taken at every denoised sample, from the mean on"
                )
            reached = None
            if found.requires_grad:
                (reached,) = torch.autograd.grad(found.sum(), z, allow_unused=True)
            if reached is None:
                raise ValueError(
                    "log_g has no gradient by x0 (no_grad, detach or numpy inside it?): particles "
                    "can still weigh by it, toward needs one"
                )
            if not bool(reached.isfinite().all()):
                raise ValueError("the gradient of log_g is NaN or infinite near the model's mean")
            alone = self.log_g(z[:1], both[:1])
        slack = 1e-3 * float(1 + found.detach().abs().max())
        if float((alone - found[:1]).detach().abs()) > slack:
            raise ValueError(
                "log_g of a sample depends on the other samples of a batch (a mean over the batch, "
                "or batch normalization in train mode?): return one number a sample"
            )
