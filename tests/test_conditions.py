"""Conditions: none is no value of them, numbers are standardized, views are the model's, and what
was learnt is said.
"""

from __future__ import annotations

import copy
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fit_options import fit_keywords
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import scoresde
from conftest import generator, some
from scoresde import CheckpointError, ScoreSDE
from scoresde.backbones.conditions import drop_conditions
from scoresde.model.condition_measures import ConditionMeasure
from scoresde.model.condition_scales import SCORES, ConditionScales
from scoresde.model.network import noise_label
from scoresde.storage import description
from scoresde.storage import records as storage
from scoresde.storage.rebuild import rebuild

F64 = torch.float64
QUIET: dict[str, Any] = {"progress": False}
BLOCKS = {
    "down_block_types": ["CrossAttnDownBlock2D"] * 2,
    "up_block_types": ["CrossAttnUpBlock2D"] * 2,
}
TINY = {
    "block_out_channels": [8, 8],
    "norm_num_groups": 4,
    "layers_per_block": 1,
    "attention_head_dim": 4,
}
NETS: dict[str, tuple[str, tuple[int, ...], dict[str, Any]]] = {
    "mlp": ("mlp", (2,), {"classes": 3, "vector": 2, "width": 8}),
    "resmlp": ("resmlp", (2,), {"classes": 3, "vector": 2, "width": 8}),
    "encoded_resmlp": ("encoded_resmlp", (2,), {"classes": 3, "vector": 2, "width": 8}),
    "resmlp of an image": ("resmlp", (1, 4), {"image": 1, "width": 8}),
    "unet": (
        "unet",
        (1, 4, 4),
        {"vector": 2, "image": 1, "channels": 8, "multipliers": (1,), "blocks": 1},
    ),
    "dit": ("dit", (1, 4, 4), {"vector": 2, "image": 1, "width": 8, "depth": 1, "heads": 2}),
    "uvit": ("uvit", (1, 4, 4), {"vector": 2, "image": 1, "width": 8, "depth": 1, "heads": 2}),
    "uvit of an image": ("uvit", (1, 4, 4), {"image": 1, "width": 8, "depth": 1, "heads": 2}),
    "two_times": ("two_times", (2,), {"backbone": "resmlp", "vector": 2, "width": 8}),
    "two_drifts": ("two_drifts", (2,), {"backbone": "resmlp", "vector": 2, "width": 8}),
    "diffusers": ("diffusers:UNet2DConditionModel", (1, 4, 4), {"vector": 2, **BLOCKS, **TINY}),
}
each_net = pytest.mark.parametrize("name", NETS)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed))


def model(name: str, **more: Any) -> ScoreSDE:
    """With all weights drawn, so that every part speaks."""
    net, shape, options = NETS[name]
    if net.startswith("diffusers"):
        pytest.importorskip("diffusers")
    torch.manual_seed(0)
    sde = scoresde.build("vp", net, shape=shape, **{**options, **more}).eval()
    with torch.no_grad():
        for i, p in enumerate(sde.net.parameters()):
            p.copy_(normal(*p.shape, seed=i) / math.sqrt(max(1, p.shape[-1] if p.ndim else 1)))
    return sde


def values(name: str, n: int, of: float | None = None) -> dict[str, Tensor]:
    """Conditions that a network takes: random ones, or all alike."""
    _, shape, options = NETS[name]
    shapes = {"y": ()} if "classes" in options else {}
    shapes |= {"vector": (options["vector"],)} if "vector" in options else {}
    shapes |= {"image": (options["image"], *shape[1:])} if "image" in options else {}
    found = {
        name: normal(n, *shape, seed=9) if of is None else torch.full((n, *shape), of)
        for name, shape in shapes.items()
    }
    if "y" in found:
        found["y"] = torch.arange(n) % 3
    return found


# ---------------------------------------------------------------------- none


@each_net
def test_none_is_what_hidden_conditions_are_and_no_value_of_the_data(name: str) -> None:
    sde = model(name)
    x, t = normal(3, *sde.shape), normal(3, seed=1)
    with torch.no_grad():
        none = sde.net(x, t)
        hidden = sde.net(
            x,
            t,
            **drop_conditions(
                values(name, 3), getattr(sde.net, "classes", 3) or 3, 1.0, generator()
            ),
        )
        torch.testing.assert_close(hidden, none, rtol=1e-5, atol=1e-5)
        for of in (0.0, 1.0, -1.0, None):
            for key, value in values(name, 3, of).items():
                given = sde.net(x, t, **{key: value})
                assert (given - none).abs().amax(tuple(range(1, x.ndim))).min() > 1e-3, (key, of)


@each_net
def test_rows_that_are_hidden_do_not_touch_the_others_nor_their_gradients(name: str) -> None:
    sde = model(name)
    x, t, given = normal(6, *sde.shape), normal(6, seed=1), values(name, 6)
    hidden = drop_conditions(given, getattr(sde.net, "classes", 3) or 3, 0.5, generator(5))
    key = next(iter(given))
    lost = [not torch.equal(hidden[key][i], given[key][i]) for i in range(6)]
    assert 0 < sum(lost) < 6
    out = sde.net(x, t, **hidden)
    out.square().sum().backward()
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in sde.net.parameters())
    with torch.no_grad():
        for i, is_lost in enumerate(lost):
            alone = {} if is_lost else {key: value[i : i + 1] for key, value in given.items()}
            torch.testing.assert_close(
                out[i : i + 1], sde.net(x[i : i + 1], t[i : i + 1], **alone), rtol=1e-4, atol=1e-4
            )


@pytest.mark.parametrize("net", some(["mlp", "resmlp"], "mlp"))
def test_a_model_knows_an_observation_of_zero_from_none(net: str) -> None:
    """x = θ + .1·ε at x = 0, where the posterior is N(0, .01/1.01): 35% of samples lay beyond 5σ,
    spread 4.9 times too wide.
    """
    theta = normal(10_000, 2, seed=1)
    torch.manual_seed(0)
    sde = scoresde.build("vp", net, shape=(2,), vector=2, width=32)
    given = {"vector": theta + 0.1 * normal(10_000, 2, seed=2)}
    scoresde.fit(
        sde, theta, given=given, steps=400, batch_size=256, generator=generator(), **QUIET
    )
    drawn = scoresde.sample(
        sde.given(vector=torch.zeros(1, 2)), 1000, steps=12, generator=generator()
    )
    deviations = drawn / math.sqrt(0.01 / 1.01)
    assert (deviations.abs() > 5).any(1).float().mean() < 0.03
    assert float(deviations.quantile(0.84, 0).max()) < 1.5
    unconditional = scoresde.sample(sde.given(), 1000, steps=12, generator=generator())
    assert 0.7 < float(unconditional.std()) < 1.4


@pytest.mark.parametrize("name", [name for name in NETS if name != "encoded_resmlp"])  # newer
def test_models_of_before_load_with_zeros_for_none(name: str) -> None:
    sde = model(name)
    about, tensors = description.describe(sde), dict(description.weights(sde))
    lost = [key for key in tensors if "null_" in key]
    for key in lost:
        del tensors[key]
    for key in [
        key for key in tensors if key.endswith(("attn2.to_k.weight", "attn2.to_v.weight"))
    ]:
        tensors[key] = tensors[key][:, :-1]
        lost.append(key)
    if not lost:
        return
    with pytest.warns(UserWarning, match="a condition of zeros and none are the same"):
        again = rebuild(about, tensors)
    x, t, zeros = normal(3, *sde.shape), normal(3, seed=1), values(name, 3, 0.0)
    zeros = {key: value for key, value in zeros.items() if key != "y"}
    with torch.no_grad():
        torch.testing.assert_close(again.net(x, t), again.net(x, t, **zeros), rtol=0, atol=1e-6)
        given = values(name, 3)
        torch.testing.assert_close(again.net(x, t, **given), sde.net(x, t, **given))


def test_without_its_null_any_other_weight_is_still_missed() -> None:
    sde = model("resmlp")
    tensors = {
        key: value
        for key, value in description.weights(sde).items()
        if not key.endswith("embed.vector.weight")
    }
    with pytest.raises(CheckpointError, match=r"1 weights are missing.*embed\.vector\.weight"):
        rebuild(description.describe(sde), tensors)


# ---------------------------------------------------------------------- numbers are standardized


class Affine(nn.Module):
    """Keeps what it was told, and says nothing."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))
        self.told: dict[str, Tensor] = {}
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(
        self, x: Tensor, t: Tensor, c: Tensor | None = None, d: Tensor | None = None
    ) -> Tensor:
        self.told = {name: value for name, value in (("c", c), ("d", d)) if value is not None}
        return x * self.weight


def columns(n: int = 400) -> tuple[Tensor, list[float], list[float]]:
    means, spreads = [0.0, 1e5, 1e9, -3e-6, 5e8, 7.0, 0.0], [1.0, 1.0, 1e3, 1e-6, 1e6, 0.0, 0.0]
    unit = normal(n, 7).double()
    unit = (unit - unit.mean(0)) / unit.std(0, correction=0)
    return torch.tensor(means, dtype=F64) + torch.tensor(spreads, dtype=F64) * unit, means, spreads


@pytest.mark.parametrize("kind", ["table", "float32", "dataset", "loader", "numpy"])
def test_fit_measures_conditions_and_the_model_applies_them(kind: str, tmp_path: Path) -> None:
    c, means, spreads = columns()
    x, net = normal(400, 2, seed=3), Affine()
    sde = ScoreSDE(scoresde.VPSDE(), net, shape=(2,))
    how: dict[str, Any] = {"steps": 3, "batch_size": 50, "generator": generator(), **QUIET}

    class Rows(Dataset):  # type: ignore[type-arg]
        def __len__(self) -> int:
            return 400

        def __getitem__(self, i: int) -> Any:
            return x[i], {"c": c[i]}

    if kind in ("table", "float32", "numpy"):
        given: Any = {"table": c, "float32": c.float(), "numpy": c.numpy()}[kind]
        scoresde.fit(sde, x, given={"c": given}, **how)
    else:
        scoresde.fit(
            sde, Rows() if kind == "dataset" else DataLoader(Rows(), 50, shuffle=True), **how
        )
    tol = 5e-3 if kind == "float32" else 1e-6
    part = sde.conditions.get_submodule("c")
    wanted = torch.tensor(
        [*spreads[:5], 7.0, 1.0], dtype=F64
    )  # a constant is measured by its size
    torch.testing.assert_close(part.mean, torch.tensor(means, dtype=F64), rtol=tol, atol=1e-8)
    torch.testing.assert_close(part.scale, wanted, rtol=tol, atol=0)
    assert part.mean.dtype == F64
    told = net.told["c"]  # of the last batch
    assert told.dtype == torch.float32
    assert told.abs().max() < 5
    assert told[:, :5].std(0).min() > 0.5
    scoresde.sample(sde.given(c=c[:5]), 5, steps=1, solver="ddim")
    mean, scale = torch.tensor(means, dtype=F64), wanted
    torch.testing.assert_close(
        sde.ema.told["c"].double(), (c[:5] - mean) / scale, rtol=2e-3, atol=tol
    )  # type: ignore
    for change in (sde.bfloat16, sde.float, sde.double):
        torch.testing.assert_close(
            change().conditions.get_submodule("c").mean, part.mean, rtol=0, atol=0
        )


@pytest.mark.parametrize("net", some(["mlp", "resmlp"], "resmlp"))
def test_a_condition_of_odd_units_is_learnt_as_one_of_unit_ones(net: str) -> None:
    """y = v + noise: with v + 10⁵ or v·10⁻³ nothing was learnt; now the losses are those of v to
    rounding.
    """
    v = normal(2000, 1, seed=4)
    y = torch.cat([v, -v], 1) + 0.1 * normal(2000, 2, seed=5)
    losses = []
    for units in (v.double(), v.double() + 1e5, v.double() * 1e-3, v.double() * 1e6):
        torch.manual_seed(0)
        sde = scoresde.build("vp", net, shape=(2,), vector=1, width=16, depth=1, fourier=0)
        history = scoresde.fit(
            sde,
            y,
            given={"vector": units},
            steps=30,
            batch_size=64,
            generator=generator(1),
            **QUIET,
        )
        losses.append(history.loss[-1])
    torch.testing.assert_close(
        torch.tensor(losses[1:]), torch.tensor(losses[:1]).expand(3), rtol=1e-3, atol=0
    )


def test_a_constant_entry_and_a_condition_of_zeros_are_harmless() -> None:
    """An entry that does not vary, 0 or 10⁶, is shown as 0; with only such, the law is that of x.

    1,000 draws of N(3, 2²): a mean off by .4 (six standard errors) or a spread off by 20% fails.
    """
    x = 3 + 2 * normal(2000, 1, seed=6)
    for constant in (0.0, 1e6):
        torch.manual_seed(0)
        sde = scoresde.build("vp", "mlp", shape=(1,), vector=2, width=16, depth=1, fourier=0)
        given = torch.full((2000, 2), constant)
        scoresde.fit(
            sde,
            x,
            given={"vector": given},
            steps=60,
            batch_size=64,
            generator=generator(),
            **QUIET,
        )
        shown = sde.conditions.standardize("vector", given)
        assert not shown.any()
        one = sde.given(vector=torch.full((2,), constant))  # one observation, without an axis
        drawn = scoresde.sample(one, 1000, steps=12, generator=generator())
        assert abs(float(drawn.mean()) - 3) < 0.4
        assert abs(float(drawn.std()) / 2 - 1) < 0.2


@pytest.mark.parametrize("unit", [1e-300, 1e-200, 1e-30, 1e30, 1e200, 1e290])
@pytest.mark.parametrize("kind", ["tensor", "loader"])
def test_conditions_of_any_magnitude_have_their_own_scale(unit: float, kind: str) -> None:
    """Squares of these numbers overflow or vanish even in float64."""
    x, c = normal(40, 2), unit * (3 + normal(40, 2, seed=1)).double()
    data: Any = (
        x
        if kind == "tensor"
        else DataLoader([(a, {"c": b}) for a, b in zip(x, c, strict=True)], batch_size=7)
    )
    sde = ScoreSDE(scoresde.VPSDE(), Affine(), shape=(2,))
    given = {"c": c} if kind == "tensor" else None
    with torch.device("meta"):  # which must not matter
        scoresde.fit(sde, data, given=given, steps=1, batch_size=10, **QUIET)
    part, wanted = sde.conditions.get_submodule("c"), c / unit
    torch.testing.assert_close(part.mean / unit, wanted.mean(0))
    torch.testing.assert_close(part.scale / unit, wanted.std(0, correction=0))
    other = ScoreSDE(scoresde.VPSDE(), Affine(), shape=(2,))
    state = {
        name: value for name, value in sde.state_dict().items() if not name.startswith("ema.")
    }
    with torch.device("meta"):
        other.load_state_dict(state)
    assert torch.equal(other.conditions.get_submodule("c").scale, part.scale)


def heavy_columns(n: int = 3000) -> tuple[Tensor, Tensor]:
    """Normal numbers, and entries of vectors made of them: 2, 3 and 4 have heavy tails."""
    a = normal(n, 6, seed=5).double()
    c = torch.stack(
        [a[:, 0], a[:, 1].exp(), (3 * a[:, 2]).exp(), a[:, 3], a[:, 4], a[:, 5].round() * 0], 1
    )
    c[7, 3] = -1e6
    c[:, 4] = torch.where(a[:, 4] > 1, (5 * a[:, 4]).exp(), 0.0)  # five of six are 0
    return a, c


@pytest.mark.parametrize("kind", ["table", "loader", "float32"])
def test_entries_with_heavy_tails_are_told_as_normal_scores(kind: str) -> None:
    a, c = heavy_columns()
    x = normal(len(c), 2)
    how: dict[str, Any] = {"steps": 12, "batch_size": 500, "validation": None, **QUIET}
    sde = scoresde.build("vp", "resmlp", shape=(2,), vector=6, width=8)
    if kind == "loader":
        data = DataLoader(TensorDataset(x, c), 250)
        scoresde.fit(sde, data, **how)
    else:
        scoresde.fit(sde, x, given={"vector": c if kind == "table" else c.float()}, **how)
    part = sde.conditions.get_submodule("vector")
    assert part.entries.tolist() == [2, 3, 4]
    told = sde.conditions.standardize("vector", c)
    assert torch.isfinite(told).all()
    for entry in (2, 3):
        rows = (a[:, entry].abs() < 2) & (c[:, 3] > -1e5)
        torch.testing.assert_close(told[rows, entry], a[rows, entry], rtol=0, atol=0.1)
    assert (told[:, 2].argsort() == a[:, 2].argsort()).double().mean() > 0.999
    zeros = told[c[:, 4] == 0, 4]
    assert zeros.amin() == zeros.amax() < told[c[:, 4] > 0, 4].amin()
    torch.testing.assert_close(told[:, :2], (c - c.mean(0))[:, :2] / c.std(0, correction=0)[:2])
    assert (told[:, 5] == 0).all()
    # beyond all rows the scores are bounded, and still rise
    far = c[:3].clone()
    far[:, 2] = torch.tensor([1e9, 1e12, math.inf])
    beyond = sde.conditions.standardize("vector", far)[:, 2]
    assert told[:, 2].max() < beyond[0] < beyond[1] <= beyond[2] < 6
    for change in (sde.bfloat16, sde.float):
        torch.testing.assert_close(
            change().conditions.standardize("vector", c), told, rtol=0, atol=0
        )


def test_a_vector_far_from_all_rows_is_told_as_one_near_their_end_and_said() -> None:
    c = torch.tensor([10.0, -2.0]) + torch.tensor([3.0, 1e-3]) * normal(200, 2)
    sde = scoresde.build("vp", "resmlp", shape=(2,), vector=2, width=8)
    scoresde.fit(sde, normal(200, 2), given={"vector": c}, steps=1, batch_size=9, **QUIET)
    rows = c.double()
    mean, scale = rows.mean(0), rows.std(0, correction=0)
    told = sde.conditions.standardize("vector", c)
    torch.testing.assert_close(told, (rows - mean) / scale, rtol=1e-6, atol=1e-6)
    low, high = told.amin(0), told.amax(0)
    for times in (1e-3, 0.5, 3.0, 1e9):
        for end, far in (
            (low, mean + scale * (low - times)),
            (high, mean + scale * (high + times)),
        ):
            found = sde.conditions.standardize("vector", far[None])[0]
            step = times if times < 1 else 2 - 1 / times
            wanted = end + (1 if end is high else -1) * step
            torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    near = (rows.amax(0) + 0.4 * (rows.amax(0) - rows.amin(0)))[None]
    assert not said(lambda: sde.given(vector=near))
    near[0, 1] = 5
    (text,) = said(lambda: sde.given(vector=torch.cat([rows[:3], near])))
    assert "entry 1 of condition 'vector' = 5 lies far from the training data" in text
    assert "which have -2.00" in text
    ones = {"vector": torch.full((200, 2), 0.1)}
    same = scoresde.build("vp", "resmlp", shape=(2,), vector=2, width=8)
    scoresde.fit(same, normal(200, 2), given=ones, steps=1, batch_size=9, **QUIET)
    assert not said(
        lambda: same.given(vector=torch.full((2,), 0.1, dtype=F64))
    )  # but for rounding
    assert said(lambda: same.given(vector=torch.tensor([0.1, -0.2])))
    assert said(lambda: sde.given(vector=torch.ones(2).bool()))
    # a model of an earlier version has no ends
    about, tensors = description.describe(sde), dict(description.weights(sde))
    del about["scored_conditions"], tensors["conditions.vector.ends"]
    before = rebuild(about, tensors)
    assert not said(lambda: before.given(vector=near))
    torch.testing.assert_close(
        before.conditions.standardize("vector", near), (near - mean) / scale, rtol=1e-6, atol=1e-4
    )
    again = rebuild(description.describe(before), dict(description.weights(before)))
    assert again.conditions.state_dict().keys() == before.conditions.state_dict().keys()


def spread_entries(n: int = 2000) -> dict[str, Tensor]:
    """Columns by whether they become scores."""
    a, b = normal(n, seed=3).double(), normal(n, seed=4).double()
    rare = (torch.arange(n) % 50 == 0).double()
    return {
        "no: normal": a,
        "no: exponential": -torch.rand(n, generator=generator()).double().log(),
        "no: uniform": torch.rand(n, generator=generator(1)).double(),
        "no: two modes": a + 6 * b.sign(),
        "no: a flag": rare,
        "no: counts": (b.abs() * (a > 1)).round(),
        "no: labels": (torch.arange(n) % 7).double(),
        "no: often 1, never 1.5": 1.0 + (rare * a.sign()),
        "no: rain": torch.where(a > 1, b.exp(), 0.0),
        "yes: log-normal": (2 * a).exp(),
        "yes: a code": torch.where(b > 0.5, -999.0, a),
        "yes: an outlier among codes": torch.where(torch.arange(n) == 3, 1e6, rare),
        "yes: narrow modes": b.sign() + 1e-3 * a,
        "yes: often zero": torch.where(a > 1, (3 * b).exp(), 0.0),
    }


def test_scores_are_for_entries_of_which_most_would_look_alike() -> None:
    columns = spread_entries()
    measure, conditions = ConditionMeasure(), ConditionScales()
    c = torch.stack(list(columns.values()), 1)
    measure.add(c)
    measure.settle(conditions, "c")
    scored = conditions.get_submodule("c").entries.tolist()
    assert [list(columns)[i] for i in scored] == [name for name in columns if name[:3] == "yes"]
    told = conditions.standardize("c", c)
    for i, name in enumerate(columns):
        order = c[:, i].argsort()
        assert (told[order, i].diff() >= 0).all(), name
        distinct = min(len(c[:, i].unique()), 1000)
        assert len(told[:, i].unique()) >= distinct, name
        assert told[:, i].std() == pytest.approx(1, abs=0.05), name
    # a little beside a value that many rows have is told as a little beside it
    beside = conditions.standardize("c", c * (1 + 1e-9) + 1e-12)
    torch.testing.assert_close(beside, told, rtol=0, atol=1e-3)


def test_told_vectors_have_gradients_and_rows_of_reused_buffers_are_kept() -> None:
    c = torch.stack(list(spread_entries(900).values()), 1)
    measure, conditions = ConditionMeasure(), ConditionScales()
    buffer = torch.empty(90, c.shape[1], dtype=F64)
    for part in c.split(90):
        measure.add(buffer.copy_(part))
    measure.settle(conditions, "c")
    whole = ConditionScales()
    once = ConditionMeasure()
    once.add(c)
    once.settle(whole, "c")
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(conditions.state_dict()[name], value, rtol=1e-9, atol=1e-12)
    v = torch.cat([c[:50], 1e9 * c[:50]]).requires_grad_()
    conditions.standardize("c", v).sum().backward()
    assert v.grad is not None
    assert v.grad.isfinite().all()
    assert (v.grad >= 0).all()


def test_vectors_of_other_shapes_are_refused_and_any_number_is_told_as_a_finite_one() -> None:
    c = torch.stack([normal(300, seed=8), (4 * normal(300, seed=9)).exp()], 1).double()
    sde = scoresde.build("vp", "resmlp", shape=(2,), vector=2, width=8)
    scoresde.fit(sde, normal(300, 2), given={"vector": c}, steps=1, batch_size=9, **QUIET)
    for shape in ((1, 3), (2, 1), (1, 2, 1), (3,)):
        with pytest.raises(ValueError, match="shape"):
            scoresde.sample(sde.given(vector=torch.ones(shape)), 2, steps=1)
        with pytest.raises(ValueError, match="has learnt with 2 entries"):
            sde.conditions.standardize("vector", torch.ones(shape)[None])
    (text,) = said(lambda: sde.given(vector=torch.tensor([0.0, -1000.0])))
    assert "entry 1 of condition 'vector' = -1000 lies far" in text
    assert not said(lambda: sde.given(vector=torch.tensor([0.0, 1.5 * float(c[:, 1].max())])))
    many = torch.stack([torch.arange(300_000.0), torch.arange(300_000.0)], 1) / 1e4
    told = sde.conditions.standardize("vector", many)  # in parts
    assert len(told) == 300_000
    some = sde.conditions.standardize("vector", many[290_000:290_100])
    torch.testing.assert_close(told[290_000:290_100], some, rtol=0, atol=0)
    huge = torch.tensor([[-1.7e308, 1.7e308], [1.7e308, -1.7e308], [5e-324, -5e-324]], dtype=F64)
    told = sde.conditions.standardize("vector", huge)
    assert told.isfinite().all()
    assert told.abs().max() < 6


def test_a_wide_vector_has_scores_for_its_heaviest_entries_alone() -> None:
    c = (torch.linspace(0.5, 4, 300, dtype=F64) * normal(400, 300, seed=2)).exp()
    measure, conditions = ConditionMeasure(), ConditionScales()
    measure.add(c)
    measure.settle(conditions, "c")
    entries = conditions.get_submodule("c").entries
    assert len(entries) == 100
    assert (entries.diff() > 0).all()
    assert entries.double().mean() > 200


def test_few_rows_and_images_keep_mean_and_scale() -> None:
    sde = scoresde.build("vp", "resmlp", shape=(2,), vector=1, width=8)
    c = normal(99, 1)
    c[5] = 1e6
    scoresde.fit(sde, normal(99, 2), given={"vector": c}, steps=1, batch_size=9, **QUIET)
    assert sde.conditions.scored() == {"vector": 0}
    image = scoresde.build("vp", "resmlp", shape=(1, 4), image=1, width=8)
    c = normal(200, 1, 4)
    c[5, 0, 0] = 1e6
    scoresde.fit(image, normal(200, 1, 4), given={"image": c}, steps=1, batch_size=9, **QUIET)
    assert not image.conditions.scored()


def test_scores_of_a_long_stream_come_from_rows_of_all_of_it() -> None:
    n = 90_000
    c = (3 * torch.special.ndtri((torch.arange(n, dtype=F64) + 0.5) / n)).exp()[:, None]  # sorted
    of_parts = []
    for size in (n, 7_001, 64):
        measure, conditions = ConditionMeasure(), ConditionScales()
        for part in c.split(size):
            measure.add(part)
        measure.settle(conditions, "c")
        of_parts.append(conditions.state_dict())
        told = conditions.standardize("c", c)[:, 0]
        wanted = c[:, 0].log() / 3
        torch.testing.assert_close(
            told.clamp(-2.9, 2.9), wanted.clamp(-2.9, 2.9), rtol=0, atol=0.05
        )
        assert told.abs().max() < 4.1
    for name, value in of_parts[0].items():
        for other in of_parts[1:]:
            torch.testing.assert_close(other[name], value, rtol=1e-9, atol=0)


def test_scores_are_saved_loaded_resumed_and_checked_bit_for_bit(tmp_path: Path) -> None:
    _, c = heavy_columns(300)

    how: dict[str, Any] = {"steps": 6, "batch_size": 50, "validation": None, **QUIET}

    def trained(resume: bool) -> ScoreSDE:
        torch.manual_seed(0)
        sde = scoresde.build("vp", "resmlp", shape=(2,), vector=6, width=8)
        folder = scoresde.Checkpoints(tmp_path / "run", every=4, resume=resume)
        g = generator()
        x = normal(300, 2)
        scoresde.fit(sde, x, given={"vector": c}, checkpoints=folder, generator=g, **how)
        return sde

    whole = trained(False)
    other = scoresde.build("vp", "resmlp", shape=(2,), vector=6, width=8)
    scoresde.fit(other, normal(300, 2), given={"vector": normal(300, 6)}, **how)
    assert other.conditions.scored() == {"vector": 0}
    other.load_state_dict(whole.state_dict())
    loaded = scoresde.load(scoresde.save(whole, tmp_path / "model"))
    wanted = whole.conditions.state_dict()
    assert {name.partition(".")[2] for name in wanted} == {"mean", "scale", "ends", *SCORES}
    for again in (other, loaded, scoresde.load(tmp_path / "run"), copy.deepcopy(whole)):
        state = again.conditions.state_dict()
        assert state.keys() == wanted.keys()
        assert all(torch.equal(state[name], value) for name, value in wanted.items())
    for stem in ("model", "step-00000006"):
        storage.remove(tmp_path / "run", stem)
    again = trained(True)
    # the model of an interrupted run may go on itself
    storage.remove(tmp_path / "run", "model")
    folder = scoresde.Checkpoints(tmp_path / "run", every=4, resume=True)
    more = {**how, "given": {"vector": c}, "checkpoints": folder, "generator": generator()}
    scoresde.fit(again, normal(300, 2), **more)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    about, tensors = description.describe(whole), dict(description.weights(whole))
    bad = {
        "different entries": ("entries", torch.tensor([1, 1, 2])),
        "do not rise": ("knots", -wanted["vector.knots"]),
        "not a finite mean": ("ends", wanted["vector.ends"] * math.inf),
        "of another shape": ("levels", torch.zeros(61)),
    }
    for words, (what, value) in bad.items():
        with pytest.raises(CheckpointError, match=words):
            rebuild(about, tensors | {f"conditions.vector.{what}": value})
    with pytest.raises(CheckpointError, match="ends before it begins"):
        rebuild(about, tensors | {"conditions.vector.ends": wanted["vector.ends"].flip(0)})
    with pytest.raises(CheckpointError, match="no numbers by name"):
        rebuild(about | {"scored_conditions": [3]}, tensors)
    with pytest.raises(CheckpointError, match="has scores of 7 entries"):
        rebuild(about | {"scored_conditions": {"vector": 7}}, tensors)


def test_labels_stay_as_they_are_and_a_network_says_which_are() -> None:
    x, c = normal(40, 2), 5 + normal(40, 3, seed=1)
    for labels, told in (((), "c"), (("c",), "")):
        sde = ScoreSDE(scoresde.VPSDE(), Affine(labels=labels), shape=(2,))
        scoresde.fit(
            sde, x, given={"c": c, "d": torch.arange(40)}, steps=2, batch_size=40, **QUIET
        )
        assert set(sde.conditions.known()) == set(told)
        shown = sde.net.told
        assert shown["d"].dtype == torch.int64
        assert (shown["c"].mean() > 3) == (not told)
    sde = scoresde.build("vp", "resmlp", shape=(2,), vector=3, width=8)
    # whole numbers
    scoresde.fit(
        sde, x, given={"vector": torch.arange(120).view(40, 3)}, steps=2, batch_size=8, **QUIET
    )
    torch.testing.assert_close(
        sde.conditions.get_submodule("vector").mean,
        torch.arange(120.0).view(40, 3).mean(0).double(),
    )


def test_channels_of_an_image_have_a_scale_each() -> None:
    image = torch.tensor([3.0, -5.0]).view(1, 2, 1, 1) + torch.tensor([1e-3, 1e3]).view(
        1, 2, 1, 1
    ) * normal(30, 2, 4, 4)
    sde = model("unet", vector=0, image=2)
    scoresde.fit(sde, normal(30, 1, 4, 4), given={"image": image}, steps=2, batch_size=8, **QUIET)
    part = sde.conditions.get_submodule("image")
    wanted = image.double()
    torch.testing.assert_close(part.mean, wanted.mean((0, 2, 3)))
    torch.testing.assert_close(part.scale, wanted.std((0, 2, 3), correction=0))


def fitted(
    steps: int = 6, folder: Path | None = None, resume: bool = False, **options: Any
) -> ScoreSDE:
    torch.manual_seed(0)
    sde = scoresde.build("vp", "resmlp", shape=(2,), vector=2, classes=2, width=8, **options)
    given = {"vector": 100 + 7 * normal(50, 2, seed=1), "y": torch.arange(50) % 2}
    how: dict[str, Any] = {
        "given": given,
        "batch_size": 10,
        "generator": generator(),
        **QUIET,
    }
    if folder is not None:
        how["checkpoints"] = scoresde.Checkpoints(folder, every=2, resume=resume)
    scoresde.fit(sde, normal(50, 2), steps=steps, **how)
    return sde


def test_they_are_saved_loaded_copied_and_go_on_with_bit_for_bit(tmp_path: Path) -> None:
    whole = fitted(folder=tmp_path / "run")
    given = {"vector": torch.tensor([[90.0, 110.0]]), "y": 1}
    wanted = scoresde.sample(whole.given(**given), 3, steps=3, generator=generator())
    other = scoresde.build("vp", "resmlp", shape=(2,), vector=2, classes=2, width=8).eval()
    other.load_state_dict(whole.state_dict())
    of_run = scoresde.load(tmp_path / "run")
    for again in (
        of_run,
        scoresde.load(scoresde.save(whole, tmp_path / "model")),
        copy.deepcopy(whole),
        other,
    ):
        assert torch.equal(
            scoresde.sample(again.given(**given), 3, steps=3, generator=generator()), wanted
        )
    record = {"conditions": {"vector": [2], "y": []}, "unconditional": True}
    assert whole.learnt == of_run.learnt == record
    for stem in ("model", "step-00000006"):
        storage.remove(tmp_path / "run", stem)
    part = scoresde.load(tmp_path / "run")  # of step 4
    assert part.learnt == record
    assert torch.equal(
        part.conditions.get_submodule("vector").mean, whole.conditions.get_submodule("vector").mean
    )
    again = fitted(folder=tmp_path / "run", resume=True)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    assert again.learnt == record


def _named(rows: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, dict[str, Tensor]]:
    x, c = (torch.stack(part) for part in zip(*rows, strict=True))
    return x, {"vector": c, "y": torch.zeros(len(c), dtype=torch.long)}


def test_a_second_fit_keeps_the_units_of_the_first_and_a_failed_one_leaves_none() -> None:
    sde = fitted()
    before = {name: value.clone() for name, value in sde.conditions.state_dict().items()}
    given = {"vector": 5 * normal(50, 2), "y": torch.zeros(50, dtype=torch.long)}
    how = {"batch_size": 10, "validation": None, **QUIET}
    scoresde.fit(sde, normal(50, 2), given=given, steps=5, **how)
    after = sde.conditions.state_dict()
    ends = after.pop("vector.ends")
    assert all(torch.equal(value, before[name]) for name, value in after.items())
    rows = given["vector"].double()
    low, high = before["vector.ends"]
    assert torch.equal(ends[0], torch.minimum(low, rows.amin(0)))
    assert torch.equal(ends[1], torch.maximum(high, rows.amax(0)))
    more = TensorDataset(normal(50, 2), 1e3 * given["vector"])
    loader = DataLoader(more, 10, collate_fn=_named)
    scoresde.fit(sde, loader, steps=5, **how)
    told = sde.conditions.standardize("vector", 1e3 * given["vector"])
    part = sde.conditions.get_submodule("vector")
    torch.testing.assert_close(told, (1e3 * given["vector"] - part.mean) / part.scale)
    sde = scoresde.build("vp", "resmlp", shape=(2,), vector=2, width=8)
    sde.net.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        scoresde.fit(
            sde, normal(50, 2), given={"vector": given["vector"]}, steps=2, batch_size=10, **QUIET
        )
    assert not sde.conditions.known()
    assert sde.learnt is None


def test_they_go_with_a_model_that_is_made_without_memory() -> None:
    sde = fitted(steps=1)
    state = copy.deepcopy(sde.state_dict())
    again = sde.to("meta").to_empty(device="cpu")
    assert again.conditions.get_submodule("vector").mean.dtype == F64
    again.load_state_dict(state)
    for name, value in state.items():
        assert torch.equal(again.state_dict()[name], value), name


def test_a_file_with_a_bad_scale_is_refused() -> None:
    sde = fitted(steps=1)
    about, tensors = description.describe(sde), dict(description.weights(sde))
    with pytest.raises(CheckpointError, match="standardization of its conditions"):
        rebuild(about, tensors | {"conditions.vector.scale": torch.zeros(2)})
    with pytest.raises(CheckpointError, match="1 weights are missing"):
        rebuild(
            about,
            {name: value for name, value in tensors.items() if name != "conditions.vector.mean"},
        )
    with pytest.raises(CheckpointError, match="has no shape"):
        rebuild(about | {"conditions": {"vector": [-1]}}, tensors)


def test_validation_and_loss_see_the_same_units() -> None:
    x, c = normal(60, 2), 1e4 + normal(60, 2, seed=1)
    net = Affine()
    sde = ScoreSDE(scoresde.VPSDE(), net, shape=(2,))
    held_out = (x[:20], {"c": c[:20]})
    scoresde.fit(sde, x, given={"c": c}, validation=held_out, steps=1, batch_size=60, **QUIET)
    assert net.told["c"].abs().max() < 5  # the call of the validation
    scoresde.loss(sde.train(), x[:5], c=c[:5])
    torch.testing.assert_close(
        net.told["c"], ((c[:5] - c.mean(0)) / c.std(0, correction=0)), rtol=1e-3, atol=1e-3
    )


# ---------------------------------------------------------------------- views, and what is drawn


def test_a_view_does_not_change_its_model() -> None:
    sde = fitted(steps=1)
    view, before = sde.given(y=1), copy.deepcopy(sde.state_dict())
    for name, value in (
        ("scale", torch.full((2,), 7.0)),
        ("mean", torch.full((2,), 7.0)),
        ("measured", torch.tensor(False)),
        ("ema", None),
        ("net", nn.Identity()),
        ("outcome", "velocity"),
        ("source", torch.zeros(5, 2)),
        ("more", nn.Linear(1, 1)),
    ):
        for held in (view, view.given(vector=torch.zeros(1, 2)), sde.given()):
            with pytest.raises(AttributeError, match=f"shares {name} with its model"):
                setattr(held, name, value)
    for name in ("scale", "net"):
        with pytest.raises(AttributeError, match=f"shares {name} with its model"):
            delattr(view, name)
    with pytest.raises(ValueError, match="standardize the model"):
        view.standardize(normal(5, 2))
    with pytest.raises(ValueError, match="not one conditioned by given"):
        scoresde.fit(sde.given(), normal(5, 2), **QUIET)
    assert sde.outcome.name == "score"
    for name, value in sde.state_dict().items():
        assert torch.equal(value, before[name])
    own = copy.deepcopy(view)  # a copy is nobody's
    own.scale = torch.full((2,), 7.0)
    assert not torch.equal(own.scale, sde.scale)
    sde.scale = torch.full((2,), 3.0)
    assert torch.equal(view.scale, sde.scale)


def said(call: Any) -> list[str]:
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        call()
    # it is said to the caller, from however deep inside
    assert all(w.filename == __file__ for w in found)
    return [str(w.message) for w in found]


VERBS: dict[str, Any] = {
    "sample": lambda sde: scoresde.sample(sde, 2, steps=1),
    "log_prob": lambda sde: scoresde.log_prob(sde, torch.zeros(2, 2), steps=1),
    "both": lambda sde: scoresde.sample_and_log_prob(sde, 2, steps=1),
    "elbo": lambda sde: scoresde.elbo(sde, torch.zeros(2, 2)),
    "encode": lambda sde: scoresde.encode(sde, torch.zeros(2, 2), steps=1),
    "law": lambda sde: scoresde.Distribution(sde, steps=1).sample(),
}


@pytest.mark.parametrize("verb", some(VERBS, "sample", "log_prob", "law"))
def test_which_law_is_drawn_from_is_said_once(verb: str) -> None:
    sde, call = fitted(steps=1), VERBS[verb]
    assert not said(lambda: call(sde.given(vector=torch.full((1, 2), 100.0), y=1)))
    (text,) = said(lambda: call(sde.given(y=1)))
    assert "learnt with vector and is not given it" in text
    assert "sde.given(vector=...)" in text
    assert not said(lambda: call(sde))
    sde = fitted(steps=1)
    assert not said(lambda: call(sde.given()))  # on purpose
    never = fitted(steps=1, condition_dropout=0.0)
    with pytest.raises(
        ValueError,
        match=r"condition_dropout=0, always with vector: write sde\.given\(vector=\.\.\.\)",
    ):
        call(never.given(y=1))


def test_a_network_that_was_never_without_its_condition_says_so(tmp_path: Path) -> None:
    sde = ScoreSDE(scoresde.VPSDE(), Affine(), shape=(2,))
    scoresde.fit(sde, normal(20, 2), given={"c": normal(20, 3)}, steps=1, batch_size=5, **QUIET)
    assert sde.learnt == {"conditions": {"c": [3]}, "unconditional": False}
    (text,) = said(lambda: scoresde.sample(sde, 2, steps=1))
    assert "always with c, and means nothing without" in text
    loader = DataLoader(TensorDataset(normal(20, 2)), 5)
    assert said(lambda: scoresde.fit(sde, loader, steps=1, **QUIET)) == []


def test_a_condition_that_was_never_learnt_is_said() -> None:
    sde = scoresde.build("vp", "resmlp", shape=(2,), vector=3, width=8)
    assert not said(lambda: sde.given(vector=torch.zeros(1, 3)))
    scoresde.fit(sde, normal(20, 2), steps=1, batch_size=5, **QUIET)
    (text,) = said(lambda: sde.given(vector=torch.zeros(1, 3)))
    assert "fitted without vector" in text
    how: dict[str, Any] = {
        "given": {"vector": normal(20, 3)},
        "steps": 1,
        "batch_size": 5,
        **QUIET,
    }
    assert not said(lambda: scoresde.fit(sde, normal(20, 2), **how))
    assert not said(lambda: sde.given(vector=torch.zeros(1, 3)))


# ---------------------------------------------------------------------- shapes and names


def test_one_condition_for_all_samples_needs_no_axis_of_rows() -> None:
    sde = model("unet")
    vector, image = normal(2), normal(1, 4, 4)
    for given in ({"vector": vector}, {"image": image}, {"vector": vector, "image": image}):
        wanted = scoresde.sample(
            sde.given(**{k: v[None] for k, v in given.items()}), 2, steps=1, generator=generator()
        )
        assert torch.equal(
            scoresde.sample(sde.given(**given), 2, steps=1, generator=generator()), wanted
        )
    for net in ("mlp", "resmlp"):
        two = scoresde.build("vp", net, shape=(2,), vector=2)
        assert torch.equal(
            two.given(vector=[1.0, 2.0]).condition["vector"], torch.tensor([[1.0, 2.0]])
        )
    one = scoresde.build("vp", "mlp", shape=(2,), vector=1)
    for value in (3.0, torch.tensor(3.0), torch.tensor([3.0]), torch.tensor([[3.0]])):
        assert torch.equal(one.given(vector=value).condition["vector"], torch.tensor([[3.0]]))
    with pytest.raises(ValueError, match=r"vector has shape \(n, 2\), got \(3,\)"):
        sde.given(vector=torch.zeros(3))
    own = ScoreSDE(scoresde.VPSDE(), Affine(), shape=(2,))
    scoresde.fit(own, normal(20, 2), given={"c": normal(20, 3)}, steps=1, batch_size=5, **QUIET)
    assert own.given(c=torch.ones(3)).condition["c"].shape == (1, 3)


@pytest.mark.parametrize("kind", ["tensor", "loader", "items", "validation"])
def test_conditions_of_a_batch_have_a_row_each_whatever_its_size(kind: str) -> None:
    """Two numbers for two samples are one each, and never one vector of both."""
    x, c, vectors = normal(6, 2), 50 + normal(6, seed=1), normal(6, 2, seed=2)
    wrong = {
        "tensor": lambda sde: scoresde.fit(sde, x[:2], given={"vector": c[:2]}, steps=1, **QUIET),
        "loader": lambda sde: scoresde.fit(
            sde,
            DataLoader([(a, {"vector": b}) for a, b in zip(x, c, strict=True)], batch_size=2),
            steps=1,
            **QUIET,
        ),
        "items": lambda sde: scoresde.fit(
            sde, [(a, {"vector": b}) for a, b in zip(x[:2], c, strict=False)], steps=1, **QUIET
        ),
        "validation": lambda sde: scoresde.fit(
            sde,
            x,
            given={"vector": vectors},
            validation=(x[:2], {"vector": c[:2]}),
            steps=1,
            **QUIET,
        ),
    }
    with pytest.raises(ValueError, match=r"vector has shape \(n, 2\), got \(2,\)"):
        wrong[kind](scoresde.build("vp", "resmlp", shape=(2,), vector=2, width=8))


@pytest.mark.parametrize("kind", ["tensor", "loader", "items", "unnamed", "laid out"])
def test_one_number_a_sample_is_a_vector_of_one(kind: str) -> None:
    x, c = normal(20, 2), 50 + 3 * normal(20, seed=1)
    data: dict[str, Any] = {
        "tensor": x,
        "laid out": x,
        "loader": DataLoader(
            [(a, {"vector": float(b)}) for a, b in zip(x, c, strict=True)], batch_size=5
        ),
        "items": [(a, {"vector": b}) for a, b in zip(x, c, strict=True)],
        "unnamed": TensorDataset(x, c),
    }
    given = {"tensor": {"vector": c}, "laid out": {"vector": c[:, None]}}.get(kind)
    sde = scoresde.build("vp", "resmlp", shape=(2,), vector=1, width=8)
    scoresde.fit(sde, data[kind], given=given, steps=1, batch_size=5, **QUIET)
    torch.testing.assert_close(
        sde.conditions.get_submodule("vector").mean, c.double().mean(0, keepdim=True)
    )
    assert sde.learnt == {"conditions": {"vector": [1]}, "unconditional": True}
    assert torch.equal(sde.given(vector=c).condition["vector"], c[:, None])
    assert scoresde.loss(sde, x, vector=c).ndim == 0


class Takes(scoresde.backbones.ResMLP):
    """Hands on whatever it is given."""

    def forward(self, x: Tensor, t: Tensor, **condition: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x, t, **condition)


@pytest.mark.parametrize("verb", ["given", "fit", "loss", "loader"])
@pytest.mark.parametrize("name", ["mlp", "resmlp", "two_times", "own", "plain"])
def test_unknown_conditions_are_named_beside_those_that_the_network_takes(
    name: str, verb: str
) -> None:
    takes = {
        "mlp": "vector, y",
        "resmlp": "vector, y",
        "two_times": "vector",
        "own": "vector",
        "plain": "c, d",
    }
    if name in NETS:
        sde = model(name)
    else:
        net = Affine() if name == "plain" else Takes((2,), vector=2)
        sde = ScoreSDE(scoresde.VPSDE(), net, shape=(2,))
    x, wrong = normal(4, 2), {"wrong": torch.zeros(4)}
    loader: Any = DataLoader([(x, wrong)], batch_size=None)  # type: ignore[arg-type]
    calls: dict[str, Any] = {
        "given": lambda: sde.given(**wrong),
        "fit": lambda: scoresde.fit(sde, x, given=wrong, steps=1, **QUIET),
        "loss": lambda: scoresde.loss(sde, x, **wrong),
        "loader": lambda: scoresde.fit(sde, loader, steps=1, **QUIET),
    }
    with pytest.raises(
        ValueError, match=rf"the network takes no condition 'wrong'\..*There are: {takes[name]}"
    ):
        calls[verb]()


def test_the_number_of_samples_follows_the_conditions() -> None:
    sde = model("resmlp").given(vector=normal(7, 2))
    assert scoresde.sample(sde, steps=1).shape == (7, 2)
    assert scoresde.solve(sde.given(y=1), steps=1).x.shape == (2, 7, 2)
    assert scoresde.sample_and_log_prob(sde, steps=1)[1].shape == (7,)
    assert scoresde.sample(model("resmlp").given(y=1), steps=1).shape == (1, 2)
    assert scoresde.sample(model("resmlp").given(y=1), 3, steps=1).shape == (3, 2)
    with pytest.raises(ValueError, match="7 rows for 5 samples"):
        scoresde.sample(sde, 5, steps=1)


# ---------------------------------------------------------------------- waves in half precision


@each_net
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_networks_are_shown_the_noise_label_unrounded(
    name: str, dtype: torch.dtype
) -> None:
    """Of 500 labels all remain, where bf16 has 157, and the frequencies of their waves are not
    rounded.
    """
    sde = model(name)
    exact, half = copy.deepcopy(sde.net).double(), sde.to(dtype).net
    phi = torch.linspace(0.01, 1.55, 500, dtype=F64)
    x, t, _ = sde.inputs(normal(500, sde.dim), phi, dtype)
    assert t.dtype == torch.float32
    assert len(t.unique()) == 500
    torch.testing.assert_close(t.double(), noise_label(phi), rtol=0, atol=1e-6)
    rates = [
        [value for key, value in net.named_buffers() if key.endswith("rates")]
        for net in (exact, half)
    ]
    for true, kept in zip(*rates, strict=True):
        assert torch.equal(true.float(), kept.float())
    out = half(x[:5], t[:5])
    assert out.dtype == dtype


def test_diffusers_step_numbers_are_exact_in_half_precision() -> None:
    pytest.importorskip("diffusers")
    sde, found = model("diffusers").bfloat16(), []
    sde.net.model.register_forward_pre_hook(lambda net, args: found.append(args))
    phi = torch.linspace(0.01, 1.55, 500, dtype=F64)
    with torch.no_grad():
        for rows in torch.arange(500).split(100):
            sde.output(normal(100, 16), phi[rows])
    steps = torch.cat([args[1] for args in found]).double()
    assert len(steps.unique()) == 500
    torch.testing.assert_close(steps, (noise_label(phi) + 6.2) * (1000 / 12.4), rtol=0, atol=1e-3)
    assert found[0][0].dtype == torch.bfloat16


def test_a_span_and_waves_of_the_state_are_exact_too() -> None:
    """A jump's length in bf16 is off by 4e-3 of itself; the Fourier features of it, up to 60
    radians a unit, by much more.
    """
    sde = model("two_times", bandwidth=4.0)
    seen: list[Tensor] = []
    sde.bfloat16()
    sde.net.net.register_forward_pre_hook(lambda net, args: seen.append(args[0]))
    span = torch.linspace(0.1, 1.5, 100)
    sde.net(normal(100, 2), normal(100, seed=1), span=span)
    assert torch.equal(seen[0][:, -1], span)


class Joined(nn.Module):
    """A network of a user: x and t in one tensor, in the dtype of its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(6, 2)

    def forward(self, x: Tensor, t: Tensor, c: Tensor) -> Tensor:
        out: Tensor = self.line(torch.cat([x, t[:, None], c], 1))
        return out


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_a_network_that_says_nothing_is_shown_all_in_its_own_dtype(dtype: torch.dtype) -> None:
    sde = ScoreSDE(scoresde.VPSDE(), Joined(), shape=(2,)).to(dtype)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="weights of half precision")
        scoresde.fit(
            sde, normal(20, 2), given={"c": normal(20, 3).double()}, steps=2, batch_size=5, **QUIET
        )
    for c in (normal(3), normal(3).double(), normal(4, 3).to(torch.bfloat16)):
        assert scoresde.sample(sde.given(c=c), 4, steps=2).isfinite().all()


def test_condition_aware_transport_sees_standardized_conditions() -> None:
    x, c = normal(64, 2), normal(64, 2, seed=1).double()
    ends = []
    for units in (torch.ones(2), torch.tensor([1.0, 1e4])):
        torch.manual_seed(0)
        sde = scoresde.build("rectified", "resmlp", shape=(2,), vector=2, width=8)
        how: dict[str, Any] = {
            "coupling": "condition_aware_ot",
            "steps": 5,
            "batch_size": 32,
            "generator": generator(),
            **QUIET,
        }
        scoresde.fit(sde, x, given={"vector": 3 + c * units}, **how)
        ends.append(torch.cat([p.flatten() for p in sde.net.parameters()]))
    torch.testing.assert_close(ends[1], ends[0], rtol=1e-3, atol=1e-5)


X = torch.randn(200, 2, generator=generator(1))


def fit(sde: ScoreSDE, data: Any = X, **options: Any) -> scoresde.History:
    common = {"steps": 30, "batch_size": 16, "progress": False, "generator": generator()}
    return scoresde.fit(sde, data, **fit_keywords(**(common | options)))


def test_conditions_are_finite_and_of_the_models_dtype() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 2)

        def forward(self, x: Tensor, t: Tensor, c: Tensor) -> Tensor:
            return self.layer(torch.cat([x, t[:, None], c[:, None]], 1))

    sde = ScoreSDE(scoresde.VPSDE(), Net(), shape=(2,))
    fit(sde, given={"c": np.linspace(0, 1, len(X))})
    with pytest.raises(ValueError, match="'c' has NaN"):
        fit(sde, given={"c": np.full(len(X), np.nan)})


def test_classes_of_another_file_are_numbered_as_in_training(tmp_path: Path) -> None:
    from scoresde.model.schema import Schema

    (tmp_path / "a.csv").write_text("u,kind\n1,x\n2,y\n3,z\n")
    (tmp_path / "b.csv").write_text("u,kind\n1,z\n2,x\n")
    (tmp_path / "c.csv").write_text("u,kind\n1,w\n2,x\n")
    a, b, c = (
        scoresde.files.read(tmp_path / f"{name}.csv", conditions=["kind"]) for name in "abc"
    )
    schema = Schema()
    schema.learn(a, None)
    assert schema.take(b)[1]["kind"].tolist() == [2, 0]
    with pytest.raises(ValueError, match=r"'w'.*x, y, z"):
        schema.take(c)
