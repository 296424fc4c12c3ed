"""Numbers that files of older versions lack: those of the Gaussian under conditions."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping

import torch
from torch import Tensor

from ..backbones.conditional_gaussian import NUMBERS

_NUMBERS = re.compile(rf"(^|\.)conditional_gaussian\.({'|'.join(NUMBERS)})$")


def with_gaussians(
    tensors: Mapping[str, Tensor], wanted: Mapping[str, tuple[tuple[int, ...], str]]
) -> dict[str, Tensor]:
    """Tensors with the numbers of N(0, I) where an older file has none."""
    found = dict(tensors)
    for name in missing_in_older(wanted, tensors):
        shape, _ = wanted[name]
        with torch.device("cpu"):
            is_basis = name.endswith("basis")
            found[name] = torch.eye(shape[0]) if is_basis else torch.zeros(shape)
    return found


def missing_in_older(wanted: Iterable[str], found: Collection[str], prefix: str = "") -> list[str]:
    """Names, without the prefix, of numbers that a file lacks as it is older than they are.

    None if the file has any of them.
    """
    if any(map(_NUMBERS.search, found)):
        return []
    return [name for name in wanted if _NUMBERS.search(name) and prefix + name not in found]
