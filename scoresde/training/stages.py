"""What a first stage learns: the bound on log p of an autoencoder, or a vector-quantized one."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Unpack

import torch
from torch import Tensor

from ..common.checks import real_number
from ..model.autoencoder import FirstStage, flat
from ..model.trainable import Trainable
from .fitting import fit
from .history import History
from .keywords import StageKeywords
from .objectives import OBJECTIVES, Condition, Objective

Loss = Callable[[Tensor, Tensor], Tensor]


@OBJECTIVES.register("first_stage")
@dataclass
class Autoencoding(Objective):
    """The objective of first stages, −log p(x|z) + kl·KL(q(z|x) ‖ N(0, I)) with z from q(z|x).

    With kl=1 and free_bits=0 it is the negative bound on log p of a variational autoencoder, in
    nats per number of standardized x. A vector-quantized stage has its commitment loss in place of
    the KL, and moves its codebook after each step.

    Parameters
    ----------
    kl : float
        Weight of the KL, at least 0.
    free_bits : float
        Nats per latent channel below which its KL, a mean over the batch, is not lowered further.
    extra : callable (x_hat, x) -> Tensor (B,), optional
        A further loss of reconstructions, such as a perceptual one, in the units of the data; it is
        added in nats per sample.

    References
    ----------
    Kingma & Welling, ICLR 2014. Higgins et al., β-VAE, ICLR 2017. Kingma et al., Improved
    variational inference with inverse autoregressive flow, NeurIPS 2016, appendix C.8 (free bits).

    Examples
    --------
    >>> stage = scoresde.first_stage("vae", shape=(6,), latent=(2,), width=16)
    >>> objective = Autoencoding(kl=0.5, extra=lambda x_hat, x: (x_hat - x).abs().sum(1))
    >>> scoresde.fit(stage, torch.randn(99, 6), objective=objective, steps=5, progress=False)
    History(steps=5, loss=..., seconds=...)
    """

    kl: float = 1.0
    free_bits: float = 0.0
    extra: Loss | None = None
    trains: ClassVar[type[Trainable]] = FirstStage

    def __post_init__(self) -> None:
        self.kl = real_number("kl", self.kl, 0, math.inf, closed=True)
        self.free_bits = real_number("free_bits", self.free_bits, 0, math.inf, closed=True)
        if self.extra is not None and not callable(self.extra):
            raise TypeError(
                f"extra is a function (x_hat, x) -> (B,), got {type(self.extra).__name__}"
            )

    def __call__(  # noqa: D102
        self,
        net: Callable[..., Any],
        sde: FirstStage,
        z0: Tensor,
        eps: Tensor,
        q: Tensor,
        condition: Condition,
        progress: float,
        generator: torch.Generator,
    ) -> Tensor:
        inner: Any = sde.networks(raw=True)[0]
        if isinstance(inner, torch.nn.parallel.DistributedDataParallel):
            inner = inner.module
        x = sde.standardization.spread(z0).to(sde.net_dtype)
        shape = (len(x), *inner.latent)
        noise = torch.randn(shape, generator=generator, device=x.device, dtype=x.dtype)
        out, code = net(x, noise)
        x_hat = check_output(inner, x, out, self.extra is not None)
        nats = -sde._log_of_states(inner, z0, out).mean()
        nats = nats + inner.penalty(code, self.kl, self.free_bits)
        if self.extra is not None:
            states = flat(x_hat, sde.free).to(z0.dtype)
            nats = nats + self._extra(sde.to_data(states), sde.to_data(z0))
        if inner.training:
            inner.settle(code)
        loss: Tensor = nats / sde.dim
        return loss

    def _extra(self, x_hat: Tensor, x: Tensor) -> Tensor:
        """The mean of the user's loss, checked."""
        assert self.extra is not None
        found = self.extra(x_hat, x)
        if not isinstance(found, Tensor) or found.shape != (len(x),):
            got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(f"extra returned {got}, wanted a loss for each sample, ({len(x)},)")
        return found.mean()


def check_output(net: Any, x: Tensor, out: Tensor, needed: bool = False) -> Tensor:
    """The mean x̂ of p(x|z), if it is needed or checked; raise unless it has the shape of x."""
    x_hat = net.mean_of(out) if needed or not net.levels else x
    if not isinstance(x_hat, Tensor) or x_hat.shape != x.shape:
        raise ValueError(
            f"the first stage was given {tuple(x.shape)} and returned x̂ of shape "
            f"{tuple(getattr(x_hat, 'shape', ()))}; it must keep the shape"
        )
    return x_hat


def fit_stage(
    stage: FirstStage,
    data: Any,
    *,
    kl: float = 1.0,
    free_bits: float = 0.0,
    extra: Loss | None = None,
    **how: Unpack[StageKeywords],
) -> History:
    """Train a first stage: `fit` with `Autoencoding(kl, free_bits, extra)`.

    Parameters
    ----------
    stage : FirstStage
        Trained in place, and left in eval mode.
    data
        As for `fit`.
    kl, free_bits, extra
        See `Autoencoding`. A latent for a score model needs little KL: 0.01 or less keeps detail.
    **how
        Arguments of `fit`: steps, batch_size, lr, checkpoints, validation, backend, seed, …

    Returns
    -------
    History
        Its loss is in nats per number of standardized x.

    Raises
    ------
    TypeError, ValueError, TrainingError, CheckpointError
        As `fit`.

    Examples
    --------
    >>> stage = scoresde.first_stage("vq", shape=(6,), latent=(2,), codes=16, width=16)
    >>> fit_stage(stage, torch.randn(500, 6), steps=20, progress=False)
    History(steps=20, loss=..., seconds=...)
    >>> 1 <= stage.perplexity <= 16
    True
    """
    if not isinstance(stage, FirstStage):
        raise TypeError(
            f"fit_stage takes a FirstStage, got {type(stage).__name__}; "
            "scoresde.first_stage('vae', shape=…, latent=…) makes one"
        )
    if "objective" in how:
        raise TypeError("fit_stage has its own objective: write fit(stage, data, objective=…)")
    return fit(stage, data, objective=Autoencoding(kl, free_bits, extra), **how)
