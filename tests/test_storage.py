"""Records on disk: whole or refused, whatever happens to the files, to the writer, or to who wrote
them.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import pickle
import random
import re
import resource
import signal
import stat
import subprocess
import sys
import time
import tomllib
import traceback
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

import scoresde
from conftest import generator
from scoresde import CheckpointError
from scoresde.storage import records as storage
from scoresde.storage.description import describe, weights
from scoresde.storage.lock import Lock
from scoresde.storage.sealed import LIMIT, seal

MANY = {
    "double": torch.randn(3, 5, generator=generator(1), dtype=torch.float64),
    "half": torch.randn(7, generator=generator(2)).half(),
    "brain": torch.randn(2, 2, generator=generator(3)).bfloat16(),
    "long": torch.arange(-3, 4),
    "int": torch.arange(5, dtype=torch.int32),
    "short": torch.arange(5, dtype=torch.int16),
    "tiny": torch.arange(-2, 3, dtype=torch.int8),
    "bytes": torch.arange(256).to(torch.uint8),
    "flags": torch.tensor([True, False, True]),
    "scalar": torch.tensor(torch.pi),
    "none": torch.zeros(0, 4),
    "turned": torch.randn(4, 6, generator=generator(4)).T,
    "part": torch.arange(12.0).reshape(3, 4)[:, 1],
    "odd": torch.tensor([float("nan"), float("inf"), -0.0]),
    'naïve "name"\n': torch.ones(1),
}


def model() -> scoresde.ScoreSDE:
    """A small model with random weights, the same every time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sde = scoresde.build("vp", "mlp", shape=(2,), width=8, depth=1, fourier=2)
        torch.nn.init.normal_(sde.net.out.weight)
    return sde


def checkpoint(folder: Path, stem: str, sde: scoresde.ScoreSDE) -> None:
    """A training checkpoint as `fit` writes it: the model among other things."""
    tensors = {f"model.{name}": value for name, value in weights(sde).items()} | {
        "optimizer.step": torch.ones(3)
    }
    storage.write(folder, stem, tensors, {"model": describe(sde), "step": 500})


def same(a: Any, b: Any) -> bool:
    """Bit for bit: NaN is NaN, and -0.0 is not 0.0."""
    return a.keys() == b.keys() and all(
        a[k].dtype == b[k].dtype
        and a[k].shape == b[k].shape
        and a[k]
        .contiguous()
        .reshape(-1)
        .view(torch.uint8)
        .equal(b[k].contiguous().reshape(-1).view(torch.uint8))
        for k in a
    )


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(autouse=True, scope="module")
def no_waiting_for_the_disk() -> None:
    """Waiting is on trial here."""


def in_child(work: Callable[[], Any]) -> Any:
    """Run a function in a child of this process, for what must not happen to ours, and return what
    it returns, as JSON.
    """
    out, into = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(out)
        try:
            os.write(into, json.dumps(work()).encode())
        except BaseException:
            os.write(into, json.dumps({"traceback": traceback.format_exc()}).encode())
        finally:
            os._exit(0)
    os.close(into)
    with open(out) as file:
        answer = json.loads(file.read())
    os.waitpid(pid, 0)
    assert not (isinstance(answer, dict) and "traceback" in answer), answer
    return answer


# ---------------------------------------------------------------------- sound records


def test_the_same_comes_back_and_the_formats_own_library_agrees(tmp_path: Path) -> None:
    about = {
        "text": "ä\u2028\0",
        "numbers": [0, -1, 10**30, 0.1, 5e-324, 1.7e308],
        "none": None,
        "yes": True,
        "deep": {"a": {}},
    }
    path = storage.write(tmp_path / "a" / "b", "step-00000500", MANY, about)
    found, tensors = storage.read(tmp_path / "a" / "b", "step-00000500")
    assert found == about
    assert same(tensors, MANY)
    (file,) = path.parent.glob("*.safetensors")
    assert same(safetensors.torch.load_file(file), MANY)
    assert storage.leftovers(path.parent) == []
    storage.write(tmp_path, "model", {}, {})
    assert storage.read(tmp_path, "model") == ({}, {})


def test_the_same_tensors_give_the_same_bytes_in_whatever_order_and_memory(tmp_path: Path) -> None:
    shuffled = {name: MANY[name] for name in sorted(MANY, key=hash)}
    shared = torch.arange(12.0).reshape(3, 4)
    shuffled |= {"part": shared[:, 1], "turned": MANY["turned"].contiguous()}
    for k, tensors in enumerate(
        (MANY, shuffled, {name: value.clone() for name, value in MANY.items()})
    ):
        storage.write(tmp_path / str(k), "model", tensors, {"a": 1})
    files = [
        {path.name: path.read_bytes() for path in (tmp_path / str(k)).iterdir()} for k in range(3)
    ]
    assert files[0] == files[1] == files[2]
    storage.write(tmp_path / "0", "model", MANY, {"a": 1})  # over itself
    assert {path.name: path.read_bytes() for path in (tmp_path / "0").iterdir()} == files[0]


def test_the_json_is_readable_sealed_and_says_what_sha256sum_says(tmp_path: Path) -> None:
    path = storage.write(tmp_path, "model", MANY, {"a": 1})
    record = json.loads(path.read_text())
    (file,) = tmp_path.glob("*.safetensors")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert record["tensors"] == {
        "file": f"model-{digest[:12]}.safetensors",
        "size": file.stat().st_size,
        "sha256": digest,
    }
    assert (record["format"], file.name) == ("scoresde-2", record["tensors"]["file"])
    body = path.read_bytes().split(b',\n  "sha256": "' + record["sha256"].encode())[0]
    assert record["sha256"] == hashlib.sha256(body).hexdigest()
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(file.stat().st_mode) == 0o666 & ~umask


def test_records_are_listed_removed_and_swept_and_nothing_else_is(tmp_path: Path) -> None:
    for step in (1500, 500, 1000):
        storage.write(
            tmp_path, f"step-{step:08d}", {"w": torch.full((2,), float(step))}, {"step": step}
        )
    storage.write(tmp_path, "model", {"w": torch.ones(1)}, {})
    storage.write(tmp_path, "model", {"w": torch.zeros(1)}, {})  # leaves the tensors of the first
    strangers = [
        "thesis.txt",
        "step-1.json",
        "step-000005000.json",
        "weights.safetensors",
        "model-xyz.safetensors",
        "a.partial",
    ]
    strangers += [
        "step-00000700-0123456789ab.safetensors.bak",
        ".model-0123.partial",
        ".lock",
        "config.json",
    ]
    litter = [
        ".model-01234567.partial",
        "step-00000700-0123456789ab.safetensors",
        ".step-00000700-89abcdef.partial",
    ]
    for name in strangers + litter:
        (tmp_path / name).write_bytes(b"x")
    assert storage.records(tmp_path, "step-") == [
        "step-00000500",
        "step-00001000",
        "step-00001500",
    ]
    assert storage.records(tmp_path, "model") == []
    storage.remove(tmp_path, "step-00001000")
    storage.remove(tmp_path, "step-00001000")
    (tmp_path / "step-00000500.json").write_bytes(b"damaged")  # its tensors may be rescued
    before = set(names(tmp_path))
    assert len(storage.leftovers(tmp_path)) == 4
    storage.sweep(tmp_path)
    gone = before - set(names(tmp_path))
    assert len(gone) == 4
    assert gone >= set(litter)
    assert set(strangers) <= set(names(tmp_path))
    assert storage.read(tmp_path, "step-00001500")[0] == {"step": 1500}
    assert same(storage.read(tmp_path, "model")[1], {"w": torch.zeros(1)})
    assert len([name for name in names(tmp_path) if name.startswith("step-00000500-")]) == 1


@pytest.mark.parametrize(
    ("stem", "tensors", "about", "error"),
    [
        ("../model", {}, {}, "record's name"),
        ("step-5", {}, {}, "record's name"),
        ("", {}, {}, "record's name"),
        ("model", {}, {"a": float("nan")}, "JSON"),
        ("model", {}, {"a": {1, 2}}, "JSON"),
        ("model", {}, {"a": torch.ones(1)}, "JSON"),
        ("model", {}, {"a": "x" * LIMIT}, "large things are tensors"),
        ("model", {"w": [1.0]}, {}, "tensors are Tensors"),
        ("model", {7: torch.ones(1)}, {}, "tensors are Tensors"),
        ("model", {"__metadata__": torch.ones(1)}, {}, "tensors are Tensors"),
        ("model", {"w": torch.ones(1, dtype=torch.complex64)}, {}, "complex64"),
        ("model", {"w": torch.eye(2).to_sparse()}, {}, "sparse"),
    ],
)
def test_what_can_not_be_written_is_refused_before_anything_is(
    stem: str, tensors: Any, about: Any, error: str, tmp_path: Path
) -> None:
    with pytest.raises((TypeError, ValueError), match=error) as caught:
        storage.write(tmp_path / "new", stem, tensors, about)
    assert not isinstance(caught.value, CheckpointError)
    assert not (tmp_path / "new").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss in KiB")
def test_writing_copies_one_tensor_at_a_time(tmp_path: Path) -> None:
    tensors = {
        str(k): torch.ones(2**19).as_strided((2**10, 2**9), (1, 2**10)) for k in range(40)
    }  # not contiguous, 2 MiB

    def grown() -> float:
        storage.write(tmp_path, "model", {"w": torch.ones(9)}, {})
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        storage.write(tmp_path, "model", tensors, {})
        return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**10

    assert in_child(grown) < 25  # MiB, of 80


# ---------------------------------------------------------------------- damage


def cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def zeroed(data: bytes, rng: random.Random) -> bytes:
    lost = rng.randint(1, len(data))
    return data[:-lost] + bytes(lost)


def flipped(data: bytes, rng: random.Random) -> bytes:
    bad = bytearray(data)
    bad[rng.randrange(len(bad))] ^= 1 << rng.randrange(8)
    return bytes(bad)


def header(data: bytes, rng: random.Random) -> bytes:
    """One character of the JSON, or of the safetensors header or its length, becomes another that
    could stand there.
    """
    end = len(data) if data[:1] == b"{" else 8 + int.from_bytes(data[:8], "little")
    place = rng.randrange(end)
    return (
        data[:place]
        + rng.choice(b'0123456789abcdef",:{}[]eE-. ').to_bytes(1, "little")
        + data[place + 1 :]
    )


def overwrite(path: Path, data: bytes) -> None:
    """Write a file anew: some disks make whoever empties a file wait."""
    path.unlink()
    path.write_bytes(data)


def damaged_are_refused(
    damage: Callable[[bytes, random.Random], bytes], count: int, tmp_path: Path
) -> None:
    """A quarter of `count` each over the JSON and the tensors, of a saved model and of a
    checkpoint: all are refused by name.
    """
    rng, refused, sde = random.Random(17), 0, model()
    for stem in ("model", "step-00000500"):
        folder = tmp_path / stem
        if stem == "model":
            scoresde.save(sde, folder)
        else:
            checkpoint(folder, stem, sde)
        for path in sorted(folder.iterdir()):
            data = path.read_bytes()
            done = 0
            while done < count // 4:
                bad = damage(data, rng)
                if bad == data:
                    continue  # the tail was zero already, the character is the same
                overwrite(path, bad)
                with pytest.raises(CheckpointError) as caught:
                    scoresde.load(folder)
                assert str(path) in str(caught.value)
                done += 1
            path.write_bytes(data)
            refused += done
        assert same(scoresde.load(folder).state_dict(), sde.state_dict())
    assert refused == count


@pytest.mark.parametrize("damage", [cut, zeroed, flipped, header])
def test_a_thousand_damaged_checkpoints_of_each_kind_are_refused(
    damage: Any, tmp_path: Path
) -> None:
    damaged_are_refused(damage, 1000, tmp_path)


def test_every_byte_of_a_json_counts_and_every_length(tmp_path: Path) -> None:
    path = storage.write(tmp_path, "model", {"w": torch.ones(1)}, {"beta_max": 20.0})
    data = path.read_bytes()
    bad = [data[:i] + bytes([data[i] ^ 1 << i % 8]) + data[i + 1 :] for i in range(len(data))]
    bad += (
        [data[:i] for i in range(len(data))]
        + [data + tail for tail in (b"\n", b" ", b"\0", b"}", data)]
        + [b" " + data]
    )
    for wrong in bad:
        overwrite(path, wrong)
        with pytest.raises(CheckpointError):
            storage.read(tmp_path, "model")
    overwrite(path, data)
    assert storage.read(tmp_path, "model")[0] == {"beta_max": 20.0}


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before_with_a_warning(
    tmp_path: Path,
) -> None:
    old, new = model(), model()
    torch.nn.init.ones_(new.net.out.bias)
    checkpoint(tmp_path, "step-00000500", old)
    checkpoint(tmp_path, "step-00001000", new)
    assert torch.equal(scoresde.load(tmp_path).net.out.bias, torch.ones(2))
    path = tmp_path / "step-00001000.json"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.warns(
        UserWarning, match=r"step-00000500 instead of the newest.*step-00001000\.json is damaged"
    ):
        assert torch.equal(scoresde.load(tmp_path).net.out.bias, old.net.out.bias)
    (tmp_path / "step-00000500.json").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"step-00001000\.json"):
        scoresde.load(tmp_path)
    scoresde.save(new, tmp_path)
    assert torch.equal(scoresde.load(tmp_path).net.out.bias, torch.ones(2))
    (tmp_path / "model.json").write_bytes(
        b""
    )  # a model that was saved is not replaced by something else in silence
    with pytest.raises(CheckpointError, match=r"model\.json"):
        scoresde.load(tmp_path)


# ---------------------------------------------------------------------- failing writes


def contents(k: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What the k-th record holds."""
    return {"w": torch.full((5000,), float(k)), "v": torch.full((30,), k)}, {
        "k": k,
        "note": f"{k} " * 2000,
    }


def check(folder: Path, *allowed: int) -> int:
    tensors, about = storage.read(folder, "model")[::-1]
    wanted = contents(about["k"])
    assert about == wanted[1]
    assert same(tensors, wanted[0])
    assert about["k"] in allowed
    return int(about["k"])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs limits of a child process")
@pytest.mark.parametrize("large", ["tensors", "JSON"])
@pytest.mark.parametrize("share", [0.0, 1e-4, 0.3, 0.9, 0.9999])
def test_a_full_disk_is_an_error_that_leaves_the_previous_record_and_no_litter(
    large: str, share: float, tmp_path: Path
) -> None:
    storage.write(tmp_path, "model", *contents(1))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    tensors, about = contents(2)
    size = 20_240
    if large == "JSON":
        about["note"] = "x" * (size := 10**5)
    limit = int(share * size)

    def work() -> str:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        try:
            with Lock(tmp_path):
                storage.write(tmp_path, "model", tensors, about)
        except CheckpointError as error:
            return str(error)
        return "written"

    answer = in_child(work)
    assert answer.startswith(f"can't write {tmp_path}/model.json: File too large")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    check(tmp_path, 1)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs another user's rights")
def test_a_read_only_folder_is_an_error_and_can_be_read(tmp_path: Path) -> None:
    storage.write(tmp_path, "model", *contents(1))
    before = names(tmp_path)
    tmp_path.chmod(0o555)

    def work() -> list[str]:
        os.chdir(tmp_path)
        if os.geteuid() == 0:  # root may write anywhere
            os.setuid(65534)
        said = []
        for attempt in (
            lambda: storage.write(".", "model", *contents(2)),
            lambda: Lock(".").__enter__(),
        ):
            try:
                attempt()
            except CheckpointError as error:
                said.append(str(error))
        check(Path("."), 1)
        return said

    try:
        said = in_child(work)
    finally:
        tmp_path.chmod(0o700)
    assert said == [
        "can't write model.json: Permission denied",
        "can't write to .: Permission denied",
    ]
    assert names(tmp_path) == before


def test_a_file_where_the_folder_should_be_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for folder in (tmp_path / "file", tmp_path / "file" / "deeper"):
        for attempt in (
            lambda f: storage.write(f, "model", {}, {}),
            lambda f: Lock(f).__enter__(),
        ):
            with pytest.raises(CheckpointError, match="can't write"):
                attempt(folder)
        assert storage.records(folder, "step-") == storage.leftovers(folder) == []
        with pytest.raises(CheckpointError, match=r"model\.json can't be read"):
            storage.read(folder, "model")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(("name", "calls"), [("replace", 2), ("fsync", 4)])
@pytest.mark.parametrize(
    "kind", [KeyboardInterrupt, OSError(5, "Input/output error"), MemoryError]
)
def test_an_interrupt_at_any_call_leaves_one_record_or_the_other(
    kind: Any, name: str, calls: int, when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, raised = getattr(os, name), CheckpointError if isinstance(kind, OSError) else kind
    for which in range(calls):
        folder = tmp_path / str(which)
        storage.write(folder, "model", *contents(1))
        count = [0]

        def failing(*args: Any, which: int = which, count: list[int] = count) -> None:
            count[0] += 1
            if when == "after" or count[0] != which + 1:
                real(*args)
            if count[0] == which + 1:
                raise kind

        monkeypatch.setattr(os, name, failing)
        with pytest.raises(raised):
            storage.write(folder, "model", *contents(2))
        monkeypatch.undo()
        k = check(folder, 1, 2)
        assert k == 1 or (name, which, when) in [
            ("replace", 1, "after"),
            ("fsync", 3, "before"),
            ("fsync", 3, "after"),
        ]
        assert len(names(folder)) == 1 + k  # the old tensors wait for `sweep`
        storage.sweep(folder)
        assert len(names(folder)) == 2
        storage.write(folder, "model", *contents(3))
        check(folder, 3)


def test_an_interrupt_over_the_same_tensors_does_not_take_them_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new tensors file is the old one then, and the old JSON still names it."""
    storage.write(tmp_path, "model", contents(1)[0], {"k": 1})
    real, count = os.replace, [0]

    def failing(*args: Any) -> None:
        count[0] += 1
        if count[0] == 2:
            raise KeyboardInterrupt
        real(*args)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(KeyboardInterrupt):
        storage.write(tmp_path, "model", contents(1)[0], {"k": 2})
    monkeypatch.undo()
    assert storage.read(tmp_path, "model")[0] == {"k": 1}
    assert len(names(tmp_path)) == 2


def killed(kills: int, tmp_path: Path) -> None:
    """A child writes, replaces and removes records without end, saying when each was done, and is
    killed at a random moment.
    """
    rng, last, inside = random.Random(3), 0, 0
    began = time.perf_counter()
    for _ in range(5):
        storage.write(tmp_path, "model", *contents(0))
    each = (time.perf_counter() - began) / 5  # however fast the machine is
    for _ in range(kills):
        out, into = os.pipe()
        pid = os.fork()
        if not pid:
            try:
                with Lock(tmp_path):
                    storage.sweep(tmp_path)
                    for k in range(last + 1, last + 10**6):
                        storage.write(tmp_path, "model", *contents(k))
                        os.write(into, f"{k}\n".encode())
                        storage.write(tmp_path, f"step-{k:08d}", *contents(k))
                        for old in storage.records(tmp_path, "step-")[:-2]:
                            storage.remove(tmp_path, old)
            finally:
                os._exit(1)
        os.close(into)
        with open(out) as file:
            first = file.readline()  # it is under way
            time.sleep(8 * each * rng.random())
            os.kill(pid, signal.SIGKILL)
            assert os.waitpid(pid, 0)[1] == signal.SIGKILL
            said = max([last, *map(int, [first, *file.read().split()])])
        inside += any(name.endswith(".partial") for name in names(tmp_path))
        last = check(tmp_path, said, said + 1)
        steps = storage.records(tmp_path, "step-")
        assert all(storage.read(tmp_path, stem)[0] == contents(int(stem[5:]))[1] for stem in steps)
        with Lock(tmp_path):  # free, though nobody gave it back
            for old in steps[:-2]:
                storage.remove(tmp_path, old)
            storage.sweep(tmp_path)
        assert len(names(tmp_path)) == 2 + 2 * min(len(steps), 2)
    assert last > kills / 10
    assert inside > kills / 10  # or it would prove little


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_kills_at_random_moments_leave_one_record_or_the_other(tmp_path: Path) -> None:
    killed(25, tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_two_hundred_kills(tmp_path: Path) -> None:
    killed(200, tmp_path)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_who_reads_while_another_replaces_gets_one_or_the_other(tmp_path: Path) -> None:
    storage.write(tmp_path, "model", *contents(0))
    pid = os.fork()
    if not pid:
        try:
            for k in range(1, 10**6):
                storage.write(tmp_path, "model", *contents(k))
                storage.sweep(
                    tmp_path
                )  # takes the old tensors, which a reader may be about to open
        finally:
            os._exit(1)
    try:
        last, reads, late = 0, 0, time.monotonic() + 60
        while (
            reads < 300 or last <= 10
        ) and time.monotonic() < late:  # how soon the other gets on is the machine's business
            last, reads = check(tmp_path, *range(last, last + 10**4)), reads + 1
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert last > 10


# ---------------------------------------------------------------------- two writers


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_second_writer_is_told_who_the_first_is_until_that_dies(tmp_path: Path) -> None:
    sde = model()
    scoresde.save(sde, tmp_path / "run")
    out, into = os.pipe()
    pid = os.fork()
    if not pid:
        with Lock(tmp_path / "run"):
            os.write(into, b"x")
            time.sleep(60)
        os._exit(0)
    try:
        assert os.read(out, 1) == b"x"
        for attempt in (
            lambda: Lock(tmp_path / "run").__enter__(),
            lambda: scoresde.save(sde, tmp_path / "run"),
        ):
            with pytest.raises(
                CheckpointError, match=rf"is being written by another process \(pid {pid}\)"
            ):
                attempt()
        scoresde.load(tmp_path / "run")  # reading is free
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    scoresde.save(sde, tmp_path / "run")
    assert len(names(tmp_path / "run")) == 2


def test_a_process_does_not_write_twice_at_a_time_and_gives_back_what_it_took(
    tmp_path: Path,
) -> None:
    for _ in range(3):
        with Lock(tmp_path / "run") as lock:
            with (
                pytest.raises(CheckpointError, match="by this process already"),
                Lock(tmp_path / "run"),
            ):
                pass
            with pytest.raises(CheckpointError, match="by this process already"), lock:
                pass
            with pytest.raises(CheckpointError, match="by this process already"):
                scoresde.save(model(), tmp_path / "run")
            with Lock(tmp_path / "other"):
                pass
        with pytest.raises(ZeroDivisionError), Lock(tmp_path / "run"):
            raise ZeroDivisionError
    assert names(tmp_path / "run") == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_worker_that_outlives_its_parent_does_not_hold_the_lock(tmp_path: Path) -> None:
    out, into = os.pipe()
    pid = os.fork()
    if not pid:
        with Lock(tmp_path):
            worker = os.fork()
            if not worker:
                time.sleep(60)
                os._exit(0)
            os.write(into, f"{worker}\n".encode())
            time.sleep(60)
        os._exit(0)
    worker = int(os.read(out, 20))
    time.sleep(0.05)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    try:
        with Lock(tmp_path):
            pass
    finally:
        os.kill(worker, signal.SIGKILL)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_four_processes_in_a_race_are_never_two_at_a_time(tmp_path: Path) -> None:
    """Each adds 1 to a number in a file, by reading and writing, 100 times; a lock that lets two
    in loses some.
    """
    (tmp_path / "n").write_text("0")
    children = []
    for _ in range(4):
        pid = os.fork()
        if not pid:
            done = 0
            try:
                while done < 100:
                    try:
                        with Lock(tmp_path):
                            n = int((tmp_path / "n").read_text())
                            time.sleep(0)
                            (tmp_path / "n").write_text(str(n + 1))
                            done += 1
                    except CheckpointError:
                        time.sleep(1e-4)
            finally:
                os._exit(done != 100)
        children.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0] * 4
    assert (tmp_path / "n").read_text() == "400"
    assert names(tmp_path) == ["n"]


def test_a_lock_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").symlink_to(tmp_path / "thesis.txt")
    with pytest.raises(CheckpointError, match="can't write"), Lock(tmp_path / "run"):
        pass
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


# ---------------------------------------------------------------------- hostility

HOSTILE = """
import json, os, pathlib, resource, sys, time
import torch
torch.set_num_threads(1)
import scoresde
root = pathlib.Path(sys.argv[1])
scoresde.load(root / "sound")  # what a sound load imports is imported now
seen, watching = [], False
WATCHED = ("pickle.find_class", "exec", "compile", "import", "os.system", "os.exec",
           "os.posix_spawn", "os.fork", "os.remove", "os.rename", "subprocess.Popen",
           "marshal.loads", "ctypes.dlopen", "socket.connect", "shutil.rmtree")
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
def hook(event, args):
    if watching and (event in WATCHED or event == "open" and (args[2] or 0) & WRITES):
        seen.append(event + " " + repr(args[:1])[:80])
sys.addaudithook(hook)
virtual = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
# A bomb must not take the machine along.
resource.setrlimit(resource.RLIMIT_AS, (virtual + 2**30, virtual + 2**30))
def peak(reset=False):
    if reset:
        pathlib.Path("/proc/self/clear_refs").write_text("5")
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024
report = {}
for folder in sorted(root.iterdir()):
    if not (folder / "hostile").exists():
        continue
    before, began, watching = peak(reset=True), time.perf_counter(), True
    try:
        scoresde.load(folder)
        outcome = "loaded"
    except Exception as error:
        outcome = type(error).__name__ + ": " + str(error)
    watching = False
    seconds = time.perf_counter() - began
    report[folder.name] = [outcome, seconds, peak() - before]
print(json.dumps({"report": report, "seen": seen}))
"""


class Payload:
    """Pickled, it would run a command on being unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


class Forge:
    """Writes records as an attacker would, who knows the format: seals and checksums are right
    unless they are the point.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        sde = model()
        self.about, self.tensors = describe(sde), weights(sde)
        self.sound = safetensors.torch.save(
            {name: value.clone() for name, value in self.tensors.items()}
        )

    def folder(self, name: str) -> Path:
        folder = self.root / name
        folder.mkdir()
        (folder / "hostile").touch()
        return folder

    def record(
        self,
        name: str,
        data: bytes | None = None,
        edits: dict[str, Any] | None = None,
        entry: dict[str, Any] | None = None,
        text: Callable[[str], str] = lambda text: text,
        stem: str = "model",
    ) -> Path:
        """`data` are the tensors' bytes, `edits` change `about` by dotted paths, `entry` the
        record of the tensors.
        """
        folder, data = self.folder(name), self.sound if data is None else data
        about = json.loads(json.dumps(self.about))
        for keys, value in (edits or {}).items():
            *way, last = keys.split(".")
            part = about
            for key in way:
                part = part[key]
            part[last] = value
        digest = hashlib.sha256(data).hexdigest()
        file = f"{stem}-{digest[:12]}.safetensors"
        (folder / file).write_bytes(data)
        tensors = {"file": file, "size": len(data), "sha256": digest} | (entry or {})
        record = {
            "format": "scoresde-2",
            "tensors": tensors,
            "about": about if stem == "model" else {"model": about},
        }
        body = text(json.dumps(record, indent=2)).removesuffix("\n}").encode()
        (folder / f"{stem}.json").write_bytes(seal(body))
        return folder

    def header(
        self, name: str, change: Callable[[dict[str, Any]], Any], tail: bytes = b""
    ) -> None:
        """Tensors whose safetensors header is another one."""
        n = int.from_bytes(self.sound[:8], "little")
        about = json.loads(self.sound[8 : 8 + n])
        about = change(about) or about
        text = about if isinstance(about, bytes) else json.dumps(about).encode()
        self.record(name, len(text).to_bytes(8, "little") + text + self.sound[8 + n :] + tail)

    def weights(self, name: str, stem: str = "model", **changes: Tensor) -> None:
        """Tensors that are others, in a sound file."""
        found = {key: value.clone() for key, value in self.tensors.items()} | {
            k.replace("__", "."): v for k, v in changes.items()
        }
        self.record(name, safetensors.torch.save(found), stem=stem)


def hostile(root: Path) -> None:
    forge, pwned = Forge(root), f"touch {root / 'pwned'}"
    sound = forge.record("sound")
    (sound / "hostile").unlink()
    zipped = io.BytesIO()
    torch.save({"w": torch.ones(2)}, zipped)
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/data.pkl", bytes(5 * 10**7))

    # files that are something else
    forge.record("a pickle", pickle.dumps(Payload(pwned)))
    forge.record("a pickle of torch", zipped.getvalue())
    forge.record("a zip bomb", bomb.getvalue())
    (forge.folder("a pickle for JSON") / "model.json").write_bytes(pickle.dumps(Payload(pwned)))
    (forge.folder("a gzip bomb for JSON") / "model.json").write_bytes(
        gzip.compress(bytes(5 * 10**7))
    )
    (forge.folder("Python for JSON") / "model.json").write_text(
        f"__import__('os').system({pwned!r})"
    )
    folder = forge.record("a module beside")
    (folder / "evil.py").write_text(f"import os; os.system({pwned!r})")
    forge.record("a module beside, named", edits={"net.name": "evil", "process.name": "evil"})
    (folder / "model.json").write_text((folder / "model.json").read_text().replace("mlp", "evil"))

    # paths, links, and what is not a file
    (inside,) = sound.glob("*.safetensors")
    (root / inside.name).write_bytes(inside.read_bytes())
    for name, path in {
        "a path above": f"../{inside.name}",
        "an absolute path": str(root / inside.name),
        "the folder above": "..",
        "a path that returns": f"../sound/{inside.name}",
        "a null byte": f"{inside.name}\0",
        "a device": "/dev/zero",
        "another's name": "model-0123456789ab.safetensors",
        "no name": "",
        "a number for a name": 7,  # type: ignore[dict-item]
    }.items():
        forge.record(name, entry={"file": path})
    folder = forge.record("a link outside")
    (folder / inside.name).unlink()
    (folder / inside.name).symlink_to(root / inside.name)
    folder = forge.folder("a JSON that is a link")
    (folder / "model.json").symlink_to(sound / "model.json")
    (folder / inside.name).write_bytes(inside.read_bytes())
    os.mkfifo(forge.folder("a JSON that is a pipe") / "model.json")
    folder = forge.record("tensors that are a pipe")
    (folder / inside.name).unlink()
    os.mkfifo(folder / inside.name)
    (forge.folder("a JSON that is a folder") / "model.json").mkdir()
    (forge.folder("a JSON that leads nowhere") / "model.json").symlink_to("nowhere")
    (forge.folder("a JSON that is a device") / "model.json").symlink_to("/dev/zero")

    # sizes
    with open(forge.folder("64 GB of JSON") / "model.json", "wb") as file:
        file.truncate(2**36)
    folder = forge.record("64 GB of tensors", entry={"size": 2**36})
    with open(folder / inside.name, "wb") as file:
        file.truncate(2**36)
    (forge.folder("17 MB of JSON") / "model.json").write_bytes(
        seal(b'{"a": "' + b"x" * 17 * 2**20 + b'"')
    )
    for size in (-1, 2**70, "many", None, [1], 1e300, 0.5):
        forge.record(f"size {size}", entry={"size": size})
    forge.record("a checksum of another type", entry={"sha256": 7})
    forge.record(
        "a short checksum", entry={"sha256": hashlib.sha256(forge.sound).hexdigest()[:12]}
    )

    # safetensors headers
    first = next(iter(forge.tensors))
    forge.record("a header of 2^63 bytes", b"\xff" * 7 + b"\x7f" + b"{}")
    forge.record("a header of 90 MB that is not there", (9 * 10**7).to_bytes(8, "little") + b"{}")
    forge.record("no header", b"")
    forge.header(
        "offsets that overlap", lambda h: h[first].update(data_offsets=h["scale"]["data_offsets"])
    )
    forge.header(
        "offsets that exceed", lambda h: h["net.out.bias"].update(data_offsets=[0, 10**12])
    )
    forge.header(
        "offsets that go back",
        lambda h: h["net.out.bias"].update(data_offsets=h["net.out.bias"]["data_offsets"][::-1]),
    )
    forge.header("negative offsets", lambda h: h["net.out.bias"].update(data_offsets=[-8, 0]))
    forge.header("a dtype of another size", lambda h: h["net.out.bias"].update(dtype="F64"))
    forge.header("a dtype of another kind", lambda h: h["net.out.bias"].update(dtype="I32"))
    forge.header("an unknown dtype", lambda h: h["net.out.bias"].update(dtype="os.system"))
    forge.header(
        "a shape that overflows", lambda h: h["net.out.bias"].update(shape=[2**40, 2**40])
    )
    forge.header(
        "names that come twice",
        lambda h: json.dumps(h).encode()[:-1] + b"," + json.dumps(h).encode()[1:],
    )
    forge.header("data that no name has", lambda h: None, tail=bytes(64))
    forge.header("a header of deep lists", lambda h: b'{"a":' + b"[" * 10**5 + b"]" * 10**5 + b"}")

    # weights that are not the network's
    forge.weights("a weight more", net__backdoor=torch.ones(1))
    forge.weights("wrapped and bare", net__module__out__bias=torch.ones(2))
    forge.weights("a mean that is NaN", mean=torch.full((2,), float("nan")))
    forge.weights("a scale of zero", scale=torch.zeros(2))
    forge.weights("text for a flag", measured=torch.tensor(65, dtype=torch.uint8))

    # names and options
    options = {
        "os.system for a network": {"net": {"name": "os.system", "options": {"command": pwned}}},
        "os.system for a process": {
            "process": {"name": "os.system", "options": {"command": pwned}}
        },
        "a class by path": {
            "net": {"name": "torch.nn.Linear", "options": {"in_features": 2, "out_features": 2}}
        },
        "a class by entry point": {"net.name": "evil:Network"},
        "__class__ for a network": {"net.name": "__class__"},
        "__class__ among options": {"net.options.__class__": "os.system"},
        "__reduce__ among options": {"process.options.__reduce__": ["os.system", [pwned]]},
        "__init__ among options": {"net.options.__init__": pwned},
        "options that shadow": {"net.options": {"self": 1, "name": "mlp"}},
        "an unhashable name": {"net.name": ["mlp"], "process.name": {"name": "vp"}},
        "10^9 layers": {"net.options.depth": 10**9},
        "10^5 layers": {"net.options.depth": 10**5},
        "10^12 wide": {"net.options.width": 10**12},
        "10^30 wide": {"net.options.width": 10**30},
        "10^6 wide": {"net.options.width": 10**6},
        "10^12 classes": {"net.options.classes": 10**12},
        "10^12 frequencies": {"net.options.fourier": 10**12},
        "a shape of 10^12": {"shape": [10**12]},
        "a shape of 10^30": {"shape": [10**30]},
        "a shape of 10^8": {"shape": [10**8]},
        "10^4 axes": {"shape": [2] * 10**4},
        "an overflowing process": {"process": {"name": "edm", "options": {"rho": 1e-9}}},
        "NaN": {"process.options.beta_max": float("nan")},
        "infinity": {"process.options.beta_max": float("inf")},
        "a network of text": {"net": pwned},
        "a long name": {"net.name": "x" * 10**6},
    }
    for name, edits in options.items():
        forge.record(name, edits=edits)

    # JSON that is not what it looks like
    there = '"shape": ['
    forge.record("1e999", text=lambda text: text.replace('"width": 8', '"width": 1e999'))
    forge.record(
        "a number of 10^5 digits",
        text=lambda text: text.replace('"width": 8', f'"width": {"9" * 10**5}'),
    )
    forge.record(
        "keys that come twice", text=lambda text: text.replace(there, '"shape": [2], ' + there)
    )
    forge.record(
        "deep lists",
        text=lambda text: text.replace(there, there + "[" * 10**5 + "]" * 10**5 + ","),
    )
    forge.record(
        "lists of depth 900",
        text=lambda text: text.replace('"width": 8', '"width": ' + "[" * 900 + "]" * 900),
    )
    forge.record("deep file name", entry={"file": json.loads("[" * 900 + "]" * 900)})
    forge.record("a byte-order mark", text=lambda text: "\ufeff" + text)
    forge.record("a list", text=lambda text: f"[{text}]")
    forge.record("about nothing", text=lambda text: text.replace('"about"', '"aboot"'))
    forge.record(
        "one thing more", text=lambda text: text.replace('"about"', '"exec": "x", "about"')
    )
    forge.record("another format", text=lambda text: text.replace("scoresde-2", "scoresde-1"))
    forge.record(
        "a format of depth 900",
        text=lambda text: text.replace('"scoresde-2"', "[" * 900 + "]" * 900),
    )

    # the same through a checkpoint
    step = "step-00000500"
    forge.record("a pickle in a checkpoint", pickle.dumps(Payload(pwned)), stem=step)
    forge.record("a checkpoint with foreign weights", stem=step)  # not under "model."
    forge.record("os.system in a checkpoint", edits=options["os.system for a network"], stem=step)
    forge.record(
        "a checkpoint without a model",
        text=lambda text: text.replace('"model": {', '"modal": {'),
        stem=step,
    )


@pytest.mark.skipif(sys.platform != "linux", reason="limits memory, reads /proc")
def test_hostile_records_run_nothing_write_nothing_and_take_neither_memory_nor_time(
    tmp_path: Path,
) -> None:
    """In a process of its own, watched by an audit hook: no unpickling, no import, no code, an
    error of ours in seconds.
    """
    hostile(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    done = subprocess.run(
        [sys.executable, "-c", HOSTILE, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path / "a module beside",
    )
    assert done.returncode == 0, done.stderr[-2000:]
    answer = json.loads(done.stdout.splitlines()[-1])
    assert len(answer["report"]) >= 30
    assert answer["seen"] == []
    assert sorted(tmp_path.rglob("*")) == before  # nobody touched "pwned"
    for name, (outcome, seconds, megabytes) in answer["report"].items():
        assert outcome.startswith("CheckpointError: "), (name, outcome)
        assert str(tmp_path / name) in outcome, (name, outcome)
        assert len(outcome) < 1000, (name, outcome)
        assert "\n" not in outcome, (name, outcome)
        assert seconds < 10, (name, seconds)
        assert megabytes < 200, (name, megabytes)


def test_the_oldest_versions_that_are_allowed_are_those_that_are_tested() -> None:
    """`make test-oldest` installs what pyproject.toml allows; safetensors 0.4.0 reads no empty
    tensor back.
    """
    root = Path(__file__).parent.parent
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    needed = [line for lines in (project["dependencies"], *extras) for line in lines]
    split = (re.fullmatch(r"([\w-]+)>=([\d.]+)", line) for line in needed)
    floors = {found[1]: [int(part) for part in found[2].split(".")] for found in split if found}
    assert floors["safetensors"] >= [0, 4, 5]
    pins = re.findall(r"^([\w-]+)==([\d.]+)$", (root / "constraints-oldest.txt").read_text(), re.M)
    tested = {name: [int(part) for part in version.split(".")] for name, version in pins}
    for name, version in tested.items():
        assert version[: len(floors[name])] == floors[name], name
    assert {line.split(">=")[0] for line in project["dependencies"]} <= set(tested)
