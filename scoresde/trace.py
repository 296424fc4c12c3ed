"""The trace of a network's Jacobian, tr ∂out/∂z, together with its output: exact, or estimated with random probes.

Each function takes a map f (B, n) -> (B, n), whose rows do not mix, and states z, and returns (f(z), trace). One forward pass
serves both.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

Map = Callable[[Tensor], Tensor]


def exact_trace(f: Map, z: Tensor) -> tuple[Tensor, Tensor]:
    """Return f(z) and the exact trace, Σ_i ∂f_i/∂z_i, by n vector–Jacobian products batched into one backward pass.

    Networks whose backward pass cannot be batched (some attention and checkpointing kernels) are evaluated on n copies of
    the batch instead.

    Parameters
    ----------
    f : callable (B, n) -> (B, n)
        Row by row.
    z : Tensor, shape (B, n)

    Returns
    -------
    out : Tensor, shape (B, n)
    trace : Tensor, shape (B,)

    Examples
    --------
    >>> exact_trace(lambda z: z**2, torch.tensor([[1.0, 2.0]]))
    (tensor([[1., 4.]]), tensor([6.]))
    """
    b, n = z.shape
    z = z.detach().requires_grad_()
    with torch.enable_grad():
        out = f(z)
    if not out.requires_grad:
        return _constant(f, z, out)
    basis = torch.eye(n, dtype=z.dtype, device=z.device)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a kernel without a batching rule is slower, not wrong
            (jacobian,) = torch.autograd.grad(
                out, z, basis.unsqueeze(1).expand(n, b, n), is_grads_batched=True, allow_unused=True
            )
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:
        copies = z.detach().repeat(n, 1).requires_grad_()
        with torch.enable_grad():
            (rows,) = torch.autograd.grad(f(copies), copies, basis.repeat_interleave(b, 0))
        jacobian = rows.reshape(n, b, n)
    if jacobian is None:
        return out.detach(), z.new_zeros(b)
    return out.detach(), jacobian.diagonal(dim1=0, dim2=2).sum(1)


def hutchinson_trace(f: Map, z: Tensor, probe: Tensor) -> tuple[Tensor, Tensor]:
    """Return f(z) and Hutchinson's estimate vᵀ(∂f/∂z)v of the trace (Hutchinson 1989; Grathwohl et al. 2019).

    Parameters
    ----------
    f : callable (B, n) -> (B, n)
        Row by row.
    z : Tensor, shape (B, n)
    probe : Tensor, shape (B, n)
        v, of mean 0 and covariance I.

    Returns
    -------
    out : Tensor, shape (B, n)
    trace : Tensor, shape (B,)
        Unbiased over the probe.

    Examples
    --------
    >>> hutchinson_trace(lambda z: z**2, torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, -1.0]]))
    (tensor([[1., 4.]]), tensor([6.]))
    """
    z = z.detach().requires_grad_()
    with torch.enable_grad():
        out = f(z)
    if not out.requires_grad:
        return _constant(f, z, out)
    (pulled,) = torch.autograd.grad(out, z, probe, allow_unused=True)
    return out.detach(), z.new_zeros(len(z)) if pulled is None else (pulled * probe).sum(1)


def _constant(f: Map, z: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
    """The trace of an output without gradient: 0 if it is constant indeed."""
    if not torch.equal(f(z.detach() + 0.01), out):
        raise TypeError("the network's output carries no gradient (no_grad or detach inside it?): its trace can't be found")
    return out, z.new_zeros(len(z))


TRACES: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {
    "exact": exact_trace,
    "hutchinson": hutchinson_trace,
}
"""Ways to find the trace, by name: `exact` costs about n backward passes, `hutchinson` one, with a random error.
`hutchinson` takes a probe as a third argument."""
