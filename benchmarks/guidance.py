"""Posteriors of linear measurements of Gaussian mixtures, against their closed form.

Prior: 16 isotropic components of std 0.15 to 0.35 with means from N(0, I), then each coordinate
scaled to unit variance, VP(0.1, 20), exact score, float64. Measured: half of the coordinates
(inpaint), D/4 random directions (project), or a periodic blur, with noise 0.1 to 0.3. A problem has
one y, and n samples of each method. A cell reads

    geometric mean [worst] over problems of the sliced W2 to the posterior, over that of two sets of
    n exact samples / total variation of the weights of the modes, less that of an exact set

and, for particles, the error of log evidence in nats: root mean square over problems of the mean
over samples, and of log mean exp; and the share of estimates within two standard errors.

    python benchmarks/guidance.py [--quick] [--steps N] [--dims D ...] [--methods M ...]
    python benchmarks/guidance.py --quick --budgets [--dims D ...]
    python benchmarks/guidance.py --products

--quick takes about 4 CPU minutes: two problems of each measurement, one measurement in D = 64.
--budgets spends evaluations on steps, on particles, or on further populations, and prints the root
mean square error of the log evidence of one population, over populations and problems; 8 CPU
minutes with --quick. --products does so for y = x1·x2 + noise·n in two dimensions, where A is not
linear and the evidence is a sum over a grid: six problems, half a CPU minute.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import scoresde
from scoresde.guidance.guided import cosine_and_sine
from scoresde.guidance.tilted import Tilted, differentiated
from scoresde.toy import GaussianMixture

F64 = torch.float64
KINDS = ("inpaint", "project", "blur")
BUDGETS = ((32, 50), (16, 100), (16, 400), (32, 200), (64, 100))  # particles and steps
BIASED = ("mmps", "pigdm", "tmpd", "diffpir", "likelihood")
Run = Callable[["Posterior", int, int, torch.Generator], Any]


class Posterior:
    """p(x | y) of a mixture, y = A·x + noise·n: again a mixture."""

    def __init__(self, dim: int, kind: str, seed: int, components: int = 16) -> None:
        g = torch.Generator().manual_seed(1000 * seed + dim)
        means = torch.randn(components, dim, generator=g, dtype=F64)
        stds = 0.15 + 0.2 * torch.rand(components, 1, generator=g, dtype=F64)
        unit = ((means - means.mean(0)).square() + stds.square()).mean(0).sqrt()
        self.means = (means - means.mean(0)) / unit
        self.stds = stds / unit
        self.noise = 0.1 + 0.2 * float(torch.rand((), generator=g, dtype=F64))
        self.matrix = matrix(dim, kind, g)
        self.prior = GaussianMixture(self.means, self.stds)
        x = self.prior.sample(1, generator=g, dtype=F64)
        error = torch.randn(1, len(self.matrix), generator=g, dtype=F64)
        self.y = x @ self.matrix.T + self.noise * error
        log_joint, gain = self.given(self.means, self.stds.square())
        log_joint = log_joint[0] - math.log(components)
        self.log_evidence = float(log_joint.logsumexp(0))
        self.weights = log_joint.softmax(0)
        self.centers = (
            self.means + (gain @ (self.y - self.means @ self.matrix.T).unsqueeze(2))[..., 0]
        )
        covariance = torch.diag_embed(self.stds.square())
        covariance = covariance - gain @ (self.matrix * self.stds.square().unsqueeze(1))
        self.factor = torch.linalg.cholesky(0.5 * (covariance + covariance.mT))

    def given(self, means: Tensor, variances: Tensor) -> tuple[Tensor, Tensor]:
        """log N(y; A·m, A·V·Aᵀ + noise²) (B, K) and V·Aᵀ·S⁻¹, for m (B, K, D) or (K, D)."""
        A = self.matrix
        S = (A * variances.unsqueeze(1)) @ A.T + self.noise**2 * torch.eye(len(A), dtype=F64)
        factor = torch.linalg.cholesky(S)
        gap = (self.y - means @ A.T).reshape(-1, len(S), len(A))
        half = torch.linalg.solve_triangular(factor, gap.permute(1, 2, 0), upper=False)
        log_det = factor.diagonal(dim1=1, dim2=2).log().sum(1)
        log_p = -0.5 * half.square().sum(1).T - log_det - 0.5 * len(A) * math.log(2 * math.pi)
        gain = torch.cholesky_solve(A * variances.unsqueeze(1), factor).mT
        return log_p, gain

    def sample(self, n: int, g: torch.Generator) -> Tensor:
        """n exact samples."""
        k = torch.multinomial(self.weights, n, replacement=True, generator=g)
        eps = torch.randn(n, self.means.shape[1], 1, generator=g, dtype=F64)
        return self.centers[k] + (self.factor[k] @ eps)[..., 0]

    def modes(self, x: Tensor) -> Tensor:
        """The mean responsibilities (K,) of the modes."""
        gap = (x.unsqueeze(1) - self.centers).permute(1, 2, 0)
        half = torch.linalg.solve_triangular(self.factor, gap, upper=False)
        log_det = self.factor.diagonal(dim1=1, dim2=2).log().sum(1)
        log_p = self.weights.log() - 0.5 * half.square().sum(1).T - log_det
        return log_p.softmax(1).mean(0)

    def model(self) -> scoresde.Model:
        """The prior with its exact score."""
        return scoresde.oracle(self.prior, scoresde.VPSDE()).double()

    def observed(self, method: str) -> scoresde.Model:
        """The posterior by a method of `observe`."""
        measurement = scoresde.measurements.Linear(self.matrix, self.noise)
        return scoresde.observe(self.model(), measurement, self.y, method=method)


class Product:
    """y = x1·x2 + noise·n of a mixture in two dimensions, and its evidence by a grid."""

    def __init__(self, prior: GaussianMixture, y: float, noise: float) -> None:
        self.prior = prior
        self.y = torch.tensor([[y]], dtype=F64)
        self.product = scoresde.measurements.Measurement(lambda x: x[:, :1] * x[:, 1:], noise)
        axis = torch.linspace(-7, 7, 1401, dtype=F64)
        points = torch.cartesian_prod(axis, axis)
        log_joint = prior.log_prob(points) + self.product.log_likelihood(points, self.y)
        self.log_evidence = float(log_joint.logsumexp(0)) + 2 * math.log(0.01)

    def observed(self, method: str) -> scoresde.Model:
        """The posterior by a method of `observe`."""
        model = scoresde.oracle(self.prior, scoresde.VPSDE()).double()
        return scoresde.observe(model, self.product, self.y, method=method)


def products() -> list[Product]:
    """Four problems of a standard normal, two of four modes."""
    normal = GaussianMixture(torch.zeros(1, 2), 1.0)
    means = torch.randn(4, 2, generator=torch.Generator().manual_seed(3))
    modes = GaussianMixture(means, [0.3, 0.4, 0.5, 0.3])
    of_normal = [(1.0, 0.2), (0.0, 0.2), (2.0, 0.1), (0.5, 0.5)]
    found = [Product(normal, y, noise) for y, noise in of_normal]
    return found + [Product(modes, y, 0.2) for y in (1.0, -1.0)]


def matrix(dim: int, kind: str, g: torch.Generator) -> Tensor:
    """A of a kind of measurement."""
    if kind == "inpaint":
        return torch.eye(dim, dtype=F64)[torch.randperm(dim, generator=g)[: dim // 2]]
    if kind == "project":
        rows = torch.randn(max(1, dim // 4), dim, generator=g, dtype=F64)
        return rows / rows.norm(dim=1, keepdim=True)
    i = torch.arange(dim)
    apart = (i - i.unsqueeze(1)).abs()
    kernel = torch.exp(-0.5 * torch.minimum(apart, dim - apart).double().square())
    return kernel / kernel.sum(1, keepdim=True)


class Exact(Tilted):
    """The twist E[g(x0) | z] itself."""

    def __init__(self, truth: Posterior) -> None:
        super().__init__(truth.model())
        self.truth = truth

    def log_g(self, z: Tensor, rows: Tensor | None = None) -> Tensor:
        """log p(y | z)."""
        gap = (self.truth.y - z @ self.truth.matrix.T) / self.truth.noise
        constant = math.log(self.truth.noise) + 0.5 * math.log(2 * math.pi)
        return -(0.5 * gap.square() + constant).sum(1)

    def twist(self, *, raw: bool = False) -> Any:
        """log E[p(y | x0) | z] and its gradient."""
        plain = self.model.velocity_fn(raw=raw)
        truth = self.truth

        def twist(z: Tensor, phi: Any, rows: Tensor | None = None) -> Any:
            cos, sin = cosine_and_sine(phi, z)

            def log_psi(z: Tensor) -> tuple[Tensor]:
                v = cos**2 * truth.stds.square() + sin**2
                gap = z.unsqueeze(1) - cos * truth.means
                log_r = (-0.5 * gap.square() / v - 0.5 * v.log()).sum(2).log_softmax(1)
                gain = cos * truth.stds.square() / v
                log_p, _ = truth.given(truth.means + gain * gap, sin**2 * truth.stds.square() / v)
                return ((log_r + log_p).logsumexp(1),)

            gradient, (value,) = differentiated(log_psi, z)
            return plain(z, phi, rows), value, gradient

        return twist


def solved(model: Callable[[Posterior], scoresde.Model]) -> Run:
    def run(truth: Posterior, n: int, steps: int, g: torch.Generator) -> Any:
        found = scoresde.sample(model(truth), n, solver="dpmpp_2m", steps=steps, generator=g)
        return found, None

    return run


def weighted(size: int, method: str = "mmps") -> Run:
    def run(truth: Posterior, n: int, steps: int, g: torch.Generator) -> Any:
        found = scoresde.particles(truth.observed(method), n, size, steps, generator=g)
        return found.x, found

    return run


def rows() -> dict[str, Run]:
    found: dict[str, Run] = {"exact": solved(Exact)}
    found |= {"particles 16": weighted(16), "particles 4": weighted(4)}
    found["particles 16, pigdm"] = weighted(16, "pigdm")
    for name in BIASED:
        found[name] = solved(lambda truth, name=name: truth.observed(name))
    return found


def measure(truth: Posterior, run: Run, n: int, steps: int) -> list[float]:
    """Ratio, excess of total variation, and errors of log evidence where there are any."""
    g = torch.Generator().manual_seed(0)
    x, particles = run(truth, n, steps, g)

    def apart(a: Tensor, b: Tensor) -> float:
        fixed = torch.Generator().manual_seed(1)
        return float(scoresde.sliced_wasserstein(a, b, projections=128, generator=fixed))

    def variation(x: Tensor) -> float:
        return 0.5 * float((truth.modes(x) - truth.weights).abs().sum())

    sets = [truth.sample(n, g) for _ in range(8)]
    floor = sum(apart(a, b) for a, b in zip(sets[::2], sets[1::2], strict=True))
    ratio = sum(apart(x, b) for b in sets[::2]) / floor
    found = [ratio, variation(x) - sum(map(variation, sets)) / len(sets)]
    if particles is not None:
        error = particles.log_evidence - truth.log_evidence
        within = (error.abs() < 2 * particles.stderr).double().mean()
        joint = error.logsumexp(0) - math.log(n)
        found += [float(error.mean()), float(joint), float(within)]
    return found


def budgets(truths: list[Any], n: int) -> None:
    """Print errors of log evidence against particles and steps, of n populations of each problem.

    Four times as many of less than 6,400 evaluations; four of 16 × 100 are also averaged.
    """
    print("| particles x steps | RMS error, nats | bias | CPU s |\n| --- | --- | --- | --- |")
    for size, steps in BUDGETS:
        began = time.process_time()
        count = n * 6400 // (size * steps)
        errors = []
        for truth in truths:
            g = torch.Generator().manual_seed(7)
            found = scoresde.particles(truth.observed("mmps"), count, size, steps, generator=g)
            errors.append(found.log_evidence - truth.log_evidence)
        error = torch.stack(errors)
        rows = {f"{size} x {steps}": error}
        if (size, steps) == (16, 100):
            rows["4 of 16 x 100"] = error.reshape(-1, 4).logsumexp(1) - math.log(4)
        seconds = time.process_time() - began
        for name, error in rows.items():
            rms = error.square().mean().sqrt()
            print(f"| {name} | {rms:.3f} | {error.mean():+.3f} | {seconds:.0f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--budgets", action="store_true")
    parser.add_argument("--products", action="store_true")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--n", type=int)
    parser.add_argument("--problems", type=int)
    parser.add_argument("--dims", type=int, nargs="*", default=[2, 16, 64])
    parser.add_argument("--methods", nargs="*")
    args = parser.parse_args()
    if args.products:
        budgets(products(), args.n or 50)
        return
    problems = args.problems or (2 if args.quick else 4)
    for dim in args.dims:
        kinds = KINDS[1:2] if args.quick and dim > 16 else KINDS
        n = args.n or (1024 // dim if args.quick else 256)
        n = min(max(n, 48), 256)
        if args.budgets:
            n = args.n or max(8, min(24, 192 // dim))
            print(f"### D = {dim}, n = {n}: {', '.join(kinds)}\n")
            budgets([Posterior(dim, kind, i) for kind in kinds for i in range(problems)], n)
            print()
            continue
        print(f"### D = {dim}, {args.steps} evaluations, n = {n}: {', '.join(kinds)}\n")
        print(
            "| method | W2 / floor · excess TV | log evidence: mean, joint, within 2 SE | CPU s |"
        )
        print("| --- | --- | --- | --- |")
        truths = [Posterior(dim, kind, seed) for kind in kinds for seed in range(problems)]
        for name, run in rows().items():
            if args.methods and name not in args.methods:
                continue
            began = time.process_time()
            found = torch.tensor([measure(truth, run, n, args.steps) for truth in truths])
            ratio = found[:, 0]
            cell = (
                f"{ratio.log().mean().exp():.2f} [{ratio.max():.2f}] · {found[:, 1].mean():+.3f}"
            )
            evidence = ""
            if found.shape[1] > 2:
                errors = found[:, 2:4].square().mean(0).sqrt()
                evidence = f"{errors[0]:.3f}, {errors[1]:.3f}, {found[:, 4].mean():.2f}"
            seconds = time.process_time() - began
            print(f"| {name} | {cell} | {evidence} | {seconds:.0f} |", flush=True)
        print()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
