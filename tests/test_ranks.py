"""Two gloo processes compute what one does, and fail together.

One pair of processes is started for the whole file. It runs every case of `CASES` inside
`sharded()`; the tests run the same functions here, without a process group, and compare. Nothing
is random but by fixed seeds: there are no false alarms.
"""

from __future__ import annotations

import datetime
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import Tensor, nn

import scoresde
from scoresde.common.sharding import gather, share

WORLD, LIMIT = 2, 180  # processes; seconds for all they do, also on a busy machine

Outcome = tuple[str, Any]
CASES: dict[str, Callable[[int], Any]] = {}


def case(function: Callable[[int], Any]) -> Callable[[int], Any]:
    """Enroll a function of the rank, which is 0 in one process."""
    CASES[function.__name__] = function
    return function


class Sine(nn.Module):
    """A velocity that oscillates in z at a pace of its own for each sample, and is NaN for a
    negative one.
    """

    def forward(self, x: Tensor, t: Tensor, pace: Tensor) -> Tensor:
        pace = pace.reshape(-1, 1).to(x)
        return torch.sin(pace * x + t[:, None]) * torch.where(pace < 0, math.nan, 1.0)


def generator(
    seed: int = 0,
) -> torch.Generator:  # not conftest's: a new process may find another conftest first
    return torch.Generator().manual_seed(seed)


def sixteen() -> scoresde.toy.GaussianMixture:
    """Ten components in 16-D."""
    means = torch.randn(10, 16, generator=generator(16), dtype=torch.float64)
    return scoresde.toy.GaussianMixture(means, torch.linspace(0.2, 0.6, 10, dtype=torch.float64))


def mixture() -> scoresde.ScoreSDE:
    return scoresde.oracle(sixteen(), scoresde.VPSDE())


def flat(dtype: torch.dtype = torch.float64) -> scoresde.ScoreSDE:
    return scoresde.oracle(scoresde.toy.EightGaussians(4.0, 0.3), scoresde.VPSDE()).to(dtype)


def sine(pace: Tensor) -> scoresde.ScoreSDE:
    return scoresde.ScoreSDE(scoresde.VPSDE(), Sine(), shape=(2,)).double().given(pace=pace)


def trained(**options: Any) -> scoresde.ScoreSDE:
    """A network with weights of some size, the same in every process."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        sde = scoresde.build("rectified", "mlp", width=16, **options)
        for p in sde.parameters():
            nn.init.normal_(p, std=0.3)
    return sde.double().eval()


def points(n: int) -> Tensor:
    return scoresde.toy.EightGaussians(4.0, 0.3).sample(n, generator(3)).double()


# ------------------------------------------------------ what has to be as in one process

SOLVERS: dict[str, dict[str, Any]] = {
    "adams": {},
    "rk45": {},
    "dpm_adaptive": {},
    "ggf": {"rtol": 0.1},
    "heun": {"steps": 10},
    "ddim": {"steps": 20},
    "dpmpp_2m": {"steps": 12},
    "em": {"steps": 30},
    "pc": {"steps": 20},
    "restart": {},
    "torchdiffeq:rk4": {"steps": 8},
}
for solver, options in SOLVERS.items():
    CASES[f"sample_{solver}"] = lambda rank, solver=solver, options=options: scoresde.sample(
        mixture(), 37, solver=solver, generator=generator(), **options
    )
for n in (1, 2, 3, 65, 1000):
    CASES[f"sample_{n}"] = lambda rank, n=n: scoresde.sample(
        flat(), n, solver="em", steps=5, generator=generator(n)
    )
    CASES[f"log_prob_{n}"] = lambda rank, n=n: scoresde.log_prob(
        flat(), points(n), rtol=1e-3, atol=1e-3
    )


@case
def in_batches(rank: int) -> Any:
    return scoresde.sample(
        mixture(), 150, solver="em", steps=10, generator=generator(), batch_size=17
    )


@case
def in_single_precision(rank: int) -> Any:
    return scoresde.sample(flat(torch.float32), 129, steps=20, generator=generator())


@case
def trajectory(rank: int) -> Any:
    solution = scoresde.solve(mixture(), 9, times=[1.0, 0.7, 0.2, 0.0], generator=generator())
    return solution.t, solution.x, solution.nfe, solution.accepted, solution.rejected


@case
def latents(rank: int) -> Any:
    return scoresde.encode(flat(), points(11))


@case
def latents_and_back(rank: int) -> Any:
    with torch.inference_mode():
        return scoresde.decode(flat(), scoresde.encode(flat(), points(11)), solver="rk45")


@case
def exact_likelihood(rank: int) -> Any:
    x = sixteen().sample(13, generator())
    return without_errors(scoresde.likelihood(mixture(), x, rtol=1e-3, atol=1e-3))


def without_errors(found: scoresde.Likelihood) -> tuple[Any, ...]:
    """All but solver_error, a multiple of what rounding makes of two solves."""
    return tuple(value for name, value in vars(found).items() if name != "solver_error")


@case
def estimated_likelihood(rank: int) -> Any:
    found = scoresde.likelihood(
        mixture(),
        sixteen().sample(13, generator()),
        trace="hutchinson",
        generator=generator(1),
        rtol=1e-3,
        atol=1e-3,
    )
    return without_errors(found)


@case
def likelihood_with_invalid_rows(rank: int) -> Any:
    x = points(6)
    x[1] = x[4] = math.nan
    return scoresde.log_prob(flat(), x, invalid="nan", steps=8)


@case
def both_in_one_solve(rank: int) -> Any:
    return scoresde.sample_and_log_prob(mixture(), 13, generator=generator())


@case
def bound(rank: int) -> Any:
    return tuple(vars(scoresde.elbo(flat(), points(21), draws=16, generator=generator())).values())


@case
def discrete_bound(rank: int) -> Any:
    return tuple(vars(scoresde.vlb(flat(), points(21), steps=20, generator=generator())).values())


@case
def bits(rank: int) -> Any:
    sde = scoresde.oracle(
        scoresde.toy.GaussianMixture([[0.3, 0.6]], stds=0.2), scoresde.VPSDE()
    ).double()
    values = torch.arange(14).reshape(7, 2)
    uniform = scoresde.dequantize.Uniform(16)
    return tuple(
        vars(
            scoresde.bits_per_dim(sde, values, uniform, draws=3, steps=8, generator=generator())
        ).values()
    )


@case
def images(rank: int) -> Any:
    sde = trained(shape=(1, 4, 4))
    x = scoresde.sample(sde, 5, solver="heun", steps=4, generator=generator())
    how = {"trace": "hutchinson", "probes": 2, "generator": generator(1)}
    return x, scoresde.log_prob(sde, x, steps=8, **how)


@case
def conditions_of_each_sample(rank: int) -> Any:
    sde = trained(shape=(2,), classes=7).given(y=torch.arange(7))
    x = scoresde.sample(sde, 7, generator=generator())
    return (
        x,
        scoresde.log_prob(sde, x, steps=8),
        scoresde.elbo(sde, x, draws=8, generator=generator()).log_prob,
    )


@case
def one_condition_for_all(rank: int) -> Any:
    return scoresde.sample(trained(shape=(2,), classes=7).given(y=3), 5, generator=generator())


@case
def distribution(rank: int) -> Any:
    law = scoresde.Distribution(
        trained(shape=(2,), classes=7).given(y=torch.arange(3)), solver="heun", steps=8
    )
    torch.manual_seed(5 + rank)
    x = law.sample((4,))
    return x, law.log_prob(x)


@case
def without_a_generator(rank: int) -> Any:
    torch.manual_seed(rank)
    return scoresde.sample(mixture(), 7, solver="em", steps=5), scoresde.elbo(
        flat(), points(5), draws=8
    ).log_prob


@case
def the_generator_goes_on(rank: int) -> Any:
    random = generator(rank)
    first = scoresde.sample(flat(), 3, solver="em", steps=5, generator=random)
    return first, scoresde.sample(flat(), 3, solver="em", steps=5, generator=random)


@case
def very_different_numbers_of_evaluations(rank: int) -> Any:
    pace = torch.tensor([0.5] * 6 + [200.0] * 6)
    solution = scoresde.solve(sine(pace), 12, solver="rk45", generator=generator(), batch_size=2)
    return solution.x, solution.nfe


@case
def a_solve_that_calls_verbs(rank: int) -> Any:
    prior = scoresde.Distribution(
        scoresde.oracle(
            scoresde.toy.GaussianMixture([[0.0, 0.0]], stds=1.0), scoresde.VPSDE()
        ).double()
    )
    return scoresde.log_prob(
        flat(), points(3), prior=prior, batch_size=1, rtol=1e-3, atol=1e-3
    )  # one such call on rank 0, two on rank 1


@case
def a_wrapped_network(rank: int) -> Any:
    sde = trained(shape=(2,))
    if dist.is_initialized():
        sde.net = nn.parallel.DistributedDataParallel(sde.net).eval()
    return scoresde.sample(sde, 9, generator=generator())


# ------------------------------------------------------------------ what has to fail on all ranks


def lost(i: int) -> scoresde.ScoreSDE:
    pace = torch.full((7,), 0.5)
    pace[i] = -1.0
    return sine(pace)


@case
def nan_in_an_adaptive_solve(rank: int) -> Any:
    scoresde.sample(lost(5), 7, generator=generator(), batch_size=2)


@case
def nan_on_a_grid(rank: int) -> Any:
    scoresde.sample(lost(5), 7, solver="ddim", steps=5, generator=generator())


@case
def nan_on_the_first_rank(rank: int) -> Any:
    scoresde.sample(lost(1), 7, generator=generator())


@case
def nan_in_a_likelihood(rank: int) -> Any:
    scoresde.log_prob(lost(5), points(7))


@case
def nan_in_a_bound(rank: int) -> Any:
    scoresde.elbo(lost(5), points(7), draws=4)


@case
def a_bad_argument(rank: int) -> Any:
    scoresde.sample(flat(), 5, solver="rk_45")


@case
def another_bad_argument(rank: int) -> Any:
    scoresde.sample(flat(), 0)


@case
def bad_data_on_one_rank(rank: int) -> Any:
    x = points(5)
    x[2] = math.nan if rank == 1 else 0.0
    scoresde.elbo(flat(), x)


@case
def bad_pixels_on_one_rank(rank: int) -> Any:
    values = torch.full((3, 2), 3 + 250 * rank)
    scoresde.bits_per_dim(flat(), values, scoresde.dequantize.Uniform(16), steps=8)


@case
def a_long_foreign_error_on_one_rank(rank: int) -> Any:
    class Foreign(nn.Module):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            if rank == 1:
                raise RuntimeError("φ\x00" * 4000)
            return -x

    scoresde.sample(
        scoresde.ScoreSDE(scoresde.VPSDE(), Foreign(), shape=(2,)), 4, steps=2, solver="ddim"
    )


@case
def batches_of_different_length(rank: int) -> Any:
    scoresde.log_prob(flat(), points(5 + rank))


@case
def models_of_different_precision(rank: int) -> Any:
    scoresde.sample(flat(torch.float64 if rank else torch.float32), 5, generator=generator())


@case
def gradients_to_data(rank: int) -> Any:
    scoresde.log_prob(flat(), points(5).requires_grad_())


@case
def gradients_to_weights(rank: int) -> Any:
    scoresde.log_prob(trained(shape=(2,)), points(5), differentiable=True)


# ------------------------------------------------------------------ what is seen only from inside


@case
def any_columns(rank: int) -> Any:
    """Five dtypes, scalars, matrices and empty rows, for n up to 5."""
    found = []
    for n in range(1, 6):
        rows = torch.arange(n)
        start, stop = share(n)
        wanted = [
            rows % 2 == 0,
            rows,
            rows.to(torch.bfloat16),
            torch.stack([rows, rows.neg()], 1).half().reshape(n, 1, 2),
            torch.complex(rows.double(), -rows.double()),
            rows.new_zeros((n, 2)).to(torch.uint8),
        ]
        got = gather([column[start:stop] for column in wanted], n)
        found.append(
            all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(got, wanted, strict=True))
        )
    return torch.tensor(found)


@case
def meetings(rank: int) -> Any:
    """How often ranks wait for one another in a call of 20 batches."""
    count, real = [0], dist.all_gather

    def counted(*arguments: Any) -> Any:
        count[0] += 1
        return real(*arguments)

    dist.all_gather = counted
    try:
        scoresde.sample(flat(), 40, solver="rk45", generator=generator(), batch_size=2)
    finally:
        dist.all_gather = real
    return torch.tensor(count)


def attempt(function: Callable[[int], Any], rank: int) -> Outcome:
    try:
        return "came", function(rank)
    except Exception as error:
        return type(error).__name__, (str(error), getattr(error, "first", None))


def work(rank: int, folder: str) -> None:
    """What each process does; the second leaves at the end without a word."""
    torch.set_num_threads(1)
    timeout = datetime.timedelta(seconds=LIMIT)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=WORLD, timeout=timeout
    )
    with scoresde.sharded():
        outcomes = {name: attempt(function, rank) for name, function in CASES.items()}
        torch.save(outcomes, f"{folder}/{rank}.pt")
        if rank == 1:
            os._exit(0)
        try:
            scoresde.sample(flat(), 5)
        except RuntimeError as error:
            Path(folder, "left").write_text("\n".join([str(error), *error.__notes__]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.set_forkserver_preload(["scoresde"])  # imported once for both
    pair = torch.multiprocessing.start_processes(
        work, (str(folder),), WORLD, join=False, start_method="forkserver"
    )
    assert pair is not None
    try:
        end = time.monotonic() + LIMIT
        while not pair.join(
            max(end - time.monotonic(), 0)
        ):  # it returns when one of them has ended, too
            assert time.monotonic() < end, f"the ranks hang: not done in {LIMIT} s"
        yield folder
    finally:
        for process in pair.processes:
            process.kill()


@pytest.fixture(scope="module")
def outcomes(folder: Path) -> list[dict[str, Outcome]]:
    return [torch.load(folder / f"{rank}.pt") for rank in range(WORLD)]


# what each rank raises, the number of the sample that its batch begins with, and words of its
# message
FAIL = {
    "nan_in_an_adaptive_solve": [
        ("SolverError", 5, "rank 1 failed"),
        ("SolverError", 5, "the batch of samples 5 to 6"),
    ],
    "nan_on_a_grid": [
        ("SolverError", 3, "rank 1 failed: SolverError"),
        ("SolverError", 3, "the batch of samples 3 to 6"),
    ],
    "nan_on_the_first_rank": [
        ("SolverError", 0, "the batch of samples 0 to 2"),
        ("SolverError", 0, "rank 0 failed"),
    ],
    "nan_in_a_likelihood": [
        ("SolverError", 3, "rank 1 failed"),
        ("SolverError", 3, "the batch of samples 3 to 6"),
    ],
    "nan_in_a_bound": [("SolverError", 0, "the bound of 1 of 7 samples")] * 2,
    "a_bad_argument": [("ValueError", None, "Did you mean 'rk45'?")] * 2,
    "another_bad_argument": [("ValueError", None, "n is at least 1, got 0")] * 2,
    "bad_data_on_one_rank": [
        ("SolverError", 0, "rank 1 failed: ValueError: x has NaN"),
        ("ValueError", None, "x has NaN"),
    ],
    "bad_pixels_on_one_rank": [
        ("SolverError", 0, "rank 1 failed: ValueError"),
        ("ValueError", None, "from 0 to 15"),
    ],
    "a_long_foreign_error_on_one_rank": [
        ("SolverError", 0, "rank 1 failed: RuntimeError"),
        ("RuntimeError", None, "φ"),
    ],
    "batches_of_different_length": [("ValueError", None, "rank 0 came for 5 samples of")] * 2,
    "models_of_different_precision": [("ValueError", None, "give all of them the same model")] * 2,
    "gradients_to_data": [("ValueError", None, "give x.detach()")] * 2,
    "gradients_to_weights": [("ValueError", None, "leave out differentiable=True")] * 2,
}
WITHIN = {"meetings", "any_columns"}


def tensors(result: Any) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else list(result)


@pytest.mark.parametrize("name", [name for name in CASES if name not in {*FAIL, *WITHIN}])
def test_two_ranks_compute_what_one_process_does(
    name: str, outcomes: list[dict[str, Outcome]]
) -> None:
    wanted = tensors(CASES[name](0))
    for rank in range(WORLD):
        how, result = outcomes[rank][name]
        assert how == "came", f"rank {rank}: {how}: {result}"
        for got, one in zip(tensors(result), wanted, strict=True):
            assert got.dtype == one.dtype
            torch.testing.assert_close(got, one, rtol=1e-5, atol=1e-5, equal_nan=True)
    for first, second in zip(
        *(tensors(outcomes[rank][name][1]) for rank in range(WORLD)), strict=True
    ):
        assert torch.equal(first.nan_to_num(), second.nan_to_num())


@pytest.mark.parametrize("name", list(FAIL))
def test_when_one_rank_fails_all_raise_and_none_waits(
    name: str, outcomes: list[dict[str, Outcome]]
) -> None:
    for rank, (kind, first, words) in enumerate(FAIL[name]):
        how, result = outcomes[rank][name]
        assert how == kind, f"rank {rank}: {how}: {result}"
        message, begin = result
        assert words in message
        assert begin == first


def test_ranks_did_need_different_numbers_of_evaluations(
    outcomes: list[dict[str, Outcome]],
) -> None:
    nfe = outcomes[0]["very_different_numbers_of_evaluations"][1][1]
    assert nfe[6:].min() > 4 * nfe[:6].max()


def test_columns_of_any_dtype_are_gathered(outcomes: list[dict[str, Outcome]]) -> None:
    for outcome in outcomes:
        how, right = outcome["any_columns"]
        assert how == "came", right
        assert right.tolist() == [True] * 5


def test_ranks_wait_for_one_another_three_times_a_call(outcomes: list[dict[str, Outcome]]) -> None:
    """For the seed, for a word from everyone, and for the results; never within a solve."""
    for outcome in outcomes:
        assert outcome["meetings"][1].tolist() == [3]


def test_a_rank_that_leaves_does_not_leave_the_others_waiting(folder: Path) -> None:
    assert "A rank of torch.distributed's group is gone" in (folder / "left").read_text()


def test_without_a_group_nothing_changes(tmp_path: Path) -> None:
    sde, x = mixture(), sixteen().sample(3, generator())
    weighted = trained(shape=(2,))

    def both() -> tuple[Tensor, Tensor]:
        x1 = scoresde.sample(sde, 5, generator=generator(), rtol=1e-3, atol=1e-3)
        return x1, scoresde.log_prob(sde, x, rtol=1e-3, atol=1e-3)

    plain = both()
    with scoresde.sharded():
        within = both()
        assert scoresde.log_prob(weighted, points(2), differentiable=True, steps=8).requires_grad
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        with scoresde.sharded():
            single = both()
    finally:
        dist.destroy_process_group()
    for a, b, c in zip(plain, within, single, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)
