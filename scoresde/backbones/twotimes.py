"""Any backbone with a second time: the network of a flow map, with a start and an end on the arc.

F(z, φ, s) = cos δ·z − sin δ·w(z, φ, s) takes a state from the angle φ to the angle s = φ − δ (see
`scoresde.training.flow_maps`). The backbone gets the noise label of s, where the jump ends, and one
more channel that holds the span δ. For δ = 0 the two times agree, w is the velocity, and the
network is an ordinary one. The label is that of the end for this reason: a network scales its
features by the label (`MLP` fades features that are finer than the noise), and the output of a jump
is as sharp as the distribution at its end.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..common.inputs import event_shape
from .base import BACKBONES, takes


@BACKBONES.register("two_times")
class TwoTimes(nn.Module):
    """A backbone with a span: net(x, t, span=δ), where t is the noise label of the end of a jump.

    x is at the angle δ above that level. The span is one more feature of points and one more
    channel of images, whose output is dropped. Without a span (δ = 0) this is an ordinary network,
    without a closed form of its trace.

    Parameters
    ----------
    shape : tuple of int
        Shape of one sample.
    backbone : str
        A name of `scoresde.BACKBONES`; it is built with one more feature or channel.
    **options
        Of the backbone, e.g. width=256.

    Raises
    ------
    ValueError
        For unknown names or options, or a backbone that takes a span already.

    Examples
    --------
    >>> net = TwoTimes((2,), width=32)
    >>> net(torch.randn(5, 2), torch.zeros(5), span=torch.full((5,), 0.3)).shape
    torch.Size([5, 2])
    >>> net = TwoTimes((1, 8, 8), backbone="mlp", width=32)
    >>> net(torch.randn(5, 1, 8, 8), torch.zeros(5)).shape
    torch.Size([5, 1, 8, 8])
    """

    def __init__(
        self, shape: tuple[int, ...], backbone: str = "mlp", **options: str | float
    ) -> None:
        super().__init__()
        first, *rest = event_shape(shape)
        self.net = BACKBONES.build(backbone, (first + 1, *rest), **options)
        if takes(self.net, "span"):
            raise ValueError(f"backbone {backbone!r} takes a span already; use it as it is")

    def forward(
        self, x: Tensor, t: Tensor, span: Tensor | None = None, **condition: Tensor
    ) -> Tensor:
        """Return the network's output.

        Parameters
        ----------
        x : Tensor, shape (B, *shape)
        t : Tensor, shape (B,)
            Noise labels of the ends of jumps.
        span : Tensor, shape (B,), optional
            The lengths of the jumps on the arc, in radians; 0 unless given.
        **condition : Tensor
            The backbone's.

        Returns
        -------
        Tensor, shape (B, *shape)

        Examples
        --------
        See `TwoTimes`.
        """
        channel = torch.zeros_like(x[:, :1])
        if span is not None:
            channel = channel + span.to(x.dtype).reshape(-1, *(1,) * (x.ndim - 1))
        out: Tensor = self.net(torch.cat([x, channel], 1), t, **condition)
        return out[:, :-1].contiguous()

    @property
    def wide_inputs(self) -> bool:
        """Whether the backbone takes x and t in at least float32."""
        return bool(getattr(self.net, "wide_inputs", False))

    @property
    def labels(self) -> tuple[str, ...]:
        """The backbone's conditions that are not to be standardized."""
        return tuple(getattr(self.net, "labels", ()))

    @property
    def condition_shapes(self) -> dict[str, tuple[int, ...]] | None:
        """The backbone's conditions with the shape of one sample's; None if it has no list."""
        return getattr(self.net, "condition_shapes", None)

    @property
    def condition_dropout(self) -> float | None:
        """The backbone's condition_dropout; None if it has none."""
        return getattr(self.net, "condition_dropout", None)

    def drop_conditions(
        self, condition: Mapping[str, Tensor], generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Return conditions as the backbone's own `drop_conditions` does, if it has one.

        Parameters
        ----------
        condition : mapping of str to Tensor
            With one row per sample.
        generator : torch.Generator

        Returns
        -------
        dict of str to Tensor

        Examples
        --------
        >>> net = TwoTimes((2,), classes=3, condition_dropout=1.0)
        >>> net.drop_conditions({"y": torch.tensor([0, 1])}, torch.Generator())
        {'y': tensor([3, 3])}
        """
        drop_conditions = getattr(self.net, "drop_conditions", None)
        return (
            dict(condition) if drop_conditions is None else drop_conditions(condition, generator)
        )

    def check_condition(self, span: Tensor | None = None, **condition: Tensor) -> None:
        """Raise unless the backbone takes these conditions; called once before a solve.

        Parameters
        ----------
        span : Tensor, shape (n,), optional
        **condition : Tensor

        Raises
        ------
        ValueError

        Examples
        --------
        >>> TwoTimes((2,), classes=3).check_condition(y=torch.tensor([3]))
        Traceback (most recent call last):
        ValueError: labels y run from 0 to 2, got 3 to 3
        """
        known = inspect.signature(self.net.forward).parameters
        takes_any = any(p.kind is p.VAR_KEYWORD for p in known.values())
        for name in condition:
            if name not in known and not takes_any:
                raise ValueError(
                    f"the backbone takes no condition {name!r}; it takes {list(known)[2:]}"
                )
        check = getattr(self.net, "check_condition", None)
        if check is not None and condition:
            check(**condition)
