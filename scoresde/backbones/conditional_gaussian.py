"""The Gaussian of data given a vector c and a class y, N(A·c + b_y, S), as a part of a network.

Where data are nearly such a Gaussian, as the target of a regression is, a network that must learn
this from few rows is worse than least squares. So `fit` measures the Gaussian, and the network
learns what is left. Let S = Q·diag(v)·Qᵀ, m = A·c + b_y, z = cos φ·x0 + sin φ·ε and u = Qᵀz. The
output that denoises the Gaussian (in the form of predict="edm") is

    base = Q·[sin φ·(Qᵀm − (1 − v)·cos φ·u)/(v·cos²φ + sin²φ)].

What is left, x0 − m, has the scale ρ, the geometric mean of √v. Its state is z' = (z − cos φ·m)/s
with s² = ρ²cos²φ + sin²φ, its noise label t' = t − log ρ, where t = log tan φ. A network F of these
adds to the output:

    out = base + (ρ/s)·F(z', t', c, y).

Clumps, edges and curves of the data stay where they are, whatever m is. So F sees z and t, and z'
only in its gain g ∘ z', by which it can take m back. If S is small, z hides what is left, and F
sees z' and t' alone.

If F = 0, the model is the Gaussian. A sample that lacks c or y, though the mean depends on it, has
m = 0 and S = I: out = F(z, t).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .base import ExactWaves, wide
from .conditions import absent
from .labels import rows_of_labels

MOST_DIMENSIONS = 256
"""Of data; more have no such Gaussian, whose basis is a matrix."""
MOST_CATEGORIES = 500
"""More have no part in the mean."""
NUMBERS = ("slope", "shifts", "intercept", "basis", "log_variance", "outer")


class Residual(NamedTuple):
    """What a network F is given, and how its output is a part of the whole."""

    x: Tensor
    """z or z', (B, D)."""
    t: Tensor
    """t or t', (B,)."""
    inner: Tensor
    """z' (B, D)."""
    base: Tensor
    """(B, D)."""
    gain: Tensor
    """ρ/s, (B, 1)."""
    stretch: Tensor
    """s = ∂z/∂z', (B, 1)."""
    x_stretch: Tensor
    """∂x/∂z': s or 1, (B, 1)."""
    base_trace: Tensor
    """Of ∂base/∂z, (B,)."""

    def output(self, of_network: Tensor) -> Tensor:
        """The whole output, of F's (B, D)."""
        added = of_network.to(self.base.dtype)
        return torch.addcmul(self.base, self.gain, added).to(of_network.dtype)

    def trace(self, of_network: Tensor) -> Tensor:
        """The trace of ∂out/∂z, of that of ∂F/∂z' (B,)."""
        scale = (self.gain / self.stretch)[:, 0]
        added = of_network.to(scale.dtype)
        return torch.addcmul(self.base_trace, scale, added).to(of_network.dtype)


class ConditionalGaussian(ExactWaves):
    """N(A·c + b_y, S) of vectors (B, D); N(0, I) until `fit` measures it.

    Its numbers are `slope`, which is Aᵀ, `intercept` and `shifts` of categories, whose sum is b_y,
    `basis`, which is Q, and `log_variance`, log v. Shifts average 0 over the training rows. `outer`
    is 1 if the network sees z, and 0 if z'.
    """

    slope: Tensor
    shifts: Tensor
    intercept: Tensor
    basis: Tensor
    log_variance: Tensor
    outer: Tensor

    def __init__(self, dim: int, vector: int, sizes: Sequence[int]) -> None:
        super().__init__()
        self.vector = vector
        self.sizes = tuple(map(int, sizes))
        self.register_buffer("intercept", torch.zeros(dim))
        self.register_buffer("basis", torch.eye(dim))
        self.register_buffer("log_variance", torch.zeros(dim))
        self.register_buffer("outer", torch.zeros(()))
        if vector:
            self.register_buffer("slope", torch.zeros(vector, dim))
        if sizes:
            self.register_buffer("shifts", torch.zeros(sum(sizes), dim))
        self.exact_buffers = tuple(self._buffers)

    @property
    def measured(self) -> bool:
        """Whether it is another one than N(0, I)."""
        return bool(self.log_variance.any() | self.intercept.any())

    @torch.no_grad()
    def assign(self, numbers: Mapping[str, Tensor]) -> None:
        """Keep the numbers of a Gaussian, by the names in `NUMBERS`."""
        for name, value in self.named_buffers():
            value.copy_(numbers[name])

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Be N(0, I) if a state has none of its numbers, as it is older than they are."""
        if not any(prefix + name in state_dict for name in NUMBERS):
            return
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        y: Tensor | None = None,
        vector: Tensor | None = None,
    ) -> Residual:
        """What is left of x (B, D) at noise labels t (B,), given classes and vectors."""
        if x.is_meta:
            return self._residual(wide(x), wide(t), y, vector)
        # differences of nearly equal numbers
        with torch.autocast(x.device.type, enabled=False):
            return self._residual(wide(x), wide(t), y, vector)

    def _residual(
        self,
        z: Tensor,
        label: Tensor,
        y: Tensor | None,
        vector: Tensor | None,
    ) -> Residual:
        """What `forward` returns, of numbers in full precision."""
        mean, known = self._mean(z, y, vector)
        basis = self.basis.to(z.dtype)
        mean = mean @ basis
        log_variance = torch.where(known, self.log_variance.to(z.dtype), 0)
        variance = log_variance.exp()
        log_scale = 0.5 * log_variance.mean(1, keepdim=True)
        sin2 = torch.sigmoid(2 * label).unsqueeze(1)
        cos2 = torch.sigmoid(-2 * label).unsqueeze(1)
        sin, cos = sin2.sqrt(), cos2.sqrt()
        u = z @ basis
        turn = sin / (variance * cos2 + sin2)
        away = (variance - 1) * cos
        base = turn * (mean + away * u)
        stretch = (torch.exp(2 * log_scale) * cos2 + sin2).sqrt()
        inner = ((u - cos * mean) / stretch) @ basis.T
        inner_label = label - log_scale[:, 0]
        outer = self.outer.to(z.dtype)
        return Residual(
            x=torch.lerp(inner, z, outer),
            t=torch.lerp(inner_label, label, outer),
            inner=inner,
            base=base @ basis.T,
            gain=log_scale.exp() / stretch,
            stretch=stretch,
            x_stretch=torch.lerp(torch.ones_like(stretch), stretch, outer),
            base_trace=(turn * away).sum(1),
        )

    def _mean(self, z: Tensor, y: Tensor | None, vector: Tensor | None) -> tuple[Tensor, Tensor]:
        """A·c + b_y (B, D), 0 of samples that lack one of both, and which samples lack none."""
        # not len(z), which would be a constant in an exported network
        mean = self.intercept.to(z.dtype).expand(z.shape[0], -1)
        some = torch.zeros(z.shape[0], 1, dtype=torch.bool, device=z.device)
        every = ~some
        if self.vector:
            known = torch.zeros_like(some)
            if vector is not None:
                known = ~absent(vector).unsqueeze(1)
                told = vector.masked_fill(~known, 0).to(z.dtype)
                mean = mean + told @ self.slope.to(z.dtype)
            some = some | known
            every = every & (known | ~self.slope.any())
        if self.sizes:
            known = torch.zeros_like(some)
            if y is not None:
                rows, missing = rows_of_labels(y.long(), self.sizes)
                known = ~missing.unsqueeze(1)
                mean = mean + self.shifts.to(z.dtype)[rows].sum(1)
            some = some | known
            every = every & (known | ~self.shifts.any())
        known = some & every
        return mean.masked_fill(~known, 0), known


class TakesGaussian(nn.Module):
    """A network that may have a Gaussian; pickles of earlier versions have none."""

    conditional_gaussian: ConditionalGaussian | None
    last_layers: tuple[str, ...]
    """What adds to its output; all of it starts at zero."""

    @property
    def adds_nothing(self) -> bool:
        """Whether it is the Gaussian and nothing else, as before training."""
        layers = [getattr(self, name) for name in self.last_layers]
        return not any(bool(p.any()) for layer in layers for p in layer.parameters())

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        if not hasattr(self, "conditional_gaussian"):
            self.conditional_gaussian = None


def gaussian_for(
    shape: tuple[int, ...], vector: int, classes: int | Sequence[int]
) -> ConditionalGaussian | None:
    """The Gaussian of such samples; None for images, and where there are no such conditions."""
    sizes = tuple(classes) if isinstance(classes, list | tuple) else (classes,)
    if not 0 < sum(sizes) <= MOST_CATEGORIES:
        sizes = ()
    if not vector and not sizes:
        return None
    if len(shape) != 1 or not 0 < shape[0] <= MOST_DIMENSIONS:
        return None
    return ConditionalGaussian(shape[0], vector, sizes)


def residual(
    gaussian: ConditionalGaussian | None,
    x: Tensor,
    t: Tensor,
    y: Tensor | None,
    vector: Tensor | None,
) -> Residual | None:
    """What is left of x (B, D) at t (B,); None without a Gaussian, and without conditions."""
    if gaussian is None or (vector is None and y is None):
        return None
    found: Residual = gaussian(x, t, y, vector)
    return found
