"""`build`: names become objects here, and nowhere deeper."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Unpack, overload

from torch import nn

from ..backbones import BACKBONES, Embedded
from ..backbones.keywords import Name, NetworkOptions
from ..backbones.learnedvariance import HEAD, has_variance
from ..common.checks import brief_repr, check_budget
from ..common.inputs import event_shape
from ..common.names import choose
from ..common.renamed import renamed_arguments
from ..processes.base import PROCESSES, Process
from .score_sde import ScoreSDE


@overload
def build(
    process: str | Process = ...,
    net: Name = ...,
    *,
    shape: tuple[int, ...],
    predict: str = ...,
    input_convention: str = ...,
    standardize: str | None = ...,
    embed: nn.Module | Mapping[str, nn.Module] | None = ...,
    variance: str | None = ...,
    **options: Unpack[NetworkOptions],
) -> ScoreSDE: ...


@overload
def build(
    process: str | Process = ...,
    net: str | nn.Module = ...,
    *,
    shape: tuple[int, ...],
    predict: str = ...,
    input_convention: str = ...,
    standardize: str | None = ...,
    embed: nn.Module | Mapping[str, nn.Module] | None = ...,
    variance: str | None = ...,
    **options: Any,
) -> ScoreSDE: ...


@renamed_arguments(sees="input_convention")
def build(
    process: str | Process = "vp",
    net: str | nn.Module = "mlp",
    *,
    shape: tuple[int, ...],
    predict: str = "edm",
    input_convention: str = "arc",
    standardize: str | None = None,
    embed: nn.Module | Mapping[str, nn.Module] | None = None,
    variance: str | None = None,
    **options: Any,
) -> ScoreSDE:
    """Build a ScoreSDE from names.

    Parameters
    ----------
    process : str or Process
        A name of `scoresde.PROCESSES` with its default parameters, or an object such as
        VPSDE(beta_max=10.0).
    net : str or nn.Module
        A name of `scoresde.BACKBONES`, or a network.
    shape : tuple of int
        Shape of one sample, without the batch.
    predict : str
        What the network outputs: a name of `scoresde.PREDICTIONS`.
    input_convention : str
        "arc" or "raw", see `ScoreSDE`.
    standardize : str, optional
        "whiten", "factors", "scale" or "none", see `ScoreSDE`.
    embed : nn.Module, or mapping of str to nn.Module, optional
        Makes the network's `vector`, or other conditions by name, from conditions of any shape, and
        is trained along; see `Embedded`.
    variance : str, optional
        "learned" for a network that also learns the variance of reverse steps, elementwise, which
        `vlb` and the solver "ancestral" then use; see `LearnedVariance`. A network of your own
        takes `with_variance=True` and then returns both outputs, stacked.
    **options
        Of the named backbone, e.g. width=256.

    Returns
    -------
    ScoreSDE
        Untrained.

    Raises
    ------
    TypeError, ValueError
        For unknown names or options (with the nearest name offered), or a prediction that is
        singular for the process.

    Examples
    --------
    >>> build("rectified", "mlp", shape=(2,), width=64).process
    RectifiedFlow()
    >>> build("vpp", "mlp", shape=(2,))
    Traceback (most recent call last):
    ValueError: unknown process 'vpp'. Did you mean 'vp'? There are: ...
    """
    shape = event_shape(shape)
    if isinstance(process, str):
        process = PROCESSES.build(process)
    if variance is not None:
        choose("variance", variance, ("learned",))
    if isinstance(net, str):
        net = _network(net, shape, options, variance is not None)
    elif options:
        raise TypeError(
            f"options {sorted(options)} go with a backbone's name; give them to the network itself"
        )
    if variance is not None and not has_variance(net):
        raise ValueError(
            f"variance='learned' takes a network with a second output, and {type(net).__name__} "
            f"takes no {HEAD}=; see scoresde.backbones.LearnedVariance"
        )
    if embed is not None:
        net = Embedded(net, embed)
    return ScoreSDE(
        process,
        net,
        shape=shape,
        predict=predict,
        input_convention=input_convention,
        standardize=standardize,
    )


def _network(
    name: str, shape: tuple[int, ...], options: dict[str, Any], with_variance: bool
) -> nn.Module:
    """Build a network by name, if it fits into memory."""
    for option, value in options.items():
        if isinstance(value, int):
            # A layer takes a thousand bytes, and a unit, a class or a channel one weight.
            bytes_each = 1000.0 if "depth" in option else 4.0
            count = max(0, min(value, 10**30))
            check_budget(f"{option}={brief_repr(value)}", bytes_each * count)
    try:
        if with_variance and name != "learned_variance":
            return BACKBONES.build("learned_variance", shape, backbone=name, **options)
        return BACKBONES.build(name, shape, **options)
    except (RuntimeError, MemoryError) as error:
        too_large = re.search("memory|[Oo]verflow|Storage size", str(error))
        if not isinstance(error, MemoryError) and not too_large:
            raise
        raise ValueError(
            f"the network {name!r} of this size does not fit into memory: {brief_repr(error, str)}"
        ) from None
