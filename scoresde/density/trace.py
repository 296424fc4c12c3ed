"""The trace of a network's Jacobian J = ∂f/∂z, together with f(z): exact, or by random probes.

f is a map (B, n) -> (B, n) whose rows do not mix. Both traces are made of products vᵀJ with rows
v, all from one forward pass:

    exact         Σ_i (e_iᵀJ)_i        n products
    Hutchinson    (vᵀJ)·v, v random    one product a probe, unbiased if E[vvᵀ] = I

(Hutchinson 1990). The variance of the second is 2‖J‖² for normal v and 2(‖J‖² − Σ_i J_ii²) for
random signs (J symmetric, Frobenius norm): signs are never worse. Hutch++ (Meyer et al. 2021) and
XTrace (Epperly et al. 2024), which first take out a part of low rank, are not here, as they do not
pay. Trace along the path of a trained model of the 8×8 digits (4 × 256 MLP, D = 64, 24 images),
RMS error in nats at equal numbers of products:

    products                   3      6     12     24     48
    Hutchinson, signs        4.0    4.0    2.5    1.7    1.1
    Hutchinson, normal      12.7    9.7    6.7    4.8    3.2
    Hutch++, signs           8.8    6.4    5.4    3.8    2.4
    XTrace                     –   10.6    6.7    4.4    2.2

A network with a closed form does without either: see `scoresde.backbones.base`.

Automatic differentiation does not see a part of the output that was cut off by detach() or
no_grad(). If all of it was cut off, that is an error here.
"""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils.checkpoint
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..backbones.base import BUDGET, batchable

Map = Callable[[Tensor], Tensor]
"""A map of states (B, n) -> (B, n) whose rows do not mix."""

BATCHED = {"cpu": 512}
"""Up to how many rows, products times samples, one batched backward pass is faster than one for
each product: measured, with MLPs and convolutional networks. On other devices than these it is
`BATCHED_ELSEWHERE`, as launching kernels takes the time there.
"""

BATCHED_ELSEWHERE = 2**14
"""The same in rows, on accelerators."""

LEAST_BATCH = 4
"""Products that are worth a batched backward pass, at least."""


def exact_trace(f: Map, z: Tensor, *, create_graph: bool = False) -> tuple[Tensor, Tensor]:
    """f(z) (B, n) and the exact trace Σ_i ∂f_i/∂z_i (B,), by n products e_iᵀJ."""
    b, n = z.shape

    def unit(start: int, stop: int) -> Tensor:
        basis = z.new_zeros(stop - start, n)
        basis.diagonal(start).fill_(1)
        return basis.unsqueeze(1).expand(stop - start, b, n)

    def read(pulled: Tensor, start: int, stop: int) -> Tensor:
        # A view would keep the whole Jacobian.
        return pulled[:, :, start:stop].diagonal(dim1=0, dim2=2).clone()

    out, entries = _products(f, z, _Products(n, unit, read, create_graph))
    return out, entries.sum(1)


def hutchinson_trace(
    f: Map, z: Tensor, probes: Tensor, *, create_graph: bool = False
) -> tuple[Tensor, Tensor]:
    """f(z) (B, n) and Hutchinson's estimates vᵀJv (k, B) of the trace for probes v (k, B, n)."""
    _check_vectors("probes", probes, z)

    def rows(start: int, stop: int) -> Tensor:
        return probes[start:stop]

    def read(pulled: Tensor, start: int, stop: int) -> Tensor:
        return (pulled * probes[start:stop]).sum(2).T

    out, traces = _products(f, z, _Products(len(probes), rows, read, create_graph))
    return out, traces.T


def jacobian_products(
    f: Map, z: Tensor, vectors: Tensor, *, create_graph: bool = False
) -> tuple[Tensor, Tensor]:
    """Return f(z) and the products vᵀJ of vectors with the Jacobian J = ∂f/∂z of each row.

    All products share one forward pass. They are batched where samples are few; a network whose
    backward pass cannot be batched answers product by product, and one whose backward pass runs
    only once (some compiled networks, reentrant checkpoints) with one forward pass each.

    Parameters
    ----------
    f : callable (B, n) -> (B, n)
        A map whose rows do not mix.
    z : Tensor, shape (B, n)
    vectors : Tensor, shape (k, B, n)
        k vectors v for each row, k ≥ 1.
    create_graph : bool
        Whether gradients flow back through the results.

    Returns
    -------
    out : Tensor, shape (B, n)
        f(z).
    products : Tensor, shape (k, B, n)

    Raises
    ------
    ValueError
        For vectors of another shape.
    TypeError
        If the output carries no gradient but depends on z, or is random.

    Examples
    --------
    >>> jacobian_products(lambda z: z**2, torch.tensor([[1.0, 2.0]]), torch.ones(1, 1, 2))
    (tensor([[1., 4.]]), tensor([[[2., 4.]]]))
    """
    _check_vectors("vectors", vectors, z)

    def rows(start: int, stop: int) -> Tensor:
        return vectors[start:stop]

    def read(pulled: Tensor, start: int, stop: int) -> Tensor:
        return pulled.transpose(0, 1)

    out, products = _products(f, z, _Products(len(vectors), rows, read, create_graph))
    return out, products.transpose(0, 1)


def jacobian(
    f: Map, z: Tensor, outputs: int, *, create_graph: bool = False
) -> tuple[Tensor, Tensor]:
    """f(z) (B, m) and its Jacobian (B, m, n) at states z (B, n), of a map with m outputs."""

    def unit(start: int, stop: int) -> Tensor:
        basis = z.new_zeros(stop - start, outputs)
        basis.diagonal(start).fill_(1)
        return basis.unsqueeze(1).expand(stop - start, len(z), outputs)

    def read(pulled: Tensor, start: int, stop: int) -> Tensor:
        return pulled.transpose(0, 1)

    return _products(f, z, _Products(outputs, unit, read, create_graph))


def _check_vectors(name: str, vectors: Tensor, z: Tensor) -> None:
    """Raise unless there are k ≥ 1 vectors for each row of z."""
    if vectors.ndim != 3 or not len(vectors) or vectors.shape[1:] != z.shape:
        wanted = ", ".join(map(str, z.shape))
        raise ValueError(f"{name} have shape (k, {wanted}), k ≥ 1, got {tuple(vectors.shape)}")


@dataclass(frozen=True)
class _Products:
    """Which products vᵀJ are wanted, and what is read off them."""

    count: int
    rows: Callable[[int, int], Tensor]  # vectors start to stop, (stop − start, B, n)
    read: Callable[[Tensor, int, int], Tensor]  # of their products (j, B, n): (B, j, …)
    create_graph: bool


def _products(f: Map, z: Tensor, wanted: _Products) -> tuple[Tensor, Tensor]:
    """f(z), and what is read off the products, joined along axis 1."""
    graph = wanted.create_graph
    with torch.inference_mode(False), torch.enable_grad():
        if graph and z.requires_grad:
            source = z
        else:
            source = (z.clone() if z.is_inference() else z.detach()).requires_grad_()
        rows = BATCHED.get(z.device.type, BATCHED_ELSEWHERE)
        batch = min(wanted.count, rows // max(len(z), 1), BUDGET // max(z.numel(), 1))
        with contextlib.ExitStack() as stack:
            if graph:
                # Fused attention has no second derivative.
                stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            if batch >= LEAST_BATCH:
                stack.enter_context(batchable())
            # A network may write into what it is given, but not into a leaf.
            out = f(source.clone())
        found = _pull(f, source, out, wanted, batch) if out.requires_grad else None
        if found is None:
            if not torch.equal(f(1.1 * z.detach() + 0.1), out):
                raise TypeError(
                    "the network's output carries no gradient (no_grad or detach inside it?): its "
                    "trace can't be found"
                )
            nothing = torch.zeros_like(source, requires_grad=False)
            found = wanted.read(nothing.expand(wanted.count, *z.shape), 0, wanted.count)
    return (out, found) if graph else (out.detach(), found)


def _pull(f: Map, source: Tensor, out: Tensor, wanted: _Products, batch: int) -> Tensor | None:
    """The products, by the first way that works; None if the output does not depend on source."""
    for size in (batch, 1) if batch >= LEAST_BATCH else (1,):
        try:
            with _without_warnings(size > 1):
                return _pull_in_batches(lambda: out, source, wanted, size, retain=True)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:
            # No batching rule; or, one by one, a backward pass that runs only once.
            continue
    return _pull_in_batches(lambda: _again(f, source, out), source, wanted, 1, retain=False)


def _pull_in_batches(
    forward: Callable[[], Tensor], source: Tensor, wanted: _Products, size: int, retain: bool
) -> Tensor | None:
    """The products, `size` at a time; None if the output does not depend on the source."""
    count = wanted.count
    batched = size > 1
    found = []
    for start in range(0, count, size):
        stop = min(start + size, count)
        value = forward()
        cotangents = wanted.rows(start, stop).to(value.dtype)
        if not batched:
            cotangents = cotangents[0]
        # The last batch too may fail, and then products follow one by one.
        keep = wanted.create_graph or (retain and (batched or stop < count))
        (pulled,) = torch.autograd.grad(
            value,
            source,
            cotangents,
            retain_graph=keep,
            create_graph=wanted.create_graph,
            allow_unused=True,
            is_grads_batched=batched,
        )
        if pulled is None:
            return None
        if not batched:
            pulled = pulled.unsqueeze(0)
        found.append(wanted.read(pulled, start, stop))
    return torch.cat(found, 1)


@contextlib.contextmanager
def _without_warnings(batched: bool) -> Iterator[None]:
    """Ignore that a kernel has no batching rule: it is slower, not wrong."""
    if not batched:
        yield
        return
    with warnings.catch_warnings(action="ignore"):
        yield


def _again(f: Map, source: Tensor, out: Tensor) -> Tensor:
    """f once more, without reentrant checkpoints, which autograd.grad cannot go through."""
    module: Any = torch.utils.checkpoint
    with _CHECKPOINT_LOCK:
        function = module.CheckpointFunction
        module.CheckpointFunction = _Transparent
        try:
            value = f(source.clone())
        finally:
            module.CheckpointFunction = function
    if not torch.allclose(value, out, rtol=1e-3, atol=1e-3, equal_nan=True):
        raise TypeError(
            "the network is random (dropout in train mode?) and its backward pass runs only once: "
            "call eval() first"
        )
    return value


class _Transparent:
    """Replaces torch's reentrant checkpoint: the same values and gradients, more memory."""

    @staticmethod
    def apply(function: Callable[..., object], _preserve: bool, *args: object) -> object:
        """Call the function."""
        return function(*args)


_CHECKPOINT_LOCK = threading.RLock()
