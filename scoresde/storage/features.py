"""How many Fourier features a network has, of which older versions gave others by default."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..backbones.base import RANDOM_FEATURES, feature_counts
from ..common.inputs import event_shape

_FEATURED = ("mlp", "resmlp")
"""Networks with Fourier features."""


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
