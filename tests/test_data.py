"""What a training run is fed: the right rows, each once, on every rank, from any step on, and
nothing that is no data.
"""

from __future__ import annotations

import gc
import itertools
import math
import multiprocessing
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_training import cloud, same, small, weights
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import scoresde
from conftest import generator, rotated
from scoresde import Checkpoints, ScoreSDE, TrainingError, toy
from scoresde.data.files import Samples, columns
from scoresde.data.readers.shuffles import Shuffles
from scoresde.data.stream import TrainingStream
from scoresde.data.transforms import Dequantize
from scoresde.density.dequantize import TruncatedNormal, Uniform


class Pairs(Dataset[Any]):
    """A map-style dataset of (x, {"y": y})."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> tuple[Tensor, dict[str, Tensor]]:
        return self.x[i], {"y": self.y[i]}


class Rows(IterableDataset[Any]):
    """The rows of a tensor, one after the other."""

    def __init__(self, x: Tensor) -> None:
        self.x = x

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.x)


def steps_of(source: TrainingStream) -> Iterator[Tensor]:
    """The data of one step after the other."""
    for x, _, _, k in source.batches(0):
        yield from x.split(len(x) // k)


N = 40
LABELS = torch.arange(N) % 3
KINDS: dict[str, Any] = {
    "tensor": lambda x: x,
    "float64 tensor": lambda x: x.double(),
    "float64 array": lambda x: x.double().numpy(),
    "array with negative strides": lambda x: x.flip(0).numpy()[::-1],
    "list": lambda x: x.tolist(),
    "TensorDataset": TensorDataset,
    "map-style dataset": lambda x: Pairs(x, LABELS),
    "DataLoader": lambda x: DataLoader(TensorDataset(x), 16),
    "IterableDataset": Rows,
}
LAWS: dict[str, Any] = {
    "toy density": lambda *_: toy.Moons(),
    "distribution": lambda *_: torch.distributions.MultivariateNormal(
        torch.tensor([1.0, -2.0]), torch.diag(torch.tensor([4.0, 9.0]))
    ),
}


@pytest.mark.parametrize("kind", [*KINDS, *LAWS])
def test_global_random_state_is_neither_read_nor_touched_when_a_generator_is_given(
    kind: str,
) -> None:
    data = KINDS[kind](cloud(N)) if kind in KINDS else LAWS[kind]()
    results = []
    for seed in (1, 2):
        sde = small(classes=3)
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        before, before_np = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
        scoresde.fit(sde, data, steps=3, batch_size=16, progress=False, generator=generator(3))
        assert torch.equal(torch.random.get_rng_state(), before), "touched"
        assert np.array_equal(np.random.get_state()[1], before_np), "numpy's touched"  # noqa: NPY002
        results.append(weights(sde))
    assert same(*results), "read"


@pytest.mark.parametrize(("kind", "batch_size"), rotated(KINDS, [8, 40, 100]))
def test_every_kind_of_data_is_standardized_and_trained_on(kind: str, batch_size: int) -> None:
    """Mean and scale are those of all the data, whatever they come in, and their rows are what a
    batch holds.
    """
    x = cloud(N)
    sde = small(classes=3)
    history = scoresde.fit(
        sde, KINDS[kind](x), steps=7, batch_size=batch_size, progress=False, generator=generator()
    )
    torch.testing.assert_close(sde.mean.float(), x.mean(0))
    torch.testing.assert_close(sde.scale.float(), x.std(0, correction=0))
    assert history.step[-1] == 7
    assert all(math.isfinite(value) for value in history.loss)
    source = TrainingStream(KINDS[kind](x), sde, batch_size, seed=1)
    seen = torch.cat(list(itertools.islice(steps_of(source), 5 * 100 // batch_size)))
    assert seen.is_floating_point()  # float64 data stay so until they are standardized
    seen = seen.float()
    row = (seen[:, None] - x[None]).abs().amax(2)
    assert float(row.amin(1).max()) < 1e-6
    times = torch.bincount(row.argmin(1), minlength=N)
    assert int(times.max() - times.min()) <= 1  # epoch after epoch, none twice before all


@pytest.mark.parametrize("kind", list(LAWS))
def test_laws_are_drawn_from_afresh(kind: str) -> None:
    """Mean and scale of 50,000 draws: 5 standard errors."""
    law = LAWS[kind]()
    sde = small()
    scoresde.fit(sde, law, steps=3, progress=False, generator=generator())
    mean, std = (
        (law.mean(), law.std()) if isinstance(law, toy.GaussianMixture) else (law.mean, law.stddev)
    )
    assert bool(((sde.mean - mean).abs() < 5 * std / math.sqrt(50_000)).all())
    assert bool(((sde.scale / std - 1).abs() < 0.02).all())
    seen = torch.cat(list(itertools.islice(steps_of(TrainingStream(law, sde, 1000, seed=1)), 70)))
    assert len(seen.unique(dim=0)) > 69_900


def test_labels_of_a_dataset_and_of_given_stay_with_their_rows() -> None:
    x = torch.arange(N).float()[:, None].expand(N, 2) + torch.tensor([0.0, 0.5])
    y = torch.arange(N)
    sde = small(classes=N)
    for data, given in (
        (Pairs(x, y), None),
        (DataLoader(Pairs(x, y), 7), None),
        (x, {"y": y}),
        (x.numpy(), {"y": y.numpy()}),
    ):
        for rows, _, condition, _ in itertools.islice(
            TrainingStream(data, sde, 16, seed=1, given=given).batches(0), 10
        ):
            assert torch.equal(rows[:, 0].long(), condition["y"])


@pytest.mark.parametrize("kind", ["tensor", "float64 array", "DataLoader", "map-style dataset"])
def test_standardization_is_measured_once_and_kept(kind: str) -> None:
    sde = small(classes=3)
    scoresde.fit(sde, KINDS[kind](cloud(N)), steps=2, progress=False)
    mean, scale = sde.mean.clone(), sde.scale.clone()
    scoresde.fit(sde, KINDS[kind](100 + 10 * cloud(N)), steps=2, progress=False)
    assert torch.equal(sde.mean, mean)
    assert torch.equal(sde.scale, scale)


def test_a_stream_standardizes_a_model_and_its_conditions() -> None:
    sde = scoresde.build("vp", "resmlp", shape=(2,), width=8, depth=1, vector=1)
    x = torch.tensor([[0.0, 10.0], [2.0, 30.0]])
    given = {"vector": torch.tensor([[10.0], [30.0]])}
    stream = TrainingStream(x, sde, 1, seed=0, given=given)
    stream.standardize(sde)
    stream.standardize_conditions(sde)
    assert sde.scale.tolist() == [1.0, 10.0]
    assert sde.conditions.vector.scale.tolist() == [10.0]
    assert stream.conditions == {"vector": (1,)}


def test_batches_hold_the_steps_that_are_asked_for() -> None:
    stream = TrainingStream(torch.rand(10, 2), small(), 4, seed=0)
    assert next(stream.batches(0)).x.shape == (4 * 64, 2)
    stream.read_multiples(10, 16)
    assert stream.steps_at_once == 5  # 20 samples, a multiple of 10
    stream.read_multiples(None, 2)
    assert next(stream.batches(0)).steps == 2
    few = TrainingStream(torch.rand(3, 2), small(), 4, seed=0)
    assert len(few.evenly_spaced(100)[0]) == 102  # each row as often as the others
    with pytest.raises(TypeError, match="no rows to choose from"):
        TrainingStream(toy.Moons(), small(), 4, seed=0).evenly_spaced(3)


# ---------------------------------------------------------------------- from any step on


def memmap(x: Tensor, folder: Path) -> np.ndarray:
    path = folder / "x.npy"
    np.save(path, x.numpy())
    loaded: np.ndarray = np.load(path, mmap_mode="r")
    assert isinstance(loaded, np.memmap)
    return loaded


RANDOM: dict[str, Any] = {
    "DataLoader, shuffled": lambda x: DataLoader(TensorDataset(x), 16, shuffle=True),
    "DataLoader, shuffled by its generator": lambda x: DataLoader(
        TensorDataset(x), 16, shuffle=True, drop_last=True, generator=generator(3)
    ),
    "dataset that draws": lambda x: Drawing(x),
}
FEEDS = {**KINDS, **LAWS, **RANDOM, "memmap": None}


class Drawing(Dataset[Any]):
    """Items with noise from torch's, numpy's and Python's global generators."""

    def __init__(self, x: Tensor) -> None:
        self.x = x

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> Tensor:
        return self.x[i] + torch.rand(2) + float(np.random.rand())  # noqa: NPY002


def feed(kind: str, x: Tensor, folder: Path) -> Any:
    if kind == "memmap":
        return memmap(x, folder)
    return {**KINDS, **LAWS, **RANDOM}[kind](x)


def stream(source: TrainingStream, start: int, stop: int, position: Any = None) -> list[Tensor]:
    """The data of steps start … stop, one by one, as `fit` takes them."""
    k, out, step = source.steps_at_once, [], start
    for x, _, condition, together in source.batches(start, position):
        assert together == k
        parts = x.split(len(x) // k)
        labels = [(c.split(len(x) // k)) for c in condition.values()]
        for i in range(step % k, k):
            if step == stop:
                return out
            out.append(
                torch.cat([parts[i].double(), *(c[i][:, None].double() for c in labels)], 1)
            )
            step += 1
    raise AssertionError("endless")


@pytest.mark.parametrize(("kind", "start"), rotated(FEEDS, [1, 5, 130]))
def test_what_comes_at_a_step_is_the_same_wherever_one_begins(
    kind: str, start: int, tmp_path: Path
) -> None:
    x = cloud(N)
    sde = small(classes=3)
    torch.manual_seed(0)
    source = TrainingStream(feed(kind, x, tmp_path), sde, 16, seed=1)
    before = stream(source, 0, start)
    position = dict(source.position)
    if source.steps_at_once > 1:
        position = {}  # it needs none
    elif position:  # one batch was looked up beyond the last that was taken
        batches = 3 - ("its generator" in kind)
        position = {"epoch": start // batches, "batch": start % batches}
    after = stream(source, start, start + 70, position)
    torch.manual_seed(1)
    again = stream(TrainingStream(feed(kind, x, tmp_path), sde, 16, seed=1), 0, start + 70)
    assert all(torch.equal(a, b) for a, b in zip([*before, *after], again, strict=True))
    other = stream(TrainingStream(feed(kind, x, tmp_path), sde, 16, seed=2), 0, 3)
    fixed = kind in ("DataLoader", "IterableDataset")  # in their own order
    assert all(torch.equal(a, b) for a, b in zip(again, other, strict=False)) == fixed


@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("kind", ["tensor", "memmap", "map-style dataset"])
def test_the_shares_of_the_ranks_are_the_batch(kind: str, world: int, tmp_path: Path) -> None:
    x = torch.arange(2.0 * N).reshape(N, 2)
    sde = small(classes=3)
    data = feed(kind, x, tmp_path)
    alone = stream(TrainingStream(data, sde, 20, seed=1), 0, 6)
    sources = [
        TrainingStream(data, sde, 20, seed=1, rank=rank, world=world) for rank in range(world)
    ]
    shares = [stream(source, 0, 6) for source in sources]
    for step in range(6):
        parts = [share[step] for share in shares]
        assert all(len(part) == 20 // world for part in parts)
        assert torch.equal(torch.cat(parts), alone[step])
    rows = torch.cat(alone)[:, 0].sort().values.reshape(N, 3)
    assert torch.equal(rows, x[:, :1].double().expand(N, 3))  # three epochs, each row once in each


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("kind", ["DataLoader", "toy density", "DataLoader, shuffled"])
def test_ranks_that_share_a_loader_or_a_law_have_data_of_their_own_and_measure_the_same(
    kind: str, world: int
) -> None:
    x = cloud(64)
    sde = small()
    sources = [
        TrainingStream({**KINDS, **LAWS, **RANDOM}[kind](x), sde, 16, seed=1, rank=r, world=world)
        for r in range(world)
    ]
    firsts = [stream(source, 0, 4)[0] for source in sources]
    for a, b in itertools.combinations(firsts, 2):
        assert not bool((a[:, None] == b[None]).all(2).any())
    measured = [torch.cat(list(source.measure())) for source in sources]
    assert all(torch.equal(measured[0], each) for each in measured[1:])
    assert len(measured[0]) == (64 if "Loader" in kind else 50_000)


def test_images_of_a_law_are_measured_by_fewer_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scoresde.data.readers.sampler.MEASURED_NUMBERS", 2**14)
    monkeypatch.setattr("scoresde.data.readers.sampler.FEWEST_MEASURED", 100)
    monkeypatch.setattr("scoresde.data.readers.base.PART_NUMBERS", 2**12)
    sde = small(shape=(1, 8, 8))

    class Law:
        sizes: list[int] = []  # noqa: RUF012

        def sample(self, n: int) -> Tensor:
            self.sizes.append(n)
            return torch.randn(n, 1, 8, 8)

    parts = list(TrainingStream(Law(), sde, 16, seed=0).measure())
    assert Law.sizes == [64] * 4
    assert not torch.equal(parts[0], parts[1])


@pytest.mark.parametrize("n", [1, 3, 40, 5000])
def test_an_order_is_a_shuffle_of_each_epoch_however_it_is_cut(n: int) -> None:
    cpu = torch.device("cpu")
    whole = Shuffles(n, 7, cpu)(0, 6 * n)
    assert torch.equal(whole.reshape(6, n).sort(1).values, torch.arange(n).expand(6, n))
    order = Shuffles(n, 7, cpu)
    cuts = [0, 1, n // 2 + 1, n, 3 * n, 3 * n + 1, 6 * n]
    pieces = {(a, b): order(a, b) for a, b in reversed(list(itertools.pairwise(cuts)))}
    assert torch.equal(torch.cat([pieces[pair] for pair in itertools.pairwise(cuts)]), whole)
    far = 10**15 * n
    assert torch.equal(order(far, far + n).sort().values, torch.arange(n))
    if n == 5000:
        assert not torch.equal(whole[:n], whole[n : 2 * n])


@pytest.mark.parametrize("n", [1, 3])
def test_few_rows_fill_a_large_batch_evenly(n: int) -> None:
    x = torch.arange(float(n))[:, None].expand(n, 2)
    batch, _, _, k = next(TrainingStream(x, small(), 512, seed=0).batches(10**9))
    times = torch.bincount(batch[:, 0].long(), minlength=n)
    assert len(batch) == 512 * k
    assert int(times.max() - times.min()) <= 2  # an epoch may be cut at both ends


# ---------------------------------------------------------------------- memory and speed


def test_data_on_the_device_are_not_copied() -> None:
    x = cloud(N)
    source = TrainingStream(x, small(), 16, seed=0)
    assert source.reader.rows.data_ptr() == x.data_ptr()
    assert next(iter(source.measure())).data_ptr() == x.data_ptr()
    array = x.numpy()
    assert TrainingStream(array, small(), 16, seed=0).reader.rows.data_ptr() == array.ctypes.data
    pixels = torch.randint(256, (30, 1, 4, 4), generator=generator(), dtype=torch.uint8)
    source = TrainingStream(pixels, small(shape=(1, 4, 4)), 16, seed=0, transforms="dequantize")
    assert source.reader.rows.data_ptr() == pixels.data_ptr()
    assert source.reader.rows.dtype == torch.uint8
    a, b = (x for x, _, _, _ in itertools.islice(source.batches(0), 2))
    bins = (a * 256).floor().to(torch.uint8)  # each batch has noise of its own within the bins
    assert bool((bins.flatten(1)[:, None] == pixels.flatten(1)[None]).all(2).any(1).all())
    assert not torch.equal(*(((v * 256) % 1).flatten().sort().values for v in (a, b)))


@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="reads Linux's account of memory"
)
def test_a_memory_mapped_file_stays_on_the_disk(tmp_path: Path) -> None:
    """200 MB; what the process owns grows by less than half of it (other tests' memory comes back
    in between), and no part that is looked at is over 16 MiB.
    """

    def owned() -> int:
        found = re.search(
            r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text(encoding="ascii")
        )
        assert found is not None
        return int(found[1]) // 1024

    x = np.memmap(tmp_path / "x", np.float32, "w+", shape=(1_600_000, 32))
    x[::1000] = 1
    sde = small(shape=(32,))
    source = TrainingStream(x, sde, 512, seed=0)
    before, biggest, taken = owned(), 0, source.reader.take

    def noting(*rows: Any) -> Tensor:
        nonlocal biggest
        part = taken(*rows)
        biggest = max(biggest, part.nbytes)
        return part

    source.reader.take = noting  # type: ignore[method-assign]
    sde.standardize(source.measure())
    for _ in itertools.islice(source.batches(0), 5):
        pass
    assert owned() - before < 100
    assert biggest <= 2**24
    torch.testing.assert_close(sde.mean.float(), torch.full((32,), 1e-3), rtol=1e-4, atol=0)


def test_the_work_in_python_does_not_grow_with_the_batch() -> None:
    """Calls of Python functions per batch, of 64 and of 32,768 samples."""
    x = torch.zeros(100_000, 2)

    def calls(size: int) -> int:
        batches = TrainingStream(
            x, small(classes=3), size, seed=0, given={"y": torch.zeros(len(x), dtype=torch.long)}
        ).batches(0)
        next(batches)
        count = 0

        def note(frame: Any, event: str, _: Any) -> None:
            nonlocal count
            count += event in ("call", "c_call")

        sys.setprofile(note)
        try:
            next(batches)
        finally:
            sys.setprofile(None)
        return count

    assert calls(64) == calls(32_768) < 60


# ---------------------------------------------------------------------- conditions


@pytest.mark.parametrize("kind", [list, tuple, np.asarray, torch.as_tensor])
def test_conditions_stay_with_their_rows_through_transforms(kind: Any) -> None:
    y = torch.arange(200)
    pixels = y.to(torch.uint8).reshape(-1, 1, 1, 1).expand(-1, 1, 3, 3)
    sde = small(shape=(1, 3, 3), classes=200)
    source = TrainingStream(
        pixels,
        sde,
        16,
        seed=0,
        given={"y": kind(y.tolist())},
        transforms=("flip", Dequantize(256)),
    )
    for x, _, condition, _ in itertools.islice(source.batches(0), 3):
        assert torch.equal((x * 256).floor().long()[:, 0, 0, 0], condition["y"])
    x, condition = source.evenly_spaced(50)
    assert torch.equal((x * 256).floor().long()[:, 0, 0, 0], condition["y"])


def test_a_dataset_of_dicts_is_one_of_columns() -> None:
    x, y = cloud(N), LABELS
    rows = [{"point": a, "kind": int(b), "name": "n"} for a, b in zip(x, y, strict=True)]
    sde = small(classes=3)
    got = stream(TrainingStream(columns(rows, "point", y="kind"), sde, 16, seed=1), 0, 8)
    wanted = stream(TrainingStream(Pairs(x, y), sde, 16, seed=1), 0, 8)
    assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("mapped", [False, True])
def test_arrays_of_either_byte_order_are_read_without_a_warning(
    order: str, mapped: bool, tmp_path: Path
) -> None:
    x = cloud(N)
    array = x.numpy().astype(f"{order}f4")
    if mapped:
        array.tofile(tmp_path / "x")
        array = np.memmap(tmp_path / "x", f"{order}f4", "r", shape=(N, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        source = TrainingStream(array, small(), 16, seed=1)
        assert torch.equal(torch.cat(list(source.measure())), x)
        wanted = stream(TrainingStream(x, small(), 16, seed=1), 0, 3)
        assert all(torch.equal(a, b) for a, b in zip(stream(source, 0, 3), wanted, strict=True))


@pytest.mark.parametrize("kind", ["tensor", "TensorDataset", "map-style dataset", "DataLoader"])
def test_gradients_do_not_reach_the_data(kind: str) -> None:
    x = cloud(N).requires_grad_()
    source = TrainingStream(KINDS[kind](x), small(classes=3), 16, seed=1)
    assert not any(b.requires_grad for b in source.measure())
    assert not next(source.batches(0))[0].requires_grad


# ---------------------------------------------------------------------- what is refused


class Items(Dataset[Any]):
    """Twenty items by a function."""

    def __init__(self, item: Any) -> None:
        self.item = item

    def __len__(self) -> int:
        return 20

    def __getitem__(self, i: int) -> Any:
        return self.item(i)


def failing(i: int) -> Tensor:
    if i == 13:
        raise OSError("the disk is gone")
    return torch.full((2,), float(i))


class Frame:
    """What pandas' is like."""

    def sample(self, n: int) -> None:
        raise AssertionError("drawn from")

    def to_numpy(self) -> np.ndarray:
        return np.eye(2)


class Few:
    def sample(self, n: int) -> Tensor:
        return torch.eye(7, 2)


def poisoned() -> Tensor:
    x = cloud(N)
    x[33, 1] = float("nan")
    return x


REFUSED: dict[str, tuple[Any, dict[str, Any], type[Exception], str]] = {
    "nothing": (torch.empty(0, 2), {}, ValueError, "no samples"),
    "no samples": (Items(failing), {"given": {"y": LABELS}}, TypeError, "given="),
    "infinite": (torch.full((5, 2), math.inf), {}, ValueError, "infinite values in 5 of 5 rows"),
    "NaN": (poisoned(), {}, ValueError, "1 of 40 rows: 33"),
    "NaN of a dataset": (TensorDataset(poisoned(), LABELS), {}, ValueError, "1 of 40 rows: 33"),
    "another shape": (torch.zeros(5, 3), {}, ValueError, r"\(5, 3\), wanted \(batch, 2\)"),
    "integers": (torch.zeros(5, 2, dtype=torch.long), {}, TypeError, "floating point"),
    "a number": (3.0, {}, TypeError, "got float"),
    "a pair": ((cloud(N), LABELS), {}, TypeError, "given="),
    "rows of two lengths": ([[1.0, 2.0], [3.0]], {}, ValueError, "inhomogeneous"),
    "few labels": (
        cloud(N),
        {"given": {"y": LABELS[:7]}},
        ValueError,
        r"'y' has shape \(7,\) for 40",
    ),
    "one label": (cloud(N), {"given": {"y": 1}}, ValueError, r"'y' has shape \(\) for 40"),
    "labels, not named": (cloud(N), {"given": LABELS}, TypeError, "mapping"),
    "an unknown condition": (cloud(N), {"given": {"z": LABELS}}, ValueError, "no condition 'z'"),
    "a class that is not": (cloud(N), {"given": {"y": LABELS + 1}}, ValueError, "from 0 to 2"),
    "points, mirrored": (cloud(N), {"transforms": "flip"}, ValueError, "mirrors images"),
    "floats, dequantized": (
        cloud(N),
        {"transforms": "dequantize"},
        ValueError,
        "integers from 0 to 255",
    ),
    "an unknown transform": (cloud(N), {"transforms": "flop"}, ValueError, "flip"),
    "a dataset that fails": (
        Items(failing),
        {},
        TrainingError,
        "row.* 13.*OSError: the disk is gone",
    ),
    "items of two shapes": (
        Items(lambda i: torch.zeros(2 + i % 2)),
        {},
        RuntimeError,
        "equal size",
    ),
    "dicts": (
        Items(lambda i: {"x": torch.zeros(2), "label": i}),
        {},
        TypeError,
        r"'x', 'label'.*columns",
    ),
    "labels that are words": (
        Items(lambda i: (torch.zeros(2), {"y": "cat"})),
        {},
        TypeError,
        "condition 'y' has words such as 'cat'",
    ),
    "an unknown condition of a dataset": (
        Items(lambda i: (torch.zeros(2), {"z": i})),
        {},
        ValueError,
        "no condition 'z'",
    ),
    "a class that is not, of a dataset": (
        Items(lambda i: (torch.zeros(2), {"y": i})),
        {},
        ValueError,
        "from 0 to 2",
    ),
    "an empty dataset": (Items(None), {}, ValueError, "length 0"),
    "a loader without batches": (
        DataLoader(TensorDataset(cloud(5)), 16, drop_last=True),
        {},
        ValueError,
        "no batch",
    ),
    "a table of another library": (Frame(), {}, TypeError, r"Frame.*to_numpy\(\)"),
    "masked values": (np.ma.masked_array(np.eye(2), mask=np.eye(2)), {}, ValueError, "masked"),
    "masked values in a list": (
        [*np.ma.masked_array(np.eye(2), mask=np.eye(2))],
        {},
        ValueError,
        "data has 2 masked values",
    ),
    "masked words": (
        cloud(4),
        {"given": {"y": np.ma.masked_array([*"abca"], mask=[0, 0, 1, 0])}},
        ValueError,
        "condition 'y' has 1 masked values",
    ),
    "a table held out from an array": (
        cloud(40),
        {"validation": scoresde.Table(cloud(9))},
        TypeError,
        "validation is a Table, and the training data are not",
    ),
    "a law that draws too few": (Few(), {}, ValueError, r"Few.sample\(50000\) returned 7"),
    "equal rows": (torch.ones(5, 2), {}, ValueError, "do not vary"),
}


@pytest.mark.parametrize("case", list(REFUSED))
def test_what_can_not_be_learnt_from_is_refused_before_any_work(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, options, kind, message = REFUSED[case]
    if case == "an empty dataset":
        monkeypatch.setattr(Items, "__len__", lambda _: 0)
    sde = small(classes=3)
    before = weights(sde)
    with pytest.raises(kind, match=message):
        scoresde.fit(sde, data, steps=3, progress=False, **options)
    assert same(weights(sde), before)


@pytest.mark.parametrize("row", [0, 77_777])
def test_nan_in_a_memory_mapped_file_is_found_before_training(row: int, tmp_path: Path) -> None:
    x = np.memmap(tmp_path / "x", np.float32, "w+", shape=(80_000, 2))
    x[row, 1] = np.nan
    sde = small()
    sde.standardize(cloud())  # which is not what finds it
    with pytest.raises(ValueError, match="NaN"):
        scoresde.fit(sde, x, steps=3, progress=False)


# ---------------------------------------------------------------------- conditions beside x


class Beside(Dataset[Any]):
    """Items as somebody else's dataset has them."""

    def __init__(self, *columns: Any) -> None:
        self.columns = columns

    def __len__(self) -> int:
        return len(self.columns[0])

    def __getitem__(self, i: int) -> Any:
        return tuple(column[i] for column in self.columns)


BESIDE: dict[str, Any] = {  # of x and y
    "TensorDataset": TensorDataset,
    "dataset": Beside,
    "dataset of ints": lambda x, y: Beside(x, y.tolist()),
    "loader": lambda x, y: DataLoader(TensorDataset(x, y), 16, shuffle=True),
    "loader of dicts": lambda x, y: DataLoader(
        [{"point": a, "y": b} for a, b in zip(x, y, strict=True)], 16
    ),  # type: ignore[arg-type]
    "loader of tuples with dicts": lambda x, y: DataLoader(Pairs(x, y), 7),
    "list of tuples": lambda x, y: list(zip(x, y, strict=True)),
    "list of lists": lambda x, y: [[a.tolist(), int(b)] for a, b in zip(x, y, strict=True)],
    "list of arrays": lambda x, y: [(a.numpy(), b.numpy()) for a, b in zip(x, y, strict=True)],
    "list of tuples with dicts": lambda x, y: [
        (a, {"y": int(b)}) for a, b in zip(x, y, strict=True)
    ],
    "list of dicts": lambda x, y: [{"y": int(b), "point": a} for a, b in zip(x, y, strict=True)],
    "samples of a file": lambda x, y: Samples(x.numpy(), {"y": y.numpy()}),
}


@pytest.mark.parametrize(
    "dtype", [torch.int64, torch.int32, torch.uint8, torch.uint16, torch.uint32, torch.uint64]
)
@pytest.mark.parametrize("kind", [*BESIDE, "given", "given, an array"])
def test_labels_beside_the_samples_stay_with_their_rows(kind: str, dtype: torch.dtype) -> None:
    y = torch.arange(N)
    x = y.float()[:, None].expand(N, 2) + torch.tensor([0.0, 0.5])
    labels, given = y.to(dtype), None
    if "given" in kind:
        data, given = x, {"y": labels.numpy() if "array" in kind else labels}
    else:
        data = BESIDE[kind](x, labels)
    source = TrainingStream(data, small(classes=N), 16, seed=1, given=given)
    torch.testing.assert_close(torch.cat(list(source.measure())).float().sort(0).values, x)
    seen = list(itertools.islice(source.batches(0), 6))
    for rows, _, condition, _ in seen:
        assert torch.equal(rows[:, 0].long(), condition["y"])
    assert set(torch.cat([condition["y"] for _, _, condition, _ in seen]).tolist()) == set(
        range(N)
    )


def test_integers_with_labels_are_dequantized_afresh_row_by_row() -> None:
    y = torch.arange(N)
    v = y[:, None].expand(N, 2)
    for dequantization in (Uniform(64), TruncatedNormal(64, std=0.1)):
        source = TrainingStream(
            dequantization.dataset(v, y=y.to(torch.uint16)), small(classes=N), 16, seed=1
        )
        batches = list(itertools.islice(source.batches(0), 2))
        for x, _, condition, _ in batches:
            assert torch.equal((x * 64).floor().long(), condition["y"][:, None].expand(-1, 2))
        u = torch.cat([x for x, _, _, _ in batches]) * 64 % 1
        wanted = 1 / math.sqrt(12) if isinstance(dequantization, Uniform) else 0.1
        assert float(u.std()) == pytest.approx(wanted, rel=0.06)  # 4096 numbers, 4 standard errors
        assert not torch.equal(
            batches[0][0][:16].sort(0).values, batches[1][0][:16].sort(0).values
        )
    with pytest.raises(ValueError, match="dequantized once"):
        TrainingStream(
            Uniform(64).dataset(v, y=y), small(classes=N), 16, seed=1, transforms=Dequantize(64)
        )
    with pytest.raises(ValueError, match="bring the condition 'y' already"):
        TrainingStream(Uniform(64).dataset(v, y=y), small(classes=N), 16, seed=1, given={"y": y})


def test_several_conditions_find_their_names_by_what_the_network_takes() -> None:
    x, y, vector = cloud(N), LABELS, torch.randn(N, 5)
    sde = scoresde.build("vp", "resmlp", shape=(2,), width=8, depth=1, classes=3, vector=5)
    for data in (
        TensorDataset(x, y, vector),
        TensorDataset(x, vector, y),
        DataLoader(TensorDataset(x, y, vector), 16),
    ):
        for rows, _, condition, _ in itertools.islice(
            TrainingStream(data, sde, 16, seed=1).batches(0), 3
        ):
            which = (rows[:, None] == x).all(2).int().argmax(1)
            assert torch.equal(condition["y"], y[which])
            assert torch.equal(condition["vector"], vector[which])
    for data in (
        TensorDataset(x, y, y),  # twice
        TensorDataset(x, torch.randn(N, 4)),  # of another length
        TensorDataset(x, y.float()),  # no integers
        Beside(x, ["a"] * N),
        DataLoader(TensorDataset(x, torch.randn(N, 4)), 16),
        [(row, torch.zeros(3)) for row in x],
    ):
        with pytest.raises(
            TypeError, match=r"can't be told .*takes y, vector, image.*name the labels, \(x, \{'y'"
        ):
            next(TrainingStream(data, sde, 16, seed=1).batches(0))
    with pytest.raises(ValueError, match=r"takes no condition y; build it with classes=n"):
        TrainingStream(TensorDataset(x, y), small(), 16, seed=1)
    with pytest.raises(ValueError, match=r"item 7 is .*shape \(3,\).*item 0 is .*shape \(2,\)"):
        TrainingStream([(torch.zeros(2 + (i == 7)), 1) for i in range(9)], sde, 16, seed=1)


BAD_LABELS: dict[str, tuple[Any, str]] = {
    "bool": (LABELS == 1, r"integers of shape \(n,\), got torch.bool.*y.long\(\)"),
    "float": (LABELS.float(), r"got torch.float32.*y.long\(\)"),
    "beyond the classes": (LABELS + 1, "from 0 to 2, got 1 to 3"),
    "negative": (LABELS - 1, "from 0 to 2, got -1 to 1"),
    "unsigned beyond the classes": ((LABELS + 1).to(torch.uint16), "from 0 to 2, got 1 to 3"),
    "unsigned beyond all signed": (np.full(N, 2**63, np.uint64), r"2\^63 and more"),
    "of two axes": (LABELS[:, None], r"shape \(40, 1\)"),
}


@pytest.mark.parametrize("case", list(BAD_LABELS))
def test_labels_that_are_none_are_refused_in_one_sentence(case: str) -> None:
    y, message = BAD_LABELS[case]
    for data, given in ((cloud(N), {"y": y}), (Pairs(cloud(N), torch.as_tensor(y)), None)):
        with pytest.raises(ValueError, match=message):
            scoresde.fit(small(classes=3), data, given=given, steps=3, progress=False)


# ---------------------------------------------------------------------- what fails midway


class Until(Dataset[Any]):
    """Forty rows, of which one is something else once it was asked for so often."""

    def __init__(self, what: Any, times: int = 2) -> None:
        self.what, self.times, self.asked = what, times, 0

    def __len__(self) -> int:
        return N

    def __getitem__(self, i: int) -> Any:
        if i == 13:
            self.asked += 1
            if self.asked >= self.times:
                return self.what()
        return torch.full((2,), float(i))


class Passing(IterableDataset[Any]):
    """The same, one after the other."""

    def __init__(self, what: Any) -> None:
        self.rows = Until(what)

    def __iter__(self) -> Iterator[Any]:
        yield from (self.rows[i] for i in range(N))


class Sampler:
    """A law that goes wrong at its third draw."""

    def __init__(self, what: Any) -> None:
        self.what, self.draws = what, 0

    def sample(self, n: int) -> Any:
        self.draws += 1
        return self.what(n) if self.draws > 2 else torch.randn(n, 2)


def raising(kind: type[Exception]) -> Any:
    def what(*_: Any) -> Any:
        raise kind(*["the disk is gone"] * (kind is OSError))

    return what


NAN = torch.tensor([0.0, math.nan])
MIDWAY: dict[str, tuple[Any, type[Exception], str]] = {
    "dataset": (
        lambda: Until(raising(OSError)),
        TrainingError,
        r"batch 5, rows? .*13.*: OSError: the disk is gone",
    ),
    "dataset that stops": (
        lambda: Until(raising(StopIteration)),
        TrainingError,
        r"batch 5, rows? .*13.*: StopIteration",
    ),
    "dataset, NaN": (lambda: Until(lambda: NAN), ValueError, r"1 of 8 rows: 13 \(batch \d\)"),
    "dataset, shape": (
        lambda: Until(lambda: torch.zeros(3)),
        TrainingError,
        r"batch \d, rows .*13.*equal size",
    ),
    "loader": (
        lambda: DataLoader(Until(raising(OSError)), 8),
        TrainingError,
        r"batch 1 of epoch 1, rows? .*13.*OSError",
    ),
    "loader that stops": (
        lambda: DataLoader(Until(raising(StopIteration)), 8),
        TrainingError,
        "batch 1 of epoch 1, rows? .*13",
    ),
    "loader with a worker": (
        lambda: DataLoader(Until(raising(OSError), 1), 8, num_workers=1),
        TrainingError,
        "batch 1 of epoch 0: OSError: the disk",
    ),
    "loader with a worker that stops": (
        lambda: DataLoader(Until(raising(StopIteration), 1), 8, num_workers=1),
        TrainingError,
        "batch 1 of epoch 0: Stop",
    ),
    "loader, NaN": (
        lambda: DataLoader(Until(lambda: NAN), 8),
        ValueError,
        r"1 of 8 rows: 5 \(batch 1 of epoch 1\)",
    ),
    "iterable": (
        lambda: Passing(raising(OSError)),
        TrainingError,
        "batch 1 of epoch 1: OSError: the disk is gone",
    ),
    "iterable, NaN": (
        lambda: Passing(lambda: NAN),
        ValueError,
        r"1 of 8 rows: 5 \(batch 1 of epoch 1\)",
    ),
    "law": (
        lambda: Sampler(raising(OSError)),
        TrainingError,
        r"Sampler.sample\(512\) raised OSError: the disk is gone",
    ),
    "law, shape": (
        lambda: Sampler(lambda n: torch.zeros(n, 3)),
        ValueError,
        r"Sampler.sample\(512\) has shape \(512, 3\)",
    ),
    "law, too few": (
        lambda: Sampler(lambda n: torch.zeros(n - 1, 2)),
        ValueError,
        r"sample\(512\) returned 511 samples",
    ),
    "law, NaN": (
        lambda: Sampler(lambda n: NAN.expand(n, 2)),
        ValueError,
        r"sample\(512\) has NaN .* in 512 of 512 rows",
    ),
    "law, nothing": (
        lambda: Sampler(lambda n: None),
        TypeError,
        r"sample\(512\) is a tensor or array, got None",
    ),
}


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("case", list(MIDWAY))
def test_data_that_fail_midway_are_named_and_cost_only_what_is_after_the_last_checkpoint(
    case: str, tmp_path: Path
) -> None:
    """The message names the row or batch, the cause is chained, the checkpoint is named in a note
    and goes on.
    """
    make, kind, message = MIDWAY[case]
    sde = small()
    sde.standardize(
        torch.randn(100, 2, generator=generator())
    )  # so that the first pass is one of training
    how: dict[str, Any] = {
        "checkpoints": Checkpoints(tmp_path, every=50 if "law" in case else 1),
        "progress": False,
        "generator": generator(),
    }
    with pytest.raises(kind, match=message) as caught:
        scoresde.fit(sde, make(), steps=400, batch_size=8, **how)
    assert "\n" not in str(caught.value)
    assert (caught.value.__cause__ is not None) == (kind is TrainingError)
    steps = [int(path.stem[-8:]) for path in tmp_path.glob("step-*.json")]
    assert bool(steps) == bool(sde.ema)
    assert (
        [note for note in getattr(caught.value, "__notes__", []) if f"step {max(steps)}" in note]
        if steps
        else True
    )
    assert steps or "worker" in case
    assert not sde.training or not steps


def test_workers_of_a_loader_end_with_the_run_that_they_fail() -> None:
    """Not later, by the garbage collector, which closes their queue before it tells them, and waits
    5 seconds for each.
    """
    before = set(multiprocessing.active_children())
    loader: Any = DataLoader(Until(raising(OSError), 1), 8, num_workers=1)
    gc.disable()
    try:
        with pytest.raises(TrainingError, match="OSError"):
            scoresde.fit(small(), loader, steps=4, batch_size=8, progress=False)
        assert set(multiprocessing.active_children()) == before
    finally:
        gc.enable()


def test_a_row_that_is_bad_is_named_by_its_number_in_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scoresde.data.readers.base.PART_NUMBERS", 64)
    x = np.memmap(tmp_path / "x", np.float32, "w+", shape=(1000, 2))
    x[777, 1] = np.nan
    with pytest.raises(ValueError, match="1 of 32 rows: 777"):
        scoresde.fit(small(), x, steps=3, progress=False)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"compile": "yes"}, "compile is True or False, got 'yes'"),
        ({"resume": "no"}, "resume is True or False, got 'no'"),
        ({"progress": "yes"}, "progress is True, False or None, got 'yes'"),
        ({"compile": 1}, "compile is True or False, got 1"),
        ({"weight": None}, "weight is a name, such as 'edm', got None"),
        ({"weight": ["edm"]}, r"weight is a name, such as 'edm', got \['edm'\]"),
        ({"noise": ["uniform"]}, r"noise is a name, such as 'uniform', got \['uniform'\]"),
        ({"out": 3}, "out is a path, got int"),
        ({"out": b"x"}, "out is a path, got bytes"),
        ({"objective": 3}, "objective is a name or an Objective, got int"),
        ({"coupling": True}, "coupling is a name or a Coupling, got bool"),
        ({"patience": True}, "patience is an integer, got True"),
        ({"transforms": 3}, "transforms are names"),
        ({"generator": 3}, "torch.Generator"),
        ({"accelerator": "cpu"}, "accelerate.Accelerator, got str"),
    ],
)
def test_options_of_the_wrong_type_are_refused_before_any_work(
    option: dict[str, Any], message: str
) -> None:
    sde = small()
    with pytest.raises(TypeError, match=message):
        scoresde.fit(sde, cloud(), **({"steps": 3, "progress": False} | option))
    assert not bool(sde.measured)


# ---------------------------------------------------------------------- units


@pytest.mark.parametrize("scale", [1e-20, 1e-10, 1e10, 1e20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_units_do_not_matter(scale: float, dtype: torch.dtype) -> None:
    """The losses are those of the same data in units of 1, to rounding."""

    def losses(x: Tensor) -> list[float]:
        sde = small()
        history = scoresde.fit(
            sde, x, steps=10, batch_size=32, progress=False, generator=generator(1)
        )
        torch.testing.assert_close(
            sde.scale.double(), x.double().std(0, correction=0), rtol=1e-5, atol=0
        )
        return history.loss

    x = cloud().to(dtype)
    assert losses(x * scale) == pytest.approx(losses(x), rel=1e-4)


@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (1, 4, 4), (1, 2, 2, 2), (1, 2, 1, 2, 2)])
@pytest.mark.parametrize("kind", ["tensor", "float64 array", "DataLoader", "IterableDataset"])
def test_samples_of_every_rank_are_fed_as_they_are(shape: tuple[int, ...], kind: str) -> None:
    x = torch.arange(30.0 * math.prod(shape)).reshape(30, *shape)
    sde = ScoreSDE(scoresde.VPSDE(), scoresde.BACKBONES.build("test_linear", shape), shape=shape)
    batches = TrainingStream(KINDS[kind](x), sde, 10, seed=1).batches(0)
    seen = torch.cat(
        list(
            itertools.islice((part for b, _, _, k in batches for part in b.split(len(b) // k)), 3)
        )
    )
    if kind == "DataLoader":  # of batches of 16
        seen = seen[:30]
    assert torch.equal(seen.double().reshape(30, -1).sort(0).values, x.double().reshape(30, -1))
    if shape:
        history = scoresde.fit(sde, KINDS[kind](x), steps=2, batch_size=10, progress=False)
        assert history.step == [1, 2]
