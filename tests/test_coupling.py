"""Couplings join what they should, the stream of pairs can be gone on with anywhere, and a source
is a law like another.
"""

from __future__ import annotations

import contextlib
import inspect
import itertools
import math
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from scipy.stats import multivariate_normal
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import scoresde
from scoresde import CheckpointError, ScoreSDE, toy
from scoresde.data.pairs import Pairs
from scoresde.data.stream import TrainingStream
from scoresde.training import trainer as training
from scoresde.training.couplings import (
    COUPLINGS,
    ConditionAwareOT,
    Coupling,
    Independent,
    MinibatchOT,
    Sinkhorn,
)
from scoresde.training.pairing import Pairing

RNG = np.random.default_rng(0)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def build(process: str = "rectified", seed: int = 0, **options: Any) -> ScoreSDE:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return scoresde.build(
            process, "mlp", shape=(2,), **({"width": 8, "depth": 1, "fourier": 0} | options)
        )


def cloud(n: int = 96, seed: int = 0, shift: float = 3.0) -> Tensor:
    return shift + torch.randn(n, 2, generator=generator(seed)) * torch.tensor([1.0, 2.0])


# ------------------------------------------------------------------------------------ who with whom


def test_minibatch_ot_is_the_optimum_of_the_linear_program() -> None:
    for n, d in ((1, 3), (7, 1), (12, 4)):
        x0, x1 = RNG.normal(size=(n, d)), RNG.normal(size=(n, d))
        found = MinibatchOT().join(x0, x1, {}, RNG)
        assert sorted(found) == list(range(n))
        cost = ((x0[:, None] - x1[None]) ** 2).sum(2)
        rows = np.kron(np.eye(n), np.ones(n)), np.kron(np.ones(n), np.eye(n))
        best = linprog(cost.ravel(), A_eq=np.vstack(rows), b_eq=np.ones(2 * n)).fun
        assert cost[np.arange(n), found].sum() == pytest.approx(best, rel=1e-9)


def test_rows_that_are_all_the_same_are_joined_somehow() -> None:
    for x0, x1 in (
        (np.zeros((4, 2)), RNG.normal(size=(4, 2))),
        (np.ones((4, 2)), np.ones((4, 2))),
    ):
        for coupling in (MinibatchOT(), ConditionAwareOT()):
            assert sorted(coupling.join(x0, x1, {"c": np.ones((4, 1))}, RNG)) == [0, 1, 2, 3]


def test_in_one_dimension_transport_sorts() -> None:
    x0, x1 = RNG.normal(size=(200, 1)), RNG.normal(size=(200, 1))
    found = MinibatchOT().join(x0, x1, {}, RNG)
    assert np.array_equal(x1[found][x0[:, 0].argsort()], np.sort(x1, 0))


def test_condition_aware_transport_is_that_of_each_label() -> None:
    x0, x1 = RNG.normal(size=(60, 2)), RNG.normal(size=(60, 2))
    y, w = RNG.integers(0, 3, 60), RNG.integers(0, 2, 60).astype(bool)
    found = ConditionAwareOT().join(x0, x1, {"y": y, "w": w[:, None]}, RNG)
    assert sorted(found) == list(range(60))
    assert np.array_equal(y[found], y)
    assert np.array_equal(w[found], w)
    for a, b in itertools.product(range(3), (False, True)):
        rows = np.flatnonzero((y == a) & (w == b))
        assert np.array_equal(found[rows], rows[MinibatchOT().join(x0[rows], x1[rows], {}, RNG)])


@pytest.mark.parametrize("ratio", [0.02, 0.1, 0.4])
def test_the_weight_of_real_conditions_lets_the_ratio_of_exchanges_pay(ratio: float) -> None:
    """And at ratio 1 the condition does not matter, while a tiny one leaves all where it was."""
    x0, x1, c = RNG.normal(size=(80, 2)), RNG.normal(size=(80, 2)), RNG.normal(size=(80, 1))
    cost = ((x0[:, None] - x1[None]) ** 2).sum(2)
    gap = (c - c.T) ** 2
    others = ~np.eye(80, dtype=bool)
    w = scoresde.training.couplings._weight(cost, gap, others, ratio)
    pays = (cost + w * gap <= np.diag(cost)[:, None] + 1e-9)[others].mean()
    assert pays == pytest.approx(ratio, abs=2 / 80**2)
    found = ConditionAwareOT(ratio=ratio).join(x0, x1, {"c": c}, RNG)
    total = cost + w * gap
    other = scoresde.training.couplings._assign(total)
    assert total[np.arange(80), found].sum() == pytest.approx(
        total[np.arange(80), other].sum(), rel=1e-12
    )
    assert np.array_equal(
        ConditionAwareOT(ratio=1.0).join(x0, x1, {"c": c}, RNG),
        MinibatchOT().join(x0, x1, {}, RNG),
    )
    moved = [
        abs(c[ConditionAwareOT(ratio=r).join(x0, x1, {"c": c}, RNG)] - c).mean()
        for r in (0.0005, 0.1, 1.0)
    ]
    assert moved[0] < moved[1] < moved[2]


def test_sinkhorn_draws_from_the_plan_between_gaussians() -> None:
    """Entropic transport of N(0, 1) to itself is a Gaussian with E x0·x1 = √(1 + r²) − r, r =
    reg/4 (Janati et al. 2020).
    """
    pytest.importorskip("ot")
    n, reg = 1000, 0.5
    x0, x1 = RNG.normal(size=(n, 1)), RNG.normal(size=(n, 1))
    found = Sinkhorn(reg=reg).join(x0, x1, {}, np.random.default_rng(1))
    r = reg / 4
    plan = Sinkhorn(reg=reg).plan(x0, x1)
    for axis in (0, 1):
        np.testing.assert_allclose(plan.sum(axis), 1 / n, rtol=1e-9)
    product = x0[:, 0] * x1[found, 0]
    # 4 standard errors of the mean: a false alarm in 16,000 seeds, if the two sets were the laws;
    # 0.05 for what they are not
    assert (
        abs(product.mean() - (math.sqrt(1 + r * r) - r)) < 4 * product.std() / math.sqrt(n) + 0.05
    )
    assert np.array_equal(found, Sinkhorn(reg=reg).join(x0, x1, {}, np.random.default_rng(1)))


# --------------------------------------------------------------------------------------- the stream


@pytest.mark.parametrize("reuse", [1, 3])
@pytest.mark.parametrize("size", [None, 24])
def test_the_stream_joins_blocks_and_shows_each_pair_as_often_as_said(
    reuse: int, size: int | None
) -> None:
    sde, coupling = build(), MinibatchOT(size=size, reuse=reuse)
    source = TrainingStream(cloud(), sde, 8, seed=1)
    source.reader.steps_at_once = 2
    pairing = Pairing(source, sde, coupling, 1, 0)
    with contextlib.closing(pairing):
        batches = [next(it) for it in [pairing.batches(0)] for _ in range(2 * reuse)]
    sizes = batches[0][3]
    assert sizes == [8] * (3 if size else 2)
    for group in (batches[:reuse], batches[reuse:]):
        first = torch.cat([group[0][0], group[0][1]], 1)
        for x0, eps, _, _ in group:
            both = torch.cat([x0, eps], 1)
            assert torch.equal(both[both[:, 0].argsort()], first[first[:, 0].argsort()])
        x0, eps = sde.from_data(group[0][0]).double().numpy(), group[0][1].double().numpy()
        for rows in (slice(i, i + (size or 8)) for i in range(0, len(x0), size or 8)):
            assert np.array_equal(
                MinibatchOT().join(x0[rows], eps[rows], {}, RNG), np.arange(size or 8)
            )
    assert not torch.equal(batches[0][1], batches[-1][1])


def data(kind: str) -> Any:
    x = cloud()
    return {
        "table": x,
        "law": scoresde.toy.Moons(),
        "loader": DataLoader(
            torch.utils.data.TensorDataset(x, torch.zeros(len(x))),
            7,
            shuffle=True,
            collate_fn=_first,
        ),
        "pairs": Pairs(x, cloud(seed=1)),
    }[kind]


def _first(rows: list[Any]) -> Tensor:
    return torch.stack([row[0] for row in rows])


@pytest.mark.parametrize(
    ("kind", "coupling", "sourced"),
    [
        pytest.param(
            kind, coupling, sourced, marks=(pytest.mark.slow,) if (i + j + sourced) % 2 else ()
        )
        for i, kind in enumerate(("table", "law", "loader"))
        for j, coupling in enumerate(
            (
                MinibatchOT(reuse=1),
                MinibatchOT(reuse=3),
                MinibatchOT(size=32, reuse=2),
                Independent(),
            )
        )
        for sourced in (False, True)
    ],
)
def test_a_run_in_pieces_ends_as_one_in_one_go(
    kind: str, coupling: Any, sourced: bool, tmp_path: Path
) -> None:
    if kind == "loader" and coupling.size:
        coupling = MinibatchOT(reuse=2)

    def run(out: Path, steps: int | None = None) -> ScoreSDE:
        sde = build()
        if sourced:
            sde.source = scoresde.toy.EightGaussians()
        how: dict[str, Any] = {
            "steps": 30,
            "batch_size": 8,
            "checkpoints": scoresde.Checkpoints(out, every=7, resume=True),
            "progress": False,
        }
        with stopped(steps) if steps else contextlib.nullcontext():
            scoresde.fit(sde, data(kind), coupling=coupling, generator=generator(), **how)
        return sde

    whole = run(tmp_path / "whole")
    for steps in (9, 22):
        run(tmp_path / "parts", steps)
    parts = run(tmp_path / "parts")
    assert (
        whole.outcome.name
        == parts.outcome.name
        == ("velocity" if coupling.joins or sourced else "score")
    )
    assert all(
        torch.equal(a, b)
        for a, b in zip(whole.state_dict().values(), parts.state_dict().values(), strict=True)
    )


@contextlib.contextmanager
def stopped(at: int) -> Iterator[None]:
    original = training.Trainer.steps_to_go

    def steps_to_go(self: Any, reseed: Any) -> Iterator[int]:
        for step in original(self, reseed):
            yield step
            if step >= at:
                raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.Trainer, "steps_to_go", steps_to_go)
        with pytest.raises(KeyboardInterrupt):
            yield


class Counted(torch.nn.Module):
    """Notes which rows, by their condition `y`, each call with gradients sees; for all objectives
    there are.
    """

    def __init__(self) -> None:
        super().__init__()
        self.w, self.seen = torch.nn.Parameter(torch.zeros(())), []
        self.seen: list[Tensor]

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        y: Tensor,
        span: Any = None,
        tilt: Any = None,
        apart: bool = False,
    ) -> Tensor:
        if self.training and torch.is_grad_enabled():
            self.seen.append(y.clone())
        return torch.stack([x * self.w, x * self.w]) if apart else x * self.w


class Numbered(IterableDataset[Any]):
    """Rows one by one, each with its number as a condition; as many as no batch size divides."""

    def __iter__(self) -> Iterator[Any]:
        yield from ((row, {"y": i}) for i, row in enumerate(cloud(11)))


SHORT: dict[str, tuple[Any, list[int]]] = {
    "loader": (lambda: DataLoader(list(Numbered()), 4), [4, 4, 3]),
    "loader of one row more": (lambda: DataLoader(list(Numbered()), 10), [10, 1]),
    "iterable": (Numbered, [4, 4, 3]),
    "loader of an iterable": (lambda: DataLoader(Numbered(), 4), [4, 4, 3]),
    "batches of any size": (
        lambda: DataLoader(
            list(Numbered()), batch_sampler=[[0, 1, 2, 3, 4, 5], [6], [7, 8, 9, 10]]
        ),
        [6, 1, 4],
    ),
}


@pytest.mark.filterwarnings("ignore:.* whatever their conditions")
@pytest.mark.parametrize("objective", ["denoising", "meanflow", "consistency", "bridge"])
@pytest.mark.parametrize("name", list(COUPLINGS))
def test_every_row_of_a_short_last_batch_is_learnt(objective: str, name: str) -> None:
    """Each step is a batch of the loader, whatever its size, and each row is shown as often as the
    others.
    """
    for kind in SHORT if name == "minibatch_ot" else ["loader of one row more"]:
        make, sizes = SHORT[kind]
        net, bridge = Counted(), objective == "bridge"
        process = scoresde.SchrodingerBridge() if bridge else scoresde.RectifiedFlow()
        sde = ScoreSDE(process, net, shape=(2,), source=scoresde.toy.Moons() if bridge else None)
        coupling = COUPLINGS.build(name)
        steps = len(sizes) * (
            coupling.reuse if coupling.joins else 2
        )  # an epoch, as often as each of its batches is used
        history = scoresde.fit(
            sde,
            make(),
            coupling=coupling,
            objective=objective,
            steps=steps,
            batch_size=4,
            progress=False,
            generator=generator(),
        )
        assert history.step[-1] == len(net.seen) == steps, kind
        assert [len(y) for y in net.seen[: len(sizes)]] == sizes, kind
        assert torch.bincount(torch.cat(net.seen)).tolist() == [steps // len(sizes)] * 11, kind
        assert all(math.isfinite(value) for value in history.loss), kind


def test_a_failing_coupling_says_so_and_leaves_no_thread_behind() -> None:
    import threading

    class Broken(MinibatchOT):
        def join(self, *_: Any) -> Any:
            raise ZeroDivisionError("in join")

    sde = build()
    with pytest.raises(ZeroDivisionError, match="in join"):
        scoresde.fit(sde, cloud(), steps=3, coupling=Broken(), progress=False)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("scoresde")]
    assert sde.outcome.name == "score"  # nothing was learnt


# ------------------------------------------------------------------------------------------ sources


class Affine(torch.nn.Module):
    """The velocity of pairs x1 = A·x0 + b along straight lines: known in closed form, x_t =
    ((1−t)·I + t·A)·x0 + t·b.
    """

    def __init__(self, a: Tensor, b: Tensor) -> None:
        super().__init__()
        self.a, self.b = a, b

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        one = torch.eye(2, dtype=x.dtype)
        matrix = (1 - t)[:, None, None] * one + t[:, None, None] * self.a
        x0 = torch.linalg.solve(matrix, x - t[:, None] * self.b)
        return x0 @ (self.a - one).T + self.b


def affine() -> tuple[ScoreSDE, Tensor, Tensor]:
    a, b = torch.tensor([[2.0, 0.5], [0.0, 0.7]]).double(), torch.tensor([1.0, -2.0]).double()
    source = torch.distributions.MultivariateNormal(torch.zeros(2).double(), torch.eye(2).double())
    net = Affine(a, b)
    sde = (
        ScoreSDE(
            scoresde.RectifiedFlow(),
            net,
            shape=(2,),
            predict="v",
            input_convention="raw",
            source=source,
        )
        .double()
        .eval()
    )
    return sde, a, b


def test_samples_and_likelihood_between_two_laws_are_those_of_the_map() -> None:
    """x1 ~ N(0, I) and x0 = A⁻¹(x1 − b), so x0 ~ N(−A⁻¹b, (AᵀA)⁻¹)."""
    sde, a, b = affine()
    x, log_p = scoresde.sample_and_log_prob(sde, 300, rtol=1e-8, atol=1e-8, generator=generator())
    inverse = torch.linalg.inv(a)
    law = multivariate_normal((-inverse @ b).numpy(), (inverse @ inverse.T).numpy())
    exact = torch.from_numpy(law.logpdf(x.numpy()))
    torch.testing.assert_close(log_p, exact, rtol=0, atol=1e-6)
    torch.testing.assert_close(
        scoresde.log_prob(sde, x, rtol=1e-8, atol=1e-8), exact, rtol=0, atol=1e-6
    )
    again = scoresde.sample(sde, 300, batch_size=64, rtol=1e-8, atol=1e-8, generator=generator())
    torch.testing.assert_close(again, x, rtol=0, atol=1e-6)
    start = scoresde.solve(sde, 300, generator=generator()).x[0]
    torch.testing.assert_close(start, x @ a.T + b, rtol=0, atol=1e-6)
    torch.testing.assert_close(
        scoresde.encode(sde, x, rtol=1e-8, atol=1e-8), start, rtol=0, atol=1e-6
    )


def test_the_loss_with_a_source_is_that_of_its_pairs() -> None:
    """From the point (3, 4) to 0 the velocity is (3, 4), and a network that says 0 has the loss
    ‖(3, 4)‖²/2.
    """
    sde = scoresde.build("rectified", "mlp", shape=(2,), predict="v")
    sde.source = torch.tensor([[3.0, 4.0]]).repeat(5, 1)
    value = scoresde.loss(
        sde, torch.zeros(1000, 2), weight="velocity", noise="uniform", generator=generator()
    )
    assert float(value.detach()) == pytest.approx(12.5, rel=1e-5)


def test_a_source_is_saved_by_name_or_asked_for(tmp_path: Path) -> None:
    sde = build()
    sde.source = scoresde.toy.EightGaussians(radius=2.0)
    back = scoresde.load(scoresde.save(sde, tmp_path / "named"))
    assert isinstance(back.source, scoresde.toy.EightGaussians)
    assert torch.equal(
        back.source.sample(9, generator=generator()), sde.source.sample(9, generator=generator())
    )
    assert back.outcome.name == "velocity"
    sde.source = cloud()
    back = scoresde.load(scoresde.save(sde, tmp_path / "samples"))
    with pytest.raises(ValueError, match=r"set sde\.source"):
        scoresde.sample(back, 2)
    back.source = cloud()
    assert torch.equal(
        scoresde.sample(back, 70, generator=generator()),
        scoresde.sample(sde, 70, generator=generator()),
    )
    with pytest.raises(ValueError, match="source has none"):
        scoresde.log_prob(back, cloud(3))


@pytest.mark.parametrize(
    ("source", "error", "match"),
    [
        (cloud()[:, :1], ValueError, "shape"),
        (cloud()[:0], ValueError, "no samples"),
        (torch.full((4, 2), math.nan), ValueError, "NaN"),
        (torch.ones(4, 2, dtype=torch.long), TypeError, "floating"),
        (object(), TypeError, "tensor of samples or an object"),
        ("moons", TypeError, "tensor of samples or an object"),
        (torch.distributions.Normal(0.0, 1.0), ValueError, "shape"),
    ],
)
def test_bad_sources_are_refused(source: Any, error: type[Exception], match: str) -> None:
    sde = build()
    with pytest.raises(error, match=match):
        sde.source = source
    assert sde.source is None
    assert sde.outcome.name == "score"


def test_a_process_that_keeps_data_at_the_noise_end_takes_no_source() -> None:
    with pytest.raises(ValueError, match=r"RectifiedFlow\(\) or Cosine\(\)"):
        build("vp").source = cloud()
    build("cosine").source = cloud()


# ---------------------------------------------------------------------------------------- bad input


def test_bad_couplings_are_refused_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    sde, x = build(), cloud()
    y = {"y": torch.zeros(len(x), dtype=torch.long)}
    labelled = build(classes=2)
    loader = DataLoader(x, 8, collate_fn=torch.stack)  # type: ignore[arg-type, unused-ignore]
    for change, error, match in (
        ({"coupling": "minibatch_to"}, ValueError, "Did you mean 'minibatch_ot'"),
        ({"coupling": 3}, TypeError, "a name or a Coupling"),
        ({"coupling": "condition_aware_ot"}, ValueError, "these data have none"),
        ({"objective": "denoise"}, ValueError, "Did you mean 'denoising'"),
        ({"objective": 3}, TypeError, "a name or an Objective"),
        ({"objective": "distilled"}, ValueError, "distils pairs"),
        (
            {"objective": scoresde.Distilled(2)},
            ValueError,
            r"Distilled\(steps=2, .* distils pairs",
        ),
        ({"noise": "nodes:0"}, ValueError, "unknown noise"),
        ({"noise": "nodes:x"}, ValueError, "unknown noise"),
        ({"data": Pairs(x, x), "coupling": "minibatch_ot"}, TypeError, "pairs already"),
        ({"data": Pairs(x, x), "given": y}, TypeError, "bring their own conditions"),
        ({"data": Pairs(x, x), "transforms": "flip"}, TypeError, "would separate x from latent"),
        (
            {"data": loader, "coupling": MinibatchOT(size=64)},
            ValueError,
            "rows of the same step are joined",
        ),
    ):
        with pytest.raises(error, match=match):
            scoresde.fit(sde, change.pop("data", x), **{"steps": 2, "progress": False, **change})
        assert sde.outcome.name == "score"
    with pytest.warns(UserWarning, match="condition_aware_ot"):
        scoresde.fit(
            labelled, x, given=y, coupling="minibatch_ot", steps=1, batch_size=8, progress=False
        )
    monkeypatch.setattr(scoresde.training.pairing, "SLOW_ROWS", 40)
    with pytest.warns(
        UserWarning, match=r"joining 50 rows takes about 2\.5e-05 s on one core, and 0 MB"
    ):
        scoresde.fit(sde, x, coupling=MinibatchOT(size=50), steps=1, batch_size=25, progress=False)
    for bad in ({"size": 0}, {"reuse": 0}, {"size": 2.5}):
        with pytest.raises((ValueError, TypeError)):
            COUPLINGS.build("minibatch_ot", **bad)


def test_a_run_goes_on_with_its_coupling_only(tmp_path: Path) -> None:
    how: dict[str, Any] = {
        "steps": 6,
        "batch_size": 8,
        "checkpoints": scoresde.Checkpoints(tmp_path, every=2, resume=True),
        "progress": False,
    }
    with stopped(3):
        scoresde.fit(build(), cloud(), coupling="minibatch_ot", **how)
    with pytest.raises(CheckpointError, match="coupling="):
        scoresde.fit(build(), cloud(), **how)


def test_fitting_independent_pairs_again_gives_the_score_back() -> None:
    sde = build()
    scoresde.fit(sde, cloud(), coupling="minibatch_ot", steps=2, batch_size=8, progress=False)
    assert sde.outcome.name == "velocity"
    with pytest.raises(ValueError, match="no score"):
        scoresde.sample(sde, 2, solver="ancestral")
    scoresde.fit(sde, cloud(), steps=2, batch_size=8, progress=False)
    assert sde.outcome.name == "score"


def test_couplings_are_learnt_without_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scoresde.fit(
            build(), cloud(), coupling="minibatch_ot", steps=2, batch_size=8, progress=False
        )


def test_condition_aware_transport_moves_rows_of_small_groups() -> None:
    rng = np.random.default_rng(0)
    x0, x1, c = rng.normal(size=(20, 2)), rng.normal(size=(20, 2)), rng.normal(size=(20, 1))
    found = scoresde.ConditionAwareOT(ratio=0.05).join(x0, x1, {"c": c}, rng)
    assert (found != np.arange(20)).any()


SEEN: list[int] = []


class Counting(Coupling):
    """Joins nothing, and says how many rows it was asked for."""

    def join(
        self, x0: Any, x1: Any, condition: Mapping[str, Any], rng: np.random.Generator
    ) -> Any:
        SEEN.append(len(x0))
        return np.arange(len(x0))


def flow(net: str = "mlp", **options: Any) -> scoresde.ScoreSDE:
    torch.manual_seed(0)
    return scoresde.build("rectified", net, shape=(2,), width=16, **options)


def moons(n: int = 500) -> torch.Tensor:
    return toy.Moons().sample(n, generator=generator(0))


def test_rows_are_joined_in_the_size_that_was_asked_for() -> None:
    SEEN.clear()
    sde = flow()
    pairing = Pairing(TrainingStream(moons(), sde, 64, seed=0), sde, Counting(size=1000), 0, 0)
    next(pairing.batches(0))
    pairing.close()
    assert set(SEEN) == {1000}


def test_a_loaders_batches_are_not_repeated_at_once() -> None:
    sde = flow()
    loader = DataLoader(TensorDataset(moons(128)), 32)
    pairing = Pairing(TrainingStream(loader, sde, 32, seed=0), sde, scoresde.MinibatchOT(), 0, 0)
    x, _, _, sizes = next(pairing.batches(0, None, 1000))
    pairing.close()
    first, second = (part.sort(0).values for part in x.split(sizes)[:2])
    assert sizes == [32] * 8
    assert not torch.equal(first, second)


class Labelled(Dataset[Any]):
    """Samples with labels, from a dataset."""

    def __len__(self) -> int:
        return 100

    def __getitem__(self, i: int) -> Any:
        return torch.randn(2), {"y": torch.tensor(i % 2)}


QUIET: dict[str, Any] = {"progress": False, "batch_size": 32}


def test_plain_transport_warns_of_labels_from_a_dataset() -> None:
    with pytest.warns(UserWarning, match="condition_aware_ot"):
        scoresde.fit(flow(classes=2), Labelled(), coupling="minibatch_ot", steps=2, **QUIET)


def test_a_loaders_large_batches_are_warned_of() -> None:
    loader = DataLoader(TensorDataset(moons(1200)), 1200)
    with pytest.warns(UserWarning, match="joining"):
        scoresde.fit(flow(), loader, coupling=Counting(), steps=1, progress=False)


def test_warnings_of_couplings_point_at_the_caller() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        labels = {"y": torch.zeros(500, dtype=torch.long)}
        scoresde.fit(
            flow(classes=2), moons(), given=labels, coupling="minibatch_ot", steps=1, **QUIET
        )
    assert [w.filename for w in caught if "condition_aware_ot" in str(w.message)] == [
        inspect.getfile(Counting)
    ]


def test_no_rows_are_joined_that_no_step_takes() -> None:
    SEEN.clear()
    wide = scoresde.build("rectified", "mlp", shape=(4096,), width=8, fourier=0)
    scoresde.fit(
        wide, torch.randn(64, 4096, generator=generator(0)), coupling=Counting(), steps=1, **QUIET
    )
    assert len(SEEN) == 1


class Short(Coupling):
    """Returns too few rows."""

    def join(
        self, x0: Any, x1: Any, condition: Mapping[str, Any], rng: np.random.Generator
    ) -> Any:
        return np.arange(len(x0) // 2)


def test_what_a_coupling_returns_is_checked() -> None:
    with pytest.raises(ValueError, match="Short"):
        scoresde.fit(flow(), moons(), coupling=Short(), steps=1, **QUIET)
