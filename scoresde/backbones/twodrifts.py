"""Any backbone with two outputs: the network of a Schrödinger bridge, which knows the drift towards either end.

On one path law there are two drifts (see `scoresde.bridge`), that of the SDE towards the data and that of the SDE towards the
source; what lies between is their mean, with a weight of each,

    out_τ = ½(1 + τ)·out_data + ½(1 − τ)·out_source,

and τ = 0 is the ODE. The backbone gets its input twice, as so many more features of points or channels of images, and each half
of what it says is one drift. (An input of zeros would serve as well, but not where a backbone scales its input element by
element.)
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..inputs import event_shape
from .base import BACKBONES, takes
from .twotimes import TwoTimes


@BACKBONES.register("two_drifts")
class TwoDrifts(TwoTimes):
    """A backbone that takes a tilt: net(x, t, tilt=τ), τ = 1 towards the data, −1 towards the source, 0 for the ODE.

    Without a tilt, that is τ = 0, this is an ordinary network, but with no closed form of its trace.

    Parameters
    ----------
    shape : tuple of int
        Shape of one sample.
    backbone : str
        A name of `scoresde.BACKBONES`: what is built, with twice as many features or channels.
    **options
        Of the backbone, e.g. width=256.

    Raises
    ------
    ValueError
        For unknown names or options, or a backbone that takes a tilt already.

    Examples
    --------
    >>> net = TwoDrifts((2,), width=32)
    >>> net(torch.randn(5, 2), torch.zeros(5), tilt=torch.ones(5)).shape
    torch.Size([5, 2])
    >>> TwoDrifts((1, 8, 8), backbone="mlp", width=32)(torch.randn(5, 1, 8, 8), torch.zeros(5)).shape
    torch.Size([5, 1, 8, 8])
    """

    def __init__(self, shape: tuple[int, ...], backbone: str = "mlp", **options: str | float) -> None:
        nn.Module.__init__(self)
        first, *rest = event_shape(shape)
        self.net = BACKBONES.build(backbone, (2 * first, *rest), **options)
        if takes(self.net, "tilt"):
            raise ValueError(f"backbone {backbone!r} takes a tilt already; use it as it is")

    def forward(  # type: ignore[override]
        self, x: Tensor, t: Tensor, tilt: Tensor | None = None, apart: bool = False, **condition: Tensor
    ) -> Tensor:
        """Return the network's output.

        Parameters
        ----------
        x : Tensor, shape (B, *shape)
        t : Tensor, shape (B,)
            Noise labels.
        tilt : Tensor, shape (B,), optional
            τ, in [−1, 1]; 0 unless given.
        apart : bool
            Whether to return both drifts, stacked, as training wants them.
        **condition : Tensor
            The backbone's.

        Returns
        -------
        Tensor, shape (B, *shape), or (2, B, *shape) with the drift towards the data first

        Examples
        --------
        See `TwoDrifts`.
        """
        both: Tensor = self.net(torch.cat([x, x], 1), t, **condition)
        data, source = both.chunk(2, 1)
        if apart:
            return torch.stack([data, source])
        if tilt is None:
            return 0.5 * (data + source)
        return torch.lerp(source, data, 0.5 * (1 + tilt.to(data.dtype).reshape(-1, *(1,) * (x.ndim - 1))))

    def check_condition(self, tilt: Tensor | None = None, **condition: Tensor) -> None:  # type: ignore[override]
        """Raise unless conditions are what the backbone takes; called once before a solve, not at every evaluation.

        Parameters
        ----------
        tilt : Tensor, shape (n,), optional
        **condition : Tensor

        Raises
        ------
        ValueError

        Examples
        --------
        >>> TwoDrifts((2,), classes=3).check_condition(y=torch.tensor([3]))
        Traceback (most recent call last):
        ValueError: labels y run from 0 to 2, got 3 to 3
        """
        super().check_condition(**condition)
