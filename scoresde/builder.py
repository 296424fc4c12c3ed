"""The only door for strings: names become objects here, and nowhere deeper."""

from __future__ import annotations

from typing import Any

from torch import nn

from .backbones import BACKBONES
from .inputs import event_shape
from .process import PROCESSES, Process
from .sde import ScoreSDE


def build(
    process: str | Process = "vp",
    net: str | nn.Module = "mlp",
    *,
    shape: tuple[int, ...],
    predict: str = "edm",
    sees: str = "arc",
    **options: Any,
) -> ScoreSDE:
    """Build a ScoreSDE from names.

    Parameters
    ----------
    process : str or Process
        A name of `scoresde.PROCESSES` with its default parameters, or an object such as VPSDE(beta_max=10.0).
    net : str or nn.Module
        A name of `scoresde.BACKBONES`, or a network.
    shape : tuple of int
        Shape of one sample, without the batch.
    predict : str
        What the network outputs: a name of `scoresde.PREDICTIONS`.
    sees : str
        "arc" or "raw", see `ScoreSDE`.
    **options
        Of the named backbone, e.g. width=256.

    Returns
    -------
    ScoreSDE
        Untrained.

    Raises
    ------
    TypeError, ValueError
        For unknown names or options (with the nearest name offered), or a prediction that is singular for the process.

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
    if isinstance(net, str):
        net = BACKBONES.build(net, shape, **options)
    elif options:
        raise TypeError(f"options {sorted(options)} go with a backbone's name; give them to the network itself")
    return ScoreSDE(process, net, shape=shape, predict=predict, sees=sees)
