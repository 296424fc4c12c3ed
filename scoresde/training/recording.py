"""What `fit` tells a log between two steps; what goes wrong there does not end the run."""

from __future__ import annotations

from types import TracebackType
from typing import Any

import torch

from ..common.errors import one_line
from ..common.user_warnings import warn
from ..model.protocol import Model
from .logs import Log, Writer, drawn, writer_of


class Recorder:
    """Follows a trainer, and writes to a log what is new."""

    def __init__(self, log: Log | None, model: Any, trainer: Any, resumed: bool) -> None:
        self.log = log
        self.model = model
        self.trainer = trainer
        self.resumed = resumed
        self.writer: Writer | None = None
        self.draws = log is not None and log.samples > 0

    def __enter__(self) -> Recorder:
        """Open the log on the main process; raise before the first step if that fails."""
        log = self.log
        if log is None:
            return self
        if self.draws and not isinstance(self.model, Model):
            raise TypeError(
                f"samples= are drawn from a ScoreSDE, and this is a {type(self.model).__name__}"
            )
        if self.draws and log.given:
            self.model.given(**log.given)

        def open_log() -> None:
            step = self.trainer.step or -1  # the untrained network's line is written anew
            self.writer = writer_of(log, step, self.resumed)

        self.trainer.backend.together(open_log)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close it."""
        if self.writer is not None:
            try:
                self.writer.close()
            except Exception as failure:
                self._stop(failure)

    def follow(self, step: int) -> None:
        """Write down what the trainer has noted at a step, and samples when they are due."""
        if self.log is None:
            return
        history = self.trainer.history
        values: dict[str, Any] = {}
        if history.step[-1:] == [step]:
            values["loss"] = history.loss[-1]
            values["lr"] = float(self.trainer.optimizer.param_groups[0]["lr"])
            values["seconds"] = history.seconds
        if history.checked[-1:] == [step]:
            values["validation"] = history.validation[-1]
        self._write(values, step)
        if self.draws and step and step % self.log.samples == 0:
            self._write(self._samples(step), step)

    def _samples(self, step: int) -> dict[str, Any]:
        """Draw samples of the averaged network, on the main process."""
        trainer = self.trainer
        assert self.log is not None
        trainer.publish(trainer.averages.main.parts)
        if self.writer is None:
            return {}
        sde = trainer.sde
        sde.eval()
        try:
            with torch.no_grad():
                return {"samples": drawn(self.model, self.log)}
        except Exception as error:
            self.draws = False
            warn(f"no more samples are logged, as those of step {step} failed: {one_line(error)}")
            return {}
        finally:
            sde.train()

    def _write(self, values: dict[str, Any], step: int) -> None:
        """Write values, if there are any."""
        if self.writer is None or not values:
            return
        try:
            self.writer.write(values, step)
        except Exception as error:
            self.writer = None
            self._stop(error)

    def _stop(self, error: Exception) -> None:
        """Say that the log has ended before the run."""
        assert self.log is not None
        warn(
            f"the log to {self.log.to} ends here, the run goes on: {type(error).__name__}: "
            f"{one_line(error)}"
        )
