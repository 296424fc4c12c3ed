"""Doctests may say `scoresde`, `torch` and `math` without importing them first."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import scoresde


@pytest.fixture(autouse=True, scope="session")
def _names(doctest_namespace: dict[str, Any]) -> None:
    doctest_namespace.update(scoresde=scoresde, torch=torch, math=math)
