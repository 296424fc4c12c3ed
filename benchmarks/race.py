"""One problem with its exact solution, on which solvers run; and the tables of our own
deterministic ones.

    python benchmarks/solvers.py ours "adams" "adams max_order=4 spacing=arc" "unipc order=4"
    --only narrow,thin python benchmarks/solvers.py ours --load mine.py mysolver     # mine.py
    registers it

Three tables a run: RMS error in units of the data; the width of modes over that of the exact
solution (1 is right); and over all problems each solver's error over that of the best solver of
the run at the same number of evaluations, worst and mean.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import io
import math
import runpy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import peers
import torch
from problems import chosen, modes
from torch import Tensor

import scoresde
from scoresde.toy import GaussianMixture

OURS = "scoresde"
LIMIT = 230  # calls after which a run is given up
GRID = (5, 7, 10, 15, 20, 30, 36, 50, 75, 100, 150, 200)


@dataclass(frozen=True)
class Point:
    """One run: what it cost, how far it ended from the truth, and the width of modes over that of
    the truth.
    """

    problem: str
    peer: str
    setting: str
    adaptive: bool
    budget: float
    nfe: float
    error: float
    width: float = math.nan


def parsed(label: str) -> tuple[str, dict[str, Any]]:
    """Read "name option=value … spacing=value": the name, and the options."""
    name, *rest = label.split()
    options: dict[str, Any] = {}
    for word in rest:
        key, _, value = word.partition("=")
        try:
            options[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            options[key] = value
    return name, options


def steps_within(solver: scoresde.Solver, budget: int) -> int:
    """The most steps of our solver that cost no more than the budget; 0 if one is too many."""
    nfe = getattr(solver, "nfe", lambda steps: steps)
    return max((steps for steps in range(1, budget + 1) if nfe(steps) <= budget), default=0)


@dataclass
class Race:
    """A problem with its exact solution, on which everyone runs."""

    name: str
    mixture: GaussianMixture
    n: int
    process: scoresde.Process | None = None

    def __post_init__(self) -> None:
        self.sde = scoresde.oracle(self.mixture, self.process or scoresde.VPSDE()).double()
        self.rows = 0
        self.sde.net.register_forward_hook(self._count)
        truth = scoresde.solve(
            self.sde, self.n, solver="dop853", rtol=1e-12, atol=1e-12, generator=self._generator()
        )
        self.z, self.x = truth.x[0] / float(self.sde.process.radius(1.0)), truth.x[-1]
        self.width = self._width(self.x)

    def _count(self, net: object, inputs: tuple[Tensor, ...], out: Tensor) -> None:
        self.rows += len(out)

    def _width(self, x: Tensor) -> float:
        return float(modes(self.mixture, x)[1].square().mean().sqrt())

    @staticmethod
    def _generator() -> torch.Generator:
        return torch.Generator().manual_seed(0)

    def measured(self, x: Tensor) -> tuple[float, float]:
        """RMS over samples and dimensions, infinite if there is none; and the width of modes over
        that of the truth.
        """
        rms = float((x - self.x).square().mean().sqrt())
        return (rms, self._width(x) / self.width) if math.isfinite(rms) else (math.inf, math.nan)

    def peer(self, setting: peers.Setting, budget: float) -> Point:
        """Run a setting of a peer."""
        field = peers.Field(self.mixture, LIMIT)
        try:
            with contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
                found = self.measured(setting.run(field, self.z, budget))
        except Exception:  # a peer's failure, of whatever kind, is no answer
            found = math.inf, math.nan
        return Point(
            self.name, setting.peer, setting.name, setting.adaptive, budget, field.calls, *found
        )

    def ours(self, label: str, budget: float, adaptive: bool) -> Point:
        """Run one of ours: by name at its default setting but the budget, or the tolerance; or
        with options of its own.
        """
        name, options = parsed(label)
        spacing = options.pop("spacing", None)
        solver = scoresde.SOLVERS.build(name, **options)
        steps = 1 if adaptive else steps_within(solver, int(budget))
        rule: dict[str, Any] = {"rtol": budget, "atol": budget} if adaptive else {"steps": steps}
        shown = f"{label}, adaptive" if adaptive else label
        if not steps:
            return Point(self.name, OURS, shown, adaptive, budget, LIMIT, math.inf)
        self.rows = 0
        try:
            solution = scoresde.solve(
                self.sde,
                self.n,
                solver=name,
                spacing=spacing,
                generator=self._generator(),
                **rule,
                **options,
            )
        except (scoresde.SolverError, ValueError):
            return Point(self.name, OURS, shown, adaptive, budget, LIMIT, math.inf)
        if self.rows != int(solution.nfe.sum()):
            raise AssertionError(
                f"{label} reports {int(solution.nfe.sum())} evaluations and made {self.rows}"
            )
        return Point(
            self.name,
            OURS,
            shown,
            adaptive,
            budget,
            self.rows / self.n,
            *self.measured(solution.x[-1]),
        )


def deterministic() -> list[tuple[str, bool]]:
    """Our own deterministic solvers by name, on fixed grids and, where they can, adaptive."""
    found = {name: scoresde.SOLVERS.build(name) for name in scoresde.SOLVERS if ":" not in name}
    kept = {
        name: solver
        for name, solver in found.items()
        if not solver.stochastic and solver.all_needs <= {"velocity"} and SAME.get(name) is None
    }
    return [(name, False) for name in kept if name != "dpm_adaptive"] + [
        (name, True) for name, s in kept.items() if s.steps is None
    ]


SAME = {"dopri5": "rk45", "rk23": "bosh3"}
"""Second names of the same method."""


def cell(number: float) -> str:
    return "–" if not math.isfinite(number) else f"{number:.1e}"


def head(name: str, cells: Iterable[object]) -> None:
    cells = list(cells)
    print(f"| {name} | " + " | ".join(map(str, cells)) + " |")
    print("| --- |" + " --- |" * len(cells))


def ours(args: argparse.Namespace) -> list[Point]:
    """Run our solvers on all problems at all budgets, and print the tables."""
    if args.load:
        runpy.run_path(args.load)
    labels = args.solvers or [name for name, adaptive in deterministic() if not adaptive]
    budgets: Sequence[int] = args.budgets or GRID
    process = scoresde.PROCESSES.build(args.process) if args.process != "vp" else None
    points: list[Point] = []
    for name, mixture in chosen(args.only):
        race = Race(name, mixture, 64 if args.quick else 256, process)
        here = [race.ours(label, budget, False) for label in labels for budget in budgets]
        points += here
        for title, value in (("RMS error", "error"), ("width of modes, 1 is right", "width")):
            if value == "width" and "moons" in name:
                continue
            print(f"### {name}: {title}\n")
            head("evaluations", budgets)
            for label in labels:
                row = [p for p in here if p.setting == label]
                shown = [cell(p.error) if value == "error" else f"{p.width:.4f}" for p in row]
                print(f"| {label} | " + " | ".join(shown) + " |", flush=True)
            print()
    for title, over in (("worst", max), ("geometric mean", mean)):
        print(
            f"### Error over the best of these solvers' at the same evaluations, {title} over "
            "problems\n"
        )
        head("evaluations", budgets)
        for label in labels:
            cells = []
            for budget in budgets:
                ratios = []
                for name in dict.fromkeys(p.problem for p in points):
                    same = {
                        p.setting: p.error
                        for p in points
                        if p.problem == name and p.budget == budget
                    }
                    ratios.append(same[label] / max(min(same.values()), 1e-13))
                    if not math.isfinite(ratios[-1]):
                        ratios = [math.inf]
                        break
                cells.append(f"{over(ratios):.3g}")
            print(f"| {label} | " + " | ".join(cells) + " |")
        print()
    return points


def mean(ratios: Sequence[float]) -> float:
    return math.exp(sum(math.log(max(r, 1e-300)) for r in ratios) / len(ratios))
