"""One adapter per peer: its solvers with their settings, each from the same arc state to the data,
counting true calls.

A `Setting` runs one peer's solver with `run(field, z, budget)`: z is the state on the unit arc at
the noise end of VP(0.1, 20), the budget a number of network calls (or a tolerance, if adaptive).
`field(x, α, σ) -> (x̂0, ε̂)` counts. With ρ = σ/α, every path is a scaling of the same one, so a
peer gets x = z·√(α² + σ²) in its own parametrization. Peers that can't reach σ = 0 stop at a small
ρ and end with x̂0 there, one call, as their authors do.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import scoresde

BETA0, BETA1 = 0.1, 20.0


def clock(ratio: Tensor) -> Tensor:
    """t of ρ = σ/α on VP(0.1, 20), where ρ² = exp(β0·t + ½(β1 − β0)·t²) − 1."""
    slope = BETA1 - BETA0
    return ((BETA0**2 + 2 * slope * torch.log1p(ratio**2)).sqrt() - BETA0) / slope


def ratio_of(t: Tensor) -> Tensor:
    return torch.expm1(BETA0 * t + 0.5 * (BETA1 - BETA0) * t**2).sqrt()


TOP = float(ratio_of(torch.tensor(1.0, dtype=torch.float64)))


def _between(
    warp: Callable[[Tensor], Tensor], unwarp: Callable[[Tensor], Tensor]
) -> Callable[[Tensor, float], Tensor]:
    def grid(w: Tensor, low: float) -> Tensor:
        ends = warp(torch.tensor([low, TOP], dtype=torch.float64))
        return unwarp(ends[0] + w * (ends[1] - ends[0]))

    return grid


GRIDS: dict[
    str, Callable[[Tensor, float], Tensor]
] = {  # (w from 0 data to 1 noise, lowest ρ) -> ρ
    "time": _between(clock, ratio_of),
    "rectified": _between(lambda r: r / (1 + r), lambda u: u / (1 - u)),
    "arc": _between(torch.atan, torch.tan),
    "log": _between(torch.log, torch.exp),
    "karras7": _between(lambda r: r ** (1 / 7), lambda q: q**7),
    "karras3": _between(lambda r: r ** (1 / 3), lambda q: q**3),
}
ENDS = [
    ("time", 1e-3),
    ("rectified", 1e-2),
    ("rectified", 1e-3),
    ("karras7", 1e-2),
    ("karras7", 1e-3),
]
ENDS += [("karras3", 1e-3), ("log", 1e-2), ("log", 1e-3)]
"""Grid and lowest ρ, for solvers that can't take a step from or to σ = 0 but Euler's."""


def ratios(n: int, grid: str, low: float) -> Tensor:
    return GRIDS[grid](torch.linspace(1, 0, n, dtype=torch.float64), low)


def unit(ratio: Tensor | float) -> tuple[Tensor, Tensor]:
    """cos φ and sin φ of ρ = tan φ."""
    cos = (1 + torch.as_tensor(ratio, dtype=torch.float64) ** 2) ** -0.5
    return cos, ratio * cos


class Field:
    """The exact denoiser of a mixture, which counts how often it is called, and stops a run that
    calls too often.
    """

    def __init__(self, mixture: scoresde.toy.GaussianMixture, limit: int = 10**9) -> None:
        self.mixture, self.calls, self.limit = mixture, 0, limit

    def __call__(
        self, x: Tensor, alpha: float | Tensor, sigma: float | Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return x̂0 and ε̂, and count the call."""
        self.calls += 1
        if self.calls > self.limit:
            raise RuntimeError(f"more than {self.limit} calls")
        return self.mixture.denoise(x, alpha, sigma)

    def finish(self, x: Tensor, ratio: float) -> Tensor:
        """x̂0 from x = x0 + ρ·ε."""
        return self(x, 1.0, ratio)[0] if ratio > 0 else x


Run = Callable[[Field, Tensor, float], Tensor]


@dataclass(frozen=True)
class Setting:
    """One solver of one peer with one choice of its options."""

    peer: str
    name: str
    run: Run
    adaptive: bool = False


# --- k-diffusion ---


def k_sampling() -> Any:
    """k-diffusion's sampling.py alone: its package imports CLIP."""
    if "k_diffusion.sampling" in sys.modules:
        return sys.modules["k_diffusion.sampling"]
    spec = importlib.util.find_spec("k_diffusion")
    if spec is None or spec.origin is None:
        raise ImportError("k-diffusion is not installed")
    package, utils = types.ModuleType("k_diffusion"), types.ModuleType("k_diffusion.utils")
    utils.append_dims = lambda x, n: x[(...,) + (None,) * (n - x.ndim)]  # type: ignore[attr-defined]
    package.utils = utils  # type: ignore[attr-defined]
    sys.modules.update({"k_diffusion": package, "k_diffusion.utils": utils})
    spec = importlib.util.spec_from_file_location(
        "k_diffusion.sampling", Path(spec.origin).parent / "sampling.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules["k_diffusion.sampling"] = module
    return module


def k_run(
    sampler: Any,
    grid: str,
    low: float,
    cost: int,
    options: dict[str, Any],
    field: Field,
    z: Tensor,
    budget: float,
) -> Tensor:
    n = (int(budget) + cost - 1) // cost  # the last step, to σ = 0, is Euler's and costs 1
    if n < 2:
        raise ValueError("too few")
    sigmas = torch.cat([ratios(n, grid, low), torch.zeros(1, dtype=torch.float64)])
    return sampler(
        lambda x, sigma: field(x, 1.0, sigma)[0], z / unit(TOP)[0], sigmas, disable=True, **options
    )


def k_diffusion() -> Iterator[Setting]:
    k = k_sampling()
    quiet = {"eta": 0.0, "noise_sampler": lambda a, b: 0.0}
    table = [
        ("Euler", k.sample_euler, 1, {}),
        ("Heun", k.sample_heun, 2, {}),
        ("DPM2", k.sample_dpm_2, 2, {}),
    ]
    table += [(f"LMS{order}", k.sample_lms, 1, {"order": order}) for order in (2, 3, 4)]
    table += [
        ("DPM++2S", k.sample_dpmpp_2s_ancestral, 2, quiet),
        ("DPM++2M", k.sample_dpmpp_2m, 1, {}),
    ]
    table += [("DPM++3M", k.sample_dpmpp_3m_sde, 1, quiet)]
    for name, sampler, cost, options in table:
        for grid, low in ENDS:
            yield Setting(
                "k-diffusion",
                f"{name} {grid} {low:g}",
                partial(k_run, sampler, grid, low, cost, options),
            )

    def fast(low: float, field: Field, z: Tensor, budget: float) -> Tensor:
        model = lambda x, sigma: field(x, 1.0, sigma)[0]  # noqa: E731
        return field.finish(
            k.sample_dpm_fast(model, z / unit(TOP)[0], low, TOP, int(budget) - 1, disable=True),
            low,
        )

    def adaptive(order: int, low: float, field: Field, z: Tensor, tolerance: float) -> Tensor:
        model = lambda x, sigma: field(x, 1.0, sigma)[0]  # noqa: E731
        x = k.sample_dpm_adaptive(
            model,
            z / unit(TOP)[0],
            low,
            TOP,
            disable=True,
            order=order,
            rtol=tolerance,
            atol=tolerance / 5,
            pcoeff=0.0,
        )
        return field.finish(x, low)

    for low in (1e-2, 1e-3, 1e-4):
        yield Setting("k-diffusion", f"DPM-fast {low:g}", partial(fast, low))
        for order in (2, 3):
            yield Setting(
                "k-diffusion",
                f"DPM-adaptive{order} {low:g}",
                partial(adaptive, order, low),
                adaptive=True,
            )


# --- diffusers ---


def d_run(
    make: Callable[[], Any],
    closes: bool,
    grid: str,
    low: float,
    field: Field,
    z: Tensor,
    budget: float,
) -> Tensor:
    n = int(budget) - (not closes)
    scheduler = make()
    scheduler.set_timesteps(n)
    if len(scheduler.timesteps) != n:
        raise ValueError("another number of steps")
    # Continuous levels instead of the 1,000 trained ones, so that nothing is lost to rounding.
    end = torch.zeros(1, dtype=torch.float64)
    scheduler.sigmas = (
        torch.cat([ratios(n, grid, low), end]) if closes else ratios(n + 1, grid, low)
    )
    scheduler.set_begin_index(0)
    x = z
    for i, t in enumerate(scheduler.timesteps):
        alpha, sigma = unit(scheduler.sigmas[i])
        x = scheduler.step(field(x, alpha, sigma)[0], t, x).prev_sample
    return x.to(z) if closes else field.finish(x.to(z) / unit(low)[0], low)


def diffusers() -> Iterator[Setting]:
    d = importlib.import_module("diffusers")
    d.utils.logging.set_verbosity_error()
    shared = {"prediction_type": "sample", "lower_order_final": True}
    table: list[tuple[str, bool, Callable[[], Any]]] = []
    for order in (2, 3):
        for kind, closes in (("dpmsolver++", True), ("dpmsolver", False)):
            more = {
                "algorithm_type": kind,
                "solver_order": order,
                "final_sigmas_type": "zero" if closes else "sigma_min",
            }
            table.append(
                (
                    f"DPM-multistep{order} {kind}",
                    closes,
                    partial(d.DPMSolverMultistepScheduler, **more, **shared),
                )
            )
        more = {"solver_order": order, "final_sigmas_type": "zero"}
        table.append(
            (
                f"DPM-singlestep{order}",
                True,
                partial(d.DPMSolverSinglestepScheduler, **more, **shared),
            )
        )
        table.append(
            (
                f"DEIS{order}",
                False,
                partial(d.DEISMultistepScheduler, solver_order=order, **shared),
            )
        )
    for order in (2, 3, 4):
        for kind in ("bh1", "bh2"):
            more = {"solver_order": order, "solver_type": kind}
            table.append(
                (
                    f"UniPC{order} {kind}",
                    True,
                    partial(d.UniPCMultistepScheduler, **more, **shared),
                )
            )
    for name, closes, make in table:
        for grid, low in ENDS:
            yield Setting(
                "diffusers", f"{name} {grid} {low:g}", partial(d_run, make, closes, grid, low)
            )


# --- azula ---


class AzulaDenoiser:
    """What azula's samplers ask of a model: a schedule and a posterior mean."""

    def __init__(self, field: Field, grid: str, low: float) -> None:
        self.field, self.grid, self.low = field, grid, low

    def schedule(self, t: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        return unit(GRIDS[self.grid](t.double(), self.low))

    def __call__(self, x: Tensor, t: Tensor) -> Any:  # noqa: D102
        return types.SimpleNamespace(mean=self.field(x, *self.schedule(t))[0])


def a_run(
    make: Any,
    grid: str,
    low: float,
    cost: int,
    options: dict[str, Any],
    field: Field,
    z: Tensor,
    budget: float,
) -> Tensor:
    denoiser = AzulaDenoiser(field, grid, low)
    n = (int(budget) - (low > 0)) // cost
    x = make(denoiser, steps=n, silent=True, dtype=torch.float64, **options)(z)
    return field.finish(x / unit(low)[0], low)


def azula() -> Iterator[Setting]:
    a = importlib.import_module("azula.sample")
    closed = [("time", 0.0), ("rectified", 0.0), ("arc", 0.0)]
    few = [*closed, ("rectified", 1e-2), ("karras7", 1e-3), ("karras3", 1e-3)]
    table: list[tuple[str, Any, int, dict[str, Any], list[tuple[str, float]]]] = [
        ("Euler", a.EulerSampler, 1, {}, closed),
        ("Heun", a.HeunSampler, 2, {}, ENDS),
    ]
    table += [(f"vAB{k}", a.vABSampler, 1, {"order": k}, few) for k in (2, 3, 4, 5, 6)]
    table += [(f"zAB{k}", a.zABSampler, 1, {"order": k}, few) for k in (2, 3, 4)]
    table += [(f"zEAB{k}", a.zEABSampler, 1, {"order": k}, ENDS) for k in (2, 3)]
    table += [(f"xEAB{k}", a.xEABSampler, 1, {"order": k}, ENDS) for k in (2, 3, 4)]
    table += [(f"REAB{k}", a.REABSampler, 1, {"order": k}, ENDS) for k in (2, 3)]
    for name, make, cost, options, ends in table:
        for grid, low in ends:
            yield Setting(
                "azula", f"{name} {grid} {low:g}", partial(a_run, make, grid, low, cost, options)
            )


# --- ODE packages ---


@dataclass(frozen=True)
class Form:
    """A way to write the probability-flow ODE: dx/du = right(field, x, u) from u = start to stop,
    where ρ is `low`.
    """

    name: str
    start: float
    stop: float
    low: float
    right: Callable[[Field, Tensor, Tensor], Tensor]
    scale: Callable[[float], float]
    """x/z at ρ."""


def _time_right(field: Field, x: Tensor, t: Tensor) -> Tensor:
    t = t.clamp(1e-6, 1)  # torchdiffeq steps beyond the end
    beta = BETA0 + (BETA1 - BETA0) * t
    alpha, sigma = unit(ratio_of(t))
    x0, eps = field(x, alpha, sigma)
    rate = (0.5 * beta * alpha).reshape(-1, 1)
    return rate * ((alpha / sigma).reshape(-1, 1) * eps - x0)


def _rectified_right(field: Field, x: Tensor, u: Tensor) -> Tensor:
    u = u.clamp(0, 1)
    x0, eps = field(x, 1 - u, u)
    return eps - x0


def _log_right(field: Field, x: Tensor, u: Tensor) -> Tensor:
    """In log ρ on the unit circle: dz/d log ρ = cos·sin·(cos·ε̂ − sin·x̂0)."""
    cos, sin = unit(u.exp())
    x0, eps = field(x, cos, sin)
    return (cos * sin).reshape(-1, 1) * (cos.reshape(-1, 1) * eps - sin.reshape(-1, 1) * x0)


def _sigma_right(field: Field, x: Tensor, u: Tensor) -> Tensor:
    return field(x, 1.0, u.clamp(min=0))[1]


def _forms() -> list[Form]:
    end = 1e-5
    low = float(ratio_of(torch.tensor(end, dtype=torch.float64)))
    return [
        Form("time", 1.0, end, low, _time_right, lambda ratio: 1.0),
        Form(
            "rectified",
            TOP / (1 + TOP),
            0.0,
            0.0,
            _rectified_right,
            lambda r: math.hypot(1, r) / (1 + r),
        ),
        Form("log", math.log(TOP), math.log(1e-3), 1e-3, _log_right, lambda ratio: 1.0),
        Form("sigma", TOP, 0.0, 0.0, _sigma_right, lambda ratio: math.hypot(1, ratio)),
    ]


def _home(path: Form, field: Field, x: Tensor) -> Tensor:
    return field.finish(x / path.scale(path.low) * math.hypot(1, path.low), path.low)


def _diffeq(
    odeint: Any, method: str, cost: int, path: Form, field: Field, z: Tensor, budget: float
) -> Tensor:
    """Fixed steps of `cost` calls if cost > 0; adaptive, with the budget for tolerance, if not."""
    right = lambda u, x: path.right(field, x, u)  # noqa: E731
    steps = (int(budget) - (path.low > 0)) // cost if cost else 1
    u = torch.linspace(path.start, path.stop, steps + 1, dtype=torch.float64)
    rule = {} if cost else {"rtol": budget, "atol": budget}
    return _home(path, field, odeint(right, z * path.scale(TOP), u, method=method, **rule)[-1])


def torchdiffeq() -> Iterator[Setting]:
    odeint = importlib.import_module("torchdiffeq").odeint
    fixed = {"euler": 1, "midpoint": 2, "heun3": 3, "rk4": 4}
    for path in _forms():
        for method in ("dopri5", "dopri8", "bosh3", "adaptive_heun", "tsit5"):
            if method in importlib.import_module("torchdiffeq._impl.odeint").SOLVERS:
                yield Setting(
                    "torchdiffeq",
                    f"{method} {path.name}",
                    partial(_diffeq, odeint, method, 0, path),
                    adaptive=True,
                )
        for method, cost in fixed.items() if path.name != "sigma" else ():
            yield Setting(
                "torchdiffeq",
                f"{method} {path.name}",
                partial(_diffeq, odeint, method, cost, path),
            )


def _torchode(
    to: Any, method: str, controller: str, path: Form, field: Field, z: Tensor, tolerance: float
) -> Tensor:
    term = to.ODETerm(lambda u, x: path.right(field, x, u))
    pid = {"pcoeff": 0.2, "icoeff": 0.5, "dcoeff": 0.0} if controller == "PIDController" else {}
    step = getattr(to, controller)(atol=tolerance, rtol=tolerance, term=term, **pid)
    solver = to.AutoDiffAdjoint(getattr(to, method)(term=term), step)
    ends = torch.tensor([path.start, path.stop], dtype=torch.float64).expand(len(z), 2)
    solution = solver.solve(to.InitialValueProblem(y0=z * path.scale(TOP), t_eval=ends))
    return _home(path, field, solution.ys[:, -1])


def torchode() -> Iterator[Setting]:
    to = importlib.import_module("torchode")
    for path in _forms()[:3]:
        for method in ("Dopri5", "Tsit5"):
            for controller in ("IntegralController", "PIDController"):
                name = f"{method} {controller[:3]} {path.name}"
                yield Setting(
                    "torchode",
                    name,
                    partial(_torchode, to, method, controller, path),
                    adaptive=True,
                )


# --- dpm-solver ---


def dpm_module(file: Path | str) -> Any:
    spec = importlib.util.spec_from_file_location("dpm_solver_pytorch", str(file))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _dpm(
    module: Any,
    kind: str,
    options: dict[str, Any],
    adaptive: bool,
    field: Field,
    z: Tensor,
    budget: float,
) -> Tensor:
    schedule = module.NoiseScheduleVP(
        "linear", continuous_beta_0=BETA0, continuous_beta_1=BETA1, dtype=torch.float64
    )

    def noise(x: Tensor, t: Tensor) -> Tensor:
        return field(x, *unit(ratio_of(t.double())))[1]

    solver = module.DPM_Solver(noise, schedule, algorithm_type=kind)
    rule = {"rtol": budget, "atol": budget / 5} if adaptive else {"steps": int(budget) - 1}
    return solver.sample(z, t_start=1.0, denoise_to_zero=True, **rule, **options)


def dpm_solver(file: str) -> Iterator[Setting]:
    module = dpm_module(file)
    ends = (1e-3, 1e-4, 1e-5)
    for kind in ("dpmsolver++", "dpmsolver"):
        for order in (2, 3):
            for end in ends:
                for method in ("multistep", "singlestep"):
                    for skip in ("logSNR", "time_uniform", "time_quadratic"):
                        options = {
                            "order": order,
                            "method": method,
                            "skip_type": skip,
                            "t_end": end,
                        }
                        run = partial(_dpm, module, kind, options, False)
                        yield Setting("dpm-solver", f"{kind} {method}{order} {skip} {end:g}", run)
                options = {"order": order, "method": "adaptive", "t_end": end}
                yield Setting(
                    "dpm-solver",
                    f"{kind} adaptive{order} {end:g}",
                    partial(_dpm, module, kind, options, True),
                    adaptive=True,
                )


PEERS: dict[str, Callable[[], Iterator[Setting]]] = {
    "k-diffusion": k_diffusion,
    "diffusers": diffusers,
    "azula": azula,
    "torchdiffeq": torchdiffeq,
    "torchode": torchode,
}


def all_peers(dpm: str | None) -> list[Setting]:
    """Every setting of every peer that is installed; a line for each that is not."""
    sources = dict(PEERS)
    if dpm:
        sources["dpm-solver"] = partial(dpm_solver, dpm)
    else:
        print("dpm-solver: skipped, give --dpm-solver PATH to its dpm_solver_pytorch.py\n")
    found: list[Setting] = []
    for name, settings in sources.items():
        try:
            found += list(settings())
        except ImportError as error:
            print(f"{name}: skipped, {error}\n")
    return found
