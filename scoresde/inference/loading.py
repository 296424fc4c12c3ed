"""A posterior read back from a folder."""

from __future__ import annotations

import math
import os
from typing import Any

import torch

from ..common.checks import as_path, brief_repr, true_or_false, whole_number
from ..common.errors import CheckpointError
from ..model.schema import Schema
from ..model.score_sde import ScoreSDE
from ..storage import records
from ..storage.models import load
from .amortized import Posterior
from .coordinates import Coordinates
from .files import NAME
from .observations import shape_of
from .prior import as_prior, rebuild_prior


def load_posterior(
    folder: str | os.PathLike[str],
    prior: Any = None,
    device: str | torch.device = "cpu",
    *,
    embed: Any = None,
) -> Posterior:
    """Load what `Posterior.save` wrote.

    Parameters
    ----------
    folder : path
    prior : torch.distributions.Distribution or pair of Tensor, optional
        The prior, if it is of no family that is saved. It replaces the saved one; outside the
        support of that, where nothing was learnt, log p stays −∞.
    device : str or torch.device
        Where to put the model.
    embed : nn.Module, or mapping of str to nn.Module, optional
        As for `scoresde.load`.

    Returns
    -------
    Posterior

    Raises
    ------
    CheckpointError
        If there is no posterior, or it is damaged.
    TypeError, ValueError
        If the prior was not saved and is not given, or is of another dimension.

    Examples
    --------
    >>> import scoresde, tempfile
    >>> sde = scoresde.build("vp", "resmlp", shape=(2,), vector=3, width=16)
    >>> post = scoresde.Posterior(sde, (-torch.ones(2), torch.ones(2)))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     again = scoresde.load_posterior(post.save(folder + "/moons"))
    >>> again.prior.support.check(again.sample((4,), x=torch.zeros(3)))
    tensor([True, True, True, True])
    """
    folder = as_path(folder, "folder")
    if not (folder / f"{NAME}.json").exists():
        raise CheckpointError(
            f"no posterior at {folder}: it has no {NAME}.json; scoresde.load reads a model alone"
        )
    about, numbers = records.read(folder, NAME)
    where = str(folder / f"{NAME}.json")
    if prior is None and about.get("prior") is None:
        raise ValueError(
            f"the prior of {folder} was not saved, as it is of no family that is plain numbers: "
            "write load_posterior(folder, prior)"
        )
    chosen = rebuild_prior(about["prior"], where) if prior is None else as_prior(prior)
    coordinates = None
    try:
        if true_or_false("transformed", about["transformed"]):
            coordinates = Coordinates(**numbers)
        condition = about["condition"]
        surrogate_pairs = whole_number("surrogate_pairs", about.get("surrogate_pairs", 0), 0)
    except KeyError as error:
        raise CheckpointError(f"{where} lacks {error}") from None
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{where} was edited or is damaged: {error}") from None
    sde = load(folder, device, embed=embed)
    _check_fit(sde, coordinates, condition, where)
    made = Posterior(sde, chosen, coordinates=coordinates, condition=condition)
    made.surrogate_pairs = surrogate_pairs
    made._names = _names(about.get("schema"), made, where)
    return made


def _names(about: object, posterior: Posterior, where: str) -> Schema | None:
    """The column names of theta and x; None in files that have none."""
    if about is None:
        return None
    try:
        names = Schema.rebuild(about, tuple(posterior.sde.shape))
    except ValueError as error:
        raise CheckpointError(f"{where} was edited or is damaged: {error}") from None
    shape = shape_of(posterior.sde, posterior.condition)
    if posterior.coordinates is not None:
        shape = (posterior.coordinates.observed,)
    known = names.parts.get(posterior.condition, ())
    if known and shape is not None and shape != (len(known),):
        raise CheckpointError(f"{where} names {len(known)} columns of x, whose shape is {shape}")
    return names


def _check_fit(
    sde: ScoreSDE, coordinates: Coordinates | None, condition: object, where: str
) -> None:
    """Raise CheckpointError unless a model is one of such coordinates and takes the condition."""
    names = sde.interface.condition_names
    known = condition in names if names else sde.interface.open
    if not isinstance(condition, str) or not known:
        raise CheckpointError(
            f"{where} names the condition {brief_repr(condition)}, which its model does not take"
        )
    if coordinates is None:
        return
    dim = len(coordinates.numbers["low"])
    if (dim,) != tuple(sde.shape):
        raise CheckpointError(
            f"{where} has coordinates of {dim} parameters for a model of shape {tuple(sde.shape)}"
        )
    shape = shape_of(sde, condition)
    k = coordinates.observed + (2 * dim if coordinates.varies else 0)
    if shape is not None and math.prod(shape) != k:
        raise CheckpointError(
            f"{where} has coordinates for {k} numbers in x, and its model takes {math.prod(shape)}"
        )
