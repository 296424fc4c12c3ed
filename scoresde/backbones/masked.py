"""Any backbone for rows with gaps: it is told which entries of a row are missing, and which it is
shown.

Each entry of a row has one of three roles:

    modelled     0    a noisy state, denoised: the loss counts it
    seen         1    shown without noise, and not denoised
    missing     −1    neither shown nor denoised

The backbone is given the state, with 0 in all entries that are not modelled, and a vector. The
vector holds the seen values, waves of them, and two masks: what is seen and what is missing. The
waves let p(modelled | seen) change fast with the seen values. So the backbone learns the denoiser
of p(modelled | seen) for all patterns that occur,

    E[x_modelled | x_modelled + noise, x_seen],

which minimizes the squared error if gaps, given what is seen, do not depend on the values that they
hide (missing at random, Rubin 1976). A whole row of which nothing is shown comes without a vector:
there the backbone is the ordinary denoiser, which `sample` and `log_prob` use.

In training some rows show a random part of their entries, as imputation will (Tashiro et al. 2021,
CSDI).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..common.checks import real_number
from ..common.inputs import event_shape
from .base import BACKBONES, can_trace
from .conditions import check_known

MODELLED = 0.0
SEEN = 1.0
MISSING = -1.0
"""Roles of entries, in a condition `seen` (B, 2, *shape) of values and roles."""

WAVES = (2.0, 4.0)
"""Frequencies of waves of seen values, in radians per standard deviation of the data."""

Traced = Callable[..., tuple[Tensor, Tensor]]


@BACKBONES.register("masked")
class Masked(nn.Module):
    """A backbone that learns from rows with gaps (NaN), and fills them in: see `impute`.

    `fit` takes NaN for a missing entry if the model has this network; gaps must not depend on the
    values that they hide. Mean and scale are measured from the entries that there are.

    Parameters
    ----------
    shape : tuple of int
        Shape of one sample.
    backbone : str
        A name of `scoresde.BACKBONES` with an option `vector`.
    shown : float
        Probability that a training row is shown a random part of its entries, a share that is
        uniform in [0, 1], and learns the others given these; 0 if nothing is to be imputed.
    **options
        Of the backbone, e.g. width=256, classes=3.

    Raises
    ------
    ValueError
        For unknown names or options, a share outside [0, 1], or an option vector, which holds what
        is seen.

    References
    ----------
    Rubin, Inference and missing data, Biometrika 1976. Tashiro et al., CSDI: conditional
    score-based diffusion models for probabilistic time series imputation, NeurIPS 2021.

    Examples
    --------
    >>> x = torch.randn(500, 3)
    >>> x[:100, 1] = torch.nan
    >>> sde = scoresde.build("rectified", "masked", shape=(3,), width=16)
    >>> _ = scoresde.fit(sde, x, steps=10)
    >>> scoresde.sample(sde, 2).shape, scoresde.impute(sde, x).isnan().any()
    (torch.Size([2, 3]), tensor(False))
    """

    takes_gaps = True

    def __init__(
        self,
        shape: tuple[int, ...],
        backbone: str = "mlp",
        shown: float = 0.5,
        **options: str | float,
    ) -> None:
        super().__init__()
        if "vector" in options:
            raise ValueError(
                "backbone 'masked' has no vector=, which holds what is seen: put such numbers into "
                "the rows as columns, and impute the others given these"
            )
        real_number("shown", shown, 0, 1, closed=True, hint="try 0.5")
        self.shape = event_shape(shape)
        self.numbers = (3 + 2 * len(WAVES)) * math.prod(self.shape)
        net: Any = BACKBONES.build(backbone, self.shape, vector=self.numbers, **options)
        if hasattr(net, "conditional_gaussian"):
            net.conditional_gaussian = None  # its vector is made of the rows themselves
        self.net = net
        self.shown = shown

    def forward(
        self, x: Tensor, t: Tensor, seen: Tensor | None = None, **condition: Tensor
    ) -> Tensor:
        """Return the network's output, 0 in entries that are not modelled.

        Parameters
        ----------
        x : Tensor, shape (B, *shape)
        t : Tensor, shape (B,)
            Noise labels.
        seen : Tensor, shape (B, 2, *shape), optional
            Standardized values and roles: 0 modelled, 1 seen, −1 missing. Without it all entries
            are modelled.
        **condition : Tensor
            The backbone's.

        Returns
        -------
        Tensor, shape (B, *shape)

        Examples
        --------
        See `Masked`.
        """
        if seen is None:
            out: Tensor = self.net(x, t, vector=self._nothing(x), **condition)
            return out
        values, roles = seen.to(x.dtype).unbind(1)
        shown = (roles == SEEN).to(x.dtype)
        gaps = (roles == MISSING).to(x.dtype)
        modelled = 1 - shown - gaps
        told = [shown, gaps, shown * values]
        for omega in WAVES:
            told += [shown * torch.sin(omega * values), shown * torch.cos(omega * values)]
        vector = torch.stack(told, 1).flatten(1)
        whole = modelled.flatten(1).all(1, keepdim=True)
        vector = vector.masked_fill(whole, math.nan)
        out = self.net(modelled * x, t, vector=vector, **condition)
        return modelled.to(out.dtype) * out

    def _nothing(self, x: Tensor) -> Tensor:
        """What the backbone is told of whole rows, of which nothing is shown: no vector."""
        return x.new_full((x.shape[0], self.numbers), math.nan)

    @property
    def value_and_trace(self) -> Traced:
        """The backbone's, where it has a closed form, for whole rows."""
        if not can_trace(self.net):
            raise AttributeError(f"{type(self.net).__name__} has no trace in closed form")
        return self._value_and_trace

    def _value_and_trace(
        self, x: Tensor, t: Tensor, seen: Tensor | None = None, **condition: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Output and trace for whole rows."""
        if seen is not None:
            raise ValueError("the trace in closed form is that of whole rows, with nothing seen")
        net: Any = self.net
        found: tuple[Tensor, Tensor] = net.value_and_trace(
            x, t, vector=self._nothing(x), **condition
        )
        return found

    @property
    def wide_inputs(self) -> bool:
        """Whether the backbone takes x and t in at least float32."""
        return bool(getattr(self.net, "wide_inputs", False))

    @property
    def labels(self) -> tuple[str, ...]:
        """The conditions that are not to be standardized."""
        return ("seen", *getattr(self.net, "labels", ()))

    @property
    def condition_shapes(self) -> dict[str, tuple[int, ...]]:
        """The backbone's conditions, with the shape of one sample's."""
        net: Any = self.net
        return {name: s for name, s in net.condition_shapes.items() if name != "vector"}

    @property
    def condition_dropout(self) -> float | None:
        """The backbone's condition_dropout."""
        return getattr(self.net, "condition_dropout", None)

    def drop_conditions(
        self, condition: Mapping[str, Tensor], generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Return conditions as training uses them: some rows are shown a part of their entries.

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
        >>> net = Masked((2,), width=8, shown=1.0)
        >>> seen = torch.zeros(500, 2, 2)
        >>> roles = net.drop_conditions({"seen": seen}, torch.Generator())["seen"][:, 1]
        >>> bool((roles.mean() - 0.5).abs() < 0.1)  # half of the entries, on average
        True
        """
        others = {name: value for name, value in condition.items() if name != "seen"}
        net: Any = self.net
        found: dict[str, Tensor] = net.drop_conditions(others, generator) if others else {}
        if "seen" not in condition:
            return found
        values, roles = condition["seen"].unbind(1)
        ends = (-1, *[1] * (roles.ndim - 1))
        drawn = torch.rand(2, len(roles), generator=generator, device=roles.device)
        share = torch.where(drawn[0] < self.shown, drawn[1], 0.0).view(ends)
        entries = torch.rand(roles.shape, generator=generator, device=roles.device)
        picked = (entries < share) & (roles == MODELLED)
        roles = roles.masked_fill(picked, SEEN)
        return {**found, "seen": torch.stack([values, roles], 1)}

    def check_condition(self, seen: Tensor | None = None, **condition: Tensor) -> None:
        """Raise unless the backbone takes these conditions; called once before a solve or a loss.

        Parameters
        ----------
        seen : Tensor, optional
            Refused: it is made by `fit` and by `impute`.
        **condition : Tensor

        Raises
        ------
        ValueError

        Examples
        --------
        >>> Masked((2,)).check_condition(seen=torch.zeros(1, 2, 2))
        Traceback (most recent call last):
        ValueError: what is seen of a row is no condition to give: scoresde.impute(model, x) ...
        """
        if seen is not None:
            raise ValueError(
                "what is seen of a row is no condition to give: scoresde.impute(model, x) takes "
                "rows with NaN and fills these in"
            )
        check_known(condition, self.condition_shapes, hint_labels=True)
        check = getattr(self.net, "check_condition", None)
        if check is not None and condition:
            check(**condition)
