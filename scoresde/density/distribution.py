"""A model as a `torch.distributions.Distribution`, for everything that takes one."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Unpack

import torch
from torch import Size, Tensor
from torch.distributions import constraints

from ..common.checks import brief_repr, whole_number
from ..common.inputs import as_tensor
from ..model.protocol import Model
from ..model.require import require_tensors
from ..sampling.batches import batch_ranges
from ..sampling.trajectory import sample
from .density_ode import check_how
from .exact import log_prob
from .options import DensityOptions, SolveOptions
from .trace_estimators import TraceEstimator

DRAW = "law.sample((10_000,))"
INSTEAD = {
    "mean": f"estimate it by {DRAW}.mean(0)",
    "variance": f"estimate it by {DRAW}.var(0)",
    "stddev": f"estimate it by {DRAW}.std(0)",
    "mode": (
        "the likeliest of some samples is x[law.log_prob(x).argmax()] with x = law.sample((1000,))"
    ),
    "entropy": "estimate it by -law.log_prob(law.sample((1000,))).mean(0)",
    "perplexity": "estimate it by (-law.log_prob(law.sample((1000,))).mean(0)).exp()",
    "cdf": f"estimate it by ({DRAW} <= value).all(-1).double().mean(0)",
    "icdf": f"estimate quantiles of a feature by {DRAW}.quantile(q, dim=0)",
    "enumerate_support": "it is continuous, with all of space as its support",
    "rsample": (
        "draw by sample(), or let gradients flow to weights and x through log_prob, "
        "differentiable=True"
    ),
}
"""What to write in place of each method that would need a closed form."""


class Distribution(torch.distributions.Distribution):
    """The distribution of a model's samples, with the methods and shapes of torch's distributions.

    `sample` and `log_prob` have shapes sample_shape + batch_shape + event_shape. `mean`,
    `variance`, `entropy`, `cdf`, `rsample` and their like have no closed form: they raise
    NotImplementedError and say how to estimate them.

    Parameters
    ----------
    sde : ScoreSDE
        Its event shape is sde.shape. Conditions of B rows (`sde.given(y=labels)`) make a batch of
        B distributions, of batch shape (B,). Without conditions, or with one for all, the batch
        shape is ().
    trace, probes
        How the trace is found: see `likelihood`.
    differentiable : bool
        Whether gradients flow from log_prob to the network's parameters. To a value that requires
        them they always flow.
    validate_args : bool, optional
        As for every torch distribution: whether values are checked for their shape and support.
    **how
        Options of the solves, for both `sample` and `log_prob`: solver, steps, spacing,
        batch_size, rtol, atol, ….

    Raises
    ------
    TypeError, ValueError
        If sde is not a ScoreSDE, its conditions have different numbers of rows, or the solves
        can't be done that way.

    Examples
    --------
    >>> import scoresde
    >>> sde = scoresde.oracle(scoresde.toy.EightGaussians(), scoresde.VPSDE())
    >>> law = Distribution(sde, rtol=1e-6, atol=1e-6)
    >>> x = law.sample((3, 5))
    >>> x.shape, law.log_prob(x).shape
    (torch.Size([3, 5, 2]), torch.Size([3, 5]))
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012
    has_rsample = False

    def __init__(
        self,
        sde: Model,
        *,
        trace: str | TraceEstimator = "exact",
        probes: int | None = None,
        differentiable: bool = False,
        validate_args: bool | None = None,
        **how: Unpack[SolveOptions],
    ) -> None:
        self.sde = require_tensors(sde, "Distribution")
        self.how = how
        self.density: DensityOptions = {
            "trace": trace,
            "probes": probes,
            "differentiable": differentiable,
        }
        rows = {len(value) for value in sde.condition.values()} - {1}
        if len(rows) > 1:
            raise ValueError(
                f"conditions have {sorted(rows)} rows; wanted one number of them, or 1"
            )
        check_how(sde, trace=trace, probes=probes, **how)
        super().__init__(Size(rows), Size(sde.shape), validate_args=validate_args)

    @property
    def support(self) -> constraints.Constraint:
        """All of space."""
        independent: Any = constraints.independent
        support: constraints.Constraint = independent(constraints.real, len(self.event_shape))
        return support

    def expand(self, batch_shape: Any, _instance: Any = None) -> Distribution:
        """Return the same distribution with a larger batch shape, for which conditions repeat.

        Parameters
        ----------
        batch_shape : tuple of int
        _instance
            Internal to torch, for subclasses.

        Returns
        -------
        Distribution

        Examples
        --------
        >>> import scoresde
        >>> law = Distribution(scoresde.build("vp", "mlp", shape=(2,))).expand((4,))
        >>> law.sample((3,)).shape
        torch.Size([3, 4, 2])
        """
        checked_instance: Any = self._get_checked_instance
        new: Distribution = checked_instance(Distribution, _instance)
        shape = _size("batch_shape", batch_shape)
        if _broadcast(shape, self.batch_shape) != shape:
            raise ValueError(
                f"a distribution of batch_shape {tuple(self.batch_shape)} does not expand to "
                f"{tuple(shape)}"
            )
        new.sde = self._rows(shape)
        new.how = self.how
        new.density = self.density
        super(Distribution, new).__init__(shape, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw samples with torch's global generator.

        Parameters
        ----------
        sample_shape : tuple of int

        Returns
        -------
        Tensor, shape sample_shape + batch_shape + event_shape
            In the units of the data.

        Raises
        ------
        SolverError
            As `scoresde.sample`.

        Examples
        --------
        See `Distribution`.
        """
        shape = _size("sample_shape", sample_shape) + self.batch_shape
        if 0 in shape:
            return self.sde.scale.new_empty(shape + self.event_shape, dtype=self.sde.state_dtype)
        n = math.prod(shape)
        # Refuse what does not fit before the conditions of so many samples are laid out.
        batch_ranges(self.sde, n, None)
        x: Tensor = sample(self._rows(shape), n, **self.how)
        return x.reshape(shape + self.event_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log p(value).

        Parameters
        ----------
        value : Tensor, array or data frame, shape (…, *event_shape)
            In the units of the data, broadcast against batch_shape. Columns of a frame, and the
            index of a Series, are matched by their names.

        Returns
        -------
        Tensor, shape (…)
            Nats.

        Raises
        ------
        ValueError, SolverError
            As `scoresde.log_prob`.

        Examples
        --------
        See `Distribution`.
        """
        value = as_tensor(self.sde.schema.one_or_more(value), "value")
        n = len(self.event_shape)
        if not value.is_floating_point():
            raise TypeError(
                f"value has dtype {value.dtype}, wanted floating point; convert it, value.float()"
            )
        if tuple(value.shape[value.ndim - n :]) != tuple(self.event_shape):
            raise ValueError(
                f"value has shape {tuple(value.shape)}, wanted (…, "
                f"{', '.join(map(str, self.event_shape))})"
            )
        there = value.shape[: value.ndim - n]
        shape = _broadcast(there, self.batch_shape)
        if shape is None:
            raise ValueError(
                f"value holds samples {tuple(there)} and the distribution a batch "
                f"{tuple(self.batch_shape)}, which do not broadcast to one shape"
            )
        if self._validate_args and value.numel():
            self._validate_sample(value)
        if not shape.numel():
            return value.new_empty(shape)
        flat = value.expand(shape + self.event_shape).reshape(shape.numel(), *self.event_shape)
        how: dict[str, Any] = {**self.how, **self.density}
        return log_prob(self._rows(shape), flat, **how).reshape(shape)

    def _rows(self, shape: Size) -> Model:
        """The model, with a condition for each of `shape` samples."""
        numbers = torch.arange(self.batch_shape.numel(), device="cpu").reshape(self.batch_shape)
        rows = numbers.expand(shape).flatten()
        return self.sde.select_conditions(rows)


def _size(name: str, shape: Any) -> Size:
    """A tuple of sizes ≥ 0, checked."""
    if not isinstance(shape, tuple | list):
        raise TypeError(f"{name} is a tuple of integers such as (3, 5), got {brief_repr(shape)}")
    return Size([whole_number(f"a size of {name}", size, 0) for size in shape])


def _broadcast(*shapes: Size) -> Size | None:
    """The shape that all broadcast to, if there is one."""
    broadcast: Any = torch.broadcast_shapes
    try:
        shape: Size = broadcast(*shapes)
    except RuntimeError:
        return None
    return shape


def _lacking(name: str, instead: str) -> Callable[..., None]:
    """A method that raises NotImplementedError and says what to write instead."""

    def method(self: Distribution, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError(f"a model has no {name} in closed form; {instead}")

    method.__name__ = name
    method.__qualname__ = f"Distribution.{name}"
    method.__doc__ = f"""Raise NotImplementedError: a model has no {name} in closed form; {instead}.

    Parameters
    ----------
    *args, **kwargs
        Ignored.

    Raises
    ------
    NotImplementedError

    Examples
    --------
    See `Distribution`.
    """
    return method


for _name, _instead in INSTEAD.items():
    _raises: Any = _lacking(_name, _instead)
    if _name in ("mean", "variance", "stddev", "mode"):
        _raises = property(_raises)
    setattr(Distribution, _name, _raises)
