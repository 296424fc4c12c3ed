"""What runs a training step: this process alone, or Hugging Face Accelerate with several, mixed precision and accumulation.

Ranks first tell one another what they were called with, and what failed until training begins, so that all raise. In
training they meet in the gradients: a rank that fails there alone, as at bad data of its own, is missed by the others when
its process ends, not before. What the main process writes, all fail with.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from .errors import TrainingError
from .modules import duplicate
from .sde import ScoreSDE
from .weights import Weights, whole_tensor


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
    pieces : int
        Into how many a batch is cut, whose gradients are accumulated.
    sharded : bool
        Whether weights are spread over the processes (FSDP).

    Raises
    ------
    TypeError, ValueError
        For something that is no Accelerator, one of a kind that is not supported (DeepSpeed, FSDP 1), or a network that is
        wrapped in DistributedDataParallel already.

    Examples
    --------
    >>> import scoresde
    >>> engine = Engine(None, scoresde.build("vp", "mlp", shape=(2,)))
    >>> engine.rank, engine.world, engine.main
    (0, 1, True)
    """

    def __init__(self, accelerator: Any, sde: ScoreSDE) -> None:
        self.accelerator, self.rank, self.world, self.main, self.pieces = accelerator, 0, 1, True, 1
        self.sharded = self._met = False
        self._prepared: list[Any] = []
        self._apart: list[nn.Parameter] = []  # which DistributedDataParallel waits for
        if isinstance(sde.net, nn.parallel.DistributedDataParallel):
            raise ValueError(
                "sde.net is wrapped in DistributedDataParallel: give the network itself, and accelerator=Accelerator()"
            )
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
        device = accelerator.device
        sde.to("cpu" if device.type == "cpu" else device)  # Accelerate says cpu:0, which tensors on the CPU are not on

    def prepare(self, sde: ScoreSDE, lr: float) -> tuple[Callable[..., Any], Weights, torch.optim.Optimizer]:
        """Return what to call in place of the network, its weights, and the optimizer that steps them.

        A network to be sharded is replaced by a copy until `release`, since sharding changes its class and its weights.
        """
        self._net, self._own_forward = sde.net, "forward" in vars(sde.net)
        if self.sharded:
            sde.net = duplicate(sde.net)
            parts: list[Any] = [p for p in sde.net.parameters() if p.requires_grad]
        else:
            weights = Weights(sde.net)
            parts = list(weights.parts)
        optimizer: Any = _adam(parts, lr)
        if self.accelerator is None:
            return sde.net, weights, optimizer
        call, optimizer = self._prepared = list(
            self.accelerator.prepare(sde.net, optimizer, device_placement=[False, False])  # moving would undo the flat weights
        )
        if self.world > 1 and not self.sharded:
            self._apart = [p for p in sde.net.parameters() if p.requires_grad]
        return call, Weights(call, flat=False) if self.sharded else weights, optimizer

    def micro(self, start: int, b: int) -> Iterator[tuple[slice, float]]:
        """Cut rows start … start + b into the pieces whose gradients are accumulated, and their shares of the whole."""
        size = -(-b // self.pieces)
        for i in range(start, start + b, size):
            stop = min(i + size, start + b)
            yield slice(i, stop), (stop - i) / b

    def syncing(self, last: bool) -> AbstractContextManager[Any]:
        """Let processes exchange gradients at the last piece only."""
        if last or self.world == 1:
            return contextlib.nullcontext()
        context: AbstractContextManager[Any] = self.accelerator.no_sync(self._prepared[0])
        return context

    def backward(self, value: Tensor) -> None:
        """Add gradients to the weights'."""
        if self._apart:
            value = _Touch.apply(value, *self._apart)  # type: ignore[no-untyped-call]
        if self.accelerator is None:
            value.backward()  # type: ignore[no-untyped-call]
        else:
            self.accelerator.backward(value * self.pieces)  # which it divides by

    def clip(self, weights: Weights, most: float) -> None:
        """Scale gradients down to a joint norm."""
        if (scaler := self.scaler()) is not None:
            scaler.unscale_(self._prepared[1].optimizer)
        weights.clip(most)

    def agree(self, number: int, what: Mapping[str, Any]) -> int:
        """Return rank 0's number, if all say the same of what they are about to do."""
        if self.world == 1:
            return number
        return int(self._meet({"number": number, "what": what})[0]["number"])

    @contextlib.contextmanager
    def telling(self) -> Iterator[None]:
        """Let the others know if what is inside fails on this process alone, until `share`: none waits in vain."""
        try:
            yield
        except Exception as error:
            if self.world > 1 and not self._met and not vars(error).get("_told"):
                self._say({"error": f"{type(error).__name__}: {error}"})
            raise

    @torch.no_grad()
    def share(self, tensors: list[Tensor], what: Mapping[str, Any] | None = None, *, last: bool = False) -> None:
        """Give all processes rank 0's values, if they say the same of themselves; the last time, `telling` ends."""
        if self.world == 1:
            return
        self._meet({"what": {**(what or {}), "model": [[list(x.shape), str(x.dtype)] for x in tensors]}})
        for x in tensors:
            dense = x.contiguous()
            torch.distributed.broadcast(dense, src=0)
            x.copy_(dense)
        self._met = last

    def _meet(self, message: Mapping[str, Any]) -> list[dict[str, Any]]:
        said = self._say(message)
        error: Exception | None = None
        for rank, other in enumerate(said):
            if "error" in other:
                error = TrainingError(f"rank {rank} failed: {other['error']}")
                break
            for name, value in other["what"].items():
                first = said[0]["what"].get(name)
                if value != first:
                    error = ValueError(
                        f"all ranks call fit with the same model, data and arguments, and {name} is {_brief(first)} on rank 0, "
                        f"{_brief(value)} on rank {rank}"
                    )
        if error is not None:
            vars(error)["_told"] = True  # all ranks raise it
            raise error
        return said

    def _say(self, message: Mapping[str, Any]) -> list[dict[str, Any]]:
        said: list[Any] = [None] * self.world
        torch.distributed.all_gather_object(said, json.dumps(message, default=repr))
        return [json.loads(text) for text in said]

    def each(self, x: Tensor) -> Tensor:
        """Return what each process has of x, shape (world, …), for a checkpoint."""
        if self.world == 1:
            return x.unsqueeze(0)
        parts = [torch.empty_like(x) for _ in range(self.world)]
        torch.distributed.all_gather(parts, x.contiguous())
        return torch.stack(parts)

    def own(self, parts: Tensor) -> Tensor:
        """Return this process's part of what `each` gave; with another number of them, one whose mean is the same."""
        return parts[self.rank] if len(parts) == self.world else parts.sum(0) / len(parts)

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
        said: list[Any] = [(result, None if error is None else (type(error).__module__, type(error).__name__, str(error)))]
        torch.distributed.broadcast_object_list(said, src=0)
        if error is not None:
            raise error
        result, failed = said[0]
        if failed is not None:
            from . import errors

            module, name, text = failed
            kind = getattr(errors, name, RuntimeError) if module == errors.__name__ else RuntimeError
            raise kind(f"{text} (said by the main process)")
        return result

    def scaler(self) -> Any:
        """Return the loss scaler of half-precision training, or None."""
        return None if self.accelerator is None else self.accelerator.scaler

    @torch.no_grad()
    def release(self, sde: ScoreSDE) -> None:
        """Leave the user's own network, whole and with its own forward method, after training."""
        if not self._prepared:
            return
        prepared, self._prepared = self._prepared, []
        if self.sharded:
            for mine, theirs in zip(_tensors(self._net), _tensors(sde.net), strict=True):
                mine.copy_(whole_tensor(theirs))
            sde.net = self._net
        else:
            self.accelerator.unwrap_model(prepared[0], keep_fp32_wrapper=False)
            if not self._own_forward:
                vars(self._net).pop("forward", None)  # which unwrapping leaves, and no copy of the network could follow
        for name in ("_models", "_optimizers"):  # of a next fit they are none
            held = getattr(self.accelerator, name, [])
            held[:] = [x for x in held if all(x is not ours for ours in (*prepared, self._net))]


class _Touch(torch.autograd.Function):
    """The loss itself, made to depend on all parameters: processes wait for the gradient of each, used or not."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, *parameters: Tensor) -> Tensor:
        """Return the value."""
        ctx.count = len(parameters)
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *gradient: Tensor) -> Any:
        """Return the value's gradient, and none of the parameters'."""
        return (*gradient, *[None] * ctx.count)


def _tensors(net: nn.Module) -> list[Tensor]:
    return [*net.parameters(), *net.buffers()]


def _brief(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) < 200 else f"{text[:200]}…"


def _adam(parts: list[Any], lr: float) -> torch.optim.Adam:
    fused = all(type(p.data) is Tensor and p.is_floating_point() and p.device.type in ("cpu", "cuda", "mps") for p in parts)
    return torch.optim.Adam(parts, lr=lr, betas=(0.9, 0.99), fused=fused)
