"""Functions of time: derivatives, inverses, and whether two of them make a path."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

Function = Callable[[Tensor], Tensor]

FLOAT64_BITS = 56
FLOAT32_BITS = 28
NODES = 4096
"""How many numbers an inverse gives its function at once: few calls for few values."""


def derivative(function: Function, t: Tensor) -> Tensor:
    """Return the derivative of an elementwise function, by forward differentiation."""
    pushed = torch.func.jvp(function, (t,), (torch.ones_like(t),))
    result: Tensor = pushed[1]
    return result


def inverse(function: Function, value: Tensor) -> Tensor:
    """Return t in [0, 1] at which an increasing function has a value, to the last bit.

    Each round cuts the interval of every value into 2^k parts and keeps one: bisection, k bits at a
    time. One value takes 6 calls of the function, 512 values 19.
    """
    exact = value.to(torch.promote_types(value.dtype, torch.float32))
    bits = FLOAT64_BITS if exact.dtype == torch.float64 else FLOAT32_BITS
    bits_a_round = max(1, (NODES // max(4, exact.numel())).bit_length() - 1)
    parts = 2**bits_a_round
    inner = torch.arange(1, parts, dtype=exact.dtype, device=exact.device) / parts
    inner = inner.reshape(-1, *(1,) * exact.ndim)
    low = torch.zeros_like(exact)
    width = 1.0
    for _ in range(math.ceil(bits / bits_a_round)):
        above = function(low + width * inner) > exact
        width /= parts
        low = low + width * (parts - 1 - above.sum(0, dtype=exact.dtype))
    high = low + width
    return high.to(value.dtype) if value.is_floating_point() else high


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
