"""Functions of time: derivatives, inverses, and whether two of them make a path."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Function = Callable[[Tensor], Tensor]

FLOAT64_BISECTIONS = 56
FLOAT32_BISECTIONS = 28


def derivative(function: Function, t: Tensor) -> Tensor:
    """Return the derivative of an elementwise function, by forward differentiation."""
    pushed = torch.func.jvp(function, (t,), (torch.ones_like(t),))
    result: Tensor = pushed[1]
    return result


def bisect(function: Function, value: Tensor) -> Tensor:
    """Return t in [0, 1] at which an increasing function has a value, to the last bit."""
    low = torch.zeros_like(value)
    high = torch.ones_like(value)
    bisections = FLOAT32_BISECTIONS
    if value.dtype == torch.float64:
        bisections = FLOAT64_BISECTIONS
    for _ in range(bisections):
        middle = 0.5 * (low + high)
        above = function(middle) > value
        low = torch.where(above, low, middle)
        high = torch.where(above, middle, high)
    return high


def check_path(name: str, alpha_of: Function, sigma_of: Function) -> None:
    """Raise unless α and σ are finite tensors of t's shape, α(0) = 1, and σ/α increases with t."""
    t = torch.linspace(0, 1, 129, dtype=torch.float64, device="cpu")
    alpha = alpha_of(t)
    sigma = sigma_of(t)
    for function, value in (("alpha", alpha), ("sigma", sigma)):
        if not isinstance(value, Tensor) or value.shape != t.shape:
            raise TypeError(
                f"{name}.{function}(t) is a tensor of t's shape, such as torch.ones_like(t); got "
                f"{value!r}"
            )
    finite = alpha.isfinite() & sigma.isfinite()
    if not bool((finite & (alpha > -1e-12) & (sigma >= 0)).all()):
        raise ValueError(f"α and σ of {name} must be finite and not negative for t in [0, 1]")
    phi = torch.atan2(sigma, alpha)
    if not bool((phi[1:] > phi[:-1]).all()):
        raise ValueError(
            f"σ/α of {name} must increase from t = 0 (data) to t = 1 (noise); is its time "
            "reversed? Replace t by 1 - t"
        )
    if abs(float(alpha[0]) - 1) > 1e-3:
        raise ValueError(
            f"α(0) = {float(alpha[0]):g} for {name}: x at t = 0 would not be the data; divide "
            "α and σ by it"
        )
