"""A model as it was before a training that makes no step."""

from __future__ import annotations

import torch

from ..model.trainable import Trainable


class ModelBefore:
    """What `fit` changes in a model before its first step; restored if no step is made."""

    def __init__(self, sde: Trainable) -> None:
        self._sde = sde
        self.replaced = False
        """Whether a step was made: then nothing is put back."""
        self.training = sde.training
        self._outcome = sde.outcome
        self._schema = sde.schema.copy()
        self._table = sde.table
        self._learnt = sde.learnt
        self._conditions = set(sde.conditions.known())
        self._statistics = {name: value.clone() for name, value in sde.named_buffers()}

    @torch.no_grad()
    def restore(self) -> None:
        """Put all back, unless a step was made."""
        if self.replaced:
            return
        sde = self._sde
        sde.outcome = self._outcome
        sde.schema.assign(self._schema)
        sde.table = self._table
        sde.learnt = self._learnt
        sde.conditions.keep(self._conditions)
        for name, value in sde.named_buffers():
            if name in self._statistics:
                value.copy_(self._statistics[name])
