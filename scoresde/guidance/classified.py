"""Classifier guidance: p(x)·p(y | x)^β by a classifier of noised states."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..common.capabilities import Capability
from ..common.checks import brief_repr, real_number
from ..common.inputs import INTEGERS
from ..common.modules import leave_inference
from ..common.names import choose
from ..model.class_words import wordy
from ..model.protocol import Model
from ..processes.base import as_time
from .guided import noise_range, own_tensor, require_part
from .noisy_classifier import NoisyClassifier, require_units
from .tilted import Tilted, Twist, differentiated

CONVENTIONS = ("arc", "data")
"""What a classifier is given: standardized states z and angles φ, or x_t and t as `score` takes."""


def classifier(
    sde: Model,
    net: Callable[..., Tensor],
    y: Any,
    scale: float = 1.0,
    *,
    interval: tuple[float, float] = (0.0, math.inf),
    input_convention: str = "arc",
) -> Model:
    """Return the model of p(x)·p(y | x)^β, up to a factor, by a classifier of noised states.

    v ← v − β·tan φ·∇log p(y | z, φ) on the arc: for β = 1 and an exact classifier, this is the
    conditional model, by every solver and in `log_prob`. For other β it is not p(x)·p(y | x)^β
    itself, as for `classifier_free`: samples become more typical of y, and less diverse. β = 0 is
    the plain model. At angles above acos(1/1000) the gradient is taken at that one.

    Parameters
    ----------
    sde : ScoreSDE
        A model with a score, conditional or not.
    net : callable
        What `fit_classifier` returns, or a classifier of your own that returns logits
        (B, classes), whose rows do not mix. A module is put into eval mode, and given the dtype of
        its weights.
    y : int, word, or Tensor or array of int, shape (n,)
        The class of all samples, or one a sample; words if `fit_classifier` was given them.
    scale : float
        β.
    interval : pair of float
        The noise levels σ/α where guidance acts.
    input_convention : str
        "arc": the classifier is called as net(z, φ), with standardized states z of shape
        (B, *shape) and angles φ = atan(σ/α) of shape (B,), in radians. "data": as net(x_t, t), with
        what `sde.score(x, t)` takes, x_t of shape (B, *shape) in the units of the data and process
        times t of shape (B,). A constant of the data is 0 in z.

    Returns
    -------
    Model
        It works with every verb but `fit` and `save`.

    Raises
    ------
    TypeError, ValueError
        For a model without a score, labels outside the classes, a classifier that was fitted in
        other units, or whose logits have another shape, no gradient, or depend on other rows.

    References
    ----------
    Dhariwal and Nichol, Diffusion models beat GANs on image synthesis, NeurIPS 2021, section 4.

    Examples
    --------
    With log-odds 2·cos φ·z, as of the two classes N(±1, 1), score and classifier at x = 0:

    >>> sde = scoresde.build("vp", "mlp", shape=(1,))
    >>> net = lambda z, phi: torch.cat([0 * z, 2 * phi.cos().unsqueeze(1) * z], 1)
    >>> guided = scoresde.classifier(sde, net, y=torch.tensor([0, 1]), scale=2.0)
    >>> guided.score(torch.zeros(2, 1), 0.0).detach()
    tensor([[-2.], [ 2.]])
    """
    model = require_part(sde, "classifier", Capability.SCORE)
    if not callable(net):
        raise TypeError(f"net is a classifier, a function of states, got {brief_repr(net)}")
    scale = real_number("scale", scale, -math.inf, math.inf)
    choose("input_convention=", input_convention, CONVENTIONS)
    if isinstance(net, NoisyClassifier):
        require_units(net, model)
        if input_convention != "arc":
            raise ValueError("what fit_classifier returns takes states on the arc: leave it out")
    if isinstance(net, nn.Module):
        leave_inference(net)
        net.eval()
    labels = _labels(net, y)
    made = Classified(model, net, labels, scale, noise_range(interval), input_convention)
    made.probe()
    return made


class Classified(Tilted):
    """p(x)·p(y | x)^β."""

    def __init__(
        self,
        model: Model,
        net: Callable[..., Tensor],
        y: Tensor,
        beta: float,
        interval: tuple[float, float],
        input_convention: str,
    ) -> None:
        super().__init__(model, interval, y=y)
        self.net = net
        self.beta = beta
        self.input_convention = input_convention

    def velocity_fn(self, *, raw: bool = False) -> Callable[..., Tensor]:
        """Return v − β·tan φ·∇log p(y | z, φ), at β = 0 the model's own; see `Model`."""
        if self.beta == 0:
            return self.model.velocity_fn(raw=raw)
        return super().velocity_fn(raw=raw)

    def twist(self, *, raw: bool = False) -> Twist:
        """Velocity of the part, β·log p(y | z, φ) and its gradient."""
        velocity = self.model.velocity_fn(raw=raw)

        def twist(z: Tensor, phi: Tensor | float, rows: Tensor | None = None) -> Any:
            v = velocity(z, phi, rows)
            gradient, (value,) = differentiated(lambda z: (self._log_psi(z, phi, rows),), z)
            return v, value, gradient

        return twist

    def log_g(self, z: Tensor, rows: Tensor | None = None) -> Tensor:
        """β·log p(y | z) (B,) at the lowest noise of the process."""
        return self._log_psi(z, self.process.phi_min, rows)

    def logits(self, z: Tensor, phi: Tensor | float) -> Tensor:
        """The classifier's logits (B, classes) of states z (B, n) on the arc."""
        dtype = z.dtype
        if isinstance(self.net, nn.Module):
            held = itertools.chain(self.net.parameters(), self.net.buffers())
            dtype = next((p.dtype for p in held if p.is_floating_point()), dtype)
        at: Any = as_time(phi)
        if self.input_convention == "data":
            at = self.process.time(at)
            radius = self.process.radius(at).to(z)
            x = self.to_data(radius.reshape(-1, 1) * z)
        else:
            x = self.standardization.spread(z)
        at = at.to(z.device, dtype).expand(len(z))
        logits = self.net(x.to(dtype), at)
        if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(z):
            got = type(logits).__name__
            if isinstance(logits, Tensor):
                got = f"shape {tuple(logits.shape)}"
            raise ValueError(f"the classifier returned {got}, wanted logits ({len(z)}, classes)")
        return logits.to(z.dtype)

    def _log_psi(self, z: Tensor, phi: Tensor | float, rows: Tensor | None) -> Tensor:
        """β·log p(y | z, φ) (B,)."""
        y = self.tensor("y", rows, z).expand(len(z))
        log_p = self.logits(z, phi).log_softmax(1)
        return self.beta * log_p.gather(1, y.unsqueeze(1))[:, 0]

    def probe(self) -> None:
        """Raise unless the classifier gives finite logits with gradients, row by row."""
        z = 0.5 * torch.cos(torch.arange(2.0 * self.dim, device=self.device)).reshape(2, -1)
        z = z.to(self.state_dtype)
        angle = 0.5 * (self.process.phi_min + self.process.phi_max)
        with torch.inference_mode(False), torch.enable_grad():
            z = z.clone().requires_grad_()
            logits = self.logits(z, angle)
            classes = logits.shape[1]
            if classes < 2:
                raise ValueError(
                    "the classifier returned one logit a state, wanted one for each class: of two "
                    "classes, torch.cat([0 * logit, logit], 1)"
                )
            y = self._tensors[self._names["y"]]
            if int(y.max()) >= classes:
                raise ValueError(
                    f"y has the label {int(y.max())}, and the classifier has {classes} classes, "
                    "numbered from 0"
                )
            if not bool(logits.isfinite().all()):
                raise ValueError("the classifier returned logits that are NaN or infinite")
            if not logits.requires_grad:
                raise ValueError(
                    "the classifier's logits carry no gradient (no_grad or detach inside it?)"
                )
            alone = self.logits(z[:1], angle)
        slack = 1e-3 * (1 + float(logits.detach().abs().max()))
        if float((alone - logits[:1]).detach().abs().max()) > slack:
            raise ValueError(
                "the classifier's logits of a state depend on the other rows of a batch (batch "
                "normalization in train mode?), and then so would samples"
            )


def _labels(net: Any, y: Any) -> Tensor:
    """The labels (1,) or (n,), checked as far as the classes are known."""
    if isinstance(y, bool):
        raise TypeError(f"y is a class, an integer from 0, got {y}")
    if wordy(y):
        words = getattr(net, "words", ())
        if not words:
            raise TypeError(
                f"y is an integer or a tensor of integers, got {brief_repr(y)}: this classifier "
                "knows no words"
            )
        wanted = [y] if isinstance(y, str) else list(y)
        y = [words.index(choose("class", word, words)) for word in wanted]
    labels = own_tensor("y", y)
    if labels.dtype not in INTEGERS or labels.dtype == torch.bool:
        raise TypeError(f"y has dtype {labels.dtype}, wanted integers: classes from 0")
    if labels.ndim != 1:
        raise ValueError(f"y has shape {tuple(labels.shape)}, wanted an integer or shape (n,)")
    labels = labels.long()
    if int(labels.min()) < 0:
        raise ValueError(f"y has the label {int(labels.min())}: classes are numbered from 0")
    return labels
