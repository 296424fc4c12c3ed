"""What runs a training step: this process alone, or Hugging Face Accelerate with several, mixed precision and accumulation."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from .sde import ScoreSDE
from .weights import Weights


class Engine:
    """How a step is run.

    Parameters
    ----------
    accelerator : accelerate.Accelerator or None
        None for this process alone, in the network's own precision.
    sde : ScoreSDE
        Moved to the accelerator's device.

    Attributes
    ----------
    rank, world : int
        Which of how many processes this is.
    main : bool
        Whether it is the one that writes.

    Raises
    ------
    TypeError, ValueError
        For something that is no Accelerator, or one of a kind that is not supported.

    Examples
    --------
    >>> import scoresde
    >>> engine = Engine(None, scoresde.build("vp", "mlp", shape=(2,)))
    >>> engine.rank, engine.world, engine.main
    (0, 1, True)
    """

    def __init__(self, accelerator: Any, sde: ScoreSDE) -> None:
        self.accelerator, self.rank, self.world, self.main, self.pieces = accelerator, 0, 1, True, 1
        self.sharded = False
        self._own: nn.Module | None = None
        if accelerator is None:
            return
        kind = getattr(accelerator, "distributed_type", None)
        if kind is None or not callable(getattr(accelerator, "backward", None)):
            raise TypeError(f"accelerator is an accelerate.Accelerator, got {type(accelerator).__name__}")
        name = str(getattr(kind, "value", kind))
        self.sharded = name == "FSDP"
        if name not in ("NO", "FSDP") and not name.startswith("MULTI_"):
            raise ValueError(f"accelerator distributes by {name}; wanted one process, DDP or FSDP (version 2)")
        if self.sharded and getattr(accelerator.state.fsdp_plugin, "fsdp_version", 1) < 2:
            raise ValueError("of FSDP version 2 is supported: FullyShardedDataParallelPlugin(fsdp_version=2)")
        self.rank, self.world = accelerator.process_index, accelerator.num_processes
        self.main, self.pieces = accelerator.is_main_process, accelerator.gradient_accumulation_steps
        sde.to(accelerator.device)

    def prepare(self, net: nn.Module, lr: float) -> tuple[Callable[..., Any], Weights, torch.optim.Optimizer]:
        """Return what to call in place of the network, its weights, and the optimizer that steps them."""
        if self.sharded:
            optimizer: Any = _adam([p for p in net.parameters() if p.requires_grad], lr)
            call, optimizer = self.accelerator.prepare(net, optimizer)
            self._own = call
            return call, Weights(call, flat=False), optimizer
        weights = Weights(net)
        optimizer = _adam(weights.parts, lr)
        if self.accelerator is None:
            return net, weights, optimizer
        call, optimizer = self.accelerator.prepare(net, optimizer)
        self._own = call
        return call, weights, optimizer

    def micro(self, start: int, b: int) -> Iterator[tuple[slice, float]]:
        """Cut rows start … start + b into the pieces whose gradients are accumulated, and their shares of the whole."""
        size = -(-b // self.pieces)
        for i in range(start, start + b, size):
            stop = min(i + size, start + b)
            yield slice(i, stop), (stop - i) / b

    def syncing(self, net: Any, last: bool) -> AbstractContextManager[Any]:
        """Let processes exchange gradients at the last piece only."""
        if last or self.world == 1:
            return contextlib.nullcontext()
        context: AbstractContextManager[Any] = self.accelerator.no_sync(net)
        return context

    def backward(self, value: Tensor) -> None:
        """Add gradients to the weights'."""
        if self.accelerator is None:
            value.backward()  # type: ignore[no-untyped-call]
        else:
            self.accelerator.backward(value * self.pieces)  # which it divides by

    def clip(self, weights: Weights, most: float) -> None:
        """Scale gradients down to a joint norm."""
        if self.accelerator is None:
            weights.clip(most)
        else:
            self.accelerator.clip_grad_norm_(weights.parts, most)

    def agree(self, number: int) -> int:
        """Return rank 0's number."""
        if self.world == 1:
            return number
        said = [number]
        torch.distributed.broadcast_object_list(said, src=0)
        return said[0]

    def sum(self, x: Tensor) -> None:
        """Add x over the processes, in place."""
        if self.world > 1:
            torch.distributed.all_reduce(x)

    def mean(self, x: Tensor) -> Tensor:
        """Return the mean of x over the processes."""
        x = x.clone()
        self.sum(x)
        return x / self.world

    def together(self, work: Callable[[], Any]) -> Any:
        """Let the main process do something that may fail, and all fail with it; return what it returned there."""
        if self.world == 1:
            return work()
        result, error = None, None
        if self.main:
            try:
                result = work()
            except Exception as raised:
                error = raised
        said: list[Any] = [None if error is None else (type(error).__module__, type(error).__name__, str(error))]
        torch.distributed.broadcast_object_list(said, src=0)
        if error is not None:
            raise error
        if said[0] is not None:
            from . import errors

            module, name, text = said[0]
            kind = getattr(errors, name, RuntimeError) if module == errors.__name__ else RuntimeError
            raise kind(f"{text} (said by the main process)")
        return result

    def scaler(self) -> Any:
        """Return the loss scaler of half-precision training, or None."""
        return None if self.accelerator is None else self.accelerator.scaler

    def release(self, sde: ScoreSDE) -> None:
        """Give the network back its own forward method, after training."""
        if self.accelerator is not None and self._own is not None:
            self.accelerator.unwrap_model(self._own, keep_fp32_wrapper=False)


def _adam(parts: list[Any], lr: float) -> torch.optim.Adam:
    fused = all(type(p.data) is Tensor and p.is_floating_point() and p.device.type in ("cpu", "cuda", "mps") for p in parts)
    return torch.optim.Adam(parts, lr=lr, betas=(0.9, 0.99), fused=fused)
