"""The tables of docs/solvers.md that need no peers, on the standardized problems: `python
benchmarks/solvers.py page`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from problems import problems
from race import Race, head

import scoresde

NARROW = "narrow, 64-D"
TWO, MANY = "P1 8 Gaussians, 2-D", "P2 10 Gaussians, 64-D"
ADAPTIVE = ("adams", "rk45", "tsit5", "dop853", "dpm_adaptive", "bosh3")
TINY = ("adams", "euler", "midpoint", "unipc", "dpmpp_2m", "ddim")
FIXED = ("adams", "dpmpp_2m", "dpmpp_3m", "deis", "unipc", "ddim", "euler", "dpmpp_2s", "dpm_3")
FIXED += ("midpoint", "heun", "edm", "rk4", "rk45", "tsit5", "dop853")


def nats(solver: str, tolerance: float) -> str:
    """Evaluations of log p, mean and worst error, of 512 points of P1 with the true law of x_1 for
    prior.
    """
    mixture = problems()[TWO]
    sde = scoresde.oracle(mixture, scoresde.VPSDE()).double()
    x = mixture.sample(512, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    one = torch.ones((), dtype=torch.float64)
    prior = mixture.perturb(float(sde.process.alpha(one)), float(sde.process.sigma(one)))
    found = scoresde.likelihood(sde, x, solver=solver, rtol=tolerance, atol=tolerance, prior=prior)
    error = (found.log_prob - mixture.log_prob(x)).abs()
    nfe = float(found.nfe.double().mean())
    return f"{nfe:.0f} | {float(error.mean()):.1e} | {float(error.max()):.1e}"


def likelihoods() -> None:
    """Print errors of log p by tolerance."""
    print("### Likelihood by tolerance\n")
    head(
        "tolerance",
        (
            f"`{name}`: {what}"
            for name in ("adams", "rk45")
            for what in ("evaluations", "mean", "worst")
        ),
    )
    for k in (3, 5, 7, 9):
        print(f"| 1e-{k} | {nats('adams', 10.0**-k)} | {nats('rk45', 10.0**-k)} |", flush=True)
    print()


def tolerances(race: Race) -> None:
    """Print evaluations and error by tolerance."""
    print("### Evaluations : error by tolerance\n")
    head("evaluations : error", (f"1e-{k}" for k in range(2, 9)))
    for name in ADAPTIVE:
        points = [
            race.ours(name, 10.0**-k, True) for k in range(2, 9 if name != "dpm_adaptive" else 7)
        ]
        print(
            f"| `{name}` | " + " | ".join(f"{p.nfe:.0f} : {p.error:.1e}" for p in points) + " |",
            flush=True,
        )
    print()


def errors(race: Race, names: Sequence[str], budgets: Sequence[int]) -> None:
    """Print errors on fixed grids, with the width of modes."""
    print(f"### {race.name}: error (width of modes)\n")
    head("evaluations", budgets)
    for name in names:
        points = [race.ours(name, budget, False) for budget in budgets]
        cells = [
            f"{p.error:.1e}" + f" ({p.width:.3g})" * ("narrow" in race.name or "thin" in race.name)
            for p in points
        ]
        print(f"| `{name}` | " + " | ".join(cells) + " |", flush=True)
    print()


def tables() -> None:
    """Print all of them."""
    likelihoods()
    races = {
        name: Race(name, problems()[name], 500) for name in (TWO, MANY, NARROW, "thin alone, 2-D")
    }
    tolerances(races[TWO])
    for name in (TWO, MANY):
        errors(races[name], TINY, (3, 4, 5, 6, 8, 12, 16))
    for name in (TWO, NARROW):
        errors(races[name], FIXED, (12, 24, 36, 48, 96, 192))
    errors(
        races["thin alone, 2-D"],
        ("adams", "dpmpp_2m", "midpoint", "heun", "rk4", "rk45", "tsit5"),
        (10, 20, 50, 100, 200),
    )
    errors(races[TWO], ("adams",), (10, 20, 36, 50, 60, 100, 150, 200))
