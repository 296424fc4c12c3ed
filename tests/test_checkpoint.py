"""A run that was killed, interrupted or out of disk goes on as if nothing had happened: files
equal by SHA-256.

Whatever is compared was trained twice: once in one go, and once in pieces, each piece by a model
that began with other weights.
"""

from __future__ import annotations

import builtins
import contextlib
import hashlib
import importlib
import json
import math
import mmap
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fit_options import fit_keywords
from torch import Tensor, nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    TensorDataset,
)

import scoresde
from conftest import generator, rotated, some
from scoresde import CheckpointError, History, ScoreSDE, TrainingError
from scoresde.storage import description, disk
from scoresde.storage import models as io
from scoresde.storage import records as storage
from scoresde.storage.lock import LOCK
from scoresde.training import trainer as training

forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


class Noisy(nn.Module):
    """A network with dropout, a buffer that training moves, and a random layer that stays."""

    def __init__(self, shape: tuple[int, ...], width: int = 8, classes: int = 0) -> None:
        super().__init__()
        n = math.prod(shape)
        self.frozen = nn.Linear(n + 1, width).requires_grad_(False)
        self.hidden, self.drop, self.last = (
            nn.Linear(width, width),
            nn.Dropout(0.2),
            nn.Linear(width, n),
        )
        self.label = nn.Embedding(classes, width) if classes else None
        self.register_buffer("seen", torch.zeros(width))
        self.seen: Tensor

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        h = torch.tanh(self.frozen(torch.cat([x.flatten(1), t[:, None]], 1)))
        if self.label is not None and y is not None:
            h = h + self.label(y)
        h = self.drop(torch.tanh(self.hidden(h)))
        if self.training:
            with torch.no_grad():
                self.seen.lerp_(h.mean(0), 0.1)
        out: Tensor = self.last(h + self.seen).reshape(x.shape)
        return out


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    """Not for longer than a test: others loop over what is registered."""
    scoresde.BACKBONES.register("test_noisy")(Noisy)
    yield
    scoresde.BACKBONES.remove("test_noisy")


def build(
    seed: int = 0, shape: tuple[int, ...] = (2,), net: str = "test_noisy", **options: Any
) -> ScoreSDE:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return scoresde.build("vp", net, shape=shape, **({"width": 8} | options))


def cloud(n: int = 100, *shape: int, seed: int = 0) -> Tensor:
    return 3 + torch.randn(n, *(shape or (2,)), generator=torch.Generator().manual_seed(seed))


def fit(sde: ScoreSDE, data: Any, **options: Any) -> History:
    """With what all runs here have in common; the generator is nobody's business once a run has
    begun.
    """
    common: dict[str, Any] = {"steps": 14, "batch_size": 16, "progress": False}
    generator = torch.Generator().manual_seed(options.pop("seed", 5))
    return scoresde.fit(sde, data, **fit_keywords(**(common | options)), generator=generator)


def state(sde: ScoreSDE) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in sde.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(
        a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]) for name in a
    )


def digests(folder: Path, *prefixes: str) -> dict[str, str]:
    """SHA-256 of the tensors of all records, by file; a record's name has the step, the tensors
    everything else.
    """
    names = [
        path for path in folder.glob("*.safetensors") if path.name.startswith(prefixes or ("",))
    ]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in names}


def steps(folder: Path) -> list[int]:
    """Of the checkpoints in a folder."""
    return [int(stem[len(io.STEP) :]) for stem in storage.records(folder, io.STEP)]


@contextlib.contextmanager
def stopped(at: int, why: BaseException) -> Iterator[None]:
    """Let the step after so many end with an exception."""
    original = training.Trainer.steps_to_go

    def steps_to_go(self: Any, reseed: Any) -> Iterator[int]:
        for step in original(self, reseed):
            yield step
            if step == at:
                raise why

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.Trainer, "steps_to_go", steps_to_go)
        with pytest.raises(type(why)):
            yield


# ------------------------------------------------------------------------------------------ SIGKILL

STEPS, EVERY = 60, 4


def rich(folder: Path, seed: int) -> History:
    """A run that writes records of every kind, from a model and a generator that only a fresh run
    may depend on.
    """
    if storage.records(folder, io.STEP):
        seed = 10**6 + os.getpid()
    options: dict[str, Any] = {
        "noise": "adaptive",
        "snapshots": 3,
        "validation": cloud(20, seed=1),
        "patience": 100,
    }
    return fit(
        build(seed),
        cloud(),
        steps=STEPS,
        every=EVERY,
        batch_size=8,
        out=folder,
        resume=True,
        seed=seed,
        ema=10,
        **options,
    )


def hooked(at: int, after: bool) -> None:
    """Die by SIGKILL at the k-th operation of the disk, before or after it; of a write, in its
    middle.
    """
    left = [at]

    def die() -> bool:
        left[0] -= 1
        return not left[0]

    def kill() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def wrapped(original: Callable[..., Any]) -> Callable[..., Any]:
        def operation(*args: Any, **options: Any) -> Any:
            now = die()
            if now and not after:
                kill()
            result = original(*args, **options)
            if now:
                kill()
            return result

        return operation

    class File:
        def __init__(self, *args: Any, **options: Any) -> None:
            self.file = builtins.open(*args, **options)  # noqa: SIM115

        def __enter__(self) -> File:
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

        def write(self, piece: Any) -> None:
            if die():
                self.file.write(memoryview(piece)[: len(piece) // 2])
                self.file.flush()
                kill()
            self.file.write(piece)

    def opened(path: Any, mode: str = "r", **options: Any) -> Any:
        return File(path, mode, **options) if "x" in mode else builtins.open(path, mode, **options)

    disk.open = opened  # type: ignore[attr-defined]
    for name in ("replace", "fsync", "unlink"):
        setattr(os, name, wrapped(getattr(os, name)))


def forked(work: Callable[[], Any], shared: mmap.mmap) -> int:
    """Start a child that does something; where its traceback goes is the harness's own stderr."""
    pid = os.fork()
    if pid:
        return pid
    original = training.Trainer.steps_to_go

    def steps_to_go(self: Any, reseed: Any) -> Iterator[int]:
        for step in original(self, reseed):
            first = struct.unpack("qq", shared[:16])[0]
            shared[:16] = struct.pack("qq", first or step, step)
            yield step

    training.Trainer.steps_to_go = steps_to_go  # type: ignore[method-assign]
    try:
        work()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def killed(root: str, kills: int, seed: int) -> None:
    """The harness, in a process of its own that has imported all and trained nothing: kill runs,
    resume them, compare.
    """
    torch.set_num_threads(1)
    for slow in (
        "torch._dynamo",
        "scipy.optimize",
    ):  # what the first optimizer imports, once for all children
        importlib.import_module(slow)
    scoresde.BACKBONES.register("test_noisy")(Noisy)
    warnings.simplefilter("error")
    rng, shared, place = random.Random(seed), mmap.mmap(-1, 16), Path(root)
    counts = {
        "kills": 0,
        "runs": 0,
        "by hooks": 0,
        "leftovers": 0,
        "before the first checkpoint": 0,
        "redone": 0,
    }
    assert os.waitpid(forked(lambda: rich(place / "whole", 3), shared), 0)[1] == 0
    wanted, files = (
        digests(place / "whole"),
        sorted(path.suffix for path in (place / "whole").iterdir()),
    )
    while counts["kills"] < kills:
        folder = place / f"run-{counts['runs']}"
        folder.mkdir()
        newest, fresh = 0, True
        while True:
            shared[:16] = struct.pack("qq", 0, 0)
            at, after, delay = (
                rng.randint(1, 150 if newest else 60),
                rng.random() < 0.5,
                rng.uniform(0.02, 0.25),
            )
            by_hook = rng.random() < 0.7
            # the first checkpoint takes 49 operations: how fast the machine is must not decide
            # whether one dies in it
            if fresh:
                fresh, by_hook, at = False, True, min(at, 40)

            def work(
                folder: Path = folder, at: int = at, after: bool = after, by_hook: bool = by_hook
            ) -> None:
                if by_hook:
                    hooked(at, after)
                rich(folder, 3)

            pid = forked(work, shared)
            if not by_hook:
                time.sleep(delay)
                os.kill(pid, signal.SIGKILL)
            status = os.waitpid(pid, 0)[1]
            first, last = struct.unpack("qq", shared[:16])
            assert first in (0, newest + 1), (
                first,
                newest,
            )  # it went on where the newest checkpoint was
            stems = storage.records(folder, io.STEP)
            newest = int(stems[-1][len(io.STEP) :]) if stems else 0
            for stem in stems:
                storage.read(folder, stem)
            if stems:
                assert io.load(folder).ema is not None
            if os.WIFEXITED(status):
                assert os.WEXITSTATUS(status) == 0
                break
            assert last - newest <= EVERY, (last, newest)
            counts["kills"] += 1
            counts["by hooks"] += by_hook
            counts["redone"] += max(0, last - newest)
            counts["leftovers"] += bool(storage.leftovers(folder))
            counts["before the first checkpoint"] += not stems
        counts["runs"] += 1
        assert digests(folder) == wanted
        assert sorted(path.suffix for path in folder.iterdir()) == files
        assert storage.leftovers(folder) == []
    print(json.dumps(counts))


def harness(kills: int, folder: Path, seed: int) -> dict[str, int]:
    code = f"import test_checkpoint; test_checkpoint.killed({str(folder)!r}, {kills}, {seed})"
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path]),
        "PYTHONSAFEPATH": "1",  # or "conftest" would be that of the working directory
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=600, env=environment
    )
    assert not done.returncode, done.stderr[-3000:]
    counts: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return counts


@forks
def test_a_run_that_was_killed_5_times_ends_as_one_that_was_not(tmp_path: Path) -> None:
    counts = harness(5, tmp_path, 0)
    assert counts["kills"] >= 5
    assert counts["leftovers"] >= 3, counts  # inside a write, or it would prove little
    assert counts["before the first checkpoint"] >= 1, counts


@forks
@pytest.mark.slow
def test_two_hundred_kills_of_runs(tmp_path: Path) -> None:
    counts = harness(200, tmp_path, 1)
    assert counts["kills"] >= 200
    assert counts["leftovers"] >= 60
    assert counts["before the first checkpoint"] >= 5


# -------------------------------------------------------------------------------- all kinds of runs


class Augmented(Dataset[Any]):
    """Rows with random changes from all three global generators."""

    def __len__(self) -> int:
        return 50

    def __getitem__(self, i: int) -> Tensor:
        x = torch.tensor([float(i % 7), float(i % 3)]) + 0.1 * torch.randn(2)
        return x + random.random() + float(np.random.rand())  # noqa: NPY002


class Endless(IterableDataset[Any]):
    """A pass of seven batches, of random length and contents."""

    def __iter__(self) -> Iterator[Tensor]:
        for _ in range(100 + random.randrange(20)):
            yield torch.randn(2) + float(np.random.rand())  # noqa: NPY002


class Law:
    """Draws from the global generators."""

    def sample(self, n: int) -> Tensor:
        return torch.randn(n, 2) + torch.from_numpy(np.random.rand(n, 1)).float()  # noqa: NPY002


class Polite:
    """Draws from the generator it is given."""

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        return torch.randn(n, 2, generator=generator)


def loader(**options: Any) -> DataLoader[Any]:
    return DataLoader(Augmented(), batch_size=8, shuffle=True, **options)


def mapped(folder: Path) -> np.ndarray[Any, Any]:
    """Images on disk, 8-bit."""
    path = folder / "images.npy"
    if not path.exists():
        np.save(path, np.random.default_rng(0).integers(0, 256, (40, 1, 4, 4), dtype=np.uint8))
    array: np.ndarray[Any, Any] = np.load(path, mmap_mode="r")
    return array


KINDS: dict[
    str, Callable[[Path], tuple[Any, dict[str, Any], dict[str, Any]]]
] = {  # data, options of fit, options of build
    "tensor": lambda _: (cloud(), {}, {}),
    "double": lambda _: (cloud().double().numpy(), {}, {}),
    "several groups": lambda _: (cloud(), {"steps": 150, "batch_size": 4, "every": 37}, {}),
    "dataset": lambda _: (Augmented(), {}, {}),
    "iterable": lambda _: (Endless(), {}, {}),
    "loader": lambda _: (loader(), {}, {}),
    "loader with a generator": lambda _: (
        loader(generator=torch.Generator().manual_seed(random.randrange(99))),
        {},
        {},
    ),
    "loader of batches": lambda _: (
        DataLoader(
            Augmented(),
            batch_sampler=BatchSampler(
                RandomSampler(range(50), generator=torch.Generator()), 8, False
            ),
        ),
        {},
        {},
    ),
    "loader with workers": lambda _: (loader(num_workers=2), {}, {}),
    "law": lambda _: (Law(), {}, {}),
    "law with a generator": lambda _: (Polite(), {}, {}),
    "memmap": lambda folder: (
        mapped(folder),
        {"transforms": ("dequantize", "flip")},
        {"shape": (1, 4, 4)},
    ),
    "labels": lambda _: (cloud(), {"given": {"y": torch.arange(100) % 3}}, {"classes": 3}),
    "pairs in a list": lambda _: (
        list(zip(cloud(), torch.arange(100) % 3, strict=True)),
        {},
        {"classes": 3},
    ),
    "pairs of a loader, the last batch short": lambda _: (
        DataLoader(
            TensorDataset(cloud(), (torch.arange(100) % 3).to(torch.uint16)), 7, shuffle=True
        ),
        {"steps": 32},
        {"net": "mlp", "depth": 1, "classes": 3},
    ),
    "integers with labels": lambda _: (
        scoresde.dequantize.TruncatedNormal(8).dataset(
            torch.arange(200).reshape(100, 2) % 8, y=torch.arange(100) % 3
        ),
        {},
        {"classes": 3},
    ),
    "adaptive": lambda _: (cloud(), {"noise": "adaptive", "weight": "min_snr"}, {}),
    "snapshots": lambda _: (cloud(), {"snapshots": 7, "ema": 3}, {}),
    "no average": lambda _: (cloud(), {"ema": 0}, {}),
    "validation": lambda _: (cloud(), {"validation": cloud(20, seed=1), "every": 5}, {}),
    "patience": lambda _: (
        cloud(),
        {"validation": cloud(20, seed=1), "patience": 2, "every": 1, "lr": 0.3, "steps": 40},
        {},
    ),
    "mlp": lambda _: (cloud(), {}, {"net": "mlp", "depth": 1}),
}


ONE_OF_EACH = (
    "several groups",
    "iterable",
    "loader with workers",
    "law",
    "memmap",
    "pairs of a loader, the last batch short",
    "integers with labels",
    "adaptive",
    "snapshots",
    "patience",
)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("kind", some(KINDS, *ONE_OF_EACH))
def test_a_run_in_pieces_ends_as_one_in_one_go(kind: str, tmp_path: Path) -> None:
    """Bit for bit: weights, averages, optimizer and law in the last checkpoint, and the model;
    with checkpoints or without.
    """
    out, whole = tmp_path / "pieces", tmp_path / "whole"
    _, options, how = KINDS[kind](tmp_path)
    options = {"every": 4} | options
    watched = {"every": options.pop("every")} if "validation" in options else {}
    every = watched.get("every") or options.pop("every")

    def data() -> Any:
        return KINDS[kind](tmp_path)[0]

    bare = build(**how)
    history = fit(
        bare, data(), **{k: v for k, v in (options | watched).items() if k != "snapshots"}
    )
    end = history.step[-1] if "patience" not in options else history.checked[-1]
    fit(build(**how), data(), **options, out=whole, **(watched or {"every": every + 1}))
    for i, at in enumerate(
        (min(2 * every + 1, end - 2), end - 1)
    ):  # patience ends where the numbers of a torch say
        with stopped(at, KeyboardInterrupt()):
            fit(
                build(i and 100 + i, **how),
                data(),
                **options,
                out=out,
                every=every,
                resume=bool(i),
                seed=5 + i,
            )
    last = build(200, **how)
    pieces = fit(last, data(), **options, out=out, every=every, resume=True, seed=200)
    assert digests(out, "model", "average", f"step-{end:08d}") == digests(
        whole, "model", "average", f"step-{end:08d}"
    )
    assert len(digests(whole, f"step-{end:08d}")) == len(digests(whole, "model")) == 1
    assert len(digests(whole, "average")) == options.get("snapshots", 0)
    assert same(state(last), state(bare))
    assert same(state(io.load(out)), state(bare))
    for name in ("step", "loss", "checked", "validation", "best"):
        assert getattr(pieces, name) == getattr(history, name)
    assert (
        end < options.get("steps", 14) if kind == "patience" else end == options.get("steps", 14)
    )


class Broken(Dataset[Any]):
    """A row of it can't be read after so many were."""

    def __init__(self, left: float) -> None:
        self.left = left

    def __len__(self) -> int:
        return 100

    def __getitem__(self, i: int) -> Tensor:
        self.left -= 1
        if self.left < 0:
            raise OSError("the disk is gone")
        return cloud()[i] + torch.randn(2)


def test_a_run_whose_data_failed_goes_on_from_its_last_checkpoint_bit_for_bit(
    tmp_path: Path,
) -> None:
    fit(build(), Broken(math.inf), out=tmp_path / "whole", every=3)
    with pytest.raises(
        TrainingError, match=r"batch 8, row \d+: OSError: the disk is gone"
    ) as caught:
        fit(build(), Broken(100 + 8 * 16), out=tmp_path / "pieces", every=3)
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__notes__ == [
        f"The checkpoint of step 6 in {tmp_path / 'pieces'} is kept: resume=True goes on from "
        "there."
    ]
    fit(build(7), Broken(math.inf), out=tmp_path / "pieces", every=3, resume=True, seed=8)
    assert digests(tmp_path / "pieces", "model", "step-00000014") == digests(
        tmp_path / "whole", "model", "step-00000014"
    )


def test_validation_does_not_change_what_is_learnt() -> None:
    """Raw weights and average, bit for bit, in a network with dropout and a buffer, however often
    it is validated.
    """
    runs: list[dict[str, Any]] = [
        {},
        {"validation": cloud(20, seed=1), "every": 1},
        {"validation": cloud(9), "every": 5},
    ]
    found = []
    for options in runs:
        fit(sde := build(), cloud(), **options)
        found.append(state(sde))
    assert same(found[0], found[1])
    assert same(found[0], found[2])


def test_a_second_training_of_a_model_can_be_resumed(tmp_path: Path) -> None:
    """It begins with the raw weights and the average of the first, and mean and scale stay as they
    are.
    """
    ends = []
    for at in (None, 7):
        sde = build()
        fit(sde, cloud())
        if at is not None:
            with stopped(at, KeyboardInterrupt()):
                fit(sde, 2 * cloud(), out=tmp_path, every=3)
            sde = build(9)
        fit(
            sde,
            2 * cloud(),
            **({} if at is None else {"out": tmp_path, "every": 3, "resume": True}),
        )
        ends.append(state(sde))
    assert same(*ends)


# ------------------------------------------------------------------------------------ interruptions


@pytest.mark.parametrize("at", some(range(1, 10), 1, 3, 8))
def test_an_interrupt_at_any_step_leaves_a_usable_model_and_a_run_to_go_on_with(
    at: int, tmp_path: Path
) -> None:
    whole = build()
    fit(whole, cloud(), steps=10)
    sde = build()
    with stopped(at, KeyboardInterrupt()):
        fit(sde, cloud(), steps=10, every=3, out=tmp_path)
    assert not sde.training
    assert bool(scoresde.log_prob(sde, cloud(3)).isfinite().all())
    assert not (tmp_path / LOCK).exists()
    assert steps(tmp_path) == [step for step in (3, 6, 9) if step <= at][-2:]
    again = build(1 if at >= 3 else 0)
    fit(again, cloud(), steps=10, every=3, out=tmp_path, resume=True)
    assert same(state(again), state(whole))


@pytest.mark.parametrize(
    ("at", "every"), rotated(["a step", "the average", "the validation"], [1, 3, 500])
)
def test_weights_that_are_not_finite_are_never_saved(at: str, every: int, tmp_path: Path) -> None:
    """The checkpoints before are intact, what was learnt until then is usable, and the run can be
    gone on with.
    """
    whole, sde = build(), build()
    fit(whole, cloud(), steps=40)
    original = training.Trainer.steps_to_go

    def steps_to_go(self: Any, reseed: Any) -> Iterator[int]:
        for step in original(self, reseed):
            if step == 17:
                {
                    "a step": self.total,
                    "the average": self.averages.main.parts[0],
                    "the validation": self.total,
                }[at].fill_(math.nan)
            yield step

    validation = {"validation": cloud(9)} if at == "the validation" else {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.Trainer, "steps_to_go", steps_to_go)
        with pytest.raises(
            TrainingError, match=f"after step {20 if every == 500 else 18 if every == 3 else 17}"
        ):
            fit(sde, cloud(), steps=40, every=every, out=tmp_path, **validation)
    assert steps(tmp_path) == {1: [15, 16], 3: [12, 15], 500: []}[every]
    assert all(bool(value.isfinite().all()) for value in state(sde).values())
    again = build(1 if every < 500 else 0)
    fit(again, cloud(), steps=40, every=every, out=tmp_path, resume=True, **validation)
    assert same(state(again), state(whole))


def full(file: Path, share: float) -> Any:
    """A disk that has no room for the rest of a record's tensors."""
    original = storage.write_file

    def stream(path: Path, pieces: Any) -> tuple[int, str]:
        if file.name not in path.name:
            return original(path, pieces)
        whole = b"".join(bytes(piece) for piece in pieces)
        path.write_bytes(whole[: int(share * len(whole))])
        raise OSError(28, "No space left on device")

    return stream


@pytest.mark.parametrize(
    ("record", "share"), rotated(["step-00000006", "average-00000007", "model"], [0.0, 0.5, 1.0])
)
def test_a_full_disk_leaves_the_checkpoint_before_and_a_usable_model(
    record: str, share: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = {"s": [3], "a": [3, 6], "m": [9, 10]}[record[0]]
    whole, sde = build(), build()
    options: dict[str, Any] = {"steps": 10, "every": 3, "snapshots": 4}
    fit(whole, cloud(), **options, out=tmp_path / "whole")
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        if record.startswith("average"):
            record = "average-00000008"  # of steps 2, 5, 8, 10
        patch.setattr(storage, "write_file", full(Path(record), share))
        with pytest.raises(
            CheckpointError, match=f"can't write .*{record}.json: No space left on device"
        ):
            fit(sde, cloud(), **options, out=folder)
    assert steps(folder) == left
    assert storage.leftovers(folder) == []
    assert bool(scoresde.log_prob(sde, cloud(3)).isfinite().all())
    io.load(folder)
    fit(build(1), cloud(), **options, out=folder, resume=True)
    assert digests(folder) == digests(tmp_path / "whole")


@pytest.mark.skipif(sys.platform == "win32", reason="needs limits of a process")
def test_a_file_size_limit_is_met_as_a_full_disk_is(tmp_path: Path) -> None:
    """The system's own refusal, where files may be half a checkpoint long."""
    import resource

    whole, sde, again = build(), build(1), build(2)
    fit(whole, cloud())
    with stopped(5, KeyboardInterrupt()):
        fit(build(), cloud(), every=5, out=tmp_path)
    size = max(path.stat().st_size for path in tmp_path.iterdir())
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (size // 2, before[1])
    )  # Python ignores the signal that comes with it
    try:
        with pytest.raises(
            CheckpointError, match=r"can't write .*/step-00000010\.json: File too large"
        ):
            fit(sde, cloud(), every=5, out=tmp_path, resume=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert bool(scoresde.log_prob(sde, cloud(3)).isfinite().all())
    assert steps(tmp_path) == [5]
    fit(again, cloud(), every=5, out=tmp_path, resume=True)
    assert same(state(again), state(whole))


def untouched(sde: ScoreSDE, before: dict[str, Tensor]) -> bool:
    own = {p.data_ptr() for p in sde.net.parameters()}
    return (
        same(state(sde), before)
        and sde.ema is None
        and sde.training
        and len(own) == len(list(sde.net.parameters()))
    )


def test_a_read_only_folder_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sde = build()
    before = state(sde)
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    with pytest.raises(CheckpointError, match="read-only"):
        fit(sde, cloud(), out=tmp_path)
    assert untouched(sde, before)
    assert list(tmp_path.iterdir()) == []


def test_a_second_run_in_a_folder_is_refused_at_once(tmp_path: Path) -> None:
    """While the first is at it, and afterwards unless it is to go on; nothing of the first is
    touched.
    """

    class Second:
        said: str = ""

        def sample(self, n: int) -> Tensor:
            if not self.said:
                sde = build(1)
                before = state(sde)
                with pytest.raises(
                    CheckpointError, match="is being written by this process already"
                ) as caught:
                    fit(sde, Forbidden(), out=tmp_path, resume=True)
                self.said = str(caught.value)
                assert untouched(sde, before)
            return torch.randn(n, 2)

    class Forbidden:
        def sample(self, n: int) -> Tensor:
            raise AssertionError("it worked on data")

    first = Second()
    fit(build(), first, out=tmp_path)
    assert first.said
    files = digests(tmp_path)
    with pytest.raises(
        CheckpointError, match="holds a run at step 14: resume=True goes on with it"
    ):
        fit(build(1), Forbidden(), out=tmp_path)
    assert digests(tmp_path) == files


def test_a_folder_with_something_else_is_refused_but_not_one_of_a_run_killed_early(
    tmp_path: Path,
) -> None:
    """Before the first checkpoint there may be a snapshot and unfinished files: they go, and the
    run begins.
    """
    log = tmp_path / "log.txt"
    log.write_text("not ours")
    with pytest.raises(CheckpointError, match="something that is not a scoresde model"):
        fit(build(), cloud(), out=tmp_path, resume=True)
    assert log.read_text() == "not ours"
    log.unlink()
    with stopped(8, KeyboardInterrupt()):
        fit(build(), cloud(), out=tmp_path, snapshots=7)
    assert digests(tmp_path)
    assert not steps(tmp_path)
    (tmp_path / ".step-00000500-0123abcd.partial").write_bytes(b"cut sho")
    fit(
        build(), cloud(), out=tmp_path, snapshots=4, resume=True
    )  # another run: the first one's snapshots are not of it
    assert [stem[-2:] for stem in storage.records(tmp_path, "average-")] == [
        "04",
        "07",
        "10",
        "14",
    ]
    assert storage.leftovers(tmp_path) == []


IMAGES = cloud(100, 1, 2, 2)
CHANGED: dict[str, tuple[dict[str, Any], str]] = {
    "steps": ({"steps": 15}, "steps=14, and this one has 15"),
    "batch_size": ({"batch_size": 8}, "batch_size=16, and this one has 8"),
    "lr": ({"lr": 0.1}, "lr=0.003, and this one has 0.1"),
    "weight": ({"weight": "sigma2"}, "weight='edm', and this one has 'sigma2'"),
    "noise": ({"noise": "adaptive"}, "noise='lognormal', and this one has 'adaptive'"),
    "ema": ({"ema": 5}, r"ema=700.0, and this one has 5.0"),
    "snapshots": ({"snapshots": 2}, "snapshots=0, and this one has 2"),
    "transforms": ({"transforms": "flip"}, r"transforms=\[\], and this one has \['Flip\(\)'\]"),
    "validation": ({"validation": IMAGES[:9]}, "every=None, and this one has 3"),
    "data": ({"data": cloud(100, 1, 2, 2, seed=2)}, "data={.*}, and this one has {.*}"),
    "fewer data": (
        {"data": IMAGES[:-1]},
        "data={'samples': 100, .*}, and this one has {'samples': 99, .*}",
    ),
    "network": ({"width": 16}, r"model\.net\.options\.width=8, and this one has 16"),
    "another network": ({"net": "mlp"}, r"model\.net\.name='test_noisy', and this one has 'mlp'"),
    "shape": ({"data": cloud(100, 3), "shape": (3,)}, "data={.*}, and this one has {.*}"),
}


@pytest.mark.parametrize("change", CHANGED)
def test_a_run_does_not_go_on_as_another(change: str, tmp_path: Path) -> None:
    """What differs is named, before the model or the folder is touched."""
    with stopped(7, KeyboardInterrupt()):
        fit(build(shape=(1, 2, 2)), IMAGES, every=3, out=tmp_path)
    files = digests(tmp_path)
    options, said = CHANGED[change]
    options = {"every": 3} | options
    data = options.pop("data", IMAGES)
    sde = build(
        1,
        **{"shape": (1, 2, 2)}
        | {name: options.pop(name) for name in ("width", "net", "shape") if name in options},
    )
    before = state(sde)
    with pytest.raises(CheckpointError, match=f"was started with {said}"):
        fit(sde, data, **options, out=tmp_path, resume=True)
    assert untouched(sde, before)
    assert digests(tmp_path) == files


def test_a_run_of_an_older_version_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its networks of 5 columns have 64 random features, and their options do not say so."""
    whole = build(net="mlp", shape=(5,), depth=1, fourier=64)
    fit(whole, cloud(100, 5), lr=3e-3)
    with monkeypatch.context() as patch, stopped(7, KeyboardInterrupt()):
        patch.setattr("scoresde.backbones.base.FEWEST_FEATURES", 64)
        older = build(net="mlp", shape=(5,), depth=1)
        fit(older, cloud(100, 5), lr=3e-3, every=3, out=tmp_path)
    new = build(net="mlp", shape=(5,), depth=1)
    with pytest.raises(CheckpointError, match=r"options\.fourier=64, and this one has 25;"):
        fit(new, cloud(100, 5), lr=3e-3, every=3, out=tmp_path, resume=True)
    shutil.copytree(tmp_path, tmp_path.with_name("copy"))
    asked = build(1, net="mlp", shape=(5,), depth=1, fourier=64)
    for sde, out in ((asked, tmp_path), (scoresde.load(tmp_path), tmp_path.with_name("copy"))):
        fit(sde, cloud(100, 5), lr=3e-3, every=3, out=out, resume=True)
        assert same(state(sde), state(whole))
    assert same(state(scoresde.load(scoresde.save(older, tmp_path / "m"))), state(older.eval()))


def test_other_labels_are_other_data(tmp_path: Path) -> None:
    given = {"y": torch.arange(100) % 3}
    with stopped(7, KeyboardInterrupt()):
        fit(build(classes=3), cloud(), given=given, every=3, out=tmp_path)
    for other in ({"y": 2 - given["y"]}, None):
        with pytest.raises(
            CheckpointError,
            match=r"was started with data={.*'given': {'y'.*, and this one has {.*'given'.*}",
        ):
            fit(build(1, classes=3), cloud(), given=other, every=3, out=tmp_path, resume=True)
    fit(build(1, classes=3), cloud(), given=given, every=3, out=tmp_path, resume=True)


def test_numbers_of_any_kind_are_the_same_settings(tmp_path: Path) -> None:
    with stopped(7, KeyboardInterrupt()):
        fit(
            build(shape=(1, 2, 2)),
            IMAGES,
            steps=np.int64(14),
            every=np.int32(3),
            lr=np.float64(0.01),
            out=tmp_path,
            transforms=["flip"],
        )
    fit(
        build(shape=(1, 2, 2)),
        IMAGES,
        steps=14,
        every=2,
        lr=0.01,
        out=tmp_path,
        resume=True,
        transforms=scoresde.transforms.Flip(),
    )
    assert steps(tmp_path) == [12, 14]


@pytest.mark.parametrize("patience", [None, 2])
def test_a_finished_run_returns_its_history_and_model_at_once(
    patience: int | None, tmp_path: Path
) -> None:
    """Without a look at the data beyond what they are; also one that patience ended."""
    options: dict[str, Any] = {
        "validation": cloud(20, seed=1),
        "patience": patience,
        "lr": 0.3,
        "steps": 40,
        "every": 1,
    }

    class Counting(Law):
        draws = 0

        def sample(self, n: int) -> Tensor:
            Counting.draws += 1
            return super().sample(n)

    sde = build()
    history = fit(sde, Counting(), **options, out=tmp_path)
    files, Counting.draws = digests(tmp_path), 0
    again = build(1)
    assert fit(again, Counting(), **options, out=tmp_path, resume=True) == history
    assert Counting.draws == 0
    assert same(state(again), state(sde))
    assert digests(tmp_path) == files
    assert (history.checked[-1] < 40) == (patience is not None)


def damage(folder: Path, step: int) -> None:
    path = next(folder.glob(f"step-{step:08d}-*.safetensors"))
    path.write_bytes(path.read_bytes()[:-1])


def test_what_a_killed_run_had_no_time_to_remove_is_removed_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found by the test of kills, once in ten: the last checkpoint was written, the one before the
    one before still there.
    """
    with monkeypatch.context() as patch:
        patch.setattr(scoresde.training.checkpoint.CheckpointFolder, "_prune", lambda *_: None)
        fit(build(), cloud(), out=tmp_path, every=4)
    assert steps(tmp_path) == [4, 8, 12, 14]
    fit(build(), cloud(), out=tmp_path, every=4, resume=True)
    assert steps(tmp_path) == [12, 14]


def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path: Path) -> None:
    """With a warning; two sound ones are kept again as soon as there are two, and the damaged is
    replaced when its step comes.
    """
    whole, sde = build(), build(1)
    fit(whole, cloud(), steps=30)
    with stopped(21, KeyboardInterrupt()):
        fit(build(), cloud(), steps=30, every=10, out=tmp_path)
    damage(tmp_path, 20)
    with (
        pytest.warns(UserWarning, match="step-00000020-.* is damaged"),
        stopped(19, KeyboardInterrupt()),
    ):
        fit(sde, cloud(), steps=30, every=3, out=tmp_path, resume=True)
    assert steps(tmp_path) == [15, 18, 20]
    with pytest.warns(UserWarning, match="step-00000020-.* is damaged"):
        fit(sde, cloud(), steps=30, every=10, out=tmp_path, resume=True)
    assert steps(tmp_path) == [20, 30]
    assert same(state(sde), state(whole))
    for step in (20, 30):
        damage(tmp_path, step)
    before = state(sde := build(1))
    with pytest.raises(CheckpointError, match=r"step-00000030-.* is damaged"):
        fit(sde, cloud(), steps=30, every=10, out=tmp_path, resume=True)
    assert untouched(sde, before)


def test_a_checkpoint_that_is_only_a_model_is_no_run(tmp_path: Path) -> None:
    sde = build()
    tensors = {io.PREFIX + name: value for name, value in description.weights(sde).items()}
    storage.write(tmp_path, "step-00000005", tensors, {"model": description.describe(sde)})
    with pytest.raises(CheckpointError, match="holds a model, but not the run that made it"):
        fit(build(1), cloud(), out=tmp_path, resume=True)


@pytest.mark.parametrize("every", [1, 14, 500])
def test_the_last_step_is_always_a_checkpoint(every: int, tmp_path: Path) -> None:
    bare, sde = build(), build()
    fit(bare, cloud())
    fit(
        sde, cloud(), every=every, out=tmp_path / "new" / "folder", resume=True
    )  # nothing to resume: it begins
    assert steps(tmp_path / "new" / "folder") == ([13, 14] if every == 1 else [14])
    assert same(state(sde), state(bare))
    assert same(state(io.load(tmp_path / "new" / "folder")), state(bare))


class Nameless(Noisy):
    """Not registered."""


def nameless(seed: int = 0, width: int = 8) -> ScoreSDE:
    torch.manual_seed(seed)
    return ScoreSDE(scoresde.VPSDE(), Nameless((2,), width), shape=(2,))


def test_a_network_without_a_name_is_resumed_but_not_loaded(tmp_path: Path) -> None:
    whole, sde = nameless(), nameless(1)
    fit(whole, cloud())
    unnamed = "the run can be resumed, but `load` won't be able"
    with pytest.warns(UserWarning, match=unnamed), stopped(7, KeyboardInterrupt()):
        fit(nameless(), cloud(), every=3, out=tmp_path)
    frozen = nameless(1)
    frozen.net.hidden.weight.requires_grad_(False)  # type: ignore[union-attr]
    for other in (nameless(width=1), nameless(width=9), frozen):
        before = state(other)
        with (
            pytest.warns(UserWarning, match=unnamed),
            pytest.raises(CheckpointError, match=r"of this model: . weights are missing"),
        ):
            fit(other, cloud(), every=3, out=tmp_path, resume=True)
        assert untouched(other, before)
    with pytest.warns(UserWarning, match=unnamed):
        fit(sde, cloud(), every=3, out=tmp_path, resume=True)
    assert same(state(sde), state(whole))
    with pytest.raises(CheckpointError, match="does not describe a model that can be built here"):
        io.load(tmp_path)


# ---------------------------------------------------------------------------- what fit leaves alone


class Refusing:
    """Data that fail, at the first draw or a later one."""

    def __init__(self, at: int) -> None:
        self.left = at

    def sample(self, n: int) -> Tensor:
        self.left -= 1
        if not self.left:
            raise OSError("the data are gone")
        return cloud(n)


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize(
    "why", ["first draw", "second draw", "answer of the wrong shape", "interrupt"]
)
def test_a_fit_that_ends_before_its_first_step_leaves_everything(
    why: str, trained: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """State, mode, average, the parameters' memory to themselves, which of them are trained; and
    no gradients.
    """
    sde = build()
    if trained:
        fit(sde, cloud())
    before, ema, mode = state(sde), sde.ema, sde.training
    wanted = {name: p.requires_grad for name, p in sde.named_parameters()}
    parameters = list(sde.net.parameters())
    if why == "answer of the wrong shape":
        monkeypatch.setattr(type(sde.net), "forward", lambda self, x, t: x[:, :1])
    if why == "interrupt":
        monkeypatch.setattr(
            training.Trainer,
            "steps_to_go",
            lambda self, reseed: (_ for _ in "").throw(KeyboardInterrupt()),
        )
    data = {"first draw": Refusing(1), "second draw": Refusing(1 if trained else 2)}.get(
        why, 2 * cloud()
    )
    with pytest.raises((TrainingError, ValueError, KeyboardInterrupt)):
        fit(sde, data, lr=0.1)
    monkeypatch.undo()
    assert same(state(sde), before)
    assert sde.ema is ema
    assert sde.training == mode
    assert {name: p.requires_grad for name, p in sde.named_parameters()} == wanted
    assert all(a is b for a, b in zip(parameters, sde.net.parameters(), strict=True))
    assert own_their_memory(sde)


def own_their_memory(sde: ScoreSDE) -> bool:
    tensors = [*sde.parameters(), *sde.buffers()]
    own = len({value.untyped_storage().data_ptr() for value in tensors}) == len(tensors)
    exact = all(
        value.untyped_storage().nbytes() == value.numel() * value.element_size()
        for value in tensors
    )
    return own and exact and all(p.grad is None for p in sde.parameters())


def test_after_a_fit_parameters_are_the_same_objects_and_own_their_memory(tmp_path: Path) -> None:
    """Who holds them, an optimizer of one's own say, goes on holding the model's; also after a
    resumed run.
    """
    sde = build()
    held = dict(sde.net.named_parameters())
    buffers = dict(sde.named_buffers())
    with stopped(7, KeyboardInterrupt()):
        fit(sde, cloud(), every=3, out=tmp_path)
    assert own_their_memory(sde)
    fit(sde, cloud(), every=3, out=tmp_path, resume=True)
    assert own_their_memory(sde)
    assert all(p is held[name] for name, p in sde.net.named_parameters())
    assert all(buffer is buffers[name] for name, buffer in sde.named_buffers() if name in buffers)
    assert [name for name, p in sde.net.named_parameters() if not p.requires_grad] == [
        "frozen.weight",
        "frozen.bias",
    ]
    assert not any(p.requires_grad for p in sde.ema.parameters())  # type: ignore[union-attr]


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize(
    ("kind", "how"),
    rotated(
        ["tensor", "dataset", "iterable", "loader", "loader with workers", "law"],
        ["done", "interrupted", "resumed"],
    ),
)
def test_global_random_states_are_left_alone(kind: str, how: str, tmp_path: Path) -> None:
    data, options, _ = KINDS[kind](tmp_path)
    sde = build()
    if how == "resumed":
        with stopped(7, KeyboardInterrupt()):
            fit(build(), data, **options, every=3, out=tmp_path)
    torch.manual_seed(3)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002
    with stopped(7, KeyboardInterrupt()) if how == "interrupted" else contextlib.nullcontext():
        fit(
            sde,
            data,
            **options,
            **({"every": 3, "out": tmp_path, "resume": True} if how == "resumed" else {}),
        )
    after = torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002
    assert torch.equal(before[0], after[0])
    assert before[1] == after[1]
    assert all(np.array_equal(a, b) for a, b in zip(before[2], after[2], strict=True))


def test_a_checkpoint_of_version_0_1_is_gone_on_with(tmp_path: Path) -> None:
    """It has what the model learnt in its description alone, and settings of denoising always."""

    def made(seed: int) -> ScoreSDE:
        return build(seed, net="two_times", backbone="mlp", depth=1, classes=3)

    given = {"y": torch.arange(100) % 3}
    options: dict[str, Any] = {"given": given, "objective": "meanflow", "every": 3}
    whole = made(0)
    fit(whole, cloud(), **options)
    with stopped(7, KeyboardInterrupt()):
        fit(made(0), cloud(), **options, out=tmp_path)
    stem = storage.records(tmp_path, io.STEP)[-1]
    about, tensors = storage.read(tmp_path, stem)
    del about["learnt"]
    about["config"] |= {"weight": "edm", "noise": "lognormal"}
    storage.write(tmp_path, stem, tensors, about)
    again = made(1)
    fit(again, cloud(), **options, out=tmp_path, resume=True)
    assert same(state(again), state(whole))
    assert again.learnt == whole.learnt


X = torch.randn(200, 2, generator=generator(1))


class Wandering(Dataset[Tensor]):
    """Changes the working directory, as careless code does."""

    def __init__(self, there: Path) -> None:
        self.there = there

    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, i: int) -> Tensor:
        os.chdir(self.there)
        return X[i]


def quiet_fit(sde: ScoreSDE, data: Any = X, **options: Any) -> scoresde.History:
    common = {"steps": 30, "batch_size": 16, "progress": False, "generator": generator()}
    return scoresde.fit(sde, data, **fit_keywords(**(common | options)))


def small(**options: Any) -> ScoreSDE:
    torch.manual_seed(0)
    return scoresde.build(
        "vp", "mlp", shape=(2,), **({"width": 8, "depth": 1, "fourier": 2} | options)
    )


def test_a_relative_folder_stays_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    quiet_fit(small(), Wandering(tmp_path / "there"), out="run", every=10)
    assert not list((tmp_path / "there").iterdir())
    assert scoresde.load(tmp_path / "here" / "run").shape == (2,)


def test_a_new_run_does_not_hide_behind_an_old_model(tmp_path: Path) -> None:
    scoresde.save(small(width=4), tmp_path)
    for resume in (False, True):
        with pytest.raises(CheckpointError, match="holds a model and no checkpoint"):
            quiet_fit(small(), out=tmp_path, resume=resume)


@pytest.mark.parametrize("what", ["one row", "a label", "dtype"])
def test_other_data_and_models_are_refused(what: str, tmp_path: Path) -> None:
    y = torch.arange(len(X)) % 3
    quiet_fit(small(classes=3), given={"y": y}, out=tmp_path)
    x, y, sde = X.clone(), y.clone(), small(classes=3)
    if what == "one row":
        x[77] += 1
    elif what == "a label":
        y[77] = (y[77] + 1) % 3
    else:
        sde.double()
    with pytest.raises(CheckpointError, match="dtype" if what == "dtype" else "data"):
        quiet_fit(sde, x, given={"y": y}, out=tmp_path, resume=True)


class Counting(nn.Module):
    """Its answer depends on a buffer that its state_dict leaves out."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.register_buffer("calls", torch.zeros(()), persistent=False)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        if self.training:
            self.calls += 1
        return self.layer(torch.cat([x, t[:, None]], 1)) * (1 + self.calls / 100)


class Stop(Exception):
    pass


@pytest.mark.filterwarnings("ignore:the run can be resumed")
def test_buffers_that_are_not_persistent_are_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sde() -> ScoreSDE:
        torch.manual_seed(0)
        return ScoreSDE(scoresde.VPSDE(), Counting(), shape=(2,))

    whole = sde()
    quiet_fit(whole)
    save = scoresde.training.checkpoint.CheckpointFolder.save

    def stopping(self: Any, sde: ScoreSDE, state: Any) -> None:
        save(self, sde, state)
        raise Stop

    monkeypatch.setattr(scoresde.training.checkpoint.CheckpointFolder, "save", stopping)
    with pytest.raises(Stop):
        quiet_fit(sde(), out=tmp_path, every=15)
    monkeypatch.undo()
    resumed = sde()
    quiet_fit(resumed, out=tmp_path, every=15, resume=True)
    assert torch.equal(resumed.net.layer.weight, whole.net.layer.weight)


def test_snapshots_of_another_model_are_not_averaged(tmp_path: Path) -> None:
    quiet_fit(small(), out=tmp_path, snapshots=3)
    scoresde.posthoc_ema(tmp_path, 0.1)
    torch.manual_seed(0)
    scoresde.save(scoresde.build("ve", "mlp", shape=(2,), width=8, depth=1, fourier=2), tmp_path)
    with pytest.raises(CheckpointError, match="another model"):
        scoresde.posthoc_ema(tmp_path, 0.1)
