"""What runs a training step: this process alone, or Hugging Face Accelerate with several processes,
mixed precision and accumulation.

Until training begins, ranks tell one another what they were called with, and what failed, so that
all raise. In training they meet in the gradients: if only one rank fails there, for example at bad
data, the others notice when its process ends, not before. If the main process fails to write, all
ranks fail.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from ..common import errors
from ..common.errors import TrainingError
from ..common.modules import duplicate
from ..model.trainable import Trainable
from .averaging import Weights, whole_tensor

SHOWN_CHARACTERS = 200

Prepared = tuple[Callable[..., Any], Weights, torch.optim.Optimizer]


class SingleProcess:
    """Runs the steps in this process alone."""

    rank = 0
    world = 1
    main = True
    pieces = 1
    """Of a batch, whose gradients are accumulated."""

    def prepare(self, sde: Trainable, lr: float) -> Prepared:
        """Return what to call in place of the network, its weights, and their optimizer."""
        weights = Weights(sde.net)
        return sde.net, weights, _adam(list(weights.parts), lr)

    def micro(self, start: int, b: int) -> Iterator[tuple[slice, float]]:
        """Cut rows start … start + b into `pieces`; yield each and its share of the whole."""
        size = -(-b // self.pieces)
        for i in range(start, start + b, size):
            stop = min(i + size, start + b)
            yield slice(i, stop), (stop - i) / b

    def syncing(self, last: bool) -> AbstractContextManager[Any]:
        """Return a context in which processes exchange gradients at the last piece only."""
        return contextlib.nullcontext()

    def backward(self, value: Tensor) -> None:
        """Add the gradients of a loss to those of the weights."""
        value.backward()  # type: ignore[no-untyped-call]

    def clip(self, weights: Weights, most: float) -> Tensor:
        """Scale gradients down to a joint norm; return the norm that they had."""
        return weights.clip(most)

    def scaler(self) -> Any:
        """Return the loss scaler of half-precision training, or None."""
        return None

    def release(self, sde: Trainable) -> None:
        """Leave the user's own network, whole and with its own forward method, after training."""

    # ------------------------------------------------------------------ between ranks

    def agree(self, seed: int, settings: Mapping[str, Any]) -> int:
        """Return rank 0's seed; raise unless all ranks have the same settings."""
        return seed

    @contextlib.contextmanager
    def telling(self) -> Iterator[None]:
        """Tell the other ranks if this one fails within, until the last `share`."""
        yield

    def share(
        self,
        tensors: list[Tensor],
        settings: Mapping[str, Any] | None = None,
        *,
        last: bool = False,
    ) -> None:
        """Give all ranks rank 0's values, if settings and shapes agree; `last` ends `telling`."""

    def each(self, x: Tensor) -> Tensor:
        """Return what each process has of x, shape (world, …), for a checkpoint."""
        return x.unsqueeze(0)

    def own(self, parts: Tensor) -> Tensor:
        """Return this process's part of what `each` gave; of another number of them, the mean."""
        return parts[self.rank] if len(parts) == self.world else parts.sum(0) / len(parts)

    def sum(self, x: Tensor) -> None:
        """Add x over the processes, in place."""

    def mean(self, x: Tensor) -> Tensor:
        """Return the mean of x over the processes."""
        x = x.clone()
        self.sum(x)
        return x / self.world

    def together(self, work: Callable[[], Any]) -> Any:
        """Let the main process do something that may fail; all return its result, or raise."""
        return work()


class AccelerateBackend(SingleProcess):
    """Runs the steps through an accelerate.Accelerator, in one process or several."""

    def __init__(self, accelerator: Any, sde: Trainable) -> None:
        kind = accelerator.distributed_type
        name = str(getattr(kind, "value", kind))
        if name not in ("NO", "FSDP") and not name.startswith("MULTI_"):
            raise ValueError(
                f"accelerator distributes by {name}; wanted one process, DDP or FSDP (version 2)"
            )
        self.sharded = name == "FSDP"
        if self.sharded and getattr(accelerator.state.fsdp_plugin, "fsdp_version", 1) < 2:
            raise ValueError(
                "FSDP is supported in version 2: FullyShardedDataParallelPlugin(fsdp_version=2)"
            )
        self.accelerator = accelerator
        self.rank = accelerator.process_index
        self.world = accelerator.num_processes
        self.main = accelerator.is_main_process
        self.pieces = accelerator.gradient_accumulation_steps
        self._met = False
        self._prepared: list[Any] = []
        self._awaited: list[nn.Parameter] = []  # by DistributedDataParallel
        # Accelerate says cpu:0, which is not the device of tensors on the CPU
        device = accelerator.device
        if device.type == "cpu":
            device = torch.device("cpu")
        sde.to(device)

    def prepare(self, sde: Trainable, lr: float) -> Prepared:
        """Return what to call in place of the network, its weights, and their optimizer."""
        self._net = sde.net
        self._own_forward = "forward" in vars(sde.net)
        if self.sharded:
            sde.net = duplicate(sde.net)
            parts: list[Any] = [p for p in sde.net.parameters() if p.requires_grad]
        else:
            weights = Weights(sde.net)
            parts = list(weights.parts)
        optimizer: Any = _adam(parts, lr)
        # not moved to its device, which would undo the flat weights
        call, optimizer = self._prepared = list(
            self.accelerator.prepare(sde.net, optimizer, device_placement=[False, False])
        )
        if self.sharded:
            return call, Weights(call, flat=False), optimizer
        if self.world > 1:
            self._awaited = [p for p in sde.net.parameters() if p.requires_grad]
        return call, weights, optimizer

    def syncing(self, last: bool) -> AbstractContextManager[Any]:
        """Return a context in which processes exchange gradients at the last piece only."""
        if last or self.world == 1:
            return contextlib.nullcontext()
        context: AbstractContextManager[Any] = self.accelerator.no_sync(self._prepared[0])
        return context

    def backward(self, value: Tensor) -> None:
        """Add the gradients of a loss to those of the weights."""
        if self._awaited:
            value = _Touch.apply(value, *self._awaited)  # type: ignore[no-untyped-call]
        self.accelerator.backward(value * self.pieces)  # it divides by the number of pieces

    def clip(self, weights: Weights, most: float) -> Tensor:
        """Scale gradients down to a joint norm; return the norm that they had."""
        scaler = self.scaler()
        if scaler is not None:
            scaler.unscale_(self._prepared[1].optimizer)
        return weights.clip(most)

    def scaler(self) -> Any:
        """Return the loss scaler of half-precision training, or None."""
        return self.accelerator.scaler

    @torch.no_grad()
    def release(self, sde: Trainable) -> None:
        """Leave the user's own network, whole and with its own forward method, after training."""
        if not self._prepared:
            return
        prepared = self._prepared
        self._prepared = []
        if self.sharded:
            for mine, theirs in zip(_tensors(self._net), _tensors(sde.net), strict=True):
                mine.copy_(whole_tensor(theirs))
            sde.net = self._net
        else:
            self.accelerator.unwrap_model(prepared[0], keep_fp32_wrapper=False)
            if not self._own_forward:
                # unwrapping leaves one, with which the network could not be copied
                vars(self._net).pop("forward", None)
        # the accelerator must not hold them in the next training
        for name in ("_models", "_optimizers"):
            held = getattr(self.accelerator, name, [])
            held[:] = [x for x in held if all(x is not ours for ours in (*prepared, self._net))]

    # ------------------------------------------------------------------ between ranks

    def agree(self, seed: int, settings: Mapping[str, Any]) -> int:
        """Return rank 0's seed; raise unless all ranks have the same settings."""
        if self.world == 1:
            return seed
        return int(self._meet({"seed": seed, "settings": settings})[0]["seed"])

    @contextlib.contextmanager
    def telling(self) -> Iterator[None]:
        """Tell the other ranks if this one fails within, until the last `share`."""
        try:
            yield
        except Exception as error:
            if self.world > 1 and not self._met and not vars(error).get("_told"):
                self._exchange({"error": f"{type(error).__name__}: {error}"})
            raise

    @torch.no_grad()
    def share(
        self,
        tensors: list[Tensor],
        settings: Mapping[str, Any] | None = None,
        *,
        last: bool = False,
    ) -> None:
        """Give all ranks rank 0's values, if settings and shapes agree; `last` ends `telling`."""
        if self.world == 1:
            return
        shapes = [[list(x.shape), str(x.dtype)] for x in tensors]
        self._meet({"settings": {**(settings or {}), "model": shapes}})
        for x in tensors:
            dense = x.contiguous()
            torch.distributed.broadcast(dense, src=0)
            x.copy_(dense)
        self._met = last

    def _meet(self, message: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return the messages of all ranks; raise if one failed, or has other settings."""
        messages = self._exchange(message)
        error = _disagreement(messages)
        if error is not None:
            vars(error)["_told"] = True  # all ranks raise it
            raise error
        return messages

    def _exchange(self, message: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return the messages of all ranks, in JSON and back."""
        texts: list[Any] = [None] * self.world
        torch.distributed.all_gather_object(texts, json.dumps(message, default=repr))
        return [json.loads(text) for text in texts]

    def each(self, x: Tensor) -> Tensor:
        """Return what each process has of x, shape (world, …), for a checkpoint."""
        if self.world == 1:
            return x.unsqueeze(0)
        parts = [torch.empty_like(x) for _ in range(self.world)]
        torch.distributed.all_gather(parts, x.contiguous())
        return torch.stack(parts)

    def sum(self, x: Tensor) -> None:
        """Add x over the processes, in place."""
        if self.world > 1:
            torch.distributed.all_reduce(x)

    def together(self, work: Callable[[], Any]) -> Any:
        """Let the main process do something that may fail; all return its result, or raise."""
        if self.world == 1:
            return work()
        result = error = None
        if self.main:
            try:
                result = work()
            except Exception as raised:
                error = raised
        failure = None
        if error is not None:
            failure = type(error).__module__, type(error).__name__, str(error)
        outcome: list[Any] = [(result, failure)]
        torch.distributed.broadcast_object_list(outcome, src=0)
        if error is not None:
            raise error
        result, failure = outcome[0]
        if failure is not None:
            module, name, text = failure
            ours = module == errors.__name__
            kind = getattr(errors, name, RuntimeError) if ours else RuntimeError
            raise kind(f"{text} (on the main process)")
        return result


def start_backend(accelerator: Any, sde: Trainable) -> SingleProcess:
    """Return the backend of an accelerator, or of none; move the model to its device."""
    if isinstance(sde.net, nn.parallel.DistributedDataParallel):
        raise ValueError(
            "sde.net is wrapped in DistributedDataParallel; give the network itself, and "
            "backend=Accelerator()"
        )
    return SingleProcess() if accelerator is None else AccelerateBackend(accelerator, sde)


class _Touch(torch.autograd.Function):
    """The loss itself, made to depend on all parameters: DDP waits for the gradient of each."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, *parameters: Tensor) -> Tensor:
        """Return the value."""
        ctx.count = len(parameters)
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *gradient: Tensor) -> Any:
        """Return the value's gradient, and none of the parameters'."""
        return (*gradient, *[None] * ctx.count)


def _disagreement(messages: list[dict[str, Any]]) -> Exception | None:
    """Return the error that all ranks raise after these messages: a failure goes first."""
    error: Exception | None = None
    for rank, message in enumerate(messages):
        if "error" in message:
            return TrainingError(f"rank {rank} failed: {message['error']}")
        for name, value in message["settings"].items():
            first = messages[0]["settings"].get(name)
            if value != first:
                error = ValueError(
                    "all ranks call fit with the same model, data and arguments, and "
                    f"{name} is {_brief(first)} on rank 0, {_brief(value)} on rank {rank}"
                )
    return error


def _tensors(net: nn.Module) -> list[Tensor]:
    """Return all parameters and buffers."""
    return [*net.parameters(), *net.buffers()]


def _brief(value: object) -> str:
    """Return a value in JSON, cut where it is long."""
    text = json.dumps(value)
    return text if len(text) < SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}…"


def _adam(parts: list[Any], lr: float) -> torch.optim.Adam:
    """Return the optimizer, fused where it can be."""
    fused = all(
        type(p.data) is Tensor
        and p.is_floating_point()
        and p.device.type in ("cpu", "cuda", "mps")
        for p in parts
    )
    return torch.optim.Adam(parts, lr=lr, betas=(0.9, 0.99), fused=fused)
