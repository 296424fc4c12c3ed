"""The registry of backbones: networks called as net(x, t, **condition) that keep x's shape."""

from __future__ import annotations

from torch import nn

from ..registry import Registry

BACKBONES: Registry[nn.Module] = Registry("backbone")
"""All backbones by name, built as `BACKBONES.build(name, shape, **options)`; `@BACKBONES.register("name")` adds one and enrols
it in the tests."""
