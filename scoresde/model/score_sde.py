"""The trained model: a process, a network, what it predicts, and the standardization of data.

Users see x_t = mean + scale ∘ (R·x̃_t), where x̃_t is the process's state for standardized data and
R the square root of correlations, or the identity. The network sees z = x̃_t/√(α² + σ²) at an angle
φ = atan(σ/α): see `scoresde.model.arc`. Only `_network_under` calls the network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn

from ..backbones.base import can_trace
from ..common.checks import brief_repr
from ..common.names import choose
from ..common.renamed import renamed_arguments
from ..common.user_warnings import warn
from ..processes.base import PROCESSES, Process, as_time
from ..processes.prediction import check
from .condition_scales import checked, standardized, warn_far, warn_lacking
from .conditioned import Conditioned, check_overrides
from .network import CONVENTIONS, SOLVE_ARGUMENTS, arc_inputs, call_on_arc
from .old_names import RENAMED, by_old_name, check_overrides_by_old_name, upgraded
from .outcomes import OUTCOMES, Outcome, as_outcome, from_kind, to_kind
from .protocol import Model
from .reverse_variance import ReverseVariance
from .source import as_source, describe_source, rebuild_source
from .trainable import Trainable


class ScoreSDE(Trainable, ReverseVariance, Model):
    """A score model in continuous time, which `fit` trains and `sample` and `log_prob` use.

    Parameters
    ----------
    process : Process
        The Gaussian path.
    net : nn.Module
        Called as net(x, t, **condition) with x of shape (B, *shape) and t of shape (B,), returns
        x's shape. One that takes `with_variance` has a second output; see `LearnedVariance`.
    shape : tuple of int
        Shape of one sample, without the batch.
    predict : str
        What the network outputs: a key of `scoresde.PREDICTIONS`, such as "x0" or "eps".
    input_convention : str
        "arc": the network is given the unit-variance state z and a noise label of about
        log(σ/α). "raw": it is given the process's own x_t and t, as exact denoisers and networks
        trained elsewhere expect.
    outcome : str or Outcome
        What the network has learnt, which `fit` sets: "score", "velocity", "endpoint",
        "flow_map" or "bridge"; see `scoresde.model.outcomes`.
    source : Tensor, array, or an object with .sample(n), optional
        The distribution of x at t = 1, in the units of the data, instead of a Gaussian: rows of a
        data set, or a density. The likelihood then needs its log_prob(x). For processes with
        α(1) = 0, such as the rectified flow.
    standardize : str, optional
        What `fit` measures before it trains. "whiten": mean and full covariance, by which a
        network of zeros is the Gaussian of the data; the default for vectors of 2 to 1,024
        numbers without a source. "factors": the covariance of up to 64 factors and of independent
        noise; the default for longer vectors. "scale": those of each feature or channel. "none".

    Attributes
    ----------
    mean, scale : Tensor, float64
        The standardization, per first axis of a sample (feature or channel); 0 and 1 until `fit`
        measures them. They stay float64 (float32 on devices without it) if the model is converted
        to another dtype. A scale of 0 marks a constant: samples repeat it, the network receives
        0 in its place, and log p leaves out its density, a spike.
    root : Tensor, float64, shape (d, d) or (d, 65), or None
        R, the square root of correlations, of a model that whitens; with factors √ψ and V, where
        R = √ψ ∘ (I + V·Vᵀ).
    measured : Tensor of bool, shape ()
        Whether `fit` or `standardize` has measured them.
    ema : nn.Module or None
        The averaged network; used in eval mode when there is one, `net` otherwise.
    schema : Schema
        The names of the columns of a sample, and of the classes and columns of its conditions, if
        `fit` was given data with names. Later data with names are matched by them.
    table : TableSchema or None
        What the columns of a `scoresde.Table` are, if it was fitted to one.
    conditions : ConditionScales
        Mean and scale of numeric conditions. `fit` measures them; the network is given
        (c − mean)/scale.
    learnt : dict or None
        What `fit` has recorded: "conditions", their names with the shapes of one sample's, and
        "unconditional", whether the network has learnt to do without them. None before `fit`, and
        for models saved by versions that did not record it.

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

    stored_as = "score_sde"
    _source: Any = None
    _outcome = OUTCOMES["score"]

    @renamed_arguments(sees="input_convention", kind="outcome")
    @torch.inference_mode(False)
    def __init__(
        self,
        process: Process,
        net: nn.Module,
        *,
        shape: tuple[int, ...],
        predict: str = "edm",
        input_convention: str = "arc",
        outcome: str | Outcome = "score",
        source: Any = None,
        standardize: str | None = None,
    ) -> None:
        _check_parts(process, net)
        choose("input_convention=", input_convention, CONVENTIONS)
        process.check()
        check(predict, process)
        super().__init__(net, shape=shape, standardize=standardize, coupled=source is not None)
        self.process = process
        self.predict = predict
        self.input_convention = input_convention
        self.outcome = as_outcome(outcome)
        self.source = source

    # ------------------------------------------------------------------ what it is

    @property
    def outcome(self) -> Outcome:
        """What the network has learnt, and therefore what the model can compute."""
        return self._outcome

    @outcome.setter
    def outcome(self, outcome: str | Outcome) -> None:
        outcome = as_outcome(outcome)
        if outcome.name == "flow_map" and not self.takes("span"):
            raise ValueError(
                f"a flow map has a second time, and {self.interface.name} takes no span="
            )
        object.__setattr__(self, "_outcome", outcome)

    @property
    def source(self) -> Any:
        """The distribution of x at t = 1, an object with .sample(n), or None for a Gaussian."""
        return self._source

    @source.setter
    def source(self, source: Any) -> None:
        before = self._source
        source = as_source(source, self.shape)
        if source is not None and not self.process.ends_in_noise:
            raise ValueError(
                f"a source requires α(1) = 0, and {self.process} ends with "
                f"α(1) = {float(self.process.alpha(as_time(1.0))):.2g}; "
                "try RectifiedFlow() or Cosine()"
            )
        changed = (before is None) != (source is None)
        if self.ema is not None and changed and source is not None:
            warn(
                "this model was trained on paths from a Gaussian: train it again from this source"
            )
        # A source that is a module must not become a part of the model, and of its weights.
        object.__setattr__(self, "_source", source)
        if changed and not bool(self.measured):
            self.choose_standardization(self._standardize, source is not None)
        if self.ema is None and changed and self.outcome.name in ("score", "velocity"):
            self.outcome = OUTCOMES["score" if source is None else "velocity"]

    def __getattr__(self, name: str) -> Any:
        """Parts of the module, and methods by their old names."""
        if name in RENAMED:
            return by_old_name(self, name)
        return super().__getattr__(name)

    # ------------------------------------------------------------------ for training and files

    @property
    def objective(self) -> str:
        """What `fit` trains it for if the user names nothing: what suits the process."""
        return self._usual_objective

    def has_learnt(self, objective: Any) -> None:
        """Keep what an objective makes of the network; see `Trainable.has_learnt`."""
        self.outcome = as_outcome(objective.kind)

    def described(self) -> dict[str, Any]:
        """Return process, prediction, outcome and source; see `Trainable.described`."""
        return {
            "process": {
                "name": PROCESSES.name_of(self.process),
                "options": PROCESSES.options_of(self.process),
            },
            "predict": self.predict,
            "sees": self.input_convention,
            "kind": to_kind(self.outcome),
            "source": describe_source(self.source),
        }

    @classmethod
    def rebuilt(cls, net: nn.Module, shape: tuple[int, ...], about: Mapping[str, Any]) -> Self:
        """Return a model of a network and of what `described` returned; see `Trainable`."""
        process = PROCESSES.build(about["process"]["name"], **about["process"]["options"])
        kind = about.get("kind")
        if not kind:  # files of the first version
            kind = "velocity" if about["coupled"] else "score"
        sde = cls(
            process,
            net,
            shape=shape,
            predict=about["predict"],
            input_convention=about["sees"],
            outcome=from_kind(kind),
            standardize=about.get("standardize", "scale"),
        )
        sde.source = rebuild_source(about.get("source"))
        return sde

    # ------------------------------------------------------------------ the network

    def takes(self, name: str) -> bool:
        """Whether the network has an argument of that name; see `Model.takes`."""
        return self.interface.takes(name)

    def takes_condition(self, name: str) -> bool:
        """Whether the network takes a condition of that name; see `Model.takes_condition`."""
        return self.interface.takes_condition(name)

    def traces(self, *, raw: bool = False) -> bool:
        """Whether the network in use offers its exact trace; see `Model.traces`."""
        return self.standardization.free is None and can_trace(self.networks(raw=raw)[0])

    def network_fn(self, *, raw: bool = False, traced: bool = False) -> Callable[..., Any]:
        """Return the network's output as a function (z, φ, rows); see `Model.network_fn`."""
        return self._network_under({}, raw=raw, traced=traced)

    def _network_under(
        self, condition: Mapping[str, Tensor], *, raw: bool = False, **returned: bool
    ) -> Callable[..., Any]:
        """The network's output under conditions in the user's units, as a function (z, φ, rows)."""
        net = self.networks(raw=raw)[0]
        shown = standardized(self, condition, net)
        return call_on_arc(net, shown, self.inputs, self.standardization, **returned)

    def inputs(
        self, z: Tensor, phi: Tensor | float, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor, Tensor | float]:
        """Return what the network is given for states on the arc.

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
        if self.interface.wide_inputs:
            dtype = torch.promote_types(dtype, torch.float32)
        convention = self.input_convention
        return arc_inputs(z, phi, dtype, self.process, convention, self.standardization)

    # ------------------------------------------------------------------ conditions

    def given(self, **condition: Tensor | float | int) -> Conditioned:
        """Return a view of this model under conditions, which reach the network by name.

        Parameters
        ----------
        **condition : Tensor, array, Series, number or word
            One value for all samples, or one row per sample; classes by number, or by the words
            that `fit` was given. `given()` says that a model which has learnt with conditions is
            used without them on purpose.

        Returns
        -------
        Conditioned
            It shares the network, mean and scale, which can be set on the model alone. The model
            stays as it is.

        Raises
        ------
        ValueError
            If the network takes no such condition, or not such values.
        TypeError
            For a condition that is no number and no tensor, and for a subclass that overrides
            methods such as `network_fn`: the view would not use them.

        Warns
        -----
        UserWarning
            If `fit` was never given such a condition, or a vector has an entry far from those of
            training.

        Examples
        --------
        >>> import scoresde
        >>> sde = scoresde.build("vp", "mlp", shape=(2,), classes=3)
        >>> scoresde.sample(sde.given(y=2), 4).shape
        torch.Size([4, 2])
        """
        values = checked(self, condition)
        if self.learnt is not None:
            new = sorted(values.keys() - self.learnt["conditions"] - {*SOLVE_ARGUMENTS})
            if new:
                warn(
                    f"this model was fitted without {' and '.join(new)}: "
                    "it has not learnt what that says"
                )
        warn_far(self, values)
        check_overrides(self, ScoreSDE)
        return Conditioned(self, values, deliberate=not condition)

    def with_condition(self, condition: Mapping[str, Tensor]) -> Conditioned:
        """Return this model under conditions that were checked before; see `Model`."""
        check_overrides(self, ScoreSDE)
        return Conditioned(self, condition)

    def warn_unconditional(self) -> None:
        """Warn once if it was fitted with conditions and is given none; see `Model`."""
        warn_lacking(self, {})

    # ------------------------------------------------------------------ as a module

    def __init_subclass__(cls, **options: Any) -> None:
        """Refuse methods by their old names, which would be passed over in silence."""
        super().__init_subclass__(**options)
        check_overrides_by_old_name(cls)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take what was pickled, also by version 0.1."""
        super().__setstate__(upgraded(state))  # type: ignore[no-untyped-call]

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; a source that is a module is no part of the model."""
        if name == "source":
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)


def _check_parts(process: Any, net: Any) -> None:
    """Raise TypeError for a process or network of the wrong type."""
    if not isinstance(process, Process):
        hint = "scoresde.build takes names"
        if isinstance(process, type):
            hint = f"write {process.__name__}()"
        raise TypeError(
            f"process is a scoresde.Process such as VPSDE(), got {brief_repr(process)}; {hint}"
        )
    if not isinstance(net, nn.Module):
        raise TypeError(
            f"net is an nn.Module, got {type(net).__name__}; scoresde.build takes names"
        )
