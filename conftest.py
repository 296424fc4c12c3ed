"""Doctests may say `scoresde`, `torch` and `math` without importing them; all tests are seeded.

Files that take longest run first, so that no worker waits for another's last file.
"""

from __future__ import annotations

import gc
import math
import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import scoresde

LONGEST = (
    "test_docs.py",
    "test_likelihood.py",
    "test_solvers.py",
    "test_multistep.py",
    "test_examples.py",
    "test_checkpoint.py",
    "test_accelerate.py",
    "test_backbones.py",
    "test_estimators.py",
    "test_evaluate.py",
    "test_storage.py",
    "test_trace.py",
    "test_sampling.py",
    "test_external.py",
    "test_ranks.py",
    "test_runge_kutta.py",
    "test_bounds.py",
    "test_toy.py",
    "test_conditions.py",
    "test_observed.py",
    "test_flows.py",
    "test_data.py",
    "test_samples.py",
    "test_unet.py",
)


gc.disable()  # until all modules are there, which are not to be searched again and again


def pytest_configure(config: pytest.Config) -> None:
    """Keep the order of the files: pytest-xdist runs those with the fewest tests last."""
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first."""
    place = {name: i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.name, len(LONGEST)))


def pytest_collection_finish() -> None:
    """Garbage collection need not go through what was imported and collected, again and again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)
    gc.enable()


@pytest.fixture(autouse=True, scope="session")
def _names(doctest_namespace: dict[str, Any]) -> None:
    doctest_namespace.update(scoresde=scoresde, torch=torch, math=math)


@pytest.fixture(autouse=True, scope="module")
def no_waiting_for_the_disk() -> Iterator[None]:
    """Files stay in memory for a while: no test cuts the power."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture(autouse=True)
def _seed() -> None:
    """Each test draws the same numbers in every run, also those drawn without a generator."""
    torch.manual_seed(0)
