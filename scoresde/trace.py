"""The trace of a network's Jacobian J = ∂f/∂z, together with f(z): exact, or estimated with random probes.

f is a map (B, n) -> (B, n) whose rows do not mix. Both traces are made of products vᵀJ with rows v, all from one forward pass:

    exact        Σ_i (e_iᵀJ)_i           n products
    Hutchinson   (vᵀJ)·v, v random       one product a probe, unbiased if E[vvᵀ] = I (Hutchinson 1990)

The variance of the second is 2‖J‖² for normal v and 2(‖J‖² − Σ_i J_ii²) for random signs (J symmetric, Frobenius norm): signs
are never worse. Hutch++ (Meyer et al. 2021) and XTrace (Epperly et al. 2024), which take out a low rank first, are not here, as
they do not pay. Trace along the path of a trained model of the 8×8 digits (4 × 256 MLP, D = 64, 24 images), RMS error in nats at
equal numbers of products:

    products                   3      6     12     24     48
    Hutchinson, signs        4.0    4.0    2.5    1.7    1.1
    Hutchinson, normal      12.7    9.7    6.7    4.8    3.2
    Hutch++, signs           8.8    6.4    5.4    3.8    2.4
    XTrace                     –   10.6    6.7    4.4    2.2

A network with a closed form does without either: see `scoresde.backbones.base`.

What no automatic differentiation can see is a part of the output that was cut off by detach() or no_grad() while another part
was not. If nothing is left, that is an error here.
"""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.utils.checkpoint
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from .backbones.base import BUDGET, batchable

Map = Callable[[Tensor], Tensor]

BATCHED = {"cpu": 512}
"""Up to how many rows, products times samples, one batched backward pass is faster than one a product: measured, with MLPs and
convolutional networks. Elsewhere (2**14) it is launching kernels that costs."""


def exact_trace(f: Map, z: Tensor, *, create_graph: bool = False) -> tuple[Tensor, Tensor]:
    """Return f(z) and the exact trace Σ_i ∂f_i/∂z_i, by n vector–Jacobian products that share one forward pass.

    Products are batched where samples are few. A network whose backward pass can't be batched is answered product by product,
    and one whose backward pass runs but once (some compiled networks, reentrant checkpoints) with one forward pass each.

    Parameters
    ----------
    f : callable (B, n) -> (B, n)
        Row by row.
    z : Tensor, shape (B, n)
    create_graph : bool
        Whether gradients flow through both results, to z if it requires grad and to what else f depends on. If not, no graph
        is left behind.

    Returns
    -------
    out : Tensor, shape (B, n)
    trace : Tensor, shape (B,)

    Raises
    ------
    TypeError
        If f depends on z but its output carries no gradient, or if f is random and its backward pass runs but once.

    Examples
    --------
    >>> exact_trace(lambda z: z**2, torch.tensor([[1.0, 2.0]]))
    (tensor([[1., 4.]]), tensor([6.]))
    """
    b, n = z.shape

    def unit(start: int, stop: int) -> Tensor:
        basis = z.new_zeros(stop - start, n)
        basis.diagonal(start).fill_(1)
        return basis.unsqueeze(1).expand(stop - start, b, n)

    def read(pulled: Tensor, start: int, stop: int) -> Tensor:
        return pulled[:, :, start:stop].diagonal(dim1=0, dim2=2).clone()  # a view would keep the whole Jacobian

    out, entries = _products(f, z, n, unit, read, create_graph)
    return out, entries.sum(1)


def hutchinson_trace(f: Map, z: Tensor, probes: Tensor, *, create_graph: bool = False) -> tuple[Tensor, Tensor]:
    """Return f(z) and Hutchinson's estimates vᵀ(∂f/∂z)v of the trace, one a probe; the probes share one forward pass.

    Parameters
    ----------
    f : callable (B, n) -> (B, n)
        Row by row.
    z : Tensor, shape (B, n)
    probes : Tensor, shape (k, B, n)
        v, of mean 0 and covariance I: random signs, or normal.
    create_graph : bool
        Whether gradients flow through both results, as in `exact_trace`.

    Returns
    -------
    out : Tensor, shape (B, n)
    traces : Tensor, shape (k, B)
        Each unbiased over its probe.

    Raises
    ------
    ValueError
        For probes of another shape.
    TypeError
        As `exact_trace`.

    References
    ----------
    Hutchinson, Communications in Statistics 19(2), 1990. Grathwohl et al., FFJORD, ICLR 2019, eq. 8.

    Examples
    --------
    >>> hutchinson_trace(lambda z: z**2, torch.tensor([[1.0, 2.0]]), torch.tensor([[[1.0, -1.0]]]))
    (tensor([[1., 4.]]), tensor([[6.]]))
    """
    if probes.ndim != 3 or not len(probes) or probes.shape[1:] != z.shape:
        raise ValueError(f"probes have shape (k, {', '.join(map(str, z.shape))}), k ≥ 1, got {tuple(probes.shape)}")

    def read(pulled: Tensor, start: int, stop: int) -> Tensor:
        return (pulled * probes[start:stop]).sum(2).T

    out, traces = _products(f, z, len(probes), lambda start, stop: probes[start:stop], read, create_graph)
    return out, traces.T


Rows = Callable[[int, int], Tensor]
Read = Callable[[Tensor, int, int], Tensor]


def _products(f: Map, z: Tensor, k: int, rows: Rows, read: Read, create_graph: bool) -> tuple[Tensor, Tensor]:
    """f(z), and what `read` finds, (B, j), in the products (j, B, n) of `rows` with J, joined: (B, k)."""
    with torch.inference_mode(False), torch.enable_grad():
        kept = create_graph and z.requires_grad
        source = z if kept else (z.clone() if z.is_inference() else z.detach()).requires_grad_()
        batch = min(k, BATCHED.get(z.device.type, 2**14) // max(len(z), 1), BUDGET // max(z.numel(), 1))
        with contextlib.ExitStack() as stack:
            if create_graph:  # fused attention has no second derivative
                stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            if batch >= 4:  # batches of fewer don't pay
                stack.enter_context(batchable())
            out = f(source.clone())  # a network may write into what it is given, but not into a leaf
        found = _pull(f, source, out, k, rows, read, create_graph, batch) if out.requires_grad else None
        if found is None:
            if not torch.equal(f(1.1 * z.detach() + 0.1), out):
                raise TypeError(
                    "the network's output carries no gradient (no_grad or detach inside it?): its trace can't be found"
                )
            found = torch.zeros_like(source, requires_grad=False)[:, :1].expand(len(z), k)
    return (out, found) if create_graph else (out.detach(), found)


def _pull(f: Map, source: Tensor, out: Tensor, k: int, rows: Rows, read: Read, create_graph: bool, batch: int) -> Tensor | None:
    """The products, by the first way that works; None if the output does not depend on the source."""

    def products(forward: Callable[[], Tensor], size: int, retain: bool) -> Tensor | None:
        found = []
        for start in range(0, k, size):
            stop = min(start + size, k)
            value, cotangents = forward(), rows(start, stop).to(out.dtype)
            (pulled,) = torch.autograd.grad(
                value,
                source,
                cotangents if size > 1 else cotangents[0],
                retain_graph=create_graph or (retain and (size > 1 or stop < k)),  # of batches the last may fail too
                create_graph=create_graph,
                allow_unused=True,
                is_grads_batched=size > 1,
            )
            if pulled is None:
                return None
            found.append(read(pulled if size > 1 else pulled.unsqueeze(0), start, stop))
        return torch.cat(found, 1)

    for size in (batch, 1) if batch >= 4 else (1,):
        try:
            # A kernel without a batching rule is slower, not wrong, and not worth torch's warning.
            with warnings.catch_warnings(action="ignore") if size > 1 else contextlib.nullcontext():
                return products(lambda: out, size, retain=True)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:  # no batching rule; or, one by one, a backward pass that runs but once
            continue
    return products(lambda: _again(f, source, out), 1, retain=False)


def _again(f: Map, source: Tensor, out: Tensor) -> Tensor:
    """f once more, which must say the same, with reentrant checkpoints left out: autograd.grad does not go through those."""
    module: Any = torch.utils.checkpoint
    with _LOCK:
        function = module.CheckpointFunction
        module.CheckpointFunction = _Transparent
        try:
            value = f(source.clone())
        finally:
            module.CheckpointFunction = function
    if not torch.allclose(value, out, rtol=1e-3, atol=1e-3, equal_nan=True):
        raise TypeError("the network is random (dropout in train mode?) and its backward pass runs but once: call eval() first")
    return value


class _Transparent:
    """What stands in for torch's reentrant checkpoint: the same values and gradients, more memory."""

    @staticmethod
    def apply(function: Callable[..., object], _preserve: bool, *args: object) -> object:
        return function(*args)


_LOCK = threading.RLock()
