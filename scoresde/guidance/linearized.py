"""A map A of rows near points: its values, and products with its Jacobian H and with Hᵀ."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

Map = Callable[[Tensor], Tensor]
"""A map of rows (B, n) -> (B, m) that do not mix."""


class Linearized:
    """A(x) + H·δ at points x (B, n); with `graph`, gradients flow back through all of it."""

    def __init__(self, f: Map, x: Tensor, graph: bool) -> None:
        self._f = f
        self._graph = graph
        with torch.inference_mode(False), torch.enable_grad():
            if not graph:
                x = x.detach().clone()
            self._x = x if x.requires_grad else x.detach().requires_grad_()
            self._value = f(self._x)

    @property
    def size(self) -> int:
        """N, the numbers of a point."""
        return self._x.shape[1]

    @property
    def value(self) -> Tensor:
        """A(x), (B, m)."""
        return self._value if self._graph else self._value.detach()

    def transposed(self, w: Tensor) -> Tensor:
        """Hᵀ·w (B, n) of rows w (B, m)."""
        return _gradient(self._value, self._x, w, self._graph)

    @functools.cached_property
    def _pulled(self) -> tuple[Tensor, Tensor]:
        """w = 0 and Hᵀ·w, which is linear in w: its gradient by w is H."""
        with torch.inference_mode(False), torch.enable_grad():
            w = torch.zeros_like(self._value, requires_grad=True)
            return w, _gradient(self._value, self._x, w, True)

    def product(self, u: Tensor) -> Tensor:
        """H·u (B, m) of rows u (B, n)."""
        w, pulled = self._pulled
        return _gradient(pulled, w, u, self._graph)

    def matrix(self) -> Tensor:
        """H, (B, m, n): one backward pass, with m copies of each point."""
        m = self._value.shape[1]
        with torch.inference_mode(False), torch.enable_grad():
            x = self._x.repeat_interleave(m, 0)
            values = self._f(x).reshape(-1, m, m).diagonal(dim1=1, dim2=2)
            ones = torch.ones_like(values)
            found = _gradient(values, x, ones, self._graph)
        return found.reshape(-1, m, x.shape[1])


def matrix_of_linear(f: Map, like: Tensor) -> Tensor:
    """The matrix (1, m, n) of an affine map of rows such as `like` (·, n)."""
    with torch.inference_mode(False):
        x = torch.zeros_like(like[:1], requires_grad=False).clone()
    return Linearized(f, x, False).matrix()


def _gradient(value: Tensor, x: Tensor, cotangent: Tensor, graph: bool) -> Tensor:
    """The gradient of value·cotangent by x; 0 where it does not depend on x."""
    (found,) = torch.autograd.grad(
        value, x, cotangent, retain_graph=True, create_graph=graph, materialize_grads=True
    )
    return found
