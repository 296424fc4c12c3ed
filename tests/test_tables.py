"""Data with names: columns and classes are matched with those that the model has learnt, from
files and data frames alike.
"""

from __future__ import annotations

import copy
import gzip
import json
import pickle
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import scoresde
from conftest import generator
from scoresde.cli.commands import main
from scoresde.data.files import Samples, read
from scoresde.model.class_words import Labels
from scoresde.model.schema import Schema
from scoresde.storage import records as storage

N = 24
RNG = np.random.default_rng(0)
U, V, DOSE = RNG.normal(size=N), RNG.normal(100, 5, N), RNG.random(N)
KIND = np.array(["ant", "bee", "cow"])[RNG.integers(0, 3, N)]
SMALL = ["--steps", "5", "--batch-size", "8", "--option", "width=8", "--option", "depth=1"]


def write_csv(path: Path, *names: str, rows: Any = slice(None), **other: Any) -> str:
    """A table with these columns in this order."""
    columns = {"u": U, "v": V, "dose": DOSE, "kind": KIND, **other}
    cells = [columns[name][rows].tolist() for name in names]
    path.write_text(
        ",".join(names)
        + "\n"
        + "\n".join(",".join(map(str, row)) for row in zip(*cells, strict=True))
    )
    return str(path)


def small(shape: int = 2, net: str = "mlp", **options: Any) -> scoresde.ScoreSDE:
    torch.manual_seed(0)
    return scoresde.build("vp", net, shape=(shape,), width=8, depth=1, **options)


def fit(sde: scoresde.ScoreSDE, data: Any, **how: Any) -> scoresde.ScoreSDE:
    scoresde.fit(
        sde,
        data,
        **{"steps": 5, "batch_size": 8, "progress": False, "generator": generator(0)} | how,
    )
    return sde


def x_of(*columns: np.ndarray, rows: Any = slice(None)) -> torch.Tensor:
    return torch.from_numpy(np.stack(columns, 1)[rows].astype(np.float32))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the columns u, v given the words of kind, trained by the command."""
    folder = tmp_path_factory.mktemp("tables")
    data = write_csv(folder / "t.csv", "u", "v", "kind")
    main(["fit", data, "--out", str(folder / "m"), "--condition", "y=kind", *SMALL])
    return folder


def by_command(folder: Path, model: str, *how: str) -> torch.Tensor:
    """What log-prob writes."""
    main(["log-prob", str(folder / model), *how, "--out", str(folder / "logp.npy")])
    return torch.from_numpy(np.load(folder / "logp.npy"))


def test_a_file_with_other_rows_and_order_is_scored_as_the_same_numbers(folder: Path) -> None:
    """Of classes ant, bee, cow only bee and cow are there, and the columns are reversed."""
    rows = KIND != "ant"
    other = write_csv(folder / "other.csv", "kind", "v", "u", rows=rows)
    sde = scoresde.load(folder / "m")
    y = torch.from_numpy(np.searchsorted(["ant", "bee", "cow"], KIND[rows]))
    wanted = scoresde.log_prob(sde.given(y=y), x_of(U, V, rows=rows))
    assert torch.equal(by_command(folder, "m", other, "--condition", "y=kind"), wanted)
    # and by the API, whether the file is handed over as it is or in parts
    samples = read(other, conditions={"y": "kind"})
    assert torch.equal(scoresde.log_prob(sde, samples), wanted)
    assert torch.equal(
        scoresde.log_prob(sde.given(**samples.given), samples.values[:, ::-1]), wanted
    )
    assert torch.equal(
        scoresde.log_prob(sde.given(y=KIND[rows]), samples.values[:, [1, 0]]), wanted
    )
    for given in ({"y": KIND[rows].tolist()}, {"y": samples.given["y"]}, {"y": y}):
        found = scoresde.evaluate(
            sde, read(other, columns=("v", "u")), given=given, n=len(y), samples=0, progress=False
        )
        assert found.score is not None
        assert found.score.mean == pytest.approx(float(wanted.mean()), abs=2e-5)


@pytest.mark.parametrize(
    ("names", "ants"), [(("u", "v", "kind"), False), (("kind", "v", "u"), True)]
)
def test_words_alone_and_columns_alone_are_matched(
    names: tuple[str, ...], ants: bool, folder: Path
) -> None:
    """Fewer classes in the same order of columns, and all classes in another order."""
    rows = (KIND != "ant") | ants
    y = torch.from_numpy(np.searchsorted(["ant", "bee", "cow"], KIND[rows]))
    wanted = scoresde.log_prob(scoresde.load(folder / "m").given(y=y), x_of(U, V, rows=rows))
    other = write_csv(folder / "alone.csv", *names, rows=rows)
    assert torch.equal(by_command(folder, "m", other, "--condition", "y=kind"), wanted)


def test_evaluate_and_validation_of_the_command_go_by_names(folder: Path) -> None:
    rows = KIND != "ant"
    other = write_csv(folder / "held.csv", "kind", "v", "u", rows=rows)
    main(
        [
            "evaluate",
            str(folder / "m"),
            other,
            "--condition",
            "y=kind",
            "-n",
            "100",
            "--out",
            str(folder / "e"),
            "--samples",
            "5",
        ]
    )
    sde = scoresde.load(folder / "m")
    y = torch.from_numpy(np.searchsorted(["ant", "bee", "cow"], KIND[rows]))
    wanted = scoresde.log_prob(sde.given(y=y), x_of(U, V, rows=rows))
    found = json.loads((folder / "e" / "evaluation.json").read_text())
    assert found["score"]["mean"] == pytest.approx(float(wanted.mean()), abs=2e-5)
    assert found["sheet"] == "samples.csv"
    assert read(folder / "e" / "samples.csv").columns == ("u", "v")
    assert len(read(folder / "e" / "samples.csv")) == 5
    straight = write_csv(folder / "straight.csv", "u", "v", "kind", rows=rows)
    losses = []
    for i, held_out in enumerate((other, straight)):
        out = folder / f"validated{i}"
        main(
            [
                "fit",
                str(folder / "t.csv"),
                "--out",
                str(out),
                "--condition",
                "y=kind",
                "--validation",
                held_out,
                *SMALL,
            ]
        )
        record = next(out.glob("step-*.json"))
        losses.append(json.loads(record.read_text())["about"]["history"]["validation"])
    assert losses[0] == losses[1]


def test_resume_goes_on_with_a_reordered_file_and_refuses_another(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bit for bit: the columns and classes are put back before the data are compared."""
    command = ["fit", str(folder / "t.csv"), "--condition", "y=kind", *SMALL, "--every", "3"]
    main([*command, "--out", str(folder / "whole")])
    main([*command, "--out", str(folder / "cut")])
    for path in (*(folder / "cut").glob("step-00000005*"), folder / "cut" / "model.json"):
        path.unlink()
    command[1] = write_csv(folder / "turned.csv", "kind", "v", "u")
    main([*command, "--out", str(folder / "cut"), "--resume"])
    one, two = (scoresde.load(folder / name).state_dict() for name in ("whole", "cut"))
    for key, value in one.items():
        assert torch.equal(two[key], value), key
    command[1] = write_csv(folder / "renamed.csv", "kind", "w", "u", w=V)
    with pytest.raises(SystemExit):
        main([*command, "--out", str(folder / "cut"), "--resume"])
    assert "1 missing: 'v'; 1 unknown: 'w'" in capsys.readouterr().err


def test_a_run_from_before_there_were_names_goes_on_and_learns_them(folder: Path) -> None:
    sde, data = small(classes=3), read(folder / "t.csv", conditions={"y": "kind"})
    out = folder / "old"
    fit(
        sde,
        data.values,
        given={"y": np.asarray(data.given["y"])},
        checkpoints=scoresde.Checkpoints(out, every=3),
    )
    for path in (*out.glob("step-00000005*"), out / "model.json"):
        path.unlink()
    record = next(out.glob("step-*.json"))
    known = json.loads(record.read_text())
    for model in (known["about"]["model"], known["about"]["config"]["model"]):
        del model["schema"]
    storage.write(out, record.stem, storage.read(out, record.stem)[1], known["about"])
    old = scoresde.load(out)
    assert old.schema == Schema()
    checkpoints = scoresde.Checkpoints(out, every=3, resume=True)
    again = fit(small(classes=3), data, checkpoints=checkpoints)
    assert again.schema == Schema(("u", "v"), {"y": ("ant", "bee", "cow")})
    for key, value in sde.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key


@pytest.mark.parametrize(
    ("names", "how", "said"),
    [
        (("v", "u", "dose"), [], "'u', 'v'; 1 unknown: 'dose'. Choose them by name"),
        (("u", "dose"), [], "1 missing: 'v'; 1 unknown: 'dose'"),
        (("u",), [], "1 missing: 'v'"),
        (
            ("u", "v", "kind"),
            [],
            r"column 3 is '\w+', wanted a finite number in 'kind': .*--columns",
        ),
        (
            ("u", "v", "other"),
            ["--condition", "y=other"],
            "'y' has 'dog', which this model has not learnt.*ant, bee, cow",
        ),
        (
            ("u", "v", "number"),
            ["--condition", "y=number"],
            "condition 'y' is numbers here, and one of 'ant', 'bee', 'cow'",
        ),
        (("u", "v"), ["--given", "y=dog"], "or one of ant, bee, cow, got 'y=dog'"),
        (("u", "v"), ["--columns", "u,w"], "there is no 'w'"),
        (("u", "v"), ["--columns", "u,"], "columns are NAME,NAME"),
    ],
)
def test_what_does_not_match_is_named_in_one_line(
    names: tuple[str, ...],
    how: list[str],
    said: str,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    other = np.where(KIND == "ant", "dog", KIND)
    data = write_csv(
        folder / "wrong.csv",
        *names,
        other=other,
        number=np.searchsorted(["ant", "bee", "cow"], KIND),
    )
    with pytest.raises(SystemExit) as caught:
        main(["log-prob", str(folder / "m"), data, *how])
    error = capsys.readouterr().err
    assert caught.value.code == 2
    assert len(error.strip().splitlines()) == 1
    assert re.search(said, error), error


def test_columns_are_chosen_and_words_are_conditions_of_all(folder: Path) -> None:
    wide = write_csv(folder / "wide.csv", "dose", "kind", "v", "u")
    sde = scoresde.load(folder / "m")
    wanted = scoresde.log_prob(sde.given(y=1), x_of(U, V))
    for columns in ("u,v", "v, u"):
        assert torch.equal(
            by_command(folder, "m", wide, "--columns", columns, "--given", "y=bee"), wanted
        )
    assert torch.equal(by_command(folder, "m", wide, "--columns", "u,v", "--given", "y=1"), wanted)
    assert torch.equal(sde.given(y="cow").condition["y"], torch.tensor([2]))
    with pytest.raises(
        ValueError, match=r"'cov', which this model has not learnt. Did you mean 'cow'"
    ):
        sde.given(y="cov")
    main(
        [
            "sample",
            str(folder / "m"),
            "-n",
            "4",
            "--seed",
            "3",
            "--given",
            "y=cow",
            "--out",
            str(folder / "x.csv"),
        ]
    )
    wanted = scoresde.sample(sde.given(y=2), 4, generator=generator(3))
    found = read(folder / "x.csv")
    assert torch.equal(torch.from_numpy(found.values), wanted)
    assert found.columns == ("u", "v")
    assert (folder / "x.csv").read_text().splitlines()[1] == ",".join(map(str, wanted[0].numpy()))


@pytest.mark.parametrize(("columns", "width"), [("dose", 1), ("dose,u", 2)])
def test_columns_of_numbers_are_one_condition_of_vectors(
    columns: str, width: int, folder: Path
) -> None:
    data = write_csv(folder / "vector.csv", "v", "dose", "u")
    out = folder / f"vector{width}"
    command = ["fit", data, "--out", str(out), "--net", "resmlp", *SMALL]
    main([*command, "--columns", "v", "--condition", f"vector={columns}"])
    sde = scoresde.load(out)
    assert sde.net.embed.vectors == width
    condition = x_of(*[DOSE, U][:width])
    wanted = scoresde.log_prob(sde.given(vector=condition), x_of(V))
    turned = ",".join(reversed(columns.split(",")))
    assert torch.equal(
        by_command(folder, out.name, data, "--columns", "v", "--condition", f"vector={turned}"),
        wanted,
    )
    main(
        [
            "sample",
            str(out),
            "-n",
            "3",
            "--given",
            f"vector={[0.5, 2.0][:width]}",
            "--out",
            str(folder / "x.parquet"),
        ]
    )
    drawn = scoresde.sample(
        sde.given(vector=torch.tensor([[0.5, 2.0][:width]])), 3, generator=generator(0)
    )
    assert torch.equal(torch.from_numpy(read(folder / "x.parquet").values), drawn)


def test_names_are_kept_in_saved_models_and_views_and_not_by_a_run_that_learnt_nothing(
    folder: Path, tmp_path: Path
) -> None:
    sde = scoresde.load(folder / "m")
    assert sde.schema == Schema(("u", "v"), {"y": ("ant", "bee", "cow")})
    assert (
        copy.deepcopy(sde).schema
        == scoresde.load(scoresde.save(sde, tmp_path / "m")).schema
        == sde.schema
    )
    fresh = small(classes=3)
    view = fresh.given(y=1)
    with pytest.raises(ValueError, match="label"):
        fit(fresh, x_of(U, V), given={"y": np.array(["a", "b", "c", "d"] * (N // 4))})
    assert fresh.schema == Schema()
    fit(fresh, read(folder / "t.csv", conditions={"y": "kind"}))
    assert view.schema is fresh.schema
    about = json.loads((tmp_path / "m" / "model.json").read_text())["about"]
    assert about["schema"] == {"columns": ["u", "v"], "words": {"y": ["ant", "bee", "cow"]}}


@pytest.mark.parametrize(
    "schema",
    [
        [],
        {"columns": ["u"]},
        {"columns": ["u", "u"]},
        {"columns": "uv"},
        {"words": {"y": [1]}},
        {"parts": []},
        {"other": 1},
    ],
)
def test_a_schema_of_a_file_is_not_trusted(schema: Any) -> None:
    with pytest.raises(ValueError, match="its schema"):
        Schema.rebuild(schema, (2,))


def test_a_model_without_names_goes_by_position_and_says_nothing(folder: Path) -> None:
    sde = fit(small(classes=3), x_of(U, V), given={"y": torch.arange(N) % 3})
    sde.schema.words.clear()  # as models of before are read
    samples = read(folder / "t.csv", conditions={"y": "kind"})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = scoresde.log_prob(sde, samples)
    assert torch.equal(
        found,
        scoresde.log_prob(
            sde.given(y=torch.from_numpy(np.asarray(samples.given["y"]))), x_of(U, V)
        ),
    )


def test_labels_know_their_words_in_slices_and_copies_but_not_in_sums() -> None:
    labels = Labels([2, 0, 1], ("a", "b", "c"))
    for same in (
        labels[:2],
        labels.copy(),
        pickle.loads(pickle.dumps(labels)),
        copy.deepcopy(labels),
    ):
        assert same.words == ("a", "b", "c")
    assert type(labels + 1) is np.ndarray
    assert type(labels == 1) is np.ndarray
    assert int(labels.max()) == 2
    assert torch.equal(torch.from_numpy(labels), torch.tensor([2, 0, 1]))


def test_labels_of_several_files_are_joined_by_their_words(folder: Path) -> None:
    """Numbers 0 and 1 are b and c in one file, c and d in the other."""
    first, second = Labels([0, 1, 1], ("bee", "cow")), Labels([1, 0], ("ant", "bee"))
    for joined in (
        np.concatenate([first, second]),
        np.append(first, second),
        np.hstack((first, second)),
    ):
        assert [joined.words[i] for i in joined] == ["bee", "cow", "cow", "bee", "ant"]
        assert scoresde.load(folder / "m").given(y=joined).condition["y"].tolist() == [
            1,
            2,
            2,
            1,
            0,
        ]
    sized = [Labels([i], ("small", "large")) for i in (1, 0)]  # declared in this order
    assert np.concatenate(sized).words == ("small", "large")
    assert not isinstance(np.concatenate([first, np.zeros(2, np.int64)]), Labels)
    x = x_of(U[:5], V[:5])
    sde = fit(small(classes=3), x, given={"y": np.concatenate([first, second])})
    assert sde.schema.words == {"y": ("ant", "bee", "cow")}


def test_read_only_and_reversed_arrays_are_taken_without_a_warning() -> None:
    values = np.stack([U, V], 1).astype(np.float32)
    y = np.arange(N) % 3
    locked, labels = values.copy(), y.copy()
    locked.flags.writeable = labels.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sde = fit(
            small(classes=3), locked, given={"y": labels}, validation=(locked, {"y": labels})
        )
        wanted = scoresde.log_prob(sde.given(y=torch.from_numpy(y)), torch.from_numpy(values))
        for x in (locked, values[::-1].copy()[::-1], values.astype(">f4")):
            assert torch.equal(scoresde.log_prob(sde.given(y=labels), x), wanted)
        backwards = scoresde.log_prob(sde.given(y=labels[::-1]), values[::-1])
        assert torch.allclose(backwards.flip(0), wanted, atol=1e-5)
        scoresde.loss(sde, locked, y=labels)
        scoresde.encode(sde.given(y=labels), locked)
        scoresde.bits_per_dim(
            sde.given(), np.broadcast_to(np.uint8(3), (4, 2)), scoresde.dequantize.Uniform(256)
        )
        scoresde.Pairs(values, values, {"y": labels})
        scoresde.evaluate(sde, locked, given={"y": labels}, n=4, samples=0, progress=False)


def test_every_verb_wants_a_path_that_a_file_can_have(tmp_path: Path) -> None:
    sde, x = small(), x_of(U, V)
    calls: list[Any] = [
        lambda path: scoresde.load(path),
        lambda path: scoresde.save(sde, path),
        lambda path: fit(sde, x, checkpoints=path),
        lambda path: scoresde.evaluate(sde, x, out=path, n=2, samples=0, progress=False),
        lambda path: scoresde.posthoc_ema(path),
        lambda path: scoresde.Pairs.open(path),
        lambda path: scoresde.reflow(scoresde.build("rectified", "mlp", shape=(2,)), 2, out=path),
    ]
    for call in calls:
        for bad, kind in ((b"run", "bytes"), (3, "int"), (b"run\0", "bytes")):
            with pytest.raises(
                TypeError, match=rf"(folder|out|checkpoints) is a path, got {kind}"
            ):
                call(bad)
        with pytest.raises(
            ValueError, match=r"(folder|out|checkpoints) is a path, got 'a\\x00b', which has a NUL"
        ):
            call("a\0b")


def test_gray_images_of_16_bits_are_learnt_and_scored_in_their_own_levels(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Noise of 65,536 levels has 16 bits/dim; images of levels 0 … 65535 lie on the unit scale."""
    pillow = pytest.importorskip("PIL.Image")
    levels = np.random.default_rng(0).integers(0, 65536, (24, 3, 3)).astype(np.uint16)
    (tmp_path / "images").mkdir()
    for i, image in enumerate(levels):
        pillow.fromarray(image).save(tmp_path / "images" / f"{i:02d}.png")
    out = str(tmp_path / "m")
    main(["fit", str(tmp_path / "images"), "--out", out, "--option", "fourier=0", *SMALL])
    sde = scoresde.load(out)
    assert float(sde.mean) == pytest.approx(levels.mean() / 65536, abs=1e-5)
    capsys.readouterr()
    main(["log-prob", out, str(tmp_path / "images"), "-n", "8"])
    noise = scoresde.dequantize.Uniform(65536)
    first = torch.from_numpy(levels[:8, None].astype(np.int32))
    wanted = scoresde.bits_per_dim(sde, first, noise, generator=generator(0))
    said = re.search(r"mean bits per dimension: (\S+) ± ", capsys.readouterr().out)
    assert said is not None
    assert float(said[1]) == pytest.approx(wanted.mean, abs=1e-3)
    assert abs(wanted.mean - 16) < 1.5
    main(["evaluate", out, str(tmp_path / "images"), "-n", "8", "--samples", "0"])
    assert re.search(r"bits/dim +1[4-8]\.", capsys.readouterr().out)
    again = fit(
        scoresde.build("vp", "mlp", shape=(1, 3, 3), width=8),
        levels[:, None],
        transforms=(scoresde.transforms.Dequantize(65536),),
    )
    assert torch.allclose(again.mean, sde.mean, atol=1e-4)


def test_the_command_reads_other_encodings(folder: Path) -> None:
    sde = scoresde.load(folder / "m")
    text = (folder / "t.csv").read_text().replace(",", ";")
    (folder / "wide.tsv.gz").write_bytes(gzip.compress(text.replace(";", "\t").encode("utf-16")))
    (folder / "wide.csv").write_bytes(text.encode("utf-16"))
    wanted = scoresde.log_prob(sde.given(y=KIND), x_of(U, V))
    for name in ("wide.csv", "wide.tsv.gz"):
        found = by_command(
            folder, "m", str(folder / name), "--condition", "y=kind", "--encoding", "utf-16"
        )
        assert torch.equal(found, wanted)


# Data frames.


@pytest.fixture
def pd() -> Any:
    return pytest.importorskip("pandas")


def test_a_frame_is_its_columns_by_name(pd: Any, tmp_path: Path) -> None:
    """The same as its numbers, whatever the order, the dtypes, and the index; NumPy's read-only
    views make no warning.
    """
    df = pd.DataFrame(
        {"u": U, "v": V.astype(np.float32), "n": np.arange(N) % 7}, index=np.arange(N)[::-1] + 5
    )
    kind = pd.Series(KIND, index=RNG.permutation(N) + 100)
    y = torch.from_numpy(np.searchsorted(["ant", "bee", "cow"], KIND))
    plain = np.stack([U, V.astype(np.float32), np.arange(N) % 7], 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sde = fit(
            small(3, classes=3),
            df,
            given={"y": kind},
            validation=(df[["n", "u", "v"]], {"y": kind}),
        )
        same = fit(small(3, classes=3), plain, given={"y": y}, validation=(plain, {"y": y}))
    for key, value in same.state_dict().items():
        assert torch.equal(sde.state_dict()[key], value), key
    assert sde.schema == Schema(("u", "v", "n"), {"y": ("ant", "bee", "cow")})
    wanted = scoresde.log_prob(sde.given(y=y), torch.from_numpy(plain))
    turned = df[["n", "v", "u"]].astype({"n": "Int64", "u": "Float64"})
    some = kind[kind != "ant"].astype("category")
    for labels in (
        kind,
        kind.astype("category"),
        kind.astype(object),
        kind.astype("string"),
        pd.Categorical(kind),
        list(kind),
    ):
        labels = pd.Series(labels) if isinstance(labels, pd.Categorical) else labels
        assert torch.equal(scoresde.log_prob(sde.given(y=labels), turned), wanted)
    rows = np.flatnonzero(KIND != "ant")
    assert torch.equal(sde.given(y=some).condition["y"], y[rows])
    assert torch.equal(sde.given(y=pd.Series(y.numpy(), dtype="uint8")).condition["y"].long(), y)
    found = scoresde.evaluate(sde, turned, given={"y": kind}, n=N, samples=0, progress=False)
    assert found.score is not None
    assert found.score.mean == pytest.approx(float(wanted.mean()), abs=2e-5)
    assert torch.equal(
        scoresde.loss(sde, turned, y=kind, generator=generator(1)),
        scoresde.loss(sde, plain, y=y, generator=generator(1)),
    )
    assert torch.allclose(
        scoresde.encode(sde, turned), scoresde.encode(sde, torch.from_numpy(plain))
    )


def test_a_frame_as_a_condition_of_vectors(pd: Any) -> None:
    df = pd.DataFrame({"u": U, "v": V, "dose": DOSE})
    sde = fit(small(1, "resmlp", vector=2), df[["v"]], given={"vector": df[["dose", "u"]]})
    wanted = scoresde.log_prob(
        sde.given(vector=torch.from_numpy(np.stack([DOSE, U], 1)).float()), x_of(V)
    )
    assert torch.equal(
        scoresde.log_prob(sde.given(vector=df[["u", "dose"]].astype("float32")), x_of(V)), wanted
    )
    with pytest.raises(
        ValueError,
        match=r"condition 'vector' have other columns.*1 missing: 'dose'; 1 unknown: 'v'",
    ):
        sde.given(vector=df[["u", "v"]])


def test_a_frame_that_can_not_be_learnt_says_what_to_write(pd: Any) -> None:
    df = pd.DataFrame(
        {
            "u": U,
            "kind": KIND,
            "when": pd.Timestamp(0),
            "group": pd.Categorical(np.arange(N) % 3),
            "v": V,
        }
    )
    with pytest.raises(
        TypeError,
        match=r"columns 'kind', 'when', 'group' .*df.drop\(columns=\['kind', 'when', 'group'\]\)"
        r".*y=df\['kind'\]",
    ):
        fit(small(), df)
    twice = pd.DataFrame(np.zeros((N, 2)), columns=["u", "u"])
    with pytest.raises(ValueError, match="several columns are called 'u'"):
        fit(small(), twice)
    gaps = df[["u", "v"]].astype("Float64")
    gaps.iloc[3, 0] = pd.NA
    with pytest.raises(ValueError, match=r"NaN.*rows: 3"):
        fit(small(), gaps)
    sde = fit(small(classes=3), df[["u", "v"]], given={"y": df["kind"]})
    for bad, said in (
        (pd.Series([1.0, None]), "no value in row 1"),
        (pd.Series(["ant", None]), "no value in row 1"),
        (pd.Series(["ant", pd.NA], dtype="string"), "no value in row 1"),
        (pd.Series([1, pd.NA], dtype="Int64"), "no value in row 1"),
        (df[["kind"]], "not numbers"),
    ):
        with pytest.raises((ValueError, TypeError), match=said):
            sde.given(y=bad)
    with pytest.raises(ValueError, match="1 missing: 'v'"):
        scoresde.log_prob(sde, df[["u"]])
    with pytest.raises(
        TypeError,
        match="is a tensor or array of numbers, got a Series of words; this model knows no words",
    ):
        small(classes=3).given(y=df["kind"])
    with pytest.raises(TypeError, match=r"give samples\.values"):
        scoresde.encode(sde, read_of(df))


def read_of(df: Any) -> Any:
    """Samples with a condition, as a file brings them."""
    return Samples(
        df[["u", "v"]].to_numpy(),
        {"y": Labels(np.zeros(len(df)), ("ant",))},
        {"y": ("ant",)},
        ("u", "v"),
    )


def test_a_category_has_the_order_it_declares(pd: Any) -> None:
    sizes = pd.Categorical(
        ["large", "small"] * (N // 2), categories=["small", "medium", "large"], ordered=True
    )
    sde = fit(small(classes=3), x_of(U, V), given={"y": pd.Series(sizes)})
    assert sde.schema.words == {"y": ("small", "medium", "large")}
    assert sde.given(y="medium").condition["y"].tolist() == [1]


def test_polars_is_matched_likewise() -> None:
    pl = pytest.importorskip("polars")
    df = pl.DataFrame({"u": U, "v": V, "kind": KIND.tolist()})
    sde = fit(small(classes=3), df[["u", "v"]], given={"y": df["kind"]})
    y = torch.from_numpy(np.searchsorted(["ant", "bee", "cow"], KIND))
    wanted = scoresde.log_prob(sde.given(y=y), torch.from_numpy(np.stack([U, V], 1)))
    for labels in (df["kind"], df["kind"].cast(pl.Categorical)):
        assert torch.equal(scoresde.log_prob(sde.given(y=labels), df[["v", "u"]]), wanted)
    with pytest.raises(
        TypeError, match=r"columns 'kind' of this DataFrame are not numbers.*df.drop\(\['kind'\]\)"
    ):
        fit(small(), df)


# ------------------------------------------------------------------ data prepared before fit


@pytest.mark.parametrize("where", ["memory", "folder", "opened", "sliced"])
def test_a_student_knows_the_names_of_its_teacher(where: str, pd: Any, tmp_path: Path) -> None:
    """Pairs hold numbers in the teacher's order: a table in another order is matched, not read by
    position.
    """
    df = pd.DataFrame({"u": U, "v": V})
    torch.manual_seed(0)
    teacher = fit(
        scoresde.build("rectified", "mlp", shape=(2,), width=8, depth=1, classes=3),
        df,
        given={"y": KIND},
    )
    out = None if where in ("memory", "sliced") else tmp_path / "pairs"
    pairs = scoresde.reflow(
        teacher.given(y=KIND), N, steps=2, out=out, progress=False, generator=generator()
    )
    pairs = (
        scoresde.Pairs.open(tmp_path / "pairs")
        if where == "opened"
        else pairs[: N // 2]
        if where == "sliced"
        else pairs
    )
    student = fit(
        scoresde.build("rectified", "mlp", shape=(2,), width=8, depth=1, classes=3), pairs
    )
    assert student.schema == teacher.schema == Schema(("u", "v"), {"y": ("ant", "bee", "cow")})
    told = student.given(y="bee")
    assert torch.equal(scoresde.log_prob(told, df[["v", "u"]]), scoresde.log_prob(told, df))
    other = fit(
        scoresde.build("rectified", "mlp", shape=(2,), width=8, depth=1, classes=3), df[["v", "u"]]
    )
    with pytest.raises(
        ValueError, match="the data have the columns 'u', 'v', and this model has learnt 'v', 'u'"
    ):
        fit(other, pairs)
    assert other.schema.columns == ("v", "u")


def test_pairs_with_names_that_are_none_are_refused(tmp_path: Path) -> None:
    sde = scoresde.build("rectified", "mlp", shape=(2,), width=8, depth=1)
    sde.schema.columns = ("u", "v", "w")  # as a damaged file has them
    with pytest.raises(ValueError, match="schema names 3 columns"):
        scoresde.reflow(sde, 4, steps=1, out=tmp_path / "pairs", progress=False)
    with pytest.raises(scoresde.CheckpointError, match="schema names 3 columns"):
        scoresde.Pairs.open(tmp_path / "pairs")


def test_dequantized_tables_keep_their_names(pd: Any) -> None:
    df = pd.DataFrame({"u": np.arange(N) % 4, "v": np.arange(N) % 3})
    uniform = scoresde.dequantize.Uniform(4)
    sde = fit(small(classes=3), uniform.dataset(df, y=pd.Series(KIND, index=np.arange(N)[::-1])))
    plain = fit(
        small(classes=3),
        uniform.dataset(df.to_numpy(), y=np.searchsorted(["ant", "bee", "cow"], KIND)),
    )
    for name, value in plain.state_dict().items():
        assert torch.equal(sde.state_dict()[name], value), name
    assert sde.schema == Schema(("u", "v"), {"y": ("ant", "bee", "cow")})
    bits = [
        scoresde.bits_per_dim(sde.given(y="cow"), x, uniform, generator=generator()).mean
        for x in (df, df[["v", "u"]])
    ]
    assert bits[0] == bits[1]


@pytest.mark.parametrize("kind", ["pairs", "dicts"])
def test_items_of_a_list_have_words(kind: str) -> None:
    x = x_of(U, V)
    items = [
        (row, {"y": word}) if kind == "pairs" else {"x": row, "y": word}
        for row, word in zip(x, KIND.tolist(), strict=True)
    ]
    sde, same = fit(small(classes=3), items), fit(small(classes=3), x, given={"y": KIND})
    assert all(
        torch.equal(value, sde.state_dict()[name]) for name, value in same.state_dict().items()
    )
    assert sde.schema.words == {"y": ("ant", "bee", "cow")}
    rows: Any = items
    loader: Any = torch.utils.data.DataLoader(rows, batch_size=8)
    with pytest.raises(
        TypeError,
        match=r"'y' has words such as '\w+': a data set numbers them.*given=\{'y': words\}",
    ):
        fit(small(classes=3), loader)
    if kind == "dicts":
        held_out = fit(small(classes=3), items, validation=(x, {"y": KIND}))
        assert held_out.schema.words == sde.schema.words


@pytest.mark.parametrize(
    "words", [["1_1", "1_2"], ["1_000", "12"], ["infinite", "x"], ["٣", "٤"]], ids=str
)
def test_what_python_alone_takes_for_a_number_is_a_word(words: list[str], tmp_path: Path) -> None:
    """`float("1_1")` is 11: clusters of that name were numbers in files, and refused elsewhere."""
    labels = np.array(words)[np.arange(N) % 2]
    (tmp_path / "t.csv").write_text(
        "u,kind\n" + "".join(f"{u},{w}\n" for u, w in zip(U, labels, strict=True)), "utf-8"
    )
    if words[1] == "12":
        with pytest.raises(ValueError, match="numbers and words, such as '12' and '1_000'"):
            read(tmp_path / "t.csv", conditions={"y": "kind"})
        return
    given = read(tmp_path / "t.csv", conditions={"y": "kind"}).given["y"]
    assert isinstance(given, Labels)
    assert [given.words[i] for i in given] == labels.tolist()
    sde = fit(small(1, classes=2), x_of(U), given={"y": labels})
    assert sde.given(y=words[1]).condition["y"].tolist() == [1]


def test_numbers_of_classes_beyond_an_index_are_named(tmp_path: Path) -> None:
    large = str(2**63)
    (tmp_path / "t.csv").write_text(f"u,kind\n1,{large}\n2,3\n")
    with pytest.raises(
        ValueError,
        match=f"'y' has integers of 2\\^63 and more, such as {large}: number the classes",
    ):
        read(tmp_path / "t.csv", conditions={"y": "kind"})
    with pytest.raises(ValueError, match="number the classes from 0"):
        fit(small(1, classes=2), x_of(U[:2]), given={"y": [large, "3"]})
