"""A continuous normalizing flow: the ODE of a state together with its log-density, ready for a solver.

The state of a solve is (z, ℓ_1 … ℓ_k) with dz/dφ = v and dℓ/dφ = div v, by the exact trace (k = 1) or by k random probes held
through the solve (Chen et al. 2018; Grathwohl et al. 2019). What there is to say of the errors is said here too.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from scipy.stats import t as student
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .checks import affordable, whole
from .plan import Plan, levels, run
from .process import as_time
from .random import PROBE, Noise, draw_seed
from .registry import choose
from .sde import ScoreSDE, evaluating
from .solvers import Counts, Level, Problem, Solver
from .solvers.base import Velocity, split
from .trace import exact_trace, hutchinson_trace

PROBES: dict[str, Callable[[Tensor], Tensor] | None] = {
    "exact": None,
    "hutchinson": torch.sign,
    "hutchinson_gaussian": lambda normal: normal,
}
"""Ways to find the trace, by name, with what makes probes of normal draws: `exact` has none and costs about D backward passes an
evaluation, `hutchinson` (Rademacher probes, ±1) and `hutchinson_gaussian` one a probe, with a standard error."""

NEAR = 0.02
"""sin φ below which a network's noise is no longer divided by it for a score."""

Traced = Callable[..., tuple[Tensor, Tensor]]


class Flow:
    """The ODE of a state with its log-density, checked, and ready to be solved for one chunk of samples after another.

    Parameters
    ----------
    sde : ScoreSDE
    named : str or Solver
        The solver as the user named it, for messages.
    how : Plan
    trace : str
        A key of `PROBES`.
    probes : int
        How many random probes, for those that take any. From the number of dimensions on signs give way to the exact trace.
    graph : bool
        Whether gradients flow through.
    differentiable : bool
        Whether to the weights as well.
    generator : torch.Generator or None
        Gives the seed of the probes.
    errors : bool
        Whether the solver is asked to keep account of its own.

    Raises
    ------
    ValueError
        For an unknown trace, a solver that has no ODE, or weights that can have no gradient.

    Examples
    --------
    See `likelihood`.
    """

    def __init__(
        self,
        sde: ScoreSDE,
        named: str | Solver,
        how: Plan,
        trace: str,
        probes: int,
        graph: bool,
        differentiable: bool,
        generator: torch.Generator | None,
        errors: bool = False,
    ) -> None:
        choose("trace", trace, PROBES)
        probes = whole("probes", probes)
        if not how.solver.ode:
            kind = "stochastic" if how.solver.stochastic else "not an ODE method"
            raise ValueError(f"log p goes by the probability-flow ODE, and solver {named!r} is {kind}; try 'adams' or 'rk45'")
        self.errors = errors
        self.how, self.nodes, self.graph = how, levels(sde, how.times), graph
        # As many signs as dimensions cost what the exact trace costs; and in so few they come out equal, with no spread to see.
        exact = trace == "hutchinson" and probes >= sde.dim
        self.law = None if exact else PROBES[trace]
        self.probes = 1 if self.law is None else probes
        affordable(f"probes={self.probes}", 4.0 * sde.dim * self.probes, device=sde.scale.device)
        dtypes = {p.dtype for p in sde.net.parameters() if p.is_floating_point()} | {sde.state_dtype}
        self.eps = max(torch.finfo(dtype).eps for dtype in dtypes)  # of the coarsest arithmetic that takes part
        self.error_factor = how.solver.error_factor(how.adaptive)
        self.cost = self.probes
        self.seed = 0 if self.law is None else draw_seed(generator)
        self.raw = differentiable and sde.training  # whoever trains further does so with the raw weights
        if differentiable and not any(p.requires_grad for p in sde.network(raw=self.raw).parameters()):
            raise ValueError(
                "differentiable=True, but no weight of the network in use requires grad: call sde.train() to train the raw "
                "weights, not their average"
            )

    def carry(self, part: ScoreSDE, z: Tensor, start: int, stop: int) -> tuple[Tensor, Tensor, Tensor, Traced, Counts]:
        """Solve for samples start to stop: z at the other end, ∫ div v dφ, its standard error, the traced output, the costs.

        Parameters
        ----------
        part : ScoreSDE
            The model with the conditions of these samples.
        z : Tensor, shape (stop − start, n)
            States at the first node.
        start, stop : int
            The samples, numbered over the call.

        Returns
        -------
        z, gained, stderr, traced, counts
        """
        n, probes = z.shape[1], None
        if self.law is not None:
            draw = Noise(self.seed, PROBE, start, stop, n, z)
            probes = torch.stack([self.law(draw()) for _ in range(self.probes)])
        traced = _traced(part, probes, self.graph, self.raw)
        velocity = _with_density(part, traced, part.network(raw=self.raw) if self.graph else None)
        norm = functools.partial(_norm, n)
        measure = functools.partial(_size, n) if self.errors else None
        task = Problem(self.nodes, velocity, _none, _none, self.how.adaptive, norm=norm, measure=measure)
        state = torch.cat([z, z.new_zeros(len(z), self.probes)], 1)
        end, counts = run(part, self.how.solver, task, state, functools.partial(_same, task))
        gains = end[:, n:]
        stderr = z.new_full((len(z),), math.nan if self.law is not None else 0.0)
        if self.probes > 1:  # as Student's t has it: ±2 of these hold 95.4% of normal errors
            widened = 0.5 * float(student.ppf(0.5 * (1 + math.erf(math.sqrt(2))), self.probes - 1))
            stderr = gains.detach().std(1) * (widened / math.sqrt(self.probes))
        return end[:, :n], gains.mean(1), stderr, traced, counts


def _traced(sde: ScoreSDE, probes: Tensor | None, graph: bool, raw: bool) -> Traced:
    """The network's output with its traces, (z, φ, rows) -> ((B, n), (B, k)): the exact one, or one a probe."""
    if probes is None and sde.traces(raw=raw):
        return sde.caller(raw=raw, traced=True)
    call: Callable[..., Tensor] = sde.caller(raw=raw)

    def traced(z: Tensor, phi: float | Tensor, rows: Tensor | None) -> tuple[Tensor, Tensor]:
        def output(z: Tensor) -> Tensor:
            return call(z, phi, rows)

        if probes is None:
            out, trace = exact_trace(output, z, create_graph=graph)
            return out, trace.unsqueeze(1)
        out, traces = hutchinson_trace(output, z, probes if rows is None else probes[:, rows], create_graph=graph)
        return out, traces.T

    return traced


def _with_density(sde: ScoreSDE, traced: Traced, net: nn.Module | None) -> Velocity:
    """The right-hand side of (z, ∫ div v dφ): (v, div v), a column a trace; with gradients, also to `net`, if there is one."""
    n = sde.dim

    def velocity(state: Tensor, phi: float | Tensor, rows: Tensor | None) -> Tensor:
        z = state[:, :n]
        out, traces = traced(z, phi, rows)
        both = torch.cat([out, traces], 1)
        if sde.predict == "edm":
            return both.neg_() if net is None else -both
        c = sde.coefficients(as_time(phi)).to(z)
        k = c.a * c.cos + c.b * c.sin
        return (both - torch.cat([k * z, k * n * torch.ones_like(traces)], 1)) / c.det

    if net is None:
        return velocity
    # With a graph, activations are not kept but computed again on the way back: memory is that of the states. By then the model
    # may be in train mode again, and must not be for this, and an optimizer may have moved the weights, and must not have.
    weights = list(net.parameters())
    versions = [p._version for p in weights]

    def again(state: Tensor, phi: float | Tensor, rows: Tensor | None) -> Tensor:
        if versions != [p._version for p in weights]:
            raise RuntimeError("the network's weights were changed between log_prob and backward(); call backward() first")
        with evaluating(sde):
            return velocity(state, phi, rows)

    return functools.partial(checkpoint, again, use_reentrant=False)


def prior_gap(sde: ScoreSDE, z: Tensor, end: Level, traced: Traced, output: Callable[..., Tensor]) -> Tensor:
    """|log p(z_1) − log N(z_1; 0, I)| as the model's score at the noise end has it, to second order in cos φ, rounded up.

    h = ∇log(p/N) = (cos φ/sin² φ)·(x̂0 − cos φ·z) is small, so log(p/N) = g − log E_N[e^g] with g = ∫_0^1 z·h(uz) du and
    log E_N[e^g] = ½·tr ∂h/∂z + ½|h|² at z = 0. What is left out is of the order of their squares and, where data are
    standardized and the second order nearly vanishes, of cos² φ times them: both are added, and a tenth.

    Parameters
    ----------
    sde : ScoreSDE
    z : Tensor, shape (B, n)
        Latents.
    end : Level
        The noise end.
    traced : callable
        The network's output with its traces.
    output : callable
        The output alone.

    Returns
    -------
    Tensor, shape (B,)
        Nats; NaN for a model without a score, whose x̂0 is no posterior mean.

    Examples
    --------
    See `likelihood`.
    """
    if end.cos < 1e-12:  # the path ends in pure noise
        return z.new_full((len(z),), torch.finfo(z.dtype).eps * z.shape[1])
    if sde.kind != "score":
        return z.new_full((len(z),), math.nan)
    c, factor, n = sde.coefficients(as_time(end.phi)), end.cos / end.sin**2, z.shape[1]
    with torch.no_grad():
        zero = torch.zeros_like(z)
        out, traces = traced(zero, end.phi, None)
        pull = factor * c.solve(zero, out)[0]
        bend = factor * ((c.b * n - c.sin * traces.mean(1)) / c.det - end.cos * n)
        g = torch.zeros_like(bend)
        for u in (0.5 - math.sqrt(1 / 12), 0.5 + math.sqrt(1 / 12)):  # Gauss–Legendre
            x0, _ = c.solve(u * z, output(u * z, end.phi, None))
            g = g + 0.5 * (z * factor * (x0 - end.cos * u * z)).sum(1)
        mean = 0.5 * bend + 0.5 * pull.square().sum(1)
        size = g.abs() + mean.abs()
        margin = 0.1 + 8 * end.cos**2
        gap = (g - mean).abs() + size.square() + margin * size + torch.finfo(z.dtype).eps * n
    return gap.to(z.dtype).detach()


def score_near(sde: ScoreSDE, z: Tensor, raw: bool) -> Tensor:
    """The model's score at data z on the arc, for their rounding: with a little noise, where a network knows more of it."""
    phi = max(sde.process.phi_min, 2 * NEAR)
    with torch.no_grad():
        _, eps = sde.coefficients(as_time(phi)).solve(z, sde.caller(raw=raw)(z, phi, None))
    return -eps / math.sin(phi)


def standard_normal(z: Tensor) -> Tensor:
    """Return log N(z; 0, I).

    Parameters
    ----------
    z : Tensor, shape (B, n)

    Returns
    -------
    Tensor, shape (B,)
        Nats.

    Examples
    --------
    >>> standard_normal(torch.zeros(1, 2))
    tensor([-1.8379])
    """
    return -0.5 * (z.square() + math.log(2 * math.pi)).sum(1)


def _norm(n: int, error: Tensor) -> Tensor:
    """The worse of the log-density's error and the state's, whose length counts: log p is a sum over dimensions."""
    return torch.maximum(error[:, :n].norm(dim=1), error[:, n:].mean(1).abs())


def _size(n: int, error: Tensor, state: Tensor, velocity: Tensor, phi: float | Tensor) -> Tensor:
    """What a local error makes of log p at the end, to first order: of the log-density itself, and the state's times the score.

    ∫ div v dφ from here on is log p at the end less log p here, so that an error δz changes it by δz·∇log p. The model's score
    is −ε̂/sin φ; nearer to the data than 0.02 that is the network's error, divided by nearly 0.
    """
    angle = torch.as_tensor(phi, dtype=torch.float64, device=state.device).reshape(-1, 1)
    sin, cos = angle.sin(), angle.cos()
    eps = split(state[:, :n], velocity[:, :n], cos.to(state.dtype), sin.to(state.dtype))[1]
    pull = (eps * error[:, :n]).sum(1).double() / sin[:, 0].clamp_min(NEAR)
    return pull.abs() + error[:, n:].mean(1).abs()


def _same(task: Problem) -> Problem:
    return task


def _none(*_: Any) -> Any:
    raise AssertionError("an ODE solver asked for more than the velocity")
