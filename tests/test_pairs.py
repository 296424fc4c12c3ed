"""Pairs of reflow: on the map that is known in closed form, the same however they are drawn, and
safe on the disk.
"""

from __future__ import annotations

import builtins
import errno
import hashlib
import math
import os
import random
import signal
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import scoresde
from conftest import Polynomial, generator, some
from scoresde import CheckpointError, Pairs, ScoreSDE, SolverError, reflow, toy
from scoresde.data import pair_drawing, pair_store, pairs
from scoresde.storage import records as storage
from scoresde.storage.lock import Lock

forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
QUIET: dict[str, Any] = {"progress": False}
N, ROWS = 300, 64


class Labeled(nn.Module):
    """The `edm` output for x0 ~ N(y·(1, …, 1), s²·I) under the rectified flow: its ODE takes x_1
    to y + s·x_1.
    """

    def __init__(self, shape: tuple[int, ...], s: float = 0.5) -> None:
        super().__init__()
        self.s, self.shape = s, shape
        self.fails_above = math.inf
        self.shift = nn.Parameter(torch.zeros(1, dtype=torch.float64), requires_grad=False)

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        alpha, sigma = ((c.reshape(-1, *(1,) * len(self.shape))) for c in (1 - t, t))
        mean = self.shift if y is None else self.shift + y.to(x.dtype).reshape(alpha.shape)
        v = (alpha * self.s) ** 2 + sigma**2
        x0 = mean + alpha * self.s**2 * (x - alpha * mean) / v
        eps = sigma * (x - alpha * mean) / v
        out = (sigma * x0 - alpha * eps) / torch.hypot(alpha, sigma)
        return torch.where(x.abs() > self.fails_above, math.nan, out)


def labeled(shape: tuple[int, ...] = (2,), s: float = 0.5) -> ScoreSDE:
    return ScoreSDE(
        scoresde.RectifiedFlow(), Labeled(shape, s), shape=shape, input_convention="raw"
    ).double()


def bend() -> ScoreSDE:
    """A model with curved paths, in float32."""
    return scoresde.oracle(toy.Moons(), scoresde.RectifiedFlow())


def draw(sde: ScoreSDE, n: int = N, **options: Any) -> Pairs:
    seed = options.pop("seed", 3)
    how: dict[str, Any] = {"steps": 4, "solver": "heun", **QUIET, **options}
    return reflow(sde, n, generator=generator(seed), **how)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pair_drawing, "PART_PAIRS", ROWS)


def files(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def equal(a: Pairs, b: Pairs) -> bool:
    assert a.given.keys() == b.given.keys()
    columns = [
        (a.x, b.x),
        (a.latent, b.latent),
        *((a.given[name], b.given[name]) for name in a.given),
    ]
    return all(
        np.array_equal(np.asarray(x), np.asarray(y)) and str(x.dtype)[-7:] == str(y.dtype)[-7:]
        for x, y in columns
    )


# ---------------------------------------------------------------------- what they are


@pytest.mark.parametrize(
    ("process", "shape"),
    [(scoresde.RectifiedFlow(), (1, 3, 2)), (scoresde.Cosine(), (2,)), (Polynomial(), (2,))],
    ids=lambda p: type(p).__name__,
)
@pytest.mark.parametrize("n", some([1, 70], 70))
def test_pairs_lie_on_the_map_that_is_known_in_closed_form(
    process: scoresde.Process, shape: tuple[int, ...], n: int
) -> None:
    """For x0 ~ N(m, s²) the ODE takes x_1 to m + s·x_1/σ(1), in the units of standardized data."""
    m = torch.randn(1, *shape, generator=generator(), dtype=torch.float64)
    sde = scoresde.oracle(
        toy.GaussianMixture(m, torch.tensor([0.3], dtype=torch.float64)), process
    ).double()
    sde.mean.fill_(2.0)
    sde.scale.fill_(5.0)
    how: dict[str, Any] = {"solver": "rk45", "rtol": 3e-8, "atol": 3e-8}
    found = draw(sde, n, steps=None, **how)
    assert (len(found), found.shape, found.x.dtype) == (n, shape, torch.float64)
    wanted = 2 + 5 * (
        m
        + 0.3
        * (found.latent - 2)
        / 5
        / float(process.sigma(torch.tensor(1.0, dtype=torch.float64)))
    )
    assert float((found.x - wanted).abs().max()) < 1e-6
    assert float((scoresde.decode(sde, found.latent, **how) - found.x).abs().max()) < 1e-12


def test_latents_are_those_that_solve_starts_from() -> None:
    sde = bend()
    found, solution = (
        draw(sde),
        scoresde.solve(sde, N, solver="heun", steps=4, generator=generator(3)),
    )
    assert torch.equal(found.latent, solution.x[0])
    assert torch.allclose(found.x, solution.x[1], atol=1e-5)


def test_a_source_is_where_they_start() -> None:
    rows = 3 + torch.rand(50, 2, generator=generator())
    net = Labeled((2,)).float()
    sde = ScoreSDE(scoresde.RectifiedFlow(), net, shape=(2,), input_convention="raw", source=rows)
    found = draw(sde)
    assert bool(((found.latent[:, None] - rows).abs().amax(2).amin(1) < 1e-6).all())
    assert torch.allclose(
        scoresde.decode(sde, found.latent, solver="heun", steps=4), found.x, atol=1e-5
    )


@pytest.mark.parametrize("solver", some(["adams", "rk45", "heun"], "rk45", "heun"))
def test_a_pair_depends_on_the_seed_and_its_number_alone(solver: str) -> None:
    sde = bend().double()
    steps = 4 if solver == "heun" else None
    whole = draw(sde, solver=solver, steps=steps)
    state = torch.get_rng_state()
    for n, options in [(100, {"batch_size": 27}), (N, {"batch_size": 1000}), (1, {})]:
        part = draw(sde, n, solver=solver, steps=steps, **options)
        assert torch.equal(part.latent, whole.latent[:n])
        assert float((part.x - whole.x[:n]).abs().max()) < 1e-9
    assert torch.equal(torch.get_rng_state(), state)  # with a generator, torch's own is left alone
    assert not torch.equal(draw(sde, solver=solver, steps=steps, seed=4).latent, whole.latent)


@pytest.mark.parametrize("out", [False, True])
def test_labels_go_with_their_pairs(out: bool, tmp_path: Path) -> None:
    """x_0 = y + s·x_1 says which label a pair was drawn with; Heun's 50 steps leave an error below
    2e-3.
    """
    labels = torch.arange(N) % 5
    for y in (labels, torch.tensor(2), torch.tensor([1.5])):
        folder: dict[str, Any] = {"out": tmp_path / f"pairs-{y.numel()}-{y.dtype}"} if out else {}
        found = draw(labeled((1, 2, 2)).given(y=y), steps=50, **folder)
        given = found.given["y"]
        assert given.shape == (N,)
        assert torch.equal(given, y.expand(N))
        x, latent = (
            torch.as_tensor(rows[:].copy() if out else rows) for rows in (found.x, found.latent)
        )
        assert float((x - given.reshape(-1, 1, 1, 1) - 0.5 * latent).abs().max()) < 2e-3
    with pytest.raises(ValueError, match="7"):
        draw(labeled().given(y=torch.arange(7)), 9)


# ---------------------------------------------------------------------- anyone's pairs


def test_pairs_are_cut_by_slices() -> None:
    whole = Pairs(torch.arange(20.0).reshape(10, 2), torch.ones(10, 2), {"y": torch.arange(10)})
    part = whole[2:9:3]
    assert part.x[:, 0].tolist() == [4.0, 10.0, 16.0]
    assert part.given["y"].tolist() == [2, 5, 8]
    assert (len(part), part.shape, repr(part)) == (3, (2,), "Pairs(3 of shape (2,), given ['y'])")
    with pytest.raises(TypeError, match="slice"):
        whole[3]  # type: ignore[index]
    with pytest.raises(ValueError, match="none of 10"):
        whole[10:]
    with pytest.raises(ValueError, match="a positive step"):
        whole[::-1]


def test_arrays_of_any_order_and_maps_are_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = np.random.default_rng(0).normal(size=(10, 3, 2))
    tensor = torch.from_numpy(x)
    assert torch.equal(Pairs(x.astype(">f8"), np.asfortranarray(x)).x, tensor)
    assert torch.equal(Pairs(x.tolist(), x).x, tensor.float())
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert isinstance(Pairs(mapped, mapped).latent, np.memmap)
    mixed = Pairs(mapped, tensor)
    assert torch.equal(mixed.x, mixed.latent)
    monkeypatch.setattr(pairs, "CHECKED_NUMBERS", 12)
    x[7, 1, 1] = math.nan
    np.save(tmp_path / "nan.npy", x)
    with pytest.raises(ValueError, match="latent has NaN"):
        Pairs(mapped, np.load(tmp_path / "nan.npy", mmap_mode="r"))


GOOD = torch.ones(5, 2)
WRONG: dict[str, tuple[tuple[Any, ...], type[Exception], str]] = {
    "unequal numbers": ((GOOD, GOOD[:4]), ValueError, "x has 5 rows and latent has 4"),
    "other shapes": (
        (GOOD, torch.ones(5, 3)),
        ValueError,
        r"x has samples of shape \(2,\) and latent of shape \(3,\)",
    ),
    "empty": ((GOOD[:0], GOOD[:0]), ValueError, "x has no samples"),
    "no rows": (
        (torch.ones(5), torch.ones(5)),
        ValueError,
        r"x has shape \(5,\), wanted \(n, \*shape\)",
    ),
    "NaN": (
        (GOOD, GOOD * torch.tensor([1.0, math.nan])),
        ValueError,
        "latent has NaN or infinite values in 5 of 5",
    ),
    "integers": ((GOOD.long(), GOOD), TypeError, "x has dtype torch.int64"),
    "integer arrays": ((GOOD, np.ones((5, 2), int)), TypeError, "latent has dtype torch.int64"),
    "words": (("pairs", GOOD), TypeError, "x is a tensor or array, got str"),
    "given": ((GOOD, GOOD, torch.ones(5)), TypeError, "given is a mapping"),
    "few labels": (
        (GOOD, GOOD, {"y": torch.ones(4)}),
        ValueError,
        r"condition 'y' has shape \(4,\) for 5 pairs",
    ),
    "one label": ((GOOD, GOOD, {"y": 1}), ValueError, r"condition 'y' has shape \(\) for 5 pairs"),
    "NaN labels": (
        (GOOD, GOOD, {"y": torch.full((5,), math.nan)}),
        ValueError,
        "condition 'y' has NaN",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_pairs_are_named(what: str) -> None:
    arguments, kind, message = WRONG[what]
    with pytest.raises(kind, match=message):
        Pairs(*arguments)


REFUSED: dict[str, tuple[Callable[[], ScoreSDE], dict[str, Any], type[Exception], str]] = {
    "stochastic": (bend, {"solver": "em"}, ValueError, "'em' is stochastic; try 'adams'"),
    "VP": (
        lambda: scoresde.oracle(toy.Moons(), scoresde.VPSDE()),
        {},
        ValueError,
        r"try RectifiedFlow\(\) or Cosine\(\)",
    ),
    "VE": (
        lambda: scoresde.oracle(toy.Moons(), scoresde.VESDE()),
        {},
        ValueError,
        r"α\(1\) = 1; try",
    ),
    "unknown solver": (bend, {"solver": "heum"}, ValueError, "Did you mean 'heun'"),
    "no pairs": (bend, {"n": 0}, ValueError, "n is at least 1"),
    "half": (bend, {"n": 1.5}, TypeError, "n is an integer"),
    "batch_size": (bend, {"batch_size": 0}, ValueError, "batch_size is at least 1"),
    "out": (bend, {"out": 3}, TypeError, "out is a path, got int"),
    "no model": (scoresde.RectifiedFlow, {}, TypeError, "reflow needs a ScoreSDE"),  # type: ignore[dict-item]
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_makes_no_sense_is_refused_before_any_work(what: str, tmp_path: Path) -> None:
    build, options, kind, message = REFUSED[what]
    steps: dict[str, Any] = {} if "solver" in options else {"solver": "heun", "steps": 2}
    with pytest.raises(kind, match=message):
        reflow(build(), **{"n": 2, "out": tmp_path / "pairs", **QUIET, **steps, **options})
    assert not list(tmp_path.iterdir())


def test_a_seed_is_no_generator() -> None:
    with pytest.raises(TypeError, match=r"generator is a torch\.Generator, got int"):
        reflow(bend(), 2, generator=3)  # type: ignore[arg-type]


# ---------------------------------------------------------------------- in a folder


@pytest.mark.parametrize("n", [1, ROWS, N])
@pytest.mark.parametrize("shape", [(2,), (1, 3, 2)])
def test_a_folder_holds_what_memory_would(n: int, shape: tuple[int, ...], tmp_path: Path) -> None:
    for sde in (
        labeled(shape),
        labeled(shape).given(y=torch.linspace(0, 1, n)),
        labeled(shape).given(y=torch.arange(n)),
    ):
        folder = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        whole, found = draw(sde, n), draw(sde, n, out=folder)
        assert isinstance(found.x, np.memmap)
        assert isinstance(found.latent, np.memmap)
        assert not found.x.flags.writeable
        assert equal(whole, found)
        assert equal(whole, Pairs.open(str(folder)))
        assert equal(whole[: n // 2 + 1], found[: n // 2 + 1])
        assert np.array_equal(
            np.load(folder / "x.npy", allow_pickle=False), whole.x
        )  # a file that anyone can read
        before = files(folder)
        assert equal(
            whole, draw(sde, n, out=folder, seed=17)
        )  # done is done, whatever the generator
        assert files(folder) == before
        assert set(before) - {"given-0.npy", "x.npy", "latent.npy", "pairs.json"} == {
            next(iter(folder.glob("*.safetensors"))).name
        }


def hooked(at: int) -> None:
    """Die by SIGKILL at the k-th operation of the disk: before or after it by turns; of a write,
    in its middle.
    """
    left = [at]

    def wrapped(original: Callable[..., Any]) -> Callable[..., Any]:
        def operation(*args: Any, **options: Any) -> Any:
            left[0] -= 1
            if not left[0] and at % 2:
                os.kill(os.getpid(), signal.SIGKILL)
            result = original(*args, **options)
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
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

        def writelines(self, pieces: list[bytes]) -> None:
            left[0] -= 1
            data = b"".join(pieces)
            self.file.write(data if left[0] else data[: len(data) // 2])
            if not left[0]:
                self.file.flush()
                os.kill(os.getpid(), signal.SIGKILL)

    def opened(path: Any, mode: str = "r") -> Any:
        return File(path, mode) if mode == "r+b" else builtins.open(path, mode)

    pair_store.open = opened  # type: ignore[attr-defined]
    for name in ("replace", "fsync", "unlink", "truncate"):
        setattr(os, name, wrapped(getattr(os, name)))


def forked(work: Callable[[], Any]) -> int:
    """Do something in a child and return how it ended."""
    pid = os.fork()
    if not pid:
        try:
            work()
            os._exit(0)
        except BaseException:
            os._exit(1)
    return os.waitpid(pid, 0)[1]


@forks
def test_killed_at_any_moment_it_ends_with_the_same_bytes(tmp_path: Path) -> None:
    sde = bend().given()
    draw(sde, out=tmp_path / "whole")
    wanted, rng, kills, seen = files(tmp_path / "whole"), random.Random(0), 0, set()
    for run in range(7):
        folder, status = tmp_path / f"run-{run}", 1
        while status:
            at = rng.randint(1, 45)

            def work(at: int = at, folder: Path = folder) -> None:
                hooked(at)
                draw(sde, out=folder, seed=3 if not (folder / "pairs.json").exists() else 99)

            status = forked(work)
            assert status in (0, signal.SIGKILL)
            kills += status > 0
            if (folder / "pairs.json").exists():
                done = storage.read(folder, "pairs")[0]["done"]
                seen.add(done)
                if done < N:
                    with pytest.raises(
                        CheckpointError,
                        match=f"holds {done} of {N} pairs: reflow with this folder as out=",
                    ):
                        Pairs.open(folder)
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                if status and rng.random() < 0.3:
                    draw(sde, out=folder, seed=3 if not (folder / "pairs.json").exists() else 99)
        assert files(folder) == wanted
    assert kills > 10
    assert len(seen) == 1 + -(-N // ROWS), seen


DAMAGE: dict[str, tuple[Callable[[Path], object], int | None, str]] = {
    "x cut short": (
        lambda f: os.truncate(f / "x.npy", 128 + 8 * 150),
        128,
        "from pair 128 on, in x.npy",
    ),
    "latent cut to nothing": (
        lambda f: os.truncate(f / "latent.npy", 0),
        0,
        "from pair 0 on, in latent.npy",
    ),
    "one byte short": (
        lambda f: os.truncate(f / "x.npy", 128 + 8 * N - 1),
        256,
        "from pair 256 on, in x.npy",
    ),
    "a byte more": (
        lambda f: (f / "x.npy").write_bytes((f / "x.npy").read_bytes() + b"!"),
        N,
        "longer than was written",
    ),
    "a flipped bit": (
        lambda f: flip(f / "latent.npy", 128 + 8 * 70),
        64,
        "from pair 64 on, in latent.npy",
    ),
    "the last bit": (lambda f: flip(f / "x.npy", 127 + 8 * N), 256, "from pair 256 on, in x.npy"),
    "another header": (lambda f: flip(f / "x.npy", 22), 0, "from pair 0 on, in x.npy"),
    "a missing file": (
        lambda f: (f / "latent.npy").unlink(),
        0,
        "in latent.npy, which can't be read",
    ),
    "a link": (lambda f: linked(f / "x.npy"), None, "in x.npy"),
    "the record": (lambda f: flip(f / "pairs.json", 200), None, "pairs.json is"),
    "the digests": (
        lambda f: flip(next(f.glob("*.safetensors")), 100),
        None,
        "safetensors is damaged",
    ),
    "no record": (lambda f: (f / "pairs.json").unlink(), None, "no pairs at"),
    "a model's record": (
        lambda f: storage.write(f, "pairs", {"w": torch.ones(2)}, {"kind": "model"}),
        None,
        "is not of pairs",
    ),
}


def linked(path: Path) -> None:
    path.rename(path.parent.parent / "elsewhere.npy")
    path.symlink_to(path.parent.parent / "elsewhere.npy")


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("what", DAMAGE)
def test_damage_is_found_and_what_can_be_drawn_again_is(what: str, tmp_path: Path) -> None:
    damage, sound, message = DAMAGE[what]
    folder, sde = tmp_path / "pairs", bend()
    draw(sde, out=folder)
    wanted = files(folder)
    damage(folder)
    with pytest.raises(CheckpointError, match=message):
        Pairs.open(folder)
    if sound is None:
        with pytest.raises(CheckpointError):
            draw(sde, out=folder)
        return
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        draw(sde, out=folder, seed=99)
    assert [f"is damaged from pair {sound} of {N} on" in str(w.message) for w in told] == [
        True
    ] * (sound < N)
    assert files(folder) == wanted


def test_a_folder_goes_on_with_the_same_only(tmp_path: Path) -> None:
    y = torch.arange(N) % 3
    folder, sde = tmp_path / "pairs", labeled().given(y=y)
    draw(sde, out=folder)
    shifted = labeled().given(y=y)
    shifted.net.shift.fill_(1.0)  # type: ignore[operator]
    others: list[tuple[ScoreSDE, dict[str, Any], str]] = [
        (labeled(), {"n": 200}, "n=300, and now it is 200"),
        (sde, {"steps": 5}, "steps=4, and now it is 5"),
        (sde, {"solver": "euler"}, "solver='heun', and now it is 'euler'"),
        (sde, {"solver": "rk45", "steps": None, "rtol": 1e-3}, "rtol=None, and now it is 0.001"),
        (sde, {"spacing": "arc"}, "spacing=None, and now it is 'arc'"),
        (labeled(), {}, "given="),
        (labeled().given(y=y + 1), {}, "given="),
        (shifted, {}, "weights="),
        (labeled((2, 1)).given(y=y), {}, "model="),
        (
            labeled(s=0.6).given(y=y),
            {},
            "are of another model, or another source",
        ),  # which no name or weight says
    ]
    before = files(folder)
    for other, options, message in others:
        with pytest.raises(CheckpointError, match=message):
            draw(other, **({"out": folder} | options))
    assert files(folder) == before


def test_a_failing_solve_loses_nothing_that_was_saved(tmp_path: Path) -> None:
    folder, sde = tmp_path / "pairs", labeled()
    whole = draw(sde, seed=5)
    order = whole.latent.abs().amax(1)
    bad = int(
        (order > order[:ROWS].max()).nonzero()[0]
    )  # the first that goes farther than all of the first part
    part = bad // ROWS * ROWS
    sde.net.fails_above = float(order[:ROWS].max())  # type: ignore[assignment]
    for _ in range(2):
        with pytest.raises(
            SolverError,
            match=rf"of pairs {part} to {part + ROWS - 1}; the {part} pairs before them are kept",
        ) as told:
            draw(sde, out=folder, seed=5)
        assert told.value.first == part
        with pytest.raises(CheckpointError, match=f"holds {part} of {N} pairs"):
            Pairs.open(folder)
    sde.net.fails_above = math.inf  # type: ignore[assignment]
    assert equal(draw(sde, out=folder, seed=99), whole)


def test_a_full_disk_keeps_what_was_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, sde, whole = tmp_path / "pairs", bend(), draw(bend())
    sync, left = os.fsync, [20]

    def full(fd: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(fd)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(CheckpointError, match=r"can't write .*: No space left on device"):
            draw(sde, out=folder)
    done = storage.read(folder, "pairs")[0]["done"]
    assert 0 < done < N
    assert equal(draw(sde, out=folder, seed=99), whole)


@forks
def test_a_limit_of_the_system_is_an_error_of_ours(tmp_path: Path) -> None:
    """Files that may not grow beyond 2,000 bytes: written as plain files, not through memory, that
    is an error, not a crash.
    """
    resource = pytest.importorskip("resource")
    folder, sde = tmp_path / "pairs", bend()

    def work() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
        with pytest.raises(CheckpointError, match="can't write"):
            draw(sde, out=folder)

    assert forked(work) == 0
    assert storage.read(folder, "pairs")[0]["done"] == 192
    assert equal(draw(sde, out=folder, seed=99), draw(sde))


def test_folders_of_others_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="holds something that is not pairs"):
        draw(bend(), out=tmp_path)
    with pytest.raises(CheckpointError, match="can't write"):
        draw(bend(), out=tmp_path / "notes.txt")
    with pytest.raises(CheckpointError, match="no pairs at"):
        Pairs.open(tmp_path)
    with pytest.raises(CheckpointError, match="no pairs at"):
        Pairs.open(tmp_path / "nowhere")
    with pytest.raises(TypeError, match="folder is a path, got int"):
        Pairs.open(3)  # type: ignore[arg-type]
    assert files(tmp_path) == {"notes.txt": hashlib.sha256(b"mine").hexdigest()}
    with (
        Lock(tmp_path / "busy"),
        pytest.raises(CheckpointError, match="is being written by this process"),
    ):
        draw(bend(), out=tmp_path / "busy")


def test_a_model_and_a_solver_that_have_names_and_objects(tmp_path: Path) -> None:
    """A registered model is described by name, a solver object by what it holds; both go on in a
    later session.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sde = scoresde.build("rectified", "mlp", shape=(2,), width=16)
        other = scoresde.build("rectified", "mlp", shape=(2,), width=16)
    solver = scoresde.SOLVERS.build("rk45", rtol=1e-3)
    first = draw(sde, 80, solver=solver, steps=None, out=tmp_path)
    scoresde.save(sde, tmp_path.parent / "reflowed")
    again = scoresde.load(tmp_path.parent / "reflowed")
    assert equal(
        draw(
            again, 80, solver=scoresde.SOLVERS.build("rk45", rtol=1e-3), steps=None, out=tmp_path
        ),
        first,
    )
    for model, how, message in [
        (other, solver, "weights="),
        (sde, scoresde.SOLVERS.build("rk45", rtol=1e-4), "solver="),
    ]:
        with pytest.raises(CheckpointError, match=message):
            draw(model, 80, solver=how, steps=None, out=tmp_path)
