"""A backbone whose conditions are made by networks of the user's, which are trained along.

A time series, a set or an image becomes the `vector` that a backbone takes:

    net(x, t, vector=embed(condition)),      embed: (B, *any shape) → (B, vector).

The backbone's learnt null stands for a condition that is dropped or not given. In a batch, `embed`
sees zeros in place of the dropped rows, and what it makes of them is not used. Batch normalization
counts these zeros: prefer layer normalization, or build the backbone with condition_dropout=0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .base import can_trace, weights_dtype
from .conditions import absent, check_known

Traced = Callable[..., tuple[Tensor, Tensor]]


class Embedded(nn.Module):
    """A backbone that is given embed(condition) in place of a condition.

    The model's condition keeps its name, "vector", and has any shape. `fit` trains `embed` along;
    in a solve it is called once, not at every step.

    Parameters
    ----------
    net : nn.Module
        A backbone that takes the condition, such as `BACKBONES.build("resmlp", (2,), vector=64)`.
    embed : nn.Module, or mapping of str to nn.Module
        Called with the condition (B, *shape), returns what `net` takes, (B, vector). One module is
        for "vector". Numbers come in the dtype of its weights; those that index a table are
        cast back, `value.long()`.
    standardize : bool
        Whether `fit` measures mean and scale of these conditions if they are floating-point, one
        for each entry of their first axis: put the channels of a series first. False for a network
        that is trained already.

    Raises
    ------
    TypeError, ValueError
        If `net` takes no such condition, or `embed` holds no modules.

    Examples
    --------
    >>> class Mean(torch.nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.linear = torch.nn.Linear(3, 8)
    ...     def forward(self, series):  # (B, 3, T)
    ...         return self.linear(series.mean(2))
    >>> net = scoresde.BACKBONES.build("resmlp", (2,), width=16, vector=8)
    >>> sde = scoresde.build("vp", scoresde.Embedded(net, Mean()), shape=(2,))
    >>> series = torch.randn(100, 3, 20)
    >>> _ = scoresde.fit(sde, torch.randn(100, 2), given={"vector": series}, steps=5)
    >>> scoresde.sample(sde.given(vector=series[:4])).shape
    torch.Size([4, 2])
    """

    condition_shapes: dict[str, tuple[int, ...]] | None = None  # of any shape

    def __init__(
        self,
        net: nn.Module,
        embed: nn.Module | Mapping[str, nn.Module],
        *,
        standardize: bool = True,
    ) -> None:
        super().__init__()
        if isinstance(embed, nn.Module) and not isinstance(embed, nn.ModuleDict):
            embed = {"vector": embed}
        if not isinstance(embed, Mapping | nn.ModuleDict) or not embed:
            raise TypeError(
                "embed is a network, or a mapping such as {'vector': net}, got "
                f"{type(embed).__name__}"
            )
        modules = dict(embed.items())
        for name, module in modules.items():
            if not isinstance(module, nn.Module):
                raise TypeError(f"embed[{name!r}] is an nn.Module, got {type(module).__name__}")
        self.shapes: dict[str, tuple[int, ...]] | None = getattr(net, "condition_shapes", None)
        if self.shapes is not None:
            for name in embed:
                if name not in self.shapes:
                    raise ValueError(
                        f"{type(net).__name__} takes no condition {name!r} for embed= to make; "
                        "build it with vector=n"
                    )
        self.net = net
        self.embed = nn.ModuleDict(modules)
        self.standardize = standardize

    def forward(self, x: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        """Return the network's output.

        Parameters
        ----------
        x : Tensor, shape (B, *shape)
        t : Tensor, shape (B,)
            Noise labels.
        **condition : Tensor
            Those of `embed` in any shape, (B, …), and others of the network's.

        Returns
        -------
        Tensor, shape (B, *shape)

        Raises
        ------
        ValueError
            If `embed` returns another shape than the network takes.

        Examples
        --------
        See `Embedded`.
        """
        out: Tensor = self.net(x, t, **self.embedded(condition))
        return out

    @property
    def value_and_trace(self) -> Traced:
        """The network's, where it has a closed form: conditions do not depend on x."""
        if not can_trace(self.net):
            raise AttributeError(f"{type(self.net).__name__} has no trace in closed form")
        return self._value_and_trace

    def _value_and_trace(self, x: Tensor, t: Tensor, **condition: Tensor) -> tuple[Tensor, Tensor]:
        """Output and trace of the network."""
        net: Any = self.net
        found: tuple[Tensor, Tensor] = net.value_and_trace(x, t, **self.embedded(condition))
        return found

    def embedded(self, condition: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the conditions as the network takes them.

        Parameters
        ----------
        condition : mapping of str to Tensor
            A row of NaN is a missing one.

        Returns
        -------
        dict of str to Tensor

        Raises
        ------
        ValueError
            If `embed` returns another shape than the network takes.

        Examples
        --------
        >>> net = scoresde.MLP((2,), vector=1)
        >>> double = Embedded(net, torch.nn.Linear(3, 1))
        >>> double.embedded({"vector": torch.zeros(5, 3)})["vector"].shape
        torch.Size([5, 1])
        """
        found = dict(condition)
        for name in self.embed.keys() & condition.keys():
            found[name] = self._made(name, condition[name])
        return found

    def _made(self, name: str, value: Tensor) -> Tensor:
        """What the network named so makes of a condition; NaN in rows that are missing."""
        module = self.embed[name]
        lost = absent(value)
        rows = lost.view(-1, *[1] * (value.ndim - 1))
        out = module(value.to(weights_dtype(module, value)).masked_fill(rows, 0))
        wanted = None if self.shapes is None else (len(value), *self.shapes[name])
        got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
        if not isinstance(out, Tensor) or (wanted is not None and got != wanted):
            raise ValueError(
                f"embed of condition {name!r} was given {tuple(value.shape)} and returned {got}, "
                f"and the network takes {wanted or 'a tensor'}"
            )
        return out.masked_fill(lost.view(-1, *[1] * (out.ndim - 1)), math.nan)

    @property
    def wide_inputs(self) -> bool:
        """Whether the network takes x and t in at least float32."""
        return bool(getattr(self.net, "wide_inputs", False))

    @property
    def labels(self) -> tuple[str, ...]:
        """The conditions that are not to be standardized."""
        own = () if self.standardize else tuple(self.embed)
        return (*own, *getattr(self.net, "labels", ()))

    @property
    def condition_dropout(self) -> float | None:
        """The network's condition_dropout; 0 if it drops no conditions."""
        if not hasattr(self.net, "drop_conditions"):
            return 0.0
        return getattr(self.net, "condition_dropout", None)

    def drop_conditions(
        self, condition: Mapping[str, Tensor], generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Return conditions as the network's own `drop_conditions` does, if it has one.

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
        >>> inner = scoresde.MLP((2,), vector=1, condition_dropout=1.0)
        >>> net = Embedded(inner, torch.nn.Linear(3, 1))
        >>> net.drop_conditions({"vector": torch.zeros(1, 3)}, torch.Generator())
        {'vector': tensor([[nan, nan, nan]])}
        """
        drop: Any = getattr(self.net, "drop_conditions", None)
        return dict(condition) if drop is None else drop(condition, generator)

    def check_condition(self, **condition: Tensor) -> None:
        """Raise unless the network takes these conditions; called once before a solve or a loss.

        Parameters
        ----------
        **condition : Tensor
            Those of `embed` have any shape.

        Raises
        ------
        ValueError

        Examples
        --------
        >>> Embedded(scoresde.MLP((2,), vector=1), torch.nn.Linear(3, 1)).check_condition(c=0)
        Traceback (most recent call last):
        ValueError: the network takes no condition 'c'. There are: vector.
        """
        others = {name: v for name, v in condition.items() if name not in self.embed}
        if self.shapes is not None:
            check_known(others, {**self.shapes, **dict.fromkeys(self.embed)}, hint_labels=True)
        check = getattr(self.net, "check_condition", None)
        if check is not None and others:
            check(**others)
