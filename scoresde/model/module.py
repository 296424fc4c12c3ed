"""A module with the mean and scale of data, which stay float64 whatever it is converted to."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any, Self

import torch
from torch import Tensor, nn

from ..common.modules import copy_memo, leave_inference
from .standardization import Standardization, measured, wide

CACHES = {"_standardization", "_interface"}  # attributes that a copy makes anew


class StandardizedModule(nn.Module):
    """The part of a ScoreSDE that concerns units, devices and dtypes."""

    shape: tuple[int, ...]
    state_dtype: torch.dtype
    mean: Tensor
    scale: Tensor
    measured: Tensor
    # The dtype that the model was last converted to, which states have if the network has no
    # numbers.
    _dtype = torch.float32
    _standardization: Standardization | None = None

    def make_statistics(self, device: torch.device) -> None:
        """Begin with mean 0 and scale 1, per first axis of a sample."""
        statistic = self.shape[:1] + (1,) * (len(self.shape) - 1)
        self.register_buffer("mean", torch.zeros(statistic, dtype=wide(device), device=device))
        self.register_buffer("scale", torch.ones(statistic, dtype=wide(device), device=device))
        self.register_buffer("measured", torch.zeros((), dtype=torch.bool, device=device))

    @property
    def standardization(self) -> Standardization:
        """The map between data and states, made again only after mean or scale have changed."""
        held = self._standardization
        if held is None or not held.is_of(self.mean, self.scale):
            held = Standardization(self.mean, self.scale, self.shape)
            object.__setattr__(self, "_standardization", held)
        return held

    def standardize(self, data: Tensor | Iterable[Tensor]) -> Self:
        """Measure mean and scale of the data, per first axis of a sample, and keep them.

        Parameters
        ----------
        data : Tensor, shape (N, *shape), or an iterable of such
            In the units of the data. An iterable is read once, and its parts need not fit into
            memory together.

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
            If some features do not vary (their scale is 0, which marks a constant), or if samples
            will be rounded coarsely.

        Examples
        --------
        >>> import scoresde
        >>> sde = scoresde.build("vp", "mlp", shape=(2,))
        >>> sde.standardize(torch.tensor([[0.0, 10.0], [2.0, 30.0]])).scale
        tensor([ 1., 10.], dtype=torch.float64)
        """
        mean, scale = measured(data, self.shape, self.state_dtype)
        self.mean.copy_(mean.reshape(self.mean.shape))
        self.scale.copy_(scale.reshape(self.scale.shape))
        self.measured.fill_(True)
        return self

    @torch.inference_mode(False)
    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move or convert as `nn.Module` does, but keep mean and scale in float64, unrounded."""
        # First, as setting .data of an inference parameter would hide that it is one.
        leave_inference(self)
        kept = {name: self._buffers[name] for name in ("mean", "scale")}
        for name in kept:
            self._buffers[name] = None
        self._dtype = fn(torch.empty(0, dtype=self._dtype, device=self.measured.device)).dtype
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, value in kept.items():
            assert value is not None
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
        for name in ("mean", "scale"):
            self._buffers[name] = getattr(self, name).to(wide(self.mean.device))
