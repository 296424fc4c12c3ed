"""Doctests may say `scoresde`, `torch` and `math` without importing them; all tests are seeded."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import scoresde


@pytest.fixture(autouse=True, scope="session")
def _names(doctest_namespace: dict[str, Any]) -> None:
    doctest_namespace.update(scoresde=scoresde, torch=torch, math=math)


@pytest.fixture(autouse=True)
def _seed() -> None:
    """Each test draws the same numbers in every run, also those drawn without a generator."""
    torch.manual_seed(0)
