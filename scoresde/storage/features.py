"""What networks of older versions have not, or have in other numbers: Fourier features by default,
and the Gaussian given a vector.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..backbones.base import RANDOM_FEATURES, feature_counts
from ..backbones.regression import NUMBERS
from ..common.inputs import event_shape

_FEATURED = ("mlp", "resmlp")
"""Networks with Fourier features."""
_REGRESSION = re.compile(rf"(^|\.)regression\.({'|'.join(NUMBERS)})$")


def with_features(about: Any, tensors: Mapping[str, Tensor], always: bool = False) -> Any:
    """A description that says how many features its weights have, if not those of the defaults."""
    if "net" not in about or about["net"]["name"] not in _FEATURED:
        return about
    net = about["net"]
    options = net["options"]
    widths = [
        value.shape[1]
        for name, value in tensors.items()
        if name.endswith("frequencies") and value.ndim == 2
    ]
    if not widths:
        return about
    shape = event_shape(about["shape"])
    asked = options.get("fourier")
    random, axes = feature_counts(shape, asked, options.get("blur", True), options.get("axes"))
    if random + axes != widths[0]:
        random = RANDOM_FEATURES if asked is None else random
        if options.get("axes") is None:
            axes = max(widths[0] - random, 0)
    elif not always:
        return about
    return {**about, "net": {**net, "options": {**options, "fourier": random, "axes": axes}}}


def with_regressions(
    tensors: Mapping[str, Tensor], wanted: Mapping[str, tuple[tuple[int, ...], str]]
) -> dict[str, Tensor]:
    """Tensors with N(0, I) for the Gaussians given a vector, which an older file lacks."""
    found = dict(tensors)
    for name in older_lack(wanted, tensors):
        shape, _ = wanted[name]
        found[name] = torch.eye(shape[0]) if name.endswith("basis") else torch.zeros(shape)
    return found


def older_lack(wanted: Iterable[str], found: Collection[str], prefix: str = "") -> list[str]:
    """The wanted names that are missing, after a prefix, since a file is of an older version."""
    missing = [name for name in wanted if _REGRESSION.search(name) and prefix + name not in found]
    return missing if not any(map(_REGRESSION.search, found)) else []
