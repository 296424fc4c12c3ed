"""Classes of trace estimators, `TRACES`: exact, Hutchinson's, or a method of the user."""

from __future__ import annotations

import abc
import functools
import inspect
from collections.abc import Callable

import torch
from torch import Tensor

from ..common.checks import brief_repr, check_budget, whole_number
from ..common.names import choose
from ..common.registry import Registry
from .trace import Map, exact_trace, hutchinson_trace

TRACES: Registry[TraceEstimator] = Registry("trace")
"""All trace estimators by name; `@TRACES.register("name")` adds one."""

DISTRIBUTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "rademacher": torch.sign,
    "gaussian": lambda normals: normals,
}
"""Distributions of Hutchinson's probes, made from standard normal numbers."""


class TraceEstimator(abc.ABC):
    """A way to find tr ∂f/∂z, which log p(x) integrates along the probability-flow ODE.

    A subclass gives `estimate`, and says in `probes` and `draws` how many random vectors it needs
    and how many estimates it makes of them. Register it with `@scoresde.TRACES.register("name")`,
    or give the object: `scoresde.log_prob(sde, x, trace=estimator)`.

    Attributes
    ----------
    probes : int
        Random vectors that each sample needs; 0, the default, for an estimator without randomness.
        They are drawn once and held through a solve, so that the ODE is one: those of sample i
        depend on the generator and on i alone.
    draws : int
        Independent, unbiased estimates that `estimate` returns, 1 by default. Their mean is the
        trace, and their standard deviation gives `Likelihood.stderr`.

    References
    ----------
    Grathwohl et al., FFJORD, ICLR 2019 (probes held through a solve).

    Examples
    --------
    The diagonal by central differences, for networks that have no gradient:

    >>> class Differences(scoresde.TraceEstimator):
    ...     def estimate(self, f, z, probes, create_graph):
    ...         steps = 1e-3 * torch.eye(z.shape[1]).to(z)
    ...         columns = [(f(z + h) - f(z - h)) @ h for h in steps]
    ...         return f(z), torch.stack(columns).sum(0).unsqueeze(1) / 2e-6
    >>> gaussian = scoresde.toy.GaussianMixture(torch.zeros(1, 2), 1.0)
    >>> sde = scoresde.oracle(gaussian, scoresde.VPSDE()).double()
    >>> scoresde.log_prob(sde, torch.zeros(1, 2).double(), trace=Differences())
    tensor([-1.8379], dtype=torch.float64)
    """

    probes: int = 0
    draws: int = 1

    def prepare(self, normals: Tensor) -> Tensor:
        """Return the probes that standard normal numbers make, once for each solve.

        Parameters
        ----------
        normals : Tensor, shape (probes, B, n)

        Returns
        -------
        Tensor, shape (probes, B, n)
            By default the normal numbers themselves.

        Examples
        --------
        >>> scoresde.Hutchinson(1).prepare(torch.tensor([[[0.3, -1.2]]]))
        tensor([[[ 1., -1.]]])
        """
        return normals

    @abc.abstractmethod
    def estimate(
        self, f: Map, z: Tensor, probes: Tensor | None, create_graph: bool
    ) -> tuple[Tensor, Tensor]:
        """Return f(z) and the estimates of tr ∂f/∂z of each row.

        Parameters
        ----------
        f : callable (B, n) -> (B, n)
            The network at one noise level; its rows do not mix.
        z : Tensor, shape (B, n)
        probes : Tensor, shape (probes, B, n), or None
            From `prepare`; None for an estimator without randomness.
        create_graph : bool
            Whether gradients flow back through both results, to z and to the weights.

        Returns
        -------
        out : Tensor, shape (B, n)
            f(z).
        traces : Tensor, shape (B, draws)

        Examples
        --------
        >>> f, z = torch.sin, torch.zeros(1, 3)
        >>> scoresde.TRACES.build("exact").estimate(f, z, None, False)
        (tensor([[0., 0., 0.]]), tensor([[3.]]))
        """

    def in_dimension(self, n: int) -> TraceEstimator:
        """Return the estimator to use for samples of n numbers: this one, or a better one.

        Parameters
        ----------
        n : int

        Returns
        -------
        TraceEstimator

        Examples
        --------
        >>> scoresde.Hutchinson(8).in_dimension(64), scoresde.Hutchinson(8).in_dimension(8)
        (Hutchinson(8), Exact())
        """
        return self


@TRACES.register("exact")
class Exact(TraceEstimator):
    """Σ_i ∂f_i/∂z_i, in closed form for networks that offer it, else by n products e_iᵀ·∂f/∂z."""

    def estimate(  # noqa: D102
        self, f: Map, z: Tensor, probes: Tensor | None, create_graph: bool
    ) -> tuple[Tensor, Tensor]:
        out, trace = exact_trace(f, z, create_graph=create_graph)
        return out, trace.unsqueeze(1)

    def __repr__(self) -> str:
        """As it is written."""
        return "Exact()"


@TRACES.register("hutchinson")
class Hutchinson(TraceEstimator):
    """vᵀ(∂f/∂z)v for each of some random probes v with E[vvᵀ] = I, unbiased (Hutchinson 1990).

    The variance of one is 2‖J‖² for normal v, and 2(‖J‖² − Σ_i J_ii²) for random signs, with the
    Jacobian J symmetric: signs are never worse. In at most `probes` dimensions random signs give
    way to the exact trace, which costs no more there.

    Parameters
    ----------
    probes : int
        How many probes v each sample has. Each costs a backward pass an evaluation.
    distribution : str or callable
        "rademacher": random signs. "gaussian": normal numbers. A function makes v of standard
        normal numbers, both of shape (probes, B, n).

    Raises
    ------
    TypeError, ValueError
        Unless probes is a positive integer and the distribution a known name or callable.

    References
    ----------
    Hutchinson, A stochastic estimator of the trace of the influence matrix, Communications in
    Statistics 19, 1990.

    Examples
    --------
    Probes on a sphere, whose variance is between those of signs and of normal numbers:

    >>> def sphere(normals):
    ...     return normals * (normals.shape[2] ** 0.5 / normals.norm(dim=2, keepdim=True))
    >>> mixture = scoresde.toy.EightGaussians()
    >>> sde = scoresde.oracle(mixture, scoresde.VPSDE())
    >>> found = scoresde.likelihood(sde, mixture.sample(5), trace=scoresde.Hutchinson(8, sphere))
    >>> found.log_prob.shape, found.stderr.shape
    (torch.Size([5]), torch.Size([5]))
    """

    def __init__(
        self, probes: int = 16, distribution: str | Callable[[Tensor], Tensor] = "rademacher"
    ) -> None:
        self.probes = whole_number("probes", probes)
        self.draws = self.probes
        self.distribution = distribution
        if callable(distribution):
            self._make = distribution
        else:
            self._make = DISTRIBUTIONS[choose("distribution", distribution, DISTRIBUTIONS)]

    def prepare(self, normals: Tensor) -> Tensor:  # noqa: D102
        return self._make(normals)

    def estimate(  # noqa: D102
        self, f: Map, z: Tensor, probes: Tensor | None, create_graph: bool
    ) -> tuple[Tensor, Tensor]:
        assert probes is not None
        out, traces = hutchinson_trace(f, z, probes, create_graph=create_graph)
        return out, traces.T

    def in_dimension(self, n: int) -> TraceEstimator:  # noqa: D102
        # In so few dimensions signs of several probes often come out equal, with no spread to see.
        return Exact() if self.distribution == "rademacher" and self.probes >= n else self

    def __repr__(self) -> str:
        """As it is written."""
        if self.distribution == "rademacher":
            return f"Hutchinson({self.probes})"
        return f"Hutchinson({self.probes}, {brief_repr(self.distribution)})"


TRACES.add("hutchinson_gaussian", functools.partial(Hutchinson, distribution="gaussian"))


def as_estimator(trace: str | TraceEstimator, probes: int | None) -> TraceEstimator:
    """The estimator for a name or an object; `probes` is an option of estimators given by name."""
    if isinstance(trace, TraceEstimator):
        if probes is not None:
            raise TypeError(
                f"probes={brief_repr(probes)} go with the name of a trace estimator; "
                f"give them to the {type(trace).__name__} itself"
            )
        return trace
    if not isinstance(trace, str):
        raise TypeError(f"trace is a name or a TraceEstimator object, got {brief_repr(trace)}")
    if probes is None:
        return TRACES.build(trace)
    probes = whole_number("probes", probes)
    if "probes" not in inspect.signature(TRACES[trace]).parameters:
        return TRACES.build(trace)
    return TRACES.build(trace, probes=probes)


def check_memory(estimator: TraceEstimator, n: int, device: torch.device) -> None:
    """Raise unless the probes of a single sample of n numbers fit into the device's memory."""
    check_budget(f"probes={estimator.probes}", 4.0 * n * estimator.probes, device=device)
