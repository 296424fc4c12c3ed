"""The Gaussian of data given a vector c and a class y, N(A·c + b_y, S), as a part of a network.

Where data are nearly such a Gaussian, as the target of a regression is, a network that must learn
this from few rows is worse than least squares. So `fit` measures the Gaussian, and the network
learns what is left. With S = Q·diag(v)·Qᵀ, m = A·c + b_y and u = Qᵀz, where z = cos φ·x0 + sin φ·ε,
the output that denoises the Gaussian (as predict="edm" has it) is

    base = Q·[sin φ·(Qᵀm − (1 − v)·cos φ·u)/(v·cos²φ + sin²φ)].

What is left, x0 − m, has the scale ρ, the geometric mean of √v, and the state z' = (z − cos φ·m)/s,
s² = ρ²cos²φ + sin²φ, at the noise label t' = t − log ρ. A network F of these adds to the output:

    out = base + (ρ/s)·F(z', t', c, y).

Clumps, edges and curves of the data stay where they are, whatever m is. So the Fourier features of
F remain those of z at t, unless m says so much that what is left is too narrow for them.

If F = 0, the model is the Gaussian. Samples without c and y have m = 0 and S = I: out = F(z, t).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .base import ExactWaves, wide
from .conditions import absent
from .labels import rows_of_labels

MOST_DIMENSIONS = 256
"""Of data; more have no such Gaussian, whose basis is a matrix."""
MOST_CATEGORIES = 500
NUMBERS = ("slope", "shifts", "intercept", "basis", "log_variance", "outer")


class Rest(NamedTuple):
    """What a network F is given, and how its output is a part of the whole."""

    x: Tensor
    """z' (B, D)."""
    t: Tensor
    """t' (B,)."""
    waves_x: Tensor
    """z or z', of which the Fourier features are."""
    waves_t: Tensor
    """t or t'."""
    base: Tensor
    """(B, D)."""
    gain: Tensor
    """ρ/s, (B, 1)."""
    stretch: Tensor
    """s = ∂z/∂z', (B, 1)."""
    waves_stretch: Tensor
    """s or 1, (B, 1)."""
    base_trace: Tensor
    """Of ∂base/∂z, (B,)."""

    def whole(self, out: Tensor) -> Tensor:
        """The output, of F's."""
        added = out.to(self.base.dtype)
        return torch.addcmul(self.base, self.gain, added).to(out.dtype)

    def whole_trace(self, trace: Tensor) -> Tensor:
        """The trace of ∂out/∂z, of that of ∂F/∂z'."""
        scale = (self.gain / self.stretch)[:, 0]
        found = torch.addcmul(self.base_trace, scale, trace.to(scale.dtype))
        return found.to(trace.dtype)


class LinearGaussian(ExactWaves):
    """N(A·c + b_y, S) of vectors (B, D); N(0, I) until `fit` measures it.

    Of a class that combines categories, b_y is the intercept and a shift for each category. Shifts
    are 0 on average, as is what is not known of c and y.
    """

    slope: Tensor
    shifts: Tensor
    intercept: Tensor
    basis: Tensor
    log_variance: Tensor
    outer: Tensor
    """1 if Fourier features are those of z, 0 if of z'."""

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

    @torch.no_grad()
    def put(self, numbers: Mapping[str, Tensor]) -> None:
        """Keep the numbers of a Gaussian, by the names in `NUMBERS`."""
        for name, value in self.named_buffers():
            value.copy_(numbers[name])

    def forward(
        self, x: Tensor, t: Tensor, y: Tensor | None = None, vector: Tensor | None = None
    ) -> Rest:
        """What is left of x (B, D) at noise labels t (B,), given classes and vectors."""
        if x.is_meta:
            return self._rest(wide(x), wide(t), y, vector)
        # differences of nearly equal numbers
        with torch.autocast(x.device.type, enabled=False):
            return self._rest(wide(x), wide(t), y, vector)

    def _rest(self, z: Tensor, label: Tensor, y: Tensor | None, vector: Tensor | None) -> Rest:
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
        return Rest(
            x=inner,
            t=inner_label,
            waves_x=torch.lerp(inner, z, outer),
            waves_t=torch.lerp(inner_label, label, outer),
            base=base @ basis.T,
            gain=log_scale.exp() / stretch,
            stretch=stretch,
            waves_stretch=torch.lerp(torch.ones_like(stretch), stretch, outer),
            base_trace=(turn * away).sum(1),
        )

    def _mean(self, z: Tensor, y: Tensor | None, vector: Tensor | None) -> tuple[Tensor, Tensor]:
        """A·c + b_y (B, D), 0 of samples without both, and which samples have one, (B, 1)."""
        mean = self.intercept.to(z.dtype).expand(len(z), -1)
        known = torch.zeros(len(z), 1, dtype=torch.bool, device=z.device)
        if vector is not None and self.vector:
            lost = absent(vector).unsqueeze(1)
            told = vector.masked_fill(lost, 0).to(z.dtype)
            mean = torch.addmm(mean, told, self.slope.to(z.dtype))
            known = known | ~lost
        if y is not None and self.sizes:
            rows, missing = rows_of_labels(y.long(), self.sizes)
            shift = self.shifts.to(z.dtype)[rows].sum(1)
            lost = missing.unsqueeze(1)
            mean = mean + shift.masked_fill(lost, 0)
            known = known | ~lost
        return mean.masked_fill(~known, 0), known


def linear_gaussian(
    shape: tuple[int, ...], vector: int, classes: int | Sequence[int]
) -> LinearGaussian | None:
    """The Gaussian of such samples; None for images, and where there are no such conditions."""
    sizes = tuple(classes) if isinstance(classes, list | tuple) else (classes,)
    if not 0 < sum(sizes) <= MOST_CATEGORIES:
        sizes = ()
    if not vector and not sizes:
        return None
    if len(shape) != 1 or not 0 < shape[0] <= MOST_DIMENSIONS:
        return None
    return LinearGaussian(shape[0], vector, sizes)
