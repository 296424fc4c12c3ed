"""Mean, scale and correlations of data, for any magnitude that their numbers can have.

Sums run over d = (x − reference)/unit with |d| < 2 (Chan, Golub and LeVeque 1983), the unit being
a power of two that grows with the data, so that squares neither overflow nor vanish. A feature
whose values are all equal, to rounding, is constant.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..common.inputs import as_floats
from ..common.thinning import Thinned
from ..common.user_warnings import warn
from .column_features import NUMBERS
from .covariance import Covariance
from .factors import NUMBERS_KEPT, factor_root
from .mixing import Mixing, mixing_of

ROUNDING = 4  # units in the last place by which values of a constant may differ


class Statistics(NamedTuple):
    """Numbers per first axis of a sample, in float64, and how many rows they were measured on."""

    mean: Tensor
    std: Tensor
    varies: Tensor
    rows: int


def wide(device: torch.device) -> torch.dtype:
    """float64 where the device has it, float32 elsewhere."""
    return torch.float32 if device.type == "mps" else torch.float64


class Moments:
    """Mean, variance and range of a stream of rows (B, …) along all axes but one, or along all."""

    def __init__(self, axis: int | None) -> None:
        self.axis = axis
        self.count = 0
        self.resolution = 0.0

    def add(self, part: Tensor) -> None:
        """Count in further rows."""
        if not len(part):
            return
        if part.is_floating_point():
            self.resolution = max(self.resolution, torch.finfo(part.dtype).eps)
        part = (part.cpu() if part.device.type == "mps" else part).double()
        axes = tuple(i for i in range(part.ndim) if i != self.axis)
        low = part.amin(axes)
        high = part.amax(axes)
        if not self.count:
            self.reference = low + 0.5 * (high - low)
            self.mean = torch.zeros_like(low)
            self.square = torch.zeros_like(low)
            self.unit = torch.zeros_like(low)
            self.low = low
            self.high = high
        self.low = torch.minimum(self.low, low)
        self.high = torch.maximum(self.high, high)
        before = self.unit
        reach = torch.maximum(self.high - self.reference, self.reference - self.low)
        self.unit = _power_of_two(reach)
        divisor = torch.where(self.unit > 0, self.unit, 1)
        shrink = before / divisor
        mean = self.mean * shrink
        square = self.square * shrink**2
        shape = [-1 if i == self.axis else 1 for i in range(part.ndim)]
        part = (part - self.reference.reshape(shape)).div_(divisor.reshape(shape))
        total = self.count + len(part)
        old = self.count / total
        new = len(part) / total
        gap = part.mean(axes) - mean
        square = square * old + part.var(axes, correction=0) * new
        self.square = square + gap.square() * old * new
        self.mean = mean + gap * new
        self.count = total

    def statistics(self) -> Statistics:
        """Return mean, standard deviation and what varies at all."""
        if not self.count:
            raise ValueError("there are no data to standardize by")
        largest = torch.maximum(self.high.abs(), self.low.abs())
        varies = self.high - self.low > ROUNDING * self.resolution * largest
        return Statistics(
            self.reference + self.unit * self.mean,
            self.unit * self.square.sqrt(),
            varies,
            self.count,
        )


def _power_of_two(x: Tensor) -> Tensor:
    """The largest power of two that is at most x; 0 for 0."""
    return torch.where(x > 0, x / (2 * torch.frexp(x).mantissa), 0)


class Units(NamedTuple):
    """A standardization in one dtype: mean + rest is the mean in about twice its digits."""

    mean: Tensor
    rest: Tensor | None
    scale: Tensor
    free: Tensor | None


def units(mean: Tensor, scale: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Units:
    """A standardization made ready for states of a dtype."""
    near = mean.to(dtype)
    rest: Tensor | None = (mean - near).to(dtype)
    free = None
    if scale.device.type != "meta":
        rest = None if torch.equal(near.to(mean.dtype), mean) else rest
        varies = (scale != 0).expand(shape).flatten()
        free = None if bool(varies.all()) else varies.nonzero()[:, 0]
    return Units(near, rest, torch.where(scale == 0, 1, scale).to(dtype), free)


class Standardization:
    """The map x = mean + scale ∘ (R·z) between data (B, *shape) and flattened states z (B, n).

    Mean and scale are numbers per first axis of a sample (feature or channel). A scale of 0 marks
    a constant: it has no state, and data repeat it. R is the square root of the correlations of
    vectors, or the identity; `root` holds it as `scoresde.model.mixing` says, None the identity.
    """

    def __init__(
        self, mean: Tensor, scale: Tensor, shape: tuple[int, ...], root: Tensor | None = None
    ) -> None:
        self.mean = mean
        self.scale = scale
        self.shape = shape
        self.root = root
        self._versions = _versions(mean, scale, root)
        self._units: dict[torch.dtype, Units] = {}

    def is_of(self, mean: Tensor, scale: Tensor, root: Tensor | None = None) -> bool:
        """Whether these tensors are still what it was made from, and unchanged."""
        same = self.mean is mean and self.scale is scale and self.root is root
        versions = _versions(mean, scale, root)
        return same and versions is not None and self._versions == versions

    @functools.cached_property
    def _mixing(self) -> Mixing | None:
        """R; None for the identity."""
        return mixing_of(self.root)

    def units(self, dtype: torch.dtype) -> Units:
        """Mean and scale for states of a dtype."""
        if dtype not in self._units:
            with torch.inference_mode(False):
                self._units[dtype] = units(self.mean, self.scale, self.shape, dtype)
        return self._units[dtype]

    @property
    def free(self) -> Tensor | None:
        """Which elements of a flattened sample vary, shape (n,); None for all."""
        return self.units(torch.float32).free

    @property
    def dim(self) -> int:
        """Number of elements of one sample that vary."""
        free = self.free
        return math.prod(self.shape) if free is None else len(free)

    @property
    def log_scale(self) -> float:
        """log|det| of the map from states to data, in nats."""
        scale = self.scale.double().log().expand(self.shape).flatten()
        free = self.free
        total = float((scale if free is None else scale[free]).sum())
        return total if self._mixing is None else total + self._mixing.log_det

    @property
    def directions(self) -> Tensor:
        """Rows (n, n) that give the standardized columns u = z·directionsᵀ of states z (B, n)."""
        return self.directions_of(torch.arange(self.dim, device=self.scale.device))

    def directions_of(self, columns: Tensor) -> Tensor:
        """Rows (k, n) of `directions`."""
        free = self.free
        if self._mixing is None:
            unit = self.scale.new_zeros(len(columns), self.dim)
            unit[torch.arange(len(columns), device=unit.device), columns] = 1
            return unit
        if free is None:
            return self._mixing.rows(columns)
        return self._mixing.rows(free[columns])[:, free]

    def to_data(self, z: Tensor) -> Tensor:
        """States (B, n) as data (B, *shape): mean + scale ∘ (R·z), constants as they are."""
        mixing = self._mixing
        if mixing is not None:
            x = self.mean + self.scale * mixing.forward(self.spread(z).to(mixing.dtype))
            return x.to(z.dtype)
        mean, rest, scale, _ = self.units(z.dtype)
        x = scale * self.spread(z)
        return mean + (x if rest is None else rest + x)

    def from_data(self, x: Tensor) -> Tensor:
        """Data (B, *shape) as states (B, n): R⁻¹·(x − mean)/scale, without constants."""
        mixing = self._mixing
        if mixing is not None:
            free = self.free
            scale = torch.where(self.scale == 0, 1, self.scale)
            z = mixing.inverse((x.to(mixing.dtype) - self.mean) / scale)
            z = z.to(torch.promote_types(x.dtype, torch.float32))
            return z if free is None else z.index_select(1, free)
        mean, rest, scale, free = self.units(torch.promote_types(x.dtype, torch.float32))
        x = x - mean
        z = ((x if rest is None else x - rest) / scale).reshape(len(x), math.prod(self.shape))
        return z if free is None else z.index_select(1, free)

    def spread(self, z: Tensor) -> Tensor:
        """States (B, n) in the shape of samples, (B, *shape), with 0 for constants."""
        free = self.free
        if free is not None:
            z = z.new_zeros(len(z), math.prod(self.shape)).index_copy(1, free, z)
        return z if len(self.shape) == 1 else z.reshape(len(z), *self.shape)

    def columns(self, z: Tensor) -> Tensor:
        """States (B, n) as standardized columns R·z (B, *shape), with 0 for constants."""
        u = self.spread(z)
        mixing = self._mixing
        return u if mixing is None else mixing.forward(u.to(mixing.dtype)).to(z.dtype)

    def to_rates(self, v: Tensor) -> Tensor:
        """Changes of states (B, n) as changes of data (B, *shape): scale ∘ (R·v)."""
        v = self.spread(v)
        mixing = self._mixing
        if mixing is None:
            return self.units(v.dtype).scale * v
        return (self.scale * mixing.forward(v.to(mixing.dtype))).to(v.dtype)

    def to_gradients(self, g: Tensor) -> Tensor:
        """Gradients by states (B, n) as gradients by data (B, *shape): R⁻ᵀ·g/scale."""
        g = self.spread(g)
        mixing = self._mixing
        if mixing is None:
            return g / self.units(g.dtype).scale
        scale = torch.where(self.scale == 0, 1, self.scale)
        return (mixing.transposed_inverse(g.to(mixing.dtype)) / scale).to(g.dtype)

    def off_constants(self, x: Tensor) -> Tensor | None:
        """Which rows of x are off a constant by more than 1e-6 of it: their density is 0."""
        if self.free is None:
            return None
        off = ((x - self.mean).abs() > 1e-6 * self.mean.abs()) & (self.scale == 0)
        return off.reshape(len(x), -1).any(1)

    def varying(self, net: Callable[..., Any]) -> Callable[..., Any]:
        """A network whose outputs (…, *shape) come as (…, n), the elements that vary."""
        free = self.free
        if free is None:
            return net

        def call(x: Tensor, *rest: Any, **condition: Any) -> Any:
            out = net(x, *rest, **condition)
            if not isinstance(out, Tensor):
                return out  # the caller raises
            first = out.ndim - len(self.shape)
            if first < 0 or out.shape[first:] != x.shape[1:]:
                return out
            return out.flatten(first).index_select(-1, free)

        return call


def _versions(*parts: Tensor | None) -> tuple[int, ...] | None:
    """Counters that rise when the tensors change; tensors of inference mode have none."""
    found = []
    for part in parts:
        if part is None:
            continue
        if part.is_inference():
            return None
        found.append(part._version)
    return tuple(found)


class Measured(NamedTuple):
    """What `measured` finds: statistics per first axis, R of vectors, and some of the rows."""

    mean: Tensor
    scale: Tensor
    root: Tensor | None
    rows: Tensor | None


def measured(
    data: Tensor | Iterable[Tensor], shape: tuple[int, ...], dtype: torch.dtype, how: str
) -> Measured:
    """Mean, scale and correlations of data; warn of what is constant or will be rounded."""
    axis = 1 if shape else None
    moments = Moments(axis)
    covariance = Covariance() if how == "whiten" else None
    some = None
    if len(shape) == 1 and shape[0]:
        numbers = NUMBERS_KEPT if how == "factors" else NUMBERS
        some = Thinned(max(1, numbers // shape[0]))
    for part in _parts(data, shape):
        moments.add(part)
        if covariance is not None:
            covariance.add(part)
        if some is not None:
            some.add(part)
    mean, std, varies, count = moments.statistics()
    _check(mean, std, varies, count, dtype)
    root = None if covariance is None else covariance.root(varies)
    rows = None if some is None else some.rows()
    if how == "factors" and rows is not None:
        root = factor_root(rows, mean.cpu(), std.cpu(), varies.cpu())
        rows = rows[: max(1, NUMBERS // shape[0])]
    return Measured(mean, torch.where(varies, std, 0), root, rows)


def _check(mean: Tensor, std: Tensor, varies: Tensor, count: int, dtype: torch.dtype) -> None:
    """Raise for data that can't be standardized; warn of what is constant or will be rounded."""
    if not bool((mean.isfinite() & std.isfinite()).all()):
        raise ValueError("data has NaN or infinite values, and no mean or scale")
    if not bool(varies.any()):
        raise ValueError(
            f"the data do not vary: {count} equal samples (to rounding) have no density to learn"
        )
    limits = torch.finfo(dtype)
    if not bool(((mean.abs() + 8 * std) < limits.max).all()):
        raise ValueError(
            f"the data reach beyond what {limits.dtype} can hold, {limits.max:.2g}: "
            "divide them by a constant, or make the model .double()"
        )
    coarse = varies & (std < torch.clamp(1e3 * limits.eps * mean.abs(), min=limits.tiny))
    if bool(coarse.any()):
        warn(
            f"features {coarse.nonzero().flatten().tolist()} lie so far from 0 for their spread, "
            f"or are so small, that samples in {limits.dtype} are rounded coarsely: subtract a "
            "constant, multiply by one, or make the model .double()"
        )
    if not bool(varies.all()):
        warn(
            f"features {(~varies).nonzero().flatten().tolist()} are constant: samples repeat them, "
            "and log p leaves out their density, a spike; drop them, or add noise to have a "
            "density of all"
        )


def _parts(data: Any, shape: tuple[int, ...]) -> Iterator[Tensor]:
    """Data as one batch, or as the batches that an iterable yields, each checked."""
    batches = isinstance(data, list) and len(data) > 0 and getattr(data[0], "ndim", 0) > len(shape)
    one = isinstance(data, Tensor | list) or hasattr(data, "__array__")
    if not batches and (one or not isinstance(data, Iterable)):
        data = [data]
    for part in data:
        yield as_floats(part, shape, "data", finite=False)
