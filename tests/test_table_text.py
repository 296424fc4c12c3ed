"""Text files of tables: the command reads the rows that the data frame has, word for word."""

from __future__ import annotations

import gzip
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import scoresde
from scoresde.cli.commands import main
from scoresde.data.files.mixed import read_columns, write_columns
from scoresde.model.tables.gaps import partial_rows
from scoresde.model.tables.schema import TableSchema

pd = pytest.importorskip("pandas")

N = 40

WORDS: dict[str, list[Any]] = {
    "leading zeros": ["01234", "1234"],
    "codes": ["01234", "90210"],
    "digits": ["1.50", "1.5", "2"],
    "spaces": [" a", "a", "a "],
    "hash": ["#a", "b", "#"],
    "gaps": ["NA", "US", "None", "nan", "null"],
    "quotes": ['a"b', '"', "a,b", "a;b", "a\tb"],
    "lines": ["a\nb", "a\n#b", "a\n\nb", "a\rb", "a"],
    "booleans as words": ["True", "False"],
    "exponents": ["1e3", "1000", "inf"],
}

pytestmark = pytest.mark.filterwarnings("ignore:.* populations have an effective size")


def rows_of(words: list[Any], name: str = "word") -> Any:
    """N rows: a word, all of them in different shares, and a number that depends on it."""
    rng = np.random.default_rng(0)
    shares = np.arange(1.0, len(words) + 1)
    code = rng.choice(len(words), N, p=shares / shares.sum())
    code[: len(words)] = np.arange(len(words))
    column = np.array(words, object)[code]
    return pd.DataFrame({name: column, "x": np.round(code + rng.normal(0, 0.1, N), 3)})


def saved(frame: Any, folder: Path, **how: Any) -> Any:
    """An untrained model of a frame, which is a Gaussian, in folder/m."""
    table = scoresde.Table(frame, **how)
    torch.manual_seed(0)
    sde = scoresde.build("vp", "mlp", shape=table.shape, classes=table.classes, width=8, depth=1)
    sde.table = table.schema()
    z, _ = table.encode(frame, torch.Generator().manual_seed(0))
    sde.standardize(z)
    scoresde.save(sde, folder / "m")
    return sde


def check_scores(sde: Any, frame: Any, path: Path, folder: Path) -> None:
    """The command's log p of a file is that of the frame."""
    how = ["--tolerance", "1e-2", "--seed", "4"]
    main(["log-prob", str(folder / "m"), str(path), "--out", str(folder / "p.npy"), *how])
    want = scoresde.log_prob(sde, frame, seed=4, rtol=1e-2, atol=1e-2)
    assert np.array_equal(np.load(folder / "p.npy"), want.numpy())


@pytest.mark.parametrize("words", WORDS.values(), ids=WORDS)
def test_words_of_a_known_table_are_read_as_written(words: list[Any], tmp_path: Path) -> None:
    """From files of pandas and from ours, compressed or not."""
    frame = rows_of(words)
    table = scoresde.Table(frame).schema()
    frame.to_csv(tmp_path / "a.csv", index=False, quoting=int("a\rb" in words))
    frame.to_csv(tmp_path / "b.csv", index=False, quoting=int("a\rb" in words), sep=";")
    for name in ("c.csv", "d.csv.gz", "e.tsv", "f.tsv.gz"):
        write_columns(tmp_path / name, frame)
    for path in sorted(tmp_path.iterdir()):
        found = read_columns(path, table=table)
        assert list(found) == ["word", "x"], path
        assert found["word"].tolist() == frame["word"].tolist(), path
        assert np.array_equal(found["x"], frame["x"]), path


@pytest.mark.parametrize("kind", ["leading zeros", "spaces", "hash", "gaps"])
def test_the_command_scores_and_fills_as_python_does(kind: str, tmp_path: Path) -> None:
    """log p, samples and filled rows are those of the frame, and known cells stay."""
    frame = rows_of(WORDS[kind])
    sde = saved(frame, tmp_path)
    new = tmp_path / "new.csv"
    main(["sample", str(tmp_path / "m"), "-n", "30", "--out", str(new)])
    check_scores(sde, scoresde.sample(sde, 30, seed=0), new, tmp_path)
    frame.loc[3, "word"] = ""
    write_columns(tmp_path / "gaps.csv", frame)
    out = tmp_path / "whole.csv"
    how = ["--steps", "2", "--particles", "2", "--seed", "5"]
    main(["impute", str(tmp_path / "m"), str(tmp_path / "gaps.csv"), "--out", str(out), *how])
    filled = read_columns(out, table=sde.table)
    chance = torch.Generator().manual_seed(5)
    api = scoresde.impute(sde, frame, steps=2, particles=2, generator=chance)
    assert filled["word"].tolist() == api["word"].tolist()
    known = np.arange(N) != 3
    assert (filled["word"][known] == frame["word"][known]).all()
    assert filled["word"][3] in WORDS[kind]
    assert np.array_equal(filled["x"], frame["x"])


def test_evaluate_reads_words_as_written(tmp_path: Path, capsys: Any) -> None:
    frame = rows_of(["#a", "NA", "01"])
    sde = saved(frame, tmp_path)
    frame.to_csv(tmp_path / "a.csv", index=False)
    how = ["--samples", "0", "--tolerance", "1e-2"]
    main(["evaluate", str(tmp_path / "m"), str(tmp_path / "a.csv"), "-n", "20", *how])
    tolerances = {"rtol": 1e-2, "atol": 1e-2}
    want = scoresde.evaluate(sde, frame, n=20, samples=0, progress=False, **tolerances)
    told = capsys.readouterr().out
    assert f"mean log p(x)            {want.score.mean:.3g}" in told.replace("  ±", " ±"), told


NAMES = ["# rooms", "#", " a", "1", "a,b", 'a"b', "a\nb", "é"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("numeric", [True, False], ids=["number", "word"])
def test_columns_of_any_name_are_found(name: str, numeric: bool, tmp_path: Path) -> None:
    frame = rows_of(["#a", "b"], "k").rename(columns={"x": name} if numeric else {"k": name})
    sde = saved(frame, tmp_path)
    main(["sample", str(tmp_path / "m"), "-n", "9", "--out", str(tmp_path / "new.csv")])
    check_scores(sde, scoresde.sample(sde, 9, seed=0), tmp_path / "new.csv", tmp_path)
    for names in (frame.columns, frame.columns[::-1]):
        frame[names].to_csv(tmp_path / "pandas.csv", index=False)
        found = read_columns(tmp_path / "pandas.csv", table=sde.table)
        assert {key: column.tolist() for key, column in found.items()} == frame.to_dict("list")


def text_of(text: str, folder: Path, sde: Any) -> dict[str, list[Any]]:
    """The columns of a text, read by a model's table."""
    (folder / "a.csv").write_text(text, newline="")
    found = read_columns(folder / "a.csv", table=sde)
    return {name: column.tolist() for name, column in found.items()}


def table_of(**columns: Any) -> TableSchema:
    """The schema of columns."""
    return scoresde.Table(columns).schema()


def test_comments_of_a_known_table(tmp_path: Path) -> None:
    """Remarks go, rows stay, and what may be either is told."""
    table = table_of(k=["#a", "b", "b"], x=[1.5, 2.5, 0.5])
    text = '# by "us, "2026\nk,x\r\n#a,1\r\n# a remark, and, "more\n\nb,2\n"#a",3\n#a'
    assert text_of(text, tmp_path, table) == {"k": ["#a", "b", "#a"], "x": [1, 2, 3]}
    with pytest.warns(
        UserWarning, match="^2 lines with as many cells as a row, which begin with #"
    ):
        found = text_of("k,x\n#b,1\n#c,5\nb,2\n", tmp_path, table)
    assert found == {"k": ["b"], "x": [2]}
    # Numbers do not begin with #, and cells of columns that the table lacks may.
    assert text_of("x,k\n#1,b\n2,#a\n", tmp_path, table) == {"x": [2], "k": ["#a"]}
    found = text_of("id,k,x\n#1,b,007\n# c\n02,#a,1\n", tmp_path, table)
    assert found == {"id": ["#1", "02"], "k": ["b", "#a"], "x": [7, 1]}
    # A comment may be the header, unless another line is.
    for text in ("# k; x\n#a;1\nb;2", "# k ;x\n#a;1\nb;2\n"):
        assert text_of(text, tmp_path, table) == {"k": ["#a", "b"], "x": [1, 2]}
    assert text_of("# k,x\nk,x\n#a,1", tmp_path, table) == {"k": ["#a"], "x": [1]}
    assert text_of("# id,k,x\n5,b,1\n", tmp_path, table)["# id"] == ["5"]


def test_gaps_of_a_known_table(tmp_path: Path) -> None:
    """Empty cells, and NA and the like if the table does not have them."""
    table = table_of(k=["NA", "b", "b"], x=[1.5, 2.5, 0.5])
    found = text_of("k,x\nNA,NA\nnull,\n ,1\nb,nan\n", tmp_path, table)
    assert found["k"] == ["NA", "", "", "b"]
    assert np.isnan(found["x"]).tolist() == [True, True, False, True]
    (tmp_path / "a.tsv").write_text("k\tx\n\t\nb\t1\n")  # a row of gaps is no blank line
    assert read_columns(tmp_path / "a.tsv", table=table)["k"].tolist() == ["", "b"]
    found = text_of("k,x\nb,\nNA,\n", tmp_path, table)  # numbers, although there is none
    assert np.isnan(found["x"]).all()


def test_categories_that_are_no_words(tmp_path: Path) -> None:
    """Integers, booleans and float32 are found by their value, as they are written."""
    large = 2**60
    table = scoresde.Table(
        {
            "i": [large, large + 1, 3],
            "b": [True, False, True],
            "f": np.array([0.1, 2, 0.1], np.float32),
            "x": [1.5, 2.5, 0.25],
        },
        categories=["i", "f"],
    ).schema()
    text = f"i,b,f,x\n{large},True,0.1,1\n{large + 1}, False,2.00,2\n,,,3\n03,1,2,4\n"
    (tmp_path / "a.csv").write_text(text)
    codes = partial_rows(table, read_columns(tmp_path / "a.csv", table=table))[1]
    assert codes is not None
    assert codes[[0, 1, 3]].tolist() == [[1, 1, 0], [2, 0, 1], [0, 1, 1]]
    assert codes[2].tolist() == [-1, -1, -1]


def test_a_file_with_loose_spaces_is_read_as_in_training(tmp_path: Path) -> None:
    """Spaces after commas go where the table's words have none at their ends."""
    text = "k, n, x\nred , 1, 1.5\n blue, 02, 2.25\nred, 02, 3.5\n"
    (tmp_path / "a.csv").write_text(text)
    how = ["--table", "--steps", "2", "--categories", "n", "--option", "width=8"]
    main(["fit", str(tmp_path / "a.csv"), "--out", str(tmp_path / "m"), *how])
    sde = scoresde.load(tmp_path / "m")
    frame = pd.DataFrame({"k": ["red", "blue", "red"], "n": [1, 2, 2], "x": [1.5, 2.25, 3.5]})
    check_scores(sde, frame, tmp_path / "a.csv", tmp_path)


@pytest.mark.parametrize(
    ("suffix", "delimiter"), [("csv", ";"), ("csv.gz", ","), ("tsv.gz", "\t")], ids=str
)
def test_training_and_scoring_of_one_file(suffix: str, delimiter: str, tmp_path: Path) -> None:
    """A first column of words with comments between: what training leaves out, scoring does."""
    frame = rows_of(["b", "c"])
    buffer = io.StringIO()
    frame.to_csv(buffer, index=False, sep=delimiter)
    lines = buffer.getvalue().splitlines()
    lines.insert(5, "#" + lines[5])
    text = "\n".join(["# made today", *lines]).encode("utf-8-sig")
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(gzip.compress(text) if suffix.endswith("gz") else text)
    how = ["--table", "--steps", "2", "--option", "width=8"]
    with pytest.warns(UserWarning, match="^1 line"):
        main(["fit", str(path), "--out", str(tmp_path / "m"), *how])
    with pytest.warns(UserWarning, match="^1 line"):
        check_scores(scoresde.load(tmp_path / "m"), frame, path, tmp_path)


def test_rows_do_not_vanish_without_a_word(tmp_path: Path) -> None:
    """Of a file whose table is not known, lines that may be rows are counted."""
    (tmp_path / "a.csv").write_text("k,x\n#a,1\nb,2\n# one,two\n# remark\nb,4\n")
    with pytest.warns(UserWarning, match="2 lines with as many cells as a row, .* in quotes"):
        table = scoresde.Table.read(tmp_path / "a.csv")
    assert len(table) == 2
    with pytest.warns(UserWarning, match="2 lines with as many"):
        samples = scoresde.files.read(tmp_path / "a.csv", conditions={"y": "k"})
    assert len(samples) == 2
    lines = 'k,x\nb,2\n"a\n#c\n\nd",1\n"a\n#c",3\n'  # lines of a cell are no comments
    words = ["b", "a\n#c\n\nd", "a\n#c"]
    assert text_of(lines, tmp_path, None) == {"k": words, "x": [2, 1, 3]}
    (tmp_path / "b.csv").write_text('k,x\n"#a",1\nb,2\nb,4\n')
    assert len(scoresde.Table.read(tmp_path / "b.csv")) == 3
    assert len(scoresde.files.read(tmp_path / "b.csv", conditions={"y": "k"})) == 3


def test_columns_that_a_model_lacks_stay_as_written(tmp_path: Path) -> None:
    """Of a model with a table, and of one without."""
    rows = "id,x,k\n007,1.5,b\n#8,2.5,\n NA,,b\n"
    (tmp_path / "a.csv").write_text(rows)
    saved(rows_of(["b", "c"], "k"), tmp_path)
    how = ["--steps", "2", "--particles", "2", "--out", str(tmp_path / "whole.csv")]
    main(["impute", str(tmp_path / "m"), str(tmp_path / "a.csv"), *how])
    found = pd.read_csv(tmp_path / "whole.csv", dtype=str, keep_default_na=False)
    assert found["id"].tolist() == ["007", "#8", " NA"]
    plain = scoresde.build("vp", "mlp", shape=(1,), width=8).standardize(torch.randn(50, 1))
    plain.schema.columns = ("x",)
    scoresde.save(plain, tmp_path / "plain")
    (tmp_path / "a.csv").write_text(rows.replace("#8", "8.0"))
    main(["impute", str(tmp_path / "plain"), str(tmp_path / "a.csv"), *how])
    found = pd.read_csv(tmp_path / "whole.csv", dtype=str, keep_default_na=False)
    assert found["id"].tolist() == ["007", "8.0", " NA"]
    assert found["k"].tolist() == ["b", "", "b"]


def test_gaps_of_a_parquet_file_are_counted(tmp_path: Path, capsys: Any) -> None:
    """A word that a parquet file lacks is None."""
    pytest.importorskip("pyarrow")
    frame = rows_of(["b", "c"])
    saved(frame, tmp_path)
    frame.loc[3, "word"] = None
    frame.to_parquet(tmp_path / "a.parquet", index=False)
    how = ["--steps", "2", "--particles", "2", "--out", str(tmp_path / "whole.csv")]
    main(["impute", str(tmp_path / "m"), str(tmp_path / "a.parquet"), *how])
    assert f"1 gap filled in {N} rows" in capsys.readouterr().out


def test_held_out_rows_are_read_by_the_table_of_the_training_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Codes are words in the training file, and look like numbers in the other."""
    seen: dict[str, Any] = {}
    monkeypatch.setattr("scoresde.cli.tables.fit", lambda sde, table, **how: seen.update(how))
    (tmp_path / "a.csv").write_text("k,x\n01,1\nb,2\nb,4\n")
    (tmp_path / "b.csv").write_text("k,x\n01,1\n01,2\n")
    how = ["--table", "--out", str(tmp_path / "m"), "--validation", str(tmp_path / "b.csv")]
    main(["fit", str(tmp_path / "a.csv"), *how])
    assert seen["validation"].x["k"].tolist() == ["01", "01"]


def test_codes_of_stated_categories_are_words(tmp_path: Path) -> None:
    """01234 is not 1234 where a column has both; other categories are numbers."""
    text = "zip,n,x\n01234,01,1.5\n1234,02,2.5\n,01,0.25\n01234,03,0.5\n"
    (tmp_path / "a.csv").write_text(text)
    stated = ["zip", "n"]
    table = scoresde.Table.read(tmp_path / "a.csv", categories=stated, missing="drop")
    assert [each.categories for each in table.categorical] == [("01234", "1234"), (1, 2, 3)]
    with pytest.raises(TypeError, match="categories is a list of names"):
        scoresde.Table.read(tmp_path / "a.csv", categories=5)  # type: ignore[arg-type]


MISTAKES = {
    "k,x\na,1\nb,2,3\n": "line 3 has 3 columns, wanted 2",
    'k,x\na,1\n"b,2\n': "a quote that line 3 opens is not closed",
    'x,k\n1,"a\n2,b\n': "a quote that line 2 opens is not closed",
    "k,x\n": "no rows",
    "k,x,k\na,1,a\n": "several columns 'k'",
    "k,x,\na,1,5\n": "a column has no name",
}


@pytest.mark.parametrize("text", MISTAKES)
def test_mistakes_in_files_of_tables(text: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"a.csv can't be read: .*{MISTAKES[text]}"):
        text_of(text, tmp_path, None)
    with pytest.raises(ValueError, match=f"a.csv can't be read: .*{MISTAKES[text]}"):
        text_of(text, tmp_path, table_of(k=["a", "b", "b"], x=[1.5, 2.5, 0.5]))


def test_categories_that_text_cannot_tell_apart(tmp_path: Path) -> None:
    rows = {"k": pd.Categorical([1, "1", "", 1]), "x": [1.5, 2.5, 0.5, 1.0]}
    table = scoresde.Table(pd.DataFrame(rows)).schema()
    with pytest.raises(ValueError, match="two categories that text writes as '1'"):
        text_of("k,x\n1,2\n", tmp_path, table)
    with pytest.raises(ValueError, match="may be a gap or its category ''"):
        text_of("k,x\n,2\n", tmp_path, table)
