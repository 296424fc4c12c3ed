"""p(y | x) with intervals, on scikit-learn's diabetes: the progress of a disease a year later, from
ten measurements.

    python examples/regression_intervals.py

Needs scikit-learn and matplotlib: pip install 'scoresde[sklearn,plot]'.
"""

from __future__ import annotations

import numpy as np
from sklearn.datasets import load_diabetes
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import train_test_split

from scoresde.estimators import ConditionalScoreDensity

BLUE = "#1f5f8b"
ORANGE = "#d1662a"
BMI = 2  # the column of the body mass index


def draw(bmi: np.ndarray, y: np.ndarray, bands: dict, held_out: dict, out: str) -> None:
    """Draw p(y | body mass index) over the data, and intervals of the patients held out."""
    import matplotlib

    matplotlib.use("Agg", force=False)
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.5), constrained_layout=True)
    left.scatter(bmi, y, s=9, c=ORANGE, linewidths=0, alpha=0.8, label="patients")
    left.fill_between(bands["x"], *bands["90%"].T, color=BLUE, alpha=0.15, lw=0, label="90%")
    left.fill_between(bands["x"], *bands["50%"].T, color=BLUE, alpha=0.3, lw=0, label="50%")
    left.plot(bands["x"], bands["median"], color=BLUE, label="median")
    left.set(xlabel="body mass index, kg/m²", ylabel="progress after one year")
    left.set_title("p(y | body mass index)")
    left.legend(frameon=False, loc="upper left")

    order = held_out["median"].argsort()
    rank = np.arange(len(order))
    right.vlines(rank, *held_out["90%"][order].T, color=BLUE, alpha=0.3, lw=2, label="90%")
    right.scatter(rank, held_out["median"][order], s=6, c=BLUE, label="median", zorder=2)
    inside = held_out["inside"][order]
    truth = held_out["y"][order]
    right.scatter(rank[inside], truth[inside], s=12, c=ORANGE, label="truth", zorder=3)
    right.scatter(rank[~inside], truth[~inside], s=24, c=ORANGE, marker="x", zorder=3)
    right.set(xlabel="patients held out, by predicted median", ylabel="progress after one year")
    right.set_title(f"all ten measurements: {inside.mean():.0%} inside their 90% intervals")
    right.legend(frameon=False, loc="upper left")
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(out, dpi=130)
    plt.close(figure)


def main(
    steps: int = 200, width: int = 32, out: str = "regression_intervals.png"
) -> tuple[float, float, float]:
    """Fit, compare with linear regression, draw; return log p, that of the latter, and coverage."""
    X, y = load_diabetes(return_X_y=True, scaled=False)
    X, X_test, y, y_test = train_test_split(X, y, test_size=0.3, random_state=0)
    options = {
        "steps": steps,  # few, as 309 patients are soon learnt by heart
        "lr": 1e-3,
        "net_options": {"width": width, "fourier": 0, "depth": 1},
        "fit_options": {"ema": 30},
        "solve_options": {"rtol": 3e-4, "atol": 3e-4},
        "random_state": 0,
    }

    model = ConditionalScoreDensity(**options).fit(X, y)
    log_p = model.score_samples(X_test, y_test).mean()
    interval = model.predict_interval(X_test, coverage=0.9)
    inside = (interval[:, 0] < y_test) & (y_test < interval[:, 1])
    print(f"R² {model.score(X_test, y_test):.3f}, log p(y | x) {log_p:.3f} nats per patient")
    print(f"{inside.mean():.1%} of the patients held out are inside their 90% intervals")

    line = LinearRegression().fit(X, y)
    variance = np.mean((y - line.predict(X)) ** 2)
    error = (y_test - line.predict(X_test)) ** 2
    gaussian = float(np.mean(-0.5 * error / variance - 0.5 * np.log(2 * np.pi * variance)))
    print(f"linear regression: R² {line.score(X_test, y_test):.3f}, log p(y | x) {gaussian:.3f}")

    one = ConditionalScoreDensity(**options).fit(X[:, [BMI]], y)
    grid = np.linspace(*np.quantile(X[:, BMI], [0.005, 0.995]), 100)
    q05, q25, q50, q75, q95 = one.predict_quantiles(grid[:, None], (0.05, 0.25, 0.5, 0.75, 0.95)).T
    bands = {"x": grid, "90%": np.c_[q05, q95], "50%": np.c_[q25, q75], "median": q50}
    median = model.predict_quantiles(X_test, 0.5)[:, 0]
    held_out = {"y": y_test, "90%": interval, "median": median, "inside": inside}
    draw(X[:, BMI], y, bands, held_out, out)
    return float(log_p), gaussian, float(inside.mean())


if __name__ == "__main__":
    main()
