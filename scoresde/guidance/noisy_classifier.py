"""A classifier of noised states, p(y | z, φ), on the arc of a model."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..model.network import noise_label
from ..model.protocol import Model


class NoisyClassifier(nn.Module):
    """Logits log p(y) + cos φ·f(z, u) of states z on the arc, u the noise label of the angle φ.

    In pure noise they are log p(y), for any f, and tan φ·∇log p(y | z, φ) is finite there.

    Parameters
    ----------
    net : nn.Module
        f, called as net(z, u) with z (B, *shape) and u of about log(σ/α), (B,); returns
        (B, classes).
    frequencies : Tensor, shape (classes,)
        p(y).
    sde : ScoreSDE
        Whose standardization it shares.

    Attributes
    ----------
    classes : int
    words : tuple of str
        Of the classes, if labels were words.
    held_out_loss : float
        Cross-entropy in nats of rows that were not trained on, over all noise levels; NaN if there
        are none. Knowing nothing, it is the entropy of p(y).

    Examples
    --------
    See `fit_classifier`.
    """

    log_frequencies: Tensor
    mean: Tensor
    scale: Tensor
    directions: Tensor

    def __init__(self, net: nn.Module, frequencies: Tensor, sde: Model) -> None:
        super().__init__()
        self.net = net
        self.classes = len(frequencies)
        self.words: tuple[str, ...] = ()
        self.shape = tuple(sde.shape)
        self.held_out_loss = math.nan
        self.register_buffer("log_frequencies", frequencies.log().float().to(sde.device))
        self.register_buffer("mean", sde.mean.detach().clone())
        self.register_buffer("scale", sde.scale.detach().clone())
        self.register_buffer("directions", sde.standardization.directions.detach().clone())

    def forward(self, z: Tensor, phi: Tensor | float) -> Tensor:
        """Return logits (B, classes) of states z (B, *shape) or (B, n) at angles φ, (B,) or ()."""
        at = torch.as_tensor(phi, dtype=torch.float64, device=z.device).expand(len(z))
        dtype = self.log_frequencies.dtype
        label = torch.as_tensor(noise_label(at)).to(dtype)
        out = self.net(z.to(dtype).reshape(len(z), *self.shape), label)
        if not isinstance(out, Tensor) or out.shape != (len(z), self.classes):
            got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise ValueError(f"net returned {got}, wanted ({len(z)}, {self.classes}): classes")
        known = at.cos().clamp_min(0).to(dtype).unsqueeze(1)
        return self.log_frequencies + known * out

    def extra_repr(self) -> str:
        """Return what `repr` shows beside the network."""
        entropy = float(functional.cross_entropy(self.log_frequencies, self.log_frequencies.exp()))
        return (
            f"classes={self.classes}, shape={self.shape}, held_out_loss={self.held_out_loss:.3f} "
            f"of {entropy:.3f} nats"
        )


def require_units(net: NoisyClassifier, sde: Model) -> None:
    """Raise ValueError unless a model has the standardization of the classifier's data."""
    if tuple(sde.shape) != net.shape:
        raise ValueError(
            f"the classifier was fitted to shape {net.shape}, and the model has {tuple(sde.shape)}"
        )
    unit = net.scale.cpu().double()
    pairs = (
        (net.mean, sde.mean, unit),
        (net.scale, sde.scale, unit),
        (net.directions, sde.standardization.directions, 1.0),
    )
    for ours, theirs, size in pairs:
        same = ours.shape == theirs.shape
        if same:
            gap = (ours.cpu().double() - theirs.cpu().double()).abs()
            same = bool((gap <= 1e-3 * size).all())
        if not same:
            raise ValueError(
                "the classifier was fitted in the units of another model (mean, scale or "
                "correlations of the data): fit the model first, then the classifier with it"
            )
