"""Any backbone with two outputs: the network of a Schrödinger bridge, with the drift to either end.

One distribution of paths has two drifts (see `scoresde.training.bridge`): one of the SDE to the
data, and one of the SDE to the source. Between them are weighted means,

    out_τ = ½(1 + τ)·out_data + ½(1 − τ)·out_source,

and τ = 0 is the ODE. The backbone gets its input twice, as more features of points or channels of
images, and each half of its output is one drift. (Zeros in place of the copy would do too, but not
where a backbone scales its input element by element.)
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..common.inputs import event_shape
from .base import BACKBONES, takes
from .twotimes import TwoTimes


@BACKBONES.register("two_drifts")
class TwoDrifts(TwoTimes):
    """A backbone with a tilt: net(x, t, tilt=τ), τ = 1 to the data, −1 to the source, 0 the ODE.

    Without a tilt (τ = 0) this is an ordinary network, without a closed form of its trace.

    Parameters
    ----------
    shape : tuple of int
        Shape of one sample.
    backbone : str
        A name of `scoresde.BACKBONES`; it is built with twice as many features or channels.
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
    >>> net = TwoDrifts((1, 8, 8), backbone="mlp", width=32)
    >>> net(torch.randn(5, 1, 8, 8), torch.zeros(5)).shape
    torch.Size([5, 1, 8, 8])
    """

    def __init__(
        self, shape: tuple[int, ...], backbone: str = "mlp", **options: str | float
    ) -> None:
        nn.Module.__init__(self)
        first, *rest = event_shape(shape)
        self.net = BACKBONES.build(backbone, (2 * first, *rest), **options)
        if takes(self.net, "tilt"):
            raise ValueError(f"backbone {backbone!r} takes a tilt already; use it as it is")

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        t: Tensor,
        tilt: Tensor | None = None,
        apart: bool = False,
        **condition: Tensor,
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
            Whether to return both drifts, stacked, for training.
        **condition : Tensor
            The backbone's.

        Returns
        -------
        Tensor, shape (B, *shape), or (2, B, *shape) with the drift to the data first

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
        weight = 0.5 * (1 + tilt.to(data.dtype).reshape(-1, *(1,) * (x.ndim - 1)))
        return torch.lerp(source, data, weight)

    def check_condition(  # type: ignore[override]
        self, tilt: Tensor | None = None, **condition: Tensor
    ) -> None:
        """Raise unless the backbone takes these conditions; called once before a solve.

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
