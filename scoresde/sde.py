"""The trained object: a process, a network, what the network predicts, the shape of a sample and the scale of the data.

Outside, everything is in the units of the data: x_t = mean + scale·x̃_t, where x̃_t is the process's state for standardized
data. Inside, everything happens on the unit arc of `scoresde.process`: z = x̃/r, and `output` is the only place where the
network is called.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import itertools
import math
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from .backbones.base import can_trace, takes, unwrapped
from .backbones.labels import check_known
from .checks import said
from .conditions import ConditionScales
from .inputs import as_condition, as_floats, as_reals, event_shape
from .modules import copy_memo, duplicate, leave_inference
from .prediction import Coefficients, check, coefficients, singular
from .process import Process, as_time
from .registry import choose, nearest
from .schema import Schema, is_named
from .source import as_source
from .standardization import Units, measure, units, wide

LABEL_FLOOR = 2e-3
SEES = ("arc", "raw")
KINDS = {
    "score": ("score", "velocity"),
    "velocity": ("velocity",),
    "jump": ("jump",),
    "map": ("velocity", "jump", "map"),
    "bridge": ("velocity", "bridge"),
    "nodes": ("nodes",),
}
"""What a model offers, by its kind; that of "nodes:k" by what is before the colon: see `offers`."""

LACKS = {
    "score": "this model has no score, only a velocity: it learnt from coupled pairs, or another task; try solver='adams'",
    "velocity": "this model has learnt where the ODE ends, not its velocity: it has samples, sample(sde, steps=1), and no more",
    "jump": "this model has learnt a velocity, not where it leads: that takes fit(sde, data, objective='consistency')",
    "map": "this model has no flow map: that takes a two-time network and fit(sde, data, objective='meanflow')",
    "bridge": "this model is no Schrödinger bridge: that takes build('bridge', 'two_drifts', ...), a source, and fit(sde, data)",
    "nodes": "this model has learnt the steps of 'ddim' with steps={k} and spacing='time' that lead to the data, and no more: "
    "sample(sde) takes them by itself",
}


def offers(kind: str) -> tuple[str, ...]:
    """Return what a model of a kind can serve.

    Parameters
    ----------
    kind : str
        A key of `KINDS`, or "nodes:k".

    Returns
    -------
    tuple of str

    Examples
    --------
    >>> offers("nodes:2")
    ('nodes',)
    """
    return KINDS[kind.partition(":")[0]]


def noise_label(phi: Tensor | float) -> Tensor | float:
    """Return the noise label that a network sees: about log tan φ = log(σ/α), finite at both ends.

    u = ½·log((sin²φ + δ²)/(cos²φ + δ²)) with δ = 2e-3, so that u ∈ [−6.2, 6.2].

    Parameters
    ----------
    phi : Tensor or float
        Angles in radians.

    Returns
    -------
    Tensor or float
        Labels, of φ's shape.

    Examples
    --------
    >>> noise_label(torch.tensor([0.0, 1.0, math.pi / 2], dtype=torch.float64))
    tensor([-6.2146,  0.4430,  6.2146], dtype=torch.float64)
    """
    # The same number in fewer operations: artanh y = ½·logit(½ + ½y) with y = −cos 2φ/(1 + 2δ²). (The bits of torch.atanh
    # depend on where in a batch a number lies.)
    shrink = 0.5 / (1 + 2 * LABEL_FLOOR**2)
    if isinstance(phi, float):
        return math.atanh(-2 * shrink * math.cos(2 * phi))
    return 0.5 * torch.logit(0.5 - shrink * torch.cos(2 * phi))


class ScoreSDE(nn.Module):
    """A score model in continuous time: what `fit` trains, `sample` draws from and `log_prob` evaluates.

    Parameters
    ----------
    process : Process
        The Gaussian path.
    net : nn.Module
        Called as net(x, t, **condition) with x of shape (B, *shape) and t of shape (B,), returns x's shape.
    shape : tuple of int
        Shape of one sample, without the batch.
    predict : str
        What the network outputs: "edm", "x0", "eps", "v" or "score" (`scoresde.PREDICTIONS`).
    sees : str
        "arc": the network is handed the unit-variance state z and `noise_label(φ)`. "raw": it is handed the process's own
        x_t and t, for exact denoisers and for networks trained elsewhere.
    kind : str
        What the network has learnt; `fit` sets it. "score": E[x0 | x_t], and so everything. "velocity": the velocity of pairs
        (x0, ε) that depend on one another (reflow, optimal transport) or do not begin in a Gaussian. Such a model has an ODE
        and a likelihood, but no score: −ε̂/σ is not ∇log p_t, and stochastic solvers refuse it. "jump": x0 at the end of the
        ODE from x_t (consistency models): samples in one or few evaluations, no ODE and no likelihood. "nodes:2": what 2 steps
        of "ddim" need, and no more (models distilled with noise="nodes:2"). "map": both the velocity and where the ODE is at any
        later time (MeanFlow). "bridge": the drifts of the SDEs that join data and source, and so the velocity between them
        (`SchrodingerBridge`). One that is conditioned by `given` has its model's.
    source : Tensor, array, or an object with .sample(n), optional
        The law of x at t = 1, in the units of the data, instead of a Gaussian: rows of a data set, or a density, whose
        log_prob(x) the likelihood then needs. For processes with α(1) = 0, such as the rectified flow.

    Attributes
    ----------
    mean, scale : Tensor, float64
        The standardization, per first axis of a sample (feature or channel); 0 and 1 until `fit` measures them. They stay
        float64 (float32 where the device has none) whatever dtype the model is converted to. A scale of 0 marks a constant:
        samples repeat it, the network is shown 0 in its place, and the spike of its density is left out of log p.
    measured : Tensor of bool, shape ()
        Whether it has.
    ema : nn.Module or None
        The averaged network; used in eval mode when there is one, `net` otherwise.
    condition : dict
        What `given` was told.
    schema : Schema
        The names of the columns of a sample, and of the classes and columns of its conditions, if `fit` was given data with
        names: later data with names are matched by them. Views made by `given` share it.
    conditions : ConditionScales
        Mean and scale of numeric conditions, which `fit` measures and the network is shown them by.
    learnt : dict or None
        What `fit` has recorded: "conditions", a dict of their names and shapes of one sample's, and "unconditional", whether
        it has learnt to do without them. None before, and for models saved by versions that did not record it.

    Raises
    ------
    ValueError
        For an unknown prediction, or one that is singular at the noise end of the process.
    TypeError
        For a process or network of the wrong type.

    Examples
    --------
    >>> import scoresde
    >>> class Net(nn.Module):
    ...     def forward(self, x, t): return torch.zeros_like(x)
    >>> sde = ScoreSDE(scoresde.VPSDE(), Net(), shape=(2,), predict="x0")
    >>> sde.score(torch.ones(1, 2), 1.0)
    tensor([[-1.0000, -1.0000]])
    """

    mean: Tensor
    scale: Tensor
    measured: Tensor
    ema: nn.Module | None
    _dtype = torch.float32  # what the model was last converted to: the states' dtype if the network has no numbers of its own
    _units: tuple[Any, ...] | None = None

    @torch.inference_mode(False)
    def __init__(
        self,
        process: Process,
        net: nn.Module,
        *,
        shape: tuple[int, ...],
        predict: str = "edm",
        sees: str = "arc",
        kind: str = "score",
        source: Any = None,
    ) -> None:
        super().__init__()
        if not isinstance(process, Process):
            hint = f"write {process.__name__}()" if isinstance(process, type) else "scoresde.build takes names"
            raise TypeError(f"process is a scoresde.Process such as VPSDE(), got {said(process)}; {hint}")
        if not isinstance(net, nn.Module):
            raise TypeError(f"net is an nn.Module, got {type(net).__name__}; scoresde.build takes names")
        choose("sees=", sees, SEES)
        process.check()
        check(predict, process)
        leave_inference(net)
        self.process = process
        self.net = net
        self.register_module("ema", None)
        self.shape = event_shape(shape)
        self.predict = predict
        self.sees = sees
        self._kind = ["score"]  # a list, which copies made by `given` share: it says what their one network has learnt
        self.kind = kind
        self._source: list[Any] = [None]  # in a list that `given` views share; one that is a module is none of ours
        self.source = source
        self.condition: dict[str, Tensor] = {}
        self.schema = Schema()
        self.conditions = ConditionScales()
        self._learnt: list[dict[str, Any] | None] = [None]  # and whether it was said which law is drawn from
        self._said = [False]
        self._shares = 0  # of a view: the identity of the table of buffers that it shares with its model
        statistic = self.shape[:1] + (1,) * (len(self.shape) - 1)
        like = next(itertools.chain(net.parameters(), net.buffers()), None)
        device = torch.device("cpu") if like is None else like.device
        self.register_buffer("mean", torch.zeros(statistic, dtype=wide(device), device=device))
        self.register_buffer("scale", torch.ones(statistic, dtype=wide(device), device=device))
        self.register_buffer("measured", torch.zeros((), dtype=torch.bool, device=device))

    # ------------------------------------------------------------------ the network, on the arc

    def output(self, z: Tensor, phi: Tensor | float, rows: Tensor | None = None) -> Tensor:
        """Call the network: the only place that does.

        Parameters
        ----------
        z : Tensor, shape (B, n)
            States on the unit arc, flattened.
        phi : float, or Tensor of shape (B,), float64
            Angle in radians, for all or one a state.
        rows : Tensor of int, shape (B,), optional
            Which rows of a per-sample condition these states are.

        Returns
        -------
        Tensor, shape (B, n)
            What the network said, in z's dtype.

        Raises
        ------
        ValueError
            If the network returns another shape than it was given.

        Examples
        --------
        >>> import scoresde
        >>> sde = scoresde.build("vp", "mlp", shape=(2,))
        >>> sde.output(torch.ones(3, 2), 0.5)
        tensor([[0., 0.],
                [0., 0.],
                [0., 0.]], grad_fn=...)
        """
        call: Callable[..., Tensor] = self.caller()
        return call(z, phi, rows)

    def caller(self, *, raw: bool = False, traced: bool = False) -> Callable[..., Any]:
        """Return `output` as a function, with everything looked up that stays the same throughout a solve.

        Parameters
        ----------
        raw : bool
            Whether to call the raw network in eval mode too, rather than the averaged one.
        traced : bool
            Whether to return (out, traces) with traces = tr ∂out/∂z of shape (B, 1), for a network that offers
            `value_and_trace`.

        Returns
        -------
        callable (z, φ, rows) -> Tensor, or a pair of them

        Raises
        ------
        TypeError
            If traced and the network has no `value_and_trace` that can be trusted; see `traces`.

        Examples
        --------
        >>> scoresde.build("vp", "mlp", shape=(2,)).caller()(torch.ones(1, 2), 0.5, None)
        tensor([[0., 0.]], grad_fn=...)
        """
        net = self.network(raw=raw)
        parameter = next(net.parameters(), None)
        condition, flat, free = self.shown(self.condition, net), len(self.shape) == 1, self.free
        if traced and not (can_trace(net) and free is None):
            raise TypeError(f"{type(net).__name__} has no value_and_trace for the features that vary")
        call: Callable[..., Any] = net.value_and_trace if traced else net  # type: ignore[assignment]

        def output(z: Tensor, phi: Tensor | float, rows: Tensor | None = None) -> Any:
            x, label, radius = self.inputs(z, phi, z.dtype if parameter is None else parameter.dtype)
            if condition:
                taken = {n: value if rows is None or len(value) == 1 else value[rows] for n, value in condition.items()}
                out = call(x, label, **{n: value.expand(len(z), *value.shape[1:]) for n, value in taken.items()})
            else:
                out = call(x, label)
            if traced:
                out, trace = out
                if not isinstance(trace, Tensor) or trace.shape != (len(x),):
                    got = tuple(trace.shape) if isinstance(trace, Tensor) else type(trace).__name__
                    raise ValueError(f"value_and_trace returned a trace of shape {got}, wanted ({len(x)},)")
            if not isinstance(out, Tensor) or out.shape != x.shape:
                raise ValueError(misshapen(x, out))
            if free is not None:
                out = out.flatten(1).index_select(1, free)
            elif not flat:
                out = out.reshape(z.shape)
            if out.dtype != z.dtype:
                out = out.to(z.dtype)
            return (out, radius * trace.unsqueeze(1).to(z.dtype)) if traced else out

        return output

    def inputs(self, z: Tensor, phi: Tensor | float, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor | float]:
        """Return what the network is shown of states on the arc: z and a noise label, or x_t and t.

        Parameters
        ----------
        z : Tensor, shape (B, n)
            States on the unit arc, flattened.
        phi : float, or Tensor of shape () or (B,), float64
            Angle in radians.
        dtype : torch.dtype
            The network's. One with `wide_inputs` is given at least float32, and casts by itself.

        Returns
        -------
        x : Tensor, shape (B, *shape)
        t : Tensor, shape (B,)
        radius : float, or Tensor of shape (B, 1)
            x = radius·z.

        Examples
        --------
        >>> scoresde.build("vp", "mlp", shape=(2,)).inputs(torch.ones(1, 2), 0.0, torch.float32)
        (tensor([[1., 1.]]), tensor([-6.2146]), 1.0)
        """
        if self.wide_inputs:
            dtype = torch.promote_types(dtype, torch.float32)
        x, radius = z, cast("Tensor | float", 1.0)
        if self.sees == "raw":
            label: Tensor | float = self.process.time(phi)
            far = self.process.radius(label)
            radius = far.unsqueeze(1).to(z.dtype) if far.ndim else float(far)
            x = z * radius
        else:
            label = noise_label(phi)
        if not isinstance(label, Tensor) or not label.ndim:
            label = z.new_full((len(z),), float(label), dtype=dtype)
        x = self._spread(x)
        if z.dtype != dtype or label.dtype != dtype:
            x, label = x.to(dtype), label.to(dtype)
        return x, label, radius

    @property
    def wide_inputs(self) -> bool:
        """Whether the network takes x and t in at least float32 whatever the dtype of its weights: see `backbones.base`."""
        return bool(getattr(unwrapped(self.net), "wide_inputs", False))

    def shown(self, condition: dict[str, Tensor], net: nn.Module | None = None) -> dict[str, Tensor]:
        """Return conditions as the network is shown them: numbers standardized, and in a dtype that it takes.

        Parameters
        ----------
        condition : dict of str to Tensor
            In the user's units.
        net : nn.Module, optional
            The network in use, for its dtype.

        Returns
        -------
        dict of str to Tensor

        Examples
        --------
        >>> sde = scoresde.build("vp", "resmlp", shape=(2,), vector=1)
        >>> sde.conditions.put("vector", torch.tensor([100.0]), torch.tensor([10.0]))
        >>> sde.shown({"vector": torch.tensor([[120.0]])})
        {'vector': tensor([[2.]])}
        """
        if not condition:
            return condition
        parameter = next((self.net if net is None else net).parameters(), None)
        found = {}
        for name, value in condition.items():
            value = self.conditions.standardize(name, value)
            if value.is_floating_point() and parameter is not None and parameter.is_floating_point():
                least = torch.float32 if self.wide_inputs else parameter.dtype
                value = value.to(torch.promote_types(parameter.dtype, least))
            found[name] = value
        return found

    def numeric(self, name: str, value: Tensor) -> bool:
        """Whether a condition is numbers, to be standardized, rather than labels: floats, and what the network says.

        Parameters
        ----------
        name : str
        value : Tensor

        Returns
        -------
        bool

        Examples
        --------
        >>> scoresde.build("vp", "mlp", shape=(2,), classes=3).numeric("y", torch.tensor([1]))
        False
        """
        net = unwrapped(self.net)
        if name in getattr(net, "labels", ()) or value.is_complex() or value.dtype == torch.bool:
            return False
        return value.is_floating_point() or name in (getattr(net, "condition_shapes", None) or {})

    def traces(self, *, raw: bool = False) -> bool:
        """Whether the network in use offers its output together with its exact trace: see `scoresde.backbones.base`.

        Parameters
        ----------
        raw : bool
            As for `caller`.

        Returns
        -------
        bool

        Examples
        --------
        >>> scoresde.build("vp", "mlp", shape=(2,)).traces()
        True
        """
        return self.free is None and can_trace(self.network(raw=raw))

    def network(self, *, raw: bool = False) -> nn.Module:
        """Return the network in use: the averaged one in eval mode, if there is one, and without a wrapper for distributed runs.

        Parameters
        ----------
        raw : bool
            As for `caller`.

        Returns
        -------
        nn.Module

        Examples
        --------
        >>> sde = scoresde.build("vp", "mlp", shape=(2,))
        >>> sde.network() is sde.net
        True
        """
        net: nn.Module = self.net if raw or self.net.training or self.ema is None else self.ema
        if isinstance(net, nn.parallel.DistributedDataParallel) and not net.training:
            net = net.module  # ranks need different numbers of evaluations in a solve, and must not wait for one another
        return net

    def arc_velocity(self, z: Tensor, phi: Tensor | float, rows: Tensor | None = None) -> Tensor:
        """Return dz/dφ = cos φ·ε̂ − sin φ·x̂0, the right-hand side of the one ODE.

        Parameters
        ----------
        z : Tensor, shape (B, n)
            States on the unit arc, flattened.
        phi : float, or Tensor of shape (B,), float64
            Angle in radians, for all or one a state.
        rows : Tensor of int, shape (B,), optional
            Which rows of a per-sample condition these states are.

        Returns
        -------
        Tensor, shape (B, n)
            Per radian.

        Examples
        --------
        >>> import scoresde
        >>> gaussian = scoresde.toy.GaussianMixture(torch.zeros(1, 2), 1.0)
        >>> scoresde.oracle(gaussian, scoresde.VPSDE()).arc_velocity(torch.ones(1, 2), 0.5).abs() < 1e-6
        tensor([[True, True]])
        """
        return self.flow()(z, phi, rows)

    def flow(self) -> Callable[..., Tensor]:
        """Return `arc_velocity` as a function, for a solve to call many times.

        Returns
        -------
        callable (z, φ, rows) -> Tensor

        Examples
        --------
        >>> scoresde.build("vp", "mlp", shape=(2,)).flow()(torch.ones(1, 2), 0.5, None)
        tensor([[-0., -0.]], grad_fn=...)
        """
        output = self.caller()
        if self.predict == "edm":
            return lambda z, phi, rows=None: -output(z, phi, rows)

        def velocity(z: Tensor, phi: Tensor | float, rows: Tensor | None = None) -> Tensor:
            c = self.coefficients(as_time(phi)).to(z)
            out: Tensor = output(z, phi, rows)
            return (out - (c.a * c.cos + c.b * c.sin) * z) / c.det

        return velocity

    def coefficients(self, phi: Tensor) -> Coefficients:
        """Return the 2×2 system of this model's prediction at angle(s) φ.

        Parameters
        ----------
        phi : Tensor, shape () or (B,), float64
            Angles in radians.

        Returns
        -------
        Coefficients

        Examples
        --------
        >>> import scoresde
        >>> scoresde.build("vp", "mlp", shape=(2,)).coefficients(torch.tensor(0.0)).det
        tensor(-1.)
        """
        return coefficients(self.predict, self.process, phi)

    @property
    def kind(self) -> str:
        """What the network has learnt."""
        return self._kind[0]

    @kind.setter
    def kind(self, kind: str) -> None:
        name, _, k = said(kind, str).partition(":")
        if name not in KINDS or not (k.isdecimal() and len(k) < 10 and int(k) if name == "nodes" else kind == name):
            raise ValueError(f"unknown kind={said(kind)}. {nearest(said(kind, str), ['nodes:1', *(set(KINDS) - {'nodes'})])}")
        net = self.net.module if isinstance(self.net, nn.parallel.DistributedDataParallel) else self.net
        if name == "map" and not takes(net, "span"):
            raise ValueError(f"a model of kind 'map' has a second time, and {type(net).__name__} takes no span=")
        self._kind[0] = f"nodes:{int(k)}" if k else name

    @property
    def offers(self) -> tuple[str, ...]:
        """What it can serve: of "score", "velocity", "jump", "map", "bridge" and "nodes", those that go with its kind."""
        return offers(self.kind)

    @property
    def nodes(self) -> int:
        """The number k of steps that a model of kind "nodes:k" has learnt; 0 for all others."""
        return int(self.kind.partition(":")[2] or 0)

    @property
    def source(self) -> Any:
        """The law of x at t = 1, an object with .sample(n), or None for a Gaussian."""
        return self._source[0]

    @source.setter
    def source(self, source: Any) -> None:
        before, source = self.source, as_source(source, self.shape)
        if source is not None and not self.process.ends_in_noise:
            raise ValueError(
                f"a source takes the place of the noise where nothing else is left at t = 1, and {self.process} ends with "
                f"α(1) = {float(self.process.alpha(as_time(1.0))):.2g}; try RectifiedFlow() or Cosine()"
            )
        if self.ema is not None and before is None and source is not None:
            warnings.warn("this model was trained on paths that begin in a Gaussian: train it from its source", stacklevel=3)
        self._source[0] = source
        if self.ema is None and {before is None, source is None} == {True, False} and self.kind in ("score", "velocity"):
            self.kind = "score" if source is None else "velocity"

    @property
    def phi_min(self) -> float:
        """Where solves end and likelihoods begin, in radians: φ(0), or `hair` where the prediction is singular there."""
        start = self.process.phi_min
        return self.process.hair if singular(self.predict, self.process, start) else start

    # ------------------------------------------------------------------ the user's view, in the units of the data

    def denoise(self, x: Tensor, t: Tensor | float) -> tuple[Tensor, Tensor]:
        """Return the model's E[x0 | x_t] and E[ε | x_t].

        Parameters
        ----------
        x : Tensor, shape (B, *shape)
            States x_t in the units of the data.
        t : Tensor of shape (B,) or (), or float
            Process time in [0, 1].

        Returns
        -------
        x0 : Tensor, shape (B, *shape)
            In the units of the data.
        eps : Tensor, shape (B, *shape)
            In standard deviations.

        Raises
        ------
        ValueError
            For a wrong shape or a time outside [0, 1].

        Examples
        --------
        >>> import scoresde
        >>> gaussian = scoresde.toy.GaussianMixture(torch.zeros(1, 2), 1.0)
        >>> sde = scoresde.oracle(gaussian, scoresde.RectifiedFlow())
        >>> x0, eps = sde.denoise(torch.ones(1, 2), 0.5)
        >>> x0.round(decimals=4), eps.round(decimals=4)
        (tensor([[1., 1.]]), tensor([[1., 1.]]))
        """
        z, phi, _ = self._on_arc(x, t)
        x0, eps = self._solve(z, phi)
        return self.to_data(x0), self._spread(eps)

    def score(self, x: Tensor, t: Tensor | float) -> Tensor:
        """Return the model's score ∇log p_t(x) = −ε̂/(σ·scale), per unit of the data.

        Parameters
        ----------
        x : Tensor, shape (B, *shape)
            States x_t in the units of the data.
        t : Tensor of shape (B,) or (), or float
            Process time in [0, 1]; at t = 0 of a process with σ(0) = 0 the score is taken at its `hair`.

        Returns
        -------
        Tensor, shape (B, *shape)
            0 for constant features.

        Raises
        ------
        ValueError
            For a wrong shape, a time outside [0, 1], or a model without a score; see `kind`.

        Examples
        --------
        >>> import scoresde
        >>> gaussian = scoresde.toy.GaussianMixture(torch.zeros(1, 2), 2.0)
        >>> scoresde.oracle(gaussian, scoresde.VESDE()).score(torch.ones(1, 2), 0.0)
        tensor([[-0.2500, -0.2500]])
        """
        self.check_score()
        z, phi, t = self._on_arc(x, t, floor=self.process.hair)
        _, eps = self._solve(z, phi)
        eps = self._spread(eps)
        sigma = self._per_sample(self.process.radius(t) * torch.sin(phi), eps).to(z)
        return -eps / (sigma * self._ready(eps.dtype).scale)

    def velocity(self, x: Tensor, t: Tensor | float) -> Tensor:
        """Return dx/dt of the probability-flow ODE, α̇·x̂0 + σ̇·ε̂ (Song et al. 2021, eq. 13; Lipman et al. 2023).

        Parameters
        ----------
        x : Tensor, shape (B, *shape)
            States x_t in the units of the data.
        t : Tensor of shape (B,) or (), or float
            Process time in [0, 1]; increasing time goes from data to noise.

        Returns
        -------
        Tensor, shape (B, *shape)
            Units of the data per unit of process time.

        Raises
        ------
        ValueError
            For a wrong shape, a time outside [0, 1], or a model without a velocity; see `kind`.

        Examples
        --------
        >>> import scoresde
        >>> gaussian = scoresde.toy.GaussianMixture(torch.zeros(1, 2), 1.0)
        >>> scoresde.oracle(gaussian, scoresde.VPSDE()).velocity(torch.ones(1, 2), 0.5).abs() < 1e-6
        tensor([[True, True]])
        """
        self.check("velocity")
        return self._rate(x, t, noise=0.0)

    def drift(self, x: Tensor, t: Tensor | float) -> Tensor:
        """Return the drift of the reverse-time SDE, f·x − g²·score (Song et al. 2021, eq. 6).

        Parameters
        ----------
        x : Tensor, shape (B, *shape)
            States x_t in the units of the data.
        t : Tensor of shape (B,) or (), or float
            Process time in [0, 1].

        Returns
        -------
        Tensor, shape (B, *shape)
            Units of the data per unit of process time; −∞ or ∞ where g² is infinite.

        Raises
        ------
        ValueError
            For a wrong shape or a time outside [0, 1].

        Examples
        --------
        >>> import scoresde
        >>> gaussian = scoresde.toy.GaussianMixture(torch.zeros(1, 2), 1.0)
        >>> scoresde.oracle(gaussian, scoresde.VPSDE()).drift(torch.ones(1, 2), 1.0)
        tensor([[10., 10.]])
        """
        self.check_score()
        return self._rate(x, t, noise=0.5)

    def check_score(self) -> None:
        """Raise ValueError for a model that has no score, having learnt something else; see `kind`.

        Raises
        ------
        ValueError

        Examples
        --------
        >>> ScoreSDE(scoresde.RectifiedFlow(), torch.nn.Identity(), shape=(2,), kind="velocity").check_score()
        Traceback (most recent call last):
        ValueError: this model has no score, only a velocity: it learnt from coupled pairs, or another task; try solver='adams'
        """
        self.check("score")

    def check(self, *needs: str) -> None:
        """Raise ValueError unless the model offers one of what is needed; see `kind`.

        Parameters
        ----------
        *needs : str
            "score", "velocity", "jump" (where the ODE ends), "map" (where it is at any later time), "bridge" (an SDE
            between data and source) or "nodes" (a few steps of "ddim").

        Raises
        ------
        ValueError

        Examples
        --------
        >>> ScoreSDE(scoresde.RectifiedFlow(), torch.nn.Identity(), shape=(2,), kind="jump").check("velocity")
        Traceback (most recent call last):
        ValueError: this model has learnt where the ODE ends, not its velocity: ...
        """
        if not set(needs) & set(self.offers):
            lack = "nodes" if self.nodes else "velocity" if "velocity" not in self.offers else needs[0]
            raise ValueError(LACKS[lack].format(k=self.nodes))

    @property
    def solver(self) -> str:
        """The solver that `sample` takes if none is named."""
        name = self.kind.partition(":")[0]
        return {"jump": "consistency", "map": "flow_map", "bridge": "bridge", "nodes": "ddim"}.get(name, "adams")

    def _rate(self, x: Tensor, t: Tensor | float, noise: float) -> Tensor:
        z, phi, t = self._on_arc(x, t, floor=self.process.hair)
        x0, eps = self._solve(z, phi)
        dalpha, dsigma = self.process.dalpha(t), self.process.dsigma(t)
        if noise:
            dsigma = dsigma + noise * self.process.g2(t) / self.process.sigma(t)
        x0, eps = self._spread(x0), self._spread(eps)
        a, b = (self._per_sample(c, x0).to(z) for c in (dalpha, dsigma))
        return self._ready(z.dtype).scale * (a * x0 + b * eps)

    def given(self, **condition: Tensor | float | int) -> ScoreSDE:
        """Return this model conditioned: the same network and verbs, with `condition` handed to the network by name.

        Parameters
        ----------
        **condition : Tensor, array, Series, number or word
            One value for all samples, or one row per sample; words are those of the classes that `fit` was given. Without
            any, a model that has learnt with conditions is asked on purpose for the law without them.

        Returns
        -------
        ScoreSDE
            A view: it shares the network, mean and scale, which are set on the model alone; the original stays as it is.

        Raises
        ------
        ValueError
            If the network takes no such condition, or not such values.

        Warns
        -----
        UserWarning
            If `fit` was never given such a condition.
        TypeError
            For a condition that is no number and no tensor.

        Examples
        --------
        >>> import scoresde
        >>> sde = scoresde.build("vp", "mlp", shape=(2,), classes=3)
        >>> scoresde.sample(sde.given(y=2), 4).shape
        torch.Size([4, 2])
        """
        values = self.checked(condition)
        if self.learnt is not None and (new := sorted(values.keys() - self.learnt["conditions"] - {"span", "tilt"})):
            warn(f"this model was fitted without {' and '.join(new)}: it has not learnt what that says")
        view = self.holding({**self.condition, **values})
        if not condition:
            view._said = [True]
        return view

    def checked(self, condition: Mapping[str, Any], rows: int | None = None) -> dict[str, Tensor]:
        """Return conditions as tensors with one row per sample or one for all; raise as `given` does.

        Parameters
        ----------
        condition : mapping of str to Tensor or number
        rows : int, optional
            How many samples they are of, one row each: then none is one value for all.

        Returns
        -------
        dict of str to Tensor

        Examples
        --------
        >>> scoresde.build("vp", "resmlp", shape=(2,), vector=3).checked({"vector": torch.ones(3)})
        {'vector': tensor([[1., 1., 1.]])}
        """
        self._check_names(condition)
        values = {name: as_condition(self.schema.condition(name, value), name) for name, value in condition.items()}
        shapes = self._condition_shapes()
        for name, value in values.items():
            shape = shapes.get(name)
            if rows is None and (value.ndim == 0 or tuple(value.shape) == shape):  # of all samples
                value = value[None]
            if value.ndim == 1 and shape == (1,):  # one number a sample
                value = value[:, None]
            if rows is not None and value.shape[:1] != (rows,):
                raise ValueError(f"condition {name!r} has shape {tuple(value.shape)} for {rows} samples")
            values[name] = value
        check = getattr(unwrapped(self.net), "check_condition", None)  # once here, rather than at every evaluation
        if check is not None and values:
            check(**values)
        return values

    def _check_names(self, condition: Iterable[str]) -> None:
        """Raise ValueError for conditions that the network does not take."""
        net = unwrapped(self.net)
        takes = inspect.signature(net.forward).parameters
        shapes = getattr(net, "condition_shapes", None)
        if shapes is not None:
            check_known((name for name in condition if name not in takes), shapes, hint_labels=True)
        elif not any(p.kind is p.VAR_KEYWORD for p in takes.values()):
            check_known(condition, dict.fromkeys(list(takes)[2:]))

    def _condition_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of one sample's conditions, where the network says them or `fit` has seen them."""
        seen = {} if self.learnt is None else self.learnt["conditions"]
        told = getattr(unwrapped(self.net), "condition_shapes", None) or {}
        return {name: tuple(shape) for name, shape in {**seen, **told}.items()}

    @property
    def learnt(self) -> dict[str, Any] | None:
        """What `fit` has recorded; see the class."""
        return self._learnt[0]

    @learnt.setter
    def learnt(self, learnt: dict[str, Any] | None) -> None:
        self._learnt[0] = learnt

    @property
    def condition_rows(self) -> int:
        """How many samples the conditions are of: 1 without, or with one for all."""
        return max((len(value) for value in self.condition.values()), default=1)

    def say_which(self) -> None:
        """Say once, for a model that has learnt with conditions and is given none of them, which law that is.

        Raises
        ------
        ValueError
            If there is none, as the network was never without them.

        Warns
        -----
        UserWarning

        Examples
        --------
        >>> sde = scoresde.build("vp", "mlp", shape=(2,), classes=3)
        >>> sde.say_which()
        """
        if self.learnt is None or self._said[0]:
            return
        lacking = [name for name in self.learnt["conditions"] if name not in self.condition]
        if not lacking:
            return
        names = " and ".join(lacking)
        how = f"sde.given({', '.join(f'{name}=...' for name in lacking)})"
        net = unwrapped(self.net)
        if not self.learnt["unconditional"]:
            if hasattr(net, "hide"):
                raise ValueError(f"this network has learnt with condition_dropout=0, always with {names}: write {how}")
            warn(f"this model has learnt always with {names}, and has no law without: write {how}")
        else:
            warn(
                f"this model has learnt with {names} and is not given {'it' if len(lacking) == 1 else 'them'}: this is its law "
                f"over all of them; {how} conditions it, and sde.given() says that it is meant"
            )
        self._said[0] = True

    def holding(self, condition: dict[str, Tensor]) -> ScoreSDE:
        """Return this model with conditions that were checked before: what `given` does after it has looked.

        Parameters
        ----------
        condition : dict of str to Tensor

        Returns
        -------
        ScoreSDE

        Examples
        --------
        >>> scoresde.build("vp", "mlp", shape=(2,), classes=3).holding({"y": torch.tensor([1])}).condition
        {'y': tensor([1])}
        """
        held = copy.copy(self)
        held.condition = condition
        held._shares = id(self._buffers)
        return held

    @property
    def is_view(self) -> bool:
        """Whether `given` made it, so that network, mean and scale are another's."""
        return self._shares == id(self._buffers)

    def rows(self, start: int, stop: int, total: int) -> ScoreSDE:
        """Return this model for samples start … stop of `total`: per-sample conditions are cut to those.

        Parameters
        ----------
        start, stop, total : int
            The samples, numbered over the call.

        Returns
        -------
        ScoreSDE

        Raises
        ------
        ValueError
            If a condition has neither one row nor `total` rows.

        Examples
        --------
        >>> import scoresde
        >>> sde = scoresde.build("vp", "mlp", shape=(2,), classes=3).given(y=torch.tensor([0, 1, 2]))
        >>> sde.rows(1, 3, 3).condition
        {'y': tensor([1, 2])}
        """
        for name, value in self.condition.items():
            if len(value) not in (1, total):
                raise ValueError(f"condition {name!r} has {len(value)} rows for {total} samples; wanted 1 or {total}")
        if not self.condition:
            return self
        device = self.scale.device
        return self.holding({n: (v if len(v) == 1 else v[start:stop]).to(device) for n, v in self.condition.items()})

    # ------------------------------------------------------------------ units

    def standardize(self, data: Tensor | Iterable[Tensor]) -> ScoreSDE:
        """Measure mean and scale of the data, per first axis of a sample, and keep them in the model.

        Parameters
        ----------
        data : Tensor, shape (N, *shape), or an iterable of such
            In the units of the data; an iterable is passed over once, and its parts need not fit into memory together.

        Returns
        -------
        ScoreSDE
            This model.

        Raises
        ------
        ValueError
            If no feature varies, if numbers are too large for the model's dtype, or for a view made by `given`.

        Warns
        -----
        UserWarning
            If some do not: their scale is 0, which marks a constant. Or if samples will be rounded coarsely.

        Examples
        --------
        >>> import scoresde
        >>> sde = scoresde.build("vp", "mlp", shape=(2,))
        >>> sde.standardize(torch.tensor([[0.0, 10.0], [2.0, 30.0]])).scale
        tensor([ 1., 10.], dtype=torch.float64)
        """
        if self.is_view:
            raise ValueError("a view made by given(...) shares mean and scale with its model: standardize the model")
        mean, std, varies, count = measure(_parts(data, self.shape), 1 if self.shape else None)
        if not bool((mean.isfinite() & std.isfinite()).all()):
            raise ValueError("data has NaN or infinite values, and no mean or scale")
        if not bool(varies.any()):
            raise ValueError(f"the data do not vary: {count} equal samples (to rounding) have no density to learn")
        limits = torch.finfo(self.state_dtype)
        if not bool(((mean.abs() + 8 * std) < limits.max).all()):
            raise ValueError(
                f"the data reach beyond what {limits.dtype} can hold, {limits.max:.2g}: "
                "divide them by a constant, or make the model .double()"
            )
        coarse = varies & (std < torch.clamp(1e3 * limits.eps * mean.abs(), min=limits.tiny))
        if bool(coarse.any()):
            warnings.warn(
                f"features {coarse.nonzero().flatten().tolist()} lie so far from 0 for their spread, or are so small, that "
                f"samples in {limits.dtype} are rounded coarsely: subtract a constant, multiply by one, or make the model "
                ".double()",
                stacklevel=3,
            )
        if not bool(varies.all()):
            constant = (~varies).nonzero().flatten().tolist()
            warnings.warn(
                f"features {constant} are constant: samples repeat them, and their density, a spike, is left out of log p; "
                "drop them or add noise to have a density of all",
                stacklevel=3,
            )
        self.mean.copy_(mean.reshape(self.mean.shape))
        self.scale.copy_(torch.where(varies, std, 0).reshape(self.scale.shape))
        self.measured.fill_(True)
        return self

    def to_data(self, z: Tensor) -> Tensor:
        """Return standardized, flattened states (B, n) as data (B, *shape): mean + scale·z, and constants as they are.

        Parameters
        ----------
        z : Tensor, shape (B, n)

        Returns
        -------
        Tensor, shape (B, *shape)

        Examples
        --------
        >>> import scoresde
        >>> scoresde.build("vp", "mlp", shape=(1, 2, 2)).to_data(torch.ones(3, 4)).shape
        torch.Size([3, 1, 2, 2])
        """
        mean, rest, scale, _ = self._ready(z.dtype)
        x = scale * self._spread(z)
        return mean + (x if rest is None else rest + x)

    def from_data(self, x: Tensor) -> Tensor:
        """Return data (B, *shape) as standardized, flattened states (B, n): (x − mean)/scale, without constants.

        Parameters
        ----------
        x : Tensor, shape (B, *shape)

        Returns
        -------
        Tensor, shape (B, n)

        Examples
        --------
        >>> import scoresde
        >>> scoresde.build("vp", "mlp", shape=(1, 2, 2)).from_data(torch.ones(3, 1, 2, 2)).shape
        torch.Size([3, 4])
        """
        mean, rest, scale, free = self._ready(torch.promote_types(x.dtype, torch.float32))
        x = x - mean
        z = ((x if rest is None else x - rest) / scale).reshape(len(x), math.prod(self.shape))
        return z if free is None else z.index_select(1, free)

    def from_start(self, x: Tensor) -> Tensor:
        """Return points at t = 1, where α = 0, as states on the arc: (x − mean)/(scale·σ(1)).

        Parameters
        ----------
        x : Tensor, shape (B, *shape)
            In the units of the data.

        Returns
        -------
        Tensor, shape (B, n)

        Examples
        --------
        >>> import scoresde
        >>> scoresde.build("rectified", "mlp", shape=(2,)).from_start(torch.ones(1, 2))
        tensor([[1., 1.]])
        """
        return self.from_data(x) / float(self.process.radius(as_time(1.0)))

    @property
    def free(self) -> Tensor | None:
        """Which elements of a flattened sample vary, shape (dim,), where some are constant (scale 0); None for all."""
        return self._ready(torch.float32).free

    @property
    def dim(self) -> int:
        """Number of elements of one sample that vary: of its states, and of its density."""
        free = self.free
        return math.prod(self.shape) if free is None else len(free)

    @property
    def log_scale(self) -> float:
        """log|det| of the map from standardized states to data, in nats."""
        scale, free = self.scale.double().log().expand(self.shape).flatten(), self.free
        return float((scale if free is None else scale[free]).sum())

    @property
    def state_dtype(self) -> torch.dtype:
        """The dtype of states: the network's own, but at least float32."""
        for value in itertools.chain(self.net.parameters(), self.net.buffers()):
            if value.is_floating_point():
                return torch.promote_types(value.dtype, torch.float32)
        return torch.promote_types(self._dtype, torch.float32)

    def off_constants(self, x: Tensor) -> Tensor | None:
        """Return which rows of x lie off a constant by more than 1e-6 of it, where the density is 0.

        Parameters
        ----------
        x : Tensor, shape (B, *shape)
            In the units of the data.

        Returns
        -------
        Tensor of bool, shape (B,), or None
            None for a model without constants.

        Examples
        --------
        >>> sde = scoresde.build("vp", "mlp", shape=(2,))
        >>> sde.scale[1] = 0.0  # and its mean is 0
        >>> sde.off_constants(torch.tensor([[5.0, 0.0], [5.0, 0.1]]))
        tensor([False,  True])
        """
        if self.free is None:
            return None
        off = ((x - self.mean).abs() > 1e-6 * self.mean.abs()) & (self.scale == 0)
        return off.reshape(len(x), -1).any(1)

    def varying(self, net: Callable[..., Any]) -> Callable[..., Any]:
        """Return a network that answers for the elements of a sample that vary, where some are constant.

        Parameters
        ----------
        net : callable (x, label, **condition) -> Tensor (…, *shape)

        Returns
        -------
        callable
            Its answers have shape (…, dim); net itself if no element is constant.

        Examples
        --------
        >>> sde = scoresde.build("vp", "mlp", shape=(2,))
        >>> sde.scale[1] = 0.0
        >>> sde.varying(sde.net)(torch.ones(3, 2), torch.zeros(3)).shape
        torch.Size([3, 1])
        """
        free = self.free
        if free is None:
            return net

        def call(x: Tensor, *rest: Any, **condition: Any) -> Any:
            out = net(x, *rest, **condition)
            if not isinstance(out, Tensor) or out.shape[out.ndim - len(self.shape) :] != x.shape[1:]:
                raise ValueError(misshapen(x, out))
            return out.flatten(out.ndim - len(self.shape)).index_select(-1, free)

        return call

    def _spread(self, z: Tensor) -> Tensor:
        """States (B, n) in the shape of samples, (B, *shape), with 0 for constants."""
        free = self.free
        if free is not None:
            z = z.new_zeros(len(z), math.prod(self.shape)).index_copy(1, free, z)
        return z if len(self.shape) == 1 else z.reshape(len(z), *self.shape)

    def _ready(self, dtype: torch.dtype) -> Units:
        """The standardization for states of a dtype, made again only after mean or scale have changed."""
        mean, scale = self.mean, self.scale
        if mean.is_inference() or scale.is_inference():
            return units(mean, scale, self.shape, dtype)
        key = mean._version, scale._version
        held = self._units
        if held is None or held[0] is not mean or held[1] is not scale or held[2] != key:
            held = self._units = (mean, scale, key, {})
        known: dict[torch.dtype, Units] = held[3]
        if dtype not in known:
            with torch.inference_mode(False):
                known[dtype] = units(mean, scale, self.shape, dtype)
        return known[dtype]

    @torch.inference_mode(False)
    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ScoreSDE:
        """Move or convert the model as `nn.Module` does, but keep mean and scale in float64, unrounded."""
        leave_inference(self)  # before .data of such a parameter is set, which would hide what it is
        kept = {name: self._buffers[name] for name in ("mean", "scale")}
        for name in kept:
            self._buffers[name] = None
        self._dtype = fn(torch.empty(0, dtype=self._dtype, device=self.measured.device)).dtype
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, value in kept.items():
            assert value is not None
            device = self.measured.device
            if value.is_meta or device.type == "meta":
                self._buffers[name] = torch.empty_like(value, device=device)
            elif value.device == device:
                moved = fn(value)  # it may share memory
                self._buffers[name] = moved if moved.dtype == value.dtype else value
            else:
                self._buffers[name] = value.to(device, wide(device))
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> ScoreSDE:
        """Copy also networks whose weights are computed by hooks."""
        memo.update(copy_memo(self))
        made = type(self).__new__(type(self))
        memo[id(self)] = made
        vars(made).update(copy.deepcopy({**vars(self), "_units": None}, memo))
        return made

    def accept(self, x: Tensor, what: str = "x") -> Tensor:
        """Check a batch that a user hands in, and return it on the model's device, in the dtype that states have.

        Parameters
        ----------
        x : Tensor, array or data frame, shape (B, *shape)
            In the units of the data; columns with names are put into the model's order.
        what : str
            The argument's name, for messages.

        Returns
        -------
        Tensor, shape (B, *shape)

        Raises
        ------
        TypeError
            If x is not a tensor of floating-point numbers.
        ValueError
            For a wrong shape or numbers that are not finite.

        Examples
        --------
        >>> import scoresde
        >>> scoresde.build("vp", "mlp", shape=(2,)).accept(torch.zeros(5, 3))
        Traceback (most recent call last):
        ValueError: x has shape (5, 3), wanted (batch, 2)
        """
        x = as_floats(self.schema.values(x) if is_named(x) else x, self.shape, what)
        return x.to(self.scale.device, torch.promote_types(x.dtype, self.state_dtype))

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; a source that is a module would go past the property. Of a view, none that its model shares."""
        if vars(self).get("_shares") and self.is_view:
            shared = name in (*self._buffers, *self._modules, *self._parameters, "kind", "source", "learnt")
            if shared or isinstance(value, nn.Module | nn.Parameter):
                raise AttributeError(f"a view made by given(...) shares {name} with its model: set it on the model")
        if name in ("source", "learnt"):
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        """Delete an attribute; of a view, none that its model shares."""
        if self.is_view and name in (*self._buffers, *self._modules, *self._parameters):
            raise AttributeError(f"a view made by given(...) shares {name} with its model: delete it there")
        super().__delattr__(name)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        if self.ema is None and any(name.startswith(prefix + "ema.") for name in state_dict):
            self.ema = duplicate(self.net).requires_grad_(False)  # an averaged network is on its way
        for key, value in state_dict.items():
            place, _, what = key.rpartition(".")
            name = place.removeprefix(prefix + "conditions.")
            if place.startswith(prefix + "conditions.") and what == "mean" and name not in self.conditions.known():
                self.conditions.blank(name, tuple(value.shape), self.mean.device)
        super()._load_from_state_dict(state_dict, prefix, *rest)
        for name in ("mean", "scale"):  # an older file has float32, which assign=True would leave
            self._buffers[name] = getattr(self, name).to(wide(self.mean.device))

    def extra_repr(self) -> str:
        """Return what `repr` shows beside the modules."""
        text = f"process={self.process!r}, shape={self.shape}, predict={self.predict!r}, sees={self.sees!r}"
        text += f", kind={self.kind!r}" * (self.kind != "score")
        return text + f", source={self.source!r}" * (self.source is not None)

    def _solve(self, z: Tensor, phi: Tensor) -> tuple[Tensor, Tensor]:
        out = self.rows(0, len(z), len(z)).output(z, phi if phi.ndim else float(phi))
        return self.coefficients(phi).to(z).solve(z, out)

    def _on_arc(self, x: Tensor, t: Tensor | float, floor: float | None = None) -> tuple[Tensor, Tensor, Tensor]:
        x = self.accept(x)
        t = as_reals(t, "t")
        t = t.to(x.device if t.ndim else "cpu", torch.float64)
        if t.ndim and t.shape != (len(x),):
            raise ValueError(f"t has shape {tuple(t.shape)}, wanted () or ({len(x)},)")
        if t.device.type == "cpu" and not bool(((t >= 0) & (t <= 1)).all()):
            raise ValueError(f"process time runs from 0 (data) to 1 (noise), got {t.min():g} to {t.max():g}")
        phi = self.process.phi(t)
        lowest = self.phi_min if floor is None else max(floor, self.process.phi_min)
        if self.process.phi_min < lowest:
            phi = phi.clamp_min(lowest)
            t = torch.maximum(t, self.process.time(torch.tensor(lowest, dtype=torch.float64, device="cpu")))
        return self.from_data(x) / self._per_sample(self.process.radius(t), x).to(x.dtype).reshape(-1, 1), phi, t

    @staticmethod
    def _per_sample(c: Tensor, x: Tensor) -> Tensor:
        return c.reshape(-1, *(1,) * (x.ndim - 1)) if c.ndim else c


def _parts(data: Any, shape: tuple[int, ...]) -> Iterator[Tensor]:
    """Data as one batch, or as the batches that an iterable yields, each checked."""
    in_parts = isinstance(data, list) and len(data) > 0 and getattr(data[0], "ndim", 0) > len(shape)
    whole = isinstance(data, Tensor | list) or hasattr(data, "__array__") or not isinstance(data, Iterable)
    if whole and not in_parts:
        data = [data]
    for part in data:
        yield as_floats(part, shape, "data", finite=False)


def matched(sde: ScoreSDE, x: Any) -> tuple[ScoreSDE, Any]:
    """Return the model told the conditions that samples from a file bring, and the samples in its order of columns."""
    if not is_named(x):
        return sde, x
    x, given = sde.schema.take(x)
    return sde.given(**given) if given else sde, x


def misshapen(x: Tensor, out: object) -> str:
    """Return what to say of a network that was given x and returned out, of another shape.

    Parameters
    ----------
    x : Tensor
    out : object

    Returns
    -------
    str

    Examples
    --------
    >>> misshapen(torch.zeros(5, 2), None)
    'the network was given (5, 2) and returned NoneType; it must keep the shape'
    """
    got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
    return f"the network was given {tuple(x.shape)} and returned {got}; it must keep the shape"


def warn(text: str) -> None:
    """Warn whoever called into the library, from however deep inside."""
    frame = sys._getframe(1)
    level = 2
    inside = (__package__, "torch", "contextlib")
    while frame.f_back is not None and str(frame.f_globals.get("__name__", "")).split(".")[0] in inside:
        frame = frame.f_back
        level += 1
    warnings.warn(text, stacklevel=level)


_MODES = threading.Lock()


@contextlib.contextmanager
def evaluating(sde: ScoreSDE) -> Iterator[None]:
    """Put a model into eval mode, and every part of it back into the mode it was in.

    Parameters
    ----------
    sde : ScoreSDE

    Examples
    --------
    >>> import scoresde
    >>> sde = scoresde.build("vp", "mlp", shape=(2,))
    >>> with evaluating(sde): print(sde.training)
    False
    >>> sde.training
    True
    """
    with _MODES:  # several threads may sample one model: the first to come changes modes, the last to leave restores them
        users, training = sde.net.__dict__.get("_evaluating", (0, [m for m in sde.modules() if m.training]))
        sde.net.__dict__["_evaluating"] = users + 1, training
        sde.eval()
    try:
        yield
    finally:
        with _MODES:
            users, training = sde.net.__dict__.pop("_evaluating")
            if users > 1:
                sde.net.__dict__["_evaluating"] = users - 1, training
            else:
                for module in training:
                    module.training = True


def require_sde(sde: Any, verb: str) -> ScoreSDE:
    """Return sde if it is a ScoreSDE; otherwise say what to build.

    Parameters
    ----------
    sde : object
        What the user gave.
    verb : str
        The function that was called, for the message.

    Returns
    -------
    ScoreSDE

    Raises
    ------
    TypeError
        With the line to write.

    Examples
    --------
    >>> import scoresde
    >>> scoresde.sample(scoresde.VPSDE())
    Traceback (most recent call last):
    TypeError: sample needs a ScoreSDE and got the process VPSDE(...), which has no network yet; ...
    """
    if isinstance(sde, ScoreSDE):
        return sde
    if isinstance(sde, Process) or (isinstance(sde, type) and issubclass(sde, Process)):
        raise TypeError(
            f"{verb} needs a ScoreSDE and got the process {sde!r}, which has no network yet; "
            "write scoresde.build('vp', 'mlp', shape=(2,)) or ScoreSDE(process, net, shape=(2,)), then fit it"
        )
    if isinstance(getattr(sde, "module", None), ScoreSDE):
        raise TypeError(f"{verb} needs a ScoreSDE, got one wrapped in {type(sde).__name__}; pass its .module")
    raise TypeError(
        f"{verb} needs a ScoreSDE, got {type(sde).__name__}; "
        "scoresde.build('vp', 'mlp', shape=(2,)) makes one and scoresde.load(folder) reads one"
    )
