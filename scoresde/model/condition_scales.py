"""Mean and scale of numeric conditions, per first axis: entry of a vector, channel of an image.

`fit` measures them in one pass over the data, and the model keeps them beside those of the data;
the network is given (c − mean)/scale. Labels are not standardized. An entry that does not vary has
its own size as scale, or 1 if it is 0: the network sees 0, and rounding errors stay small.

Vectors have two more rules. Where most rows lie close together and a few far away, the scale is so
large that most look alike: such entries are replaced by their normal scores first, and mean and
scale are those of the scores; see `common.normal_scores`, and `condition_measures` for which. And
far from all that it has learnt with, a network may answer anything. So a number beyond the
outermost row by d > 1, in units of the scale, is told as 2 − 1/d beyond it. Nearer ones stay as
they are, so that straight lines go on for one unit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..common.inputs import as_condition
from ..common.normal_scores import KNOTS, beyond, interpolated
from ..common.user_warnings import warn
from .standardization import wide

CPU = torch.device("cpu")
ENDS = "ends"
"""The least and the greatest number of every entry, (2, K)."""
SCORES = ("entries", "knots", "levels")
"""Which entries are replaced by scores, and the scores of some of their numbers."""
STEP = 0.5
"""By how much scores rise beyond the outermost knot, over as far as the last six knots reach."""
NOT_A_VECTOR: Mapping[str, Tensor] = {}
AT_ONCE = 2**18
"""Numbers of a vector's rows that are told at once: more need memory, and leave the cache."""
FAR = 0.5
"""A number is far from those of training if it is so many times their range beyond them."""
FAR_SCORE = 0.9
"""So is one beyond them whose score is so much beyond that of the outermost knot."""


class ConditionScales(nn.Module):
    """Means and scales by condition, in float64 whatever dtype the model is converted to."""

    def known(self) -> dict[str, tuple[int, ...]]:
        """Return the conditions that were measured, with the shapes of their statistics."""
        means = {name: self._numbers(name)["mean"] for name in self._modules}
        return {name: tuple(mean.shape) for name, mean in means.items()}

    def put(
        self, name: str, mean: Tensor, scale: Tensor, more: Mapping[str, Tensor] = NOT_A_VECTOR
    ) -> None:
        """Keep mean and scale of a condition, of a vector also ends and scores."""
        if not bool(mean.isfinite().all() & scale.isfinite().all() & (scale > 0).all()):
            raise ValueError(
                f"condition {name!r} has numbers too large to be standardized: divide them by a "
                "constant"
            )
        part = nn.Module()
        part.register_buffer("mean", mean.detach().clone())
        part.register_buffer("scale", scale.detach().clone())
        for what, value in more.items():
            part.register_buffer(what, value.detach().clone())
        self._modules[name] = part

    def settle(
        self,
        name: str,
        mean: Tensor,
        std: Tensor,
        varies: Tensor,
        more: Mapping[str, Tensor] = NOT_A_VECTOR,
    ) -> None:
        """Keep measured statistics of a condition; constants are scaled by their own size."""
        size = mean.abs()
        constant = torch.where(size > 0, size, 1.0)
        self.put(name, mean, torch.where(varies, std, constant), more)

    def blank(
        self,
        name: str,
        shape: tuple[int, ...],
        device: torch.device = CPU,
        scored: int | None = None,
    ) -> None:
        """Make room for what a file holds of a condition; see `scored`."""
        one = torch.ones(shape, dtype=wide(device), device=device)
        shapes = vector_shapes(shape, scored)
        more = {what: one.new_zeros(size) for what, size in shapes.items()}
        if scored:
            more["entries"] = more["entries"].long()
        self.put(name, 0 * one, one, more)

    def read(self, state: Mapping[str, Any], prefix: str, device: torch.device) -> None:
        """Keep the statistics that a state holds under a prefix."""
        for name, place in _places(state, prefix).items():
            found = {}
            for what in ("mean", "scale", ENDS, *SCORES):
                if place + what in state:
                    found[what] = state[place + what].to(device)
            mean, scale = found.pop("mean"), found.pop("scale")
            self.put(name, mean, scale, found)

    def make_room(self, state: Mapping[str, Any], prefix: str, device: torch.device) -> None:
        """Make room for the statistics that a state holds under a prefix."""
        known = self.known()
        for name, place in _places(state, prefix).items():
            scored = None
            if place + ENDS in state:
                scored = len(state.get(place + "entries", ()))
            if name not in known or self.scored().get(name) != scored:
                shape = tuple(state[place + "mean"].shape)
                self.blank(name, shape, device, scored)

    def scored(self) -> dict[str, int]:
        """Return how many entries are replaced by scores, for each vector that has ends.

        Vectors of earlier versions have none.
        """
        found = {}
        for name in self._modules:
            part = self._numbers(name)
            if ENDS in part:
                found[name] = len(part.get("entries", ()))
        return found

    def keep(self, names: set[str]) -> None:
        """Forget all other conditions."""
        for name in set(self.known()) - names:
            del self._modules[name]

    def standardize(self, name: str, value: Tensor) -> Tensor:
        """Return (c − mean)/scale in float64, or the condition as it is if it was not measured."""
        part = self._numbers(name)
        if not part:
            return value
        learnt = tuple(part["mean"].shape)
        got = tuple(value.shape[1 : 1 + len(learnt)])
        if got != learnt or (ENDS in part and value.ndim != 2):
            raise ValueError(
                f"condition {name!r} has shape {tuple(value.shape)}, and the model has learnt with "
                f"{learnt[0]} entries along its second axis"
            )
        if ENDS not in part:
            return _units(part, value)
        low, high = _ends_in_units(part, value.device)
        rows = max(1, AT_ONCE // max(1, value.shape[1]))
        told = []
        for some in torch.split(value, rows):
            units = _units(part, some)
            told.append(_bounded(units, low, high))
        return torch.cat(told)

    def widen(self, name: str, rows: Tensor) -> None:
        """Count in the ends of rows (B, K) that the network is to learn with."""
        ends = self._numbers(name).get(ENDS)
        if ends is not None and len(rows) and rows.shape[1:] == ends.shape[1:]:
            low, high = rows.detach().aminmax(dim=0)
            ends[0] = torch.minimum(ends[0], low.to(ends))
            ends[1] = torch.maximum(ends[1], high.to(ends))

    def farthest(self, name: str, value: Tensor) -> tuple[int, float, float, float] | None:
        """Index, number and ends of the entry of a vector that is farthest from training data.

        None if all are near; of other shapes than (B, K), `standardize` speaks.
        """
        part = self._numbers(name)
        if ENDS not in part or not value.numel() or value.shape[1:] != part["mean"].shape:
            return None
        part = {what: kept.to(value.device) for what, kept in part.items()}
        ends = part[ENDS]
        low, high = ends
        width = torch.where(high > low, high - low, part["scale"])
        value = value.detach().to(low.dtype)
        left = (value - value.clamp(low, high)).abs()
        left = left / width
        if "entries" in part:
            of = part["entries"]
            knots = part["knots"]
            more = beyond(value[:, of], knots, ends[:, of], STEP)
            more = more.abs() * (FAR / FAR_SCORE)
            left[:, of] = torch.where(left[:, of] > 0, more, 0.0)
        row, entry = divmod(int(left.argmax()), len(low))
        if float(left[row, entry]) <= FAR:
            return None
        return entry, float(value[row, entry]), float(low[entry]), float(high[entry])

    def _numbers(self, name: str) -> dict[str, Tensor]:
        """What is kept of a condition; nothing if it was not measured."""
        part = self._modules.get(name)
        buffers = {} if part is None else part._buffers
        return {what: value for what, value in buffers.items() if value is not None}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ConditionScales:
        """Move to a device, as `nn.Module` does, but keep the dtype."""
        for part in self._modules.values():
            buffers = {} if part is None else part._buffers
            for name, value in buffers.items():
                if value is None:
                    continue
                device = fn(torch.empty(0, device=value.device)).device
                if value.is_meta:
                    buffers[name] = torch.empty_like(value, device=device)
                elif device.type == "mps" and value.is_floating_point():
                    buffers[name] = value.to(device, wide(device))
                else:
                    buffers[name] = value.to(device)
        return self


def vector_shapes(shape: tuple[int, ...], scored: int | None) -> dict[str, tuple[int, ...]]:
    """Shapes of ends and scores, of so many entries; none of what has neither."""
    if scored is None:
        return {}
    shapes = {ENDS: (2, *shape)}
    if scored:
        of_scores = (scored,), (scored, KNOTS), (scored, KNOTS)
        shapes |= zip(SCORES, of_scores, strict=True)
    return shapes


def _places(state: Mapping[str, Any], prefix: str) -> dict[str, str]:
    """The conditions of a state, and what the names of their statistics begin with."""
    means = [key for key in state if key.startswith(prefix) and key.endswith(".mean")]
    return {key[len(prefix) : -len(".mean")]: key.removesuffix("mean") for key in means}


def _units(part: Mapping[str, Tensor], value: Tensor) -> Tensor:
    """Rows in units of the scale, with scores in some entries of vectors."""
    mean = _like_rows(part["mean"], value)
    scale = _like_rows(part["scale"], value)
    value = value.to(mean.dtype)
    if "entries" in part:
        names = (*SCORES, ENDS)
        how = (part[what].to(value.device) for what in names)
        entries, knots, levels, ends = how
        number = value[:, entries]
        score = interpolated(number, knots, levels)
        score = score + beyond(number, knots, ends[:, entries], STEP)
        value = value.index_copy(1, entries, score)
    return (value - mean) / scale


def _ends_in_units(part: Mapping[str, Tensor], device: torch.device) -> Tensor:
    """The ends in units of the scale; infinite for entries with scores, which have bounds."""
    mean = part["mean"].to(device)
    scale = part["scale"].to(device)
    ends = part[ENDS].to(device)
    ends = (ends - mean) / scale
    if "entries" in part:
        entries = part["entries"].to(device)
        ends[0].index_fill_(0, entries, -math.inf)
        ends[1].index_fill_(0, entries, math.inf)
    return ends


def _bounded(told: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Rows in units of the scale, at most 2 beyond the ends."""
    inside = told.clamp(low, high)
    beyond_ends = told - inside
    far = beyond_ends.abs().clamp_min(1)
    return torch.where(far > 1, inside + beyond_ends.sign() * (2 - 1 / far), told)


def _like_rows(statistic: Tensor, value: Tensor) -> Tensor:
    """Numbers per first axis in a shape, and on a device, to subtract from rows of values."""
    shape = statistic.shape + (1,) * (value.ndim - 1 - statistic.ndim)
    return statistic.to(value.device).reshape(shape)


def checked(sde: Any, condition: Mapping[str, Any], rows: int | None = None) -> dict[str, Tensor]:
    """Conditions as tensors of one row for all or one a sample; with `rows`, of so many."""
    sde.interface.check_names(condition)
    learnt = {} if sde.learnt is None else sde.learnt["conditions"]
    shapes = {name: tuple(shape) for name, shape in learnt.items()}
    shapes |= sde.interface.condition_shapes or {}
    found = {}
    for name, given in condition.items():
        if name == "y" and isinstance(given, Mapping) and sde.table is not None:
            given = sde.table.label(given)
        value = as_condition(sde.schema.condition(name, given), name)
        shape = shapes.get(name)
        one_for_all = value.ndim == 0 or tuple(value.shape) == shape
        if rows is None and one_for_all:
            value = value[None]
        numbers = value.ndim == 1 and shape == (1,)
        if numbers:
            value = value[:, None]
        if rows is not None and value.shape[:1] != (rows,):
            raise ValueError(
                f"condition {name!r} has shape {tuple(value.shape)} for {rows} samples"
            )
        found[name] = value
    # The network checks values once, here, rather than at every evaluation.
    sde.interface.check_values(found)
    return found


def standardized(
    sde: Any, condition: Mapping[str, Tensor], net: nn.Module | None = None
) -> dict[str, Tensor]:
    """Conditions as the network is given them: (c − mean)/scale, in a dtype that it takes."""
    if not condition:
        return {}
    net = sde.net if net is None else net
    weight = next(net.parameters(), None)
    found = {}
    for name, value in condition.items():
        value = sde.conditions.standardize(name, value)
        if weight is not None and value.is_floating_point() and weight.is_floating_point():
            least = torch.float32 if sde.interface.wide_inputs else weight.dtype
            value = value.to(torch.promote_types(weight.dtype, least))
        found[name] = value
    return found


def warn_far(sde: Any, condition: Mapping[str, Tensor]) -> None:
    """Warn of entries of vectors far from those of training."""
    for name, value in condition.items():
        found = sde.conditions.farthest(name, value)
        if found is None:
            continue
        entry, number, low, high = found
        names = sde.schema.parts.get(name, ())
        what = names[entry] if names else f"entry {entry} of condition {name!r}"
        warn(
            f"{what} = {number:.4g} lies far from the training data, which have {low:.4g} to "
            f"{high:.4g} there: the answer is that for a value near these"
        )


def warn_lacking(sde: Any, condition: Mapping[str, Tensor]) -> None:
    """Warn once that a model lacks conditions that it was fitted with; raise if it cannot do so."""
    if sde.learnt is None or sde._warned:
        return
    lacking = [name for name in sde.learnt["conditions"] if name not in condition]
    if not lacking:
        return
    names = " and ".join(lacking)
    line = f"sde.given({', '.join(f'{name}=...' for name in lacking)})"
    if sde.learnt["unconditional"]:
        them = "it" if len(lacking) == 1 else "them"
        warn(
            f"this model has learnt with {names} and is not given {them}: it uses the distribution "
            f"over all of them; {line} conditions it, and sde.given() silences this warning"
        )
    elif sde.interface.drop is not None:
        raise ValueError(
            f"this network has learnt with condition_dropout=0, always with {names}: write {line}"
        )
    else:
        warn(f"this model has learnt always with {names}, and means nothing without: write {line}")
    sde._warned = True
