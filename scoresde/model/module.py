"""A module with mean, scale and correlations of data, in float64 whatever it is converted to."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any, Self

import torch
from torch import Tensor, nn

from ..common.modules import copy_memo, leave_inference
from ..common.names import choose
from .column_features import column_frequencies, columned
from .factors import root_shape
from .mixing import identity_root
from .schema import Schema, is_named
from .standardization import Standardization, measured, wide

STANDARDIZE = ("whiten", "factors", "scale", "none")
"""By full covariance, by one of low rank plus a diagonal, by mean and scale of each feature or
channel, or not at all."""

WHITENED_DIMENSIONS = range(2, 1025)
"""Vectors of which lengths are whitened by default; longer ones have factors."""

STATISTICS = ("mean", "scale", "root")
"""Buffers that keep float64."""

CACHES = {"_standardization", "_interface"}  # attributes that a copy makes anew


class StandardizedModule(nn.Module):
    """The part of a ScoreSDE that concerns units, devices and dtypes."""

    shape: tuple[int, ...]
    schema: Schema
    state_dtype: torch.dtype
    mean: Tensor
    scale: Tensor
    root: Tensor | None
    measured: Tensor
    standardize_by = "scale"
    input_convention: str
    # The dtype that the model was last converted to, which states have if the network has no
    # numbers.
    _dtype = torch.float32
    _standardization: Standardization | None = None

    def make_statistics(self, like: Tensor | None) -> None:
        """Begin with mean 0 and scale 1, per first axis of a sample, where the network is."""
        device = torch.device("cpu") if like is None else like.device
        statistic = self.shape[:1] + (1,) * (len(self.shape) - 1)
        self.register_buffer("mean", torch.zeros(statistic, dtype=wide(device), device=device))
        self.register_buffer("scale", torch.ones(statistic, dtype=wide(device), device=device))
        self.register_buffer("root", None)
        self.register_buffer("measured", torch.zeros((), dtype=torch.bool, device=device))

    def choose_standardization(self: Any, choice: str | None, coupled: bool) -> None:
        """Say what is measured; by default what suits the shape, sources and networks for gaps."""
        gaps = self.interface.takes_gaps
        if choice is None:
            self.standardize_by = "scale"
            if len(self.shape) == 1 and self.shape[0] > 1 and not coupled and not gaps:
                short = self.shape[0] in WHITENED_DIMENSIONS
                self.standardize_by = "whiten" if short else "factors"
        else:
            self.standardize_by = choose("standardize", choice, STANDARDIZE)
        self.root = None
        if self.standardize_by not in ("whiten", "factors"):
            return
        if len(self.shape) != 1:
            raise ValueError(
                f"standardize={self.standardize_by!r} is for vectors, shape (d,), not "
                f"{self.shape}; try 'scale'"
            )
        if gaps:
            raise ValueError("rows with gaps are not whitened, which mixes columns; try 'scale'")
        self.root = identity_root(root_shape(self.shape, self.standardize_by), self.mean)

    def statistics(self) -> dict[str, Tensor]:
        """Its tensors that `standardize` sets, by name."""
        names = (*STATISTICS, "measured")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    @property
    def standardization(self) -> Standardization:
        """The map between data and states, made again only after its numbers have changed."""
        held = self._standardization
        if held is None or not held.is_of(self.mean, self.scale, self.root):
            held = Standardization(self.mean, self.scale, self.shape, self.root)
            object.__setattr__(self, "_standardization", held)
        return held

    def standardize(self, data: Tensor | Iterable[Tensor]) -> Self:
        """Measure mean, scale and correlations of the data, and keep them.

        Mean and scale are those of each first axis of a sample; correlations are measured if the
        model whitens. Few rows have their correlations shrunk towards 0: see
        `scoresde.model.covariance` and `scoresde.model.factors`. Networks with Fourier features
        along columns, such as `mlp`, are given as many as the structure of each column asks for.
        With standardize="none" nothing is measured.

        Parameters
        ----------
        data : Tensor or data frame, shape (N, *shape), or an iterable of tensors
            In the units of the data. The column names of a frame are matched and kept as by `fit`.
            An iterable is read once, and its parts need not fit into memory together.

        Returns
        -------
        ScoreSDE
            This model.

        Raises
        ------
        ValueError
            If no feature varies, or if numbers are too large for the model's dtype.

        Warns
        -----
        UserWarning
            If some features do not vary (their scale is 0, which marks a constant) or determine
            one another, or if samples will be rounded coarsely.

        Examples
        --------
        >>> import scoresde
        >>> sde = scoresde.build("vp", "mlp", shape=(2,))
        >>> sde.standardize(torch.tensor([[0.0, 10.0], [2.0, 30.0]])).scale
        tensor([ 1., 10.], dtype=torch.float64)
        """
        if is_named(data):
            data, _ = self.schema.learn(data, None)
        if self.standardize_by != "none":
            found = measured(data, self.shape, self.state_dtype, self.standardize_by)
            self.mean.copy_(found.mean.reshape(self.mean.shape))
            self.scale.copy_(found.scale.reshape(self.scale.shape))
            if self.root is not None and found.root is not None:
                self.root.copy_(found.root)
            if found.rows is not None:
                self._show_columns(found.rows)
        self.measured.fill_(True)
        return self

    @torch.no_grad()
    def _show_columns(self, rows: Tensor) -> None:
        """Give the network Fourier features along the columns of data, some rows of which are x."""
        parts = columned(self, self.shape) if self.input_convention == "arc" else []
        if not parts:
            return
        mean, scale = self.mean.cpu(), self.scale.cpu()
        free = scale > 0
        u = ((rows.to(mean.dtype) - mean) / torch.where(free, scale, 1))[:, free]
        directions = self.standardization.directions_of
        for part in parts:
            found = column_frequencies(u.float(), directions, int(part.axes))
            frequencies = part.frequencies
            full = frequencies.new_zeros(len(frequencies), found.shape[1])
            full[free.to(full.device)] = found.to(full)
            frequencies[:, : found.shape[1]] = full

    @torch.inference_mode(False)
    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move or convert as `nn.Module` does, but keep mean and scale in float64, unrounded."""
        # First, as setting .data of an inference parameter would hide that it is one.
        leave_inference(self)
        kept = {name: self._buffers[name] for name in STATISTICS}
        for name in kept:
            self._buffers[name] = None
        self._dtype = fn(torch.empty(0, dtype=self._dtype, device=self.measured.device)).dtype
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, value in kept.items():
            if value is None:
                continue
            device = self.measured.device
            if value.is_meta or device.type == "meta":
                self._buffers[name] = torch.empty_like(value, device=device)
            elif value.device == device:
                moved = fn(value)  # such as share_memory_
                self._buffers[name] = moved if moved.dtype == value.dtype else value
            else:
                self._buffers[name] = value.to(device, wide(device))
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Return a deep copy, also of networks whose weights are computed by hooks."""
        memo.update(copy_memo(self))
        made = type(self).__new__(type(self))
        memo[id(self)] = made
        state = {**vars(self), **dict.fromkeys(CACHES & vars(self).keys())}
        vars(made).update(copy.deepcopy(state, memo))
        return made

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Widen mean and scale of an older file, which has float32."""
        super()._load_from_state_dict(state_dict, prefix, *rest)
        for name in STATISTICS:
            value = self._buffers[name]
            if value is not None:
                self._buffers[name] = value.to(wide(self.mean.device))
