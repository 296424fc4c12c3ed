"""Any backbone with a second output: how far the variance of reverse steps lies from β̃ to β.

With z_t at an angle t on the arc and a level s < t, the exact posterior of DDPM has the variance
β̃, and p(z_s | z_t) of standard normal data the variance β (see `scoresde.density.bounds`). With
h = β/β̃ − 1 = sin²t/sin²s − 1, the best Gaussian p(z_s | z_t) has the variance

    Σ = β̃ + c²·Var[x0 | z_t] = β̃·(1 + h·w),      w = Var[x0 | z_t]/sin²t.

The share w is 0 where the data are points and 1 where they are standard normal, and it does not
depend on s. So the network's second output is logit w, an elementwise function of state and level,
and one w serves steps of every length. In the terms of Nichol & Dhariwal (2021, eq. 15), Σ =
exp(v·log β + (1 − v)·log β̃) with v = log(1 + h·w)/log(1 + h), which runs from 0 to 1 with w.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..common.inputs import event_shape
from .base import BACKBONES, can_trace, takes, unwrapped
from .embedded import Embedded
from .twotimes import TwoTimes

HEAD = "with_variance"
"""The argument of a network by which it returns both outputs, stacked."""


@BACKBONES.register("learned_variance")
class LearnedVariance(TwoTimes):
    """A backbone with a variance: net(x, t, with_variance=True) is (output, logit w), stacked.

    Without `with_variance` it is the backbone. For vectors, and for backbones whose trace has a
    closed form, which they keep, the second output is that of another network of the same kind.
    Other backbones of images have twice the channels, in which they get their input twice, and
    the second half of their output is logit w.

    Parameters
    ----------
    shape : tuple of int
        Shape of one sample.
    backbone : str
        A name of `scoresde.BACKBONES`.
    **options
        Of the backbone, e.g. width=256.

    Raises
    ------
    ValueError
        For unknown names or options, or a backbone with a span, a tilt, gaps or a variance.

    References
    ----------
    Nichol & Dhariwal, Improved denoising diffusion probabilistic models, ICML 2021, section 3.1.

    Examples
    --------
    >>> net = LearnedVariance((2,), width=32)
    >>> out, logit = net(torch.randn(5, 2), torch.zeros(5), with_variance=True)
    >>> out.shape, logit.sigmoid()[0]
    (torch.Size([5, 2]), tensor([0.5000, 0.5000], grad_fn=...))
    """

    def __init__(
        self, shape: tuple[int, ...], backbone: str = "mlp", **options: str | float
    ) -> None:
        nn.Module.__init__(self)
        shape = event_shape(shape)
        net = BACKBONES.build(backbone, shape, **options)
        refused = [name for name in ("span", "tilt", HEAD) if takes(net, name)]
        if refused or getattr(net, "takes_gaps", False):
            why = f"it takes {refused[0]}=" if refused else "it is for rows with gaps"
            raise ValueError(f"backbone {backbone!r} can't have a learned variance: {why}")
        self.head: nn.Module | None = None
        if len(shape) < 2 or can_trace(net):
            self.head = BACKBONES.build(backbone, shape, **options)
        else:
            first, *rest = shape
            net = BACKBONES.build(backbone, (2 * first, *rest), **options)
        self.net = net

    def forward(  # type: ignore[override]
        self, x: Tensor, t: Tensor, with_variance: bool = False, **condition: Tensor
    ) -> Tensor:
        """Return the network's output.

        Parameters
        ----------
        x : Tensor, shape (B, *shape)
        t : Tensor, shape (B,)
            Noise labels.
        with_variance : bool
            Whether to return both outputs.
        **condition : Tensor
            The backbone's.

        Returns
        -------
        Tensor, shape (B, *shape), or (2, B, *shape) with logit w second

        Examples
        --------
        See `LearnedVariance`.
        """
        if self.head is None:
            both: Tensor = self.net(torch.cat([x, x], 1), t, **condition)
            out, logit = both.chunk(2, 1)
            return torch.stack([out, logit]) if with_variance else out.contiguous()
        out = self.net(x, t, **condition)
        return torch.stack([out, self.head(x, t, **condition)]) if with_variance else out

    @property
    def value_and_trace(self) -> Callable[..., tuple[Tensor, Tensor]]:
        """The backbone's, where it has a closed form."""
        if self.head is None or not can_trace(self.net):
            raise AttributeError(f"{type(self.net).__name__} has no trace in closed form")
        return self._value_and_trace

    def _value_and_trace(self, x: Tensor, t: Tensor, **condition: Tensor) -> tuple[Tensor, Tensor]:
        """Output and trace of the backbone."""
        net: Any = self.net
        found: tuple[Tensor, Tensor] = net.value_and_trace(x, t, **condition)
        return found

    def check_condition(self, **condition: Any) -> None:  # type: ignore[override]
        """Raise unless the backbone takes these conditions; called once before a solve.

        Parameters
        ----------
        **condition : Tensor

        Raises
        ------
        ValueError

        Examples
        --------
        >>> LearnedVariance((2,), classes=3).check_condition(y=torch.tensor([3]))
        Traceback (most recent call last):
        ValueError: labels y run from 0 to 2, got 3 to 3
        """
        super().check_condition(None, **condition)


def has_variance(net: nn.Module) -> bool:
    """Whether a network has the second output, also inside an `Embedded`."""
    net = unwrapped(net)
    while isinstance(net, Embedded):
        net = unwrapped(net.net)
    return takes(net, HEAD)
