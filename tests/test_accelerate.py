"""`fit` under Accelerate on two gloo processes, replayed by hand in one.

One pair of processes is started for the whole file and runs every case of `CASES`. The network
keeps what it was shown, so that a run's weights can be computed again by ten lines of plain torch
from the batches of both ranks: what differs from them was not exchanged, accumulated, clipped,
averaged or resumed as it should be. All seeds are fixed: there are no false alarms.
"""

from __future__ import annotations

import datetime
import math
import os
import shutil
import time
import types
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from fit_options import fit_keywords
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import scoresde
from scoresde import ScoreSDE
from scoresde.backbones.base import can_trace
from scoresde.storage import records as storage

accelerate = pytest.importorskip("accelerate")

WORLD, LIMIT = 2, 180  # processes; seconds for all they do, also on a busy machine
STEPS, BATCH, LR, HALF = 30, 8, 0.05, 5.0

fsdp = pytest.mark.skipif(
    not hasattr(torch.cpu.Stream, "record_event"), reason="FSDP2 of PyTorch 2.6 needs a GPU"
)

Outcome = tuple[str, Any]
CASES: dict[str, Callable[[int, Path], Any]] = {}


def case(function: Callable[[int, Path], Any]) -> Callable[[int, Path], Any]:
    CASES[function.__name__] = function
    return function


class Log(list[dict[str, Tensor]]):
    """One for a network and its copies."""

    def __deepcopy__(self, memo: object) -> Log:
        return self


class Line(nn.Module):
    """W·x + b, which keeps what it is shown while it trains, and fails or says NaN at a call."""

    def __init__(self, fails: int | None = None, nan: int | None = None) -> None:
        super().__init__()
        self.line = nn.Linear(2, 2).double()
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(torch.arange(p.numel(), dtype=p.dtype).reshape(p.shape) / 4)
        self.seen = Log()
        self.fails, self.nan = fails, nan

    def forward(self, x: Tensor, t: Tensor, **row: Tensor) -> Tensor:
        if self.training:
            self.seen.append({"x": x.detach().clone(), "t": t.detach().clone(), **row})
            if len(self.seen) == self.fails:
                raise RuntimeError("the power is gone")
        out = self.line(x)
        return out * math.nan if len(self.seen) == self.nan else out


def flow(**options: Any) -> ScoreSDE:
    """Of data that are 0, in units of 1: x_t = t·ε, and the network is to say ε = x_t/t."""
    sde = ScoreSDE(
        scoresde.RectifiedFlow(), Line(**options), shape=(2,), predict="v", input_convention="raw"
    )
    sde.double().measured.fill_(True)
    return sde


def train(sde: ScoreSDE, data: Any = None, *, seed: int = 0, **options: Any) -> scoresde.History:
    data = torch.zeros(50, 2, dtype=torch.float64) if data is None else data
    common = {"steps": STEPS, "batch_size": BATCH, "lr": LR, "ema": HALF, "progress": False}
    loss = {"weight": "velocity", "noise": "uniform"}
    how = fit_keywords(**(common | loss | options))
    return scoresde.fit(sde, data, generator=torch.Generator().manual_seed(seed), **how)


def alone(**options: Any) -> Any:
    """An Accelerator with other settings than the one before, which it shares its state with."""
    accelerate.state.AcceleratorState._reset_state()
    accelerate.state.GradientState._reset_state()
    return accelerate.Accelerator(cpu=True, **options)


def mlp(**options: Any) -> ScoreSDE:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return scoresde.build(
            "rectified", "mlp", shape=(2,), width=16, depth=2, fourier=4, **options
        )


def state(sde: ScoreSDE) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in sde.state_dict().items()}


def shown(sde: ScoreSDE) -> list[dict[str, Tensor]]:
    return list(sde.net.seen)  # type: ignore[arg-type]


# ---------------------------------------------------------------------- what each rank sees


def rows() -> Any:
    return torch.zeros(50, 2, dtype=torch.float64), {"row": torch.arange(50)}


class Rows(Dataset):  # type: ignore[type-arg]
    def __len__(self) -> int:
        return 50

    def __getitem__(self, i: int) -> Any:
        return torch.zeros(2, dtype=torch.float64), {"row": torch.tensor(i)}


class Law:
    """Distinct points, of which no two ranks should have one."""

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        return torch.randn(n, 2, generator=generator, dtype=torch.float64)


@case
def a_table(rank: int, folder: Path) -> Any:
    sde, (x, given) = flow(), rows()
    train(sde, x, given=given, backend=alone())
    return shown(sde), state(sde)


@case
def a_dataset(rank: int, folder: Path) -> Any:
    sde = flow()
    train(sde, Rows(), backend=alone())
    return shown(sde), state(sde)


@case
def a_loader(rank: int, folder: Path) -> Any:
    sde = flow()
    train(sde, DataLoader(Rows(), BATCH // WORLD, shuffle=True, drop_last=True), backend=alone())
    return shown(sde), state(sde)


@case
def a_law(rank: int, folder: Path) -> Any:
    sde = flow()
    sde.measured.fill_(False)
    train(sde, Law(), backend=alone())
    return shown(sde), state(sde)


@case
def measured_by_a_loader(rank: int, folder: Path) -> Any:
    sde = mlp()
    points = Law().sample(40, torch.Generator().manual_seed(1)).float()
    train(sde, DataLoader(points, 5), steps=3, backend=alone())  # type: ignore[arg-type]
    return state(sde)


# ---------------------------------------------------------------------- precision and accumulation


@case
def accumulation(rank: int, folder: Path) -> Any:
    sde = flow()
    train(sde, backend=alone(gradient_accumulation_steps=3))
    return shown(sde), state(sde)


@case
def half_precision(rank: int, folder: Path) -> Any:
    sde, found = mlp(), []
    hook = sde.net.out.register_forward_hook(lambda layer, given, out: found.append(out.dtype))
    net = sde.net
    train(
        sde,
        Law().sample(100, torch.Generator().manual_seed(1)),
        backend=alone(mixed_precision="bf16"),
    )
    hook.remove()
    sde.ema.out._forward_hooks.clear()
    kinds = {p.dtype for p in sde.parameters()}
    found = set(found)
    x = scoresde.sample(sde, 5, steps=5, generator=torch.Generator().manual_seed(0))
    log_p = scoresde.log_prob(sde, x, steps=5)
    return (
        found,
        kinds,
        sde.net is net,
        can_trace(sde.net),
        can_trace(sde.networks()[0]),
        bool(log_p.isfinite().all()),
    )


@case
def scaled_losses(rank: int, folder: Path) -> Any:
    sde, accelerator = flow(), alone()
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=7)
    train(sde, backend=accelerator, out=folder / "scaled", every=STEPS)
    about, _ = storage.read(folder / "scaled", f"step-{STEPS:08d}")
    return shown(sde), state(sde), about["scaler"]


class Spare(Line):
    """With a layer that is never asked, and one that is asked at every other call."""

    def __init__(self) -> None:
        super().__init__()
        self.never, self.sometimes = nn.Linear(2, 2).double(), nn.Linear(2, 2).double()
        with torch.no_grad():
            for p in [*self.never.parameters(), *self.sometimes.parameters()]:
                p.fill_(0.5)

    def forward(self, x: Tensor, t: Tensor, **row: Tensor) -> Tensor:
        out = super().forward(x, t, **row)
        return out + self.sometimes(x) - self.sometimes(x).detach() if len(self.seen) % 2 else out


@case
def spare_layers(rank: int, folder: Path) -> Any:
    """Without and with gradients that are accumulated."""
    found = []
    for accumulated in (1, 2):
        sde = flow()
        sde.net = Spare()
        train(sde, backend=alone(gradient_accumulation_steps=accumulated))
        found.append(state(sde))
    return found


@case
def conditions_that_never_come(rank: int, folder: Path) -> Any:
    found = []
    data, vector = (
        Law().sample(40, torch.Generator().manual_seed(1)).float(),
        100 + torch.arange(80.0).view(40, 2),
    )
    for given in (None, {"y": torch.arange(40) % 2}, {"vector": vector}):
        with torch.random.fork_rng():
            torch.manual_seed(7)
            sde = scoresde.build("rectified", "resmlp", shape=(2,), width=8, classes=2, vector=2)
        train(sde, data, given=given, backend=alone())
        found.append((state(sde), sde.learnt))
    return found


# ---------------------------------------------------------------------- interrupted runs


def stopped(folder: Path, accelerator: Any, fails: int | None, **options: Any) -> ScoreSDE:
    sde = flow(fails=fails)
    try:
        train(sde, backend=accelerator, out=folder, every=5, **options)
    except RuntimeError as error:
        if "the power is gone" not in str(error):
            raise
    return sde


@case
def uninterrupted(rank: int, folder: Path) -> Any:
    sde = flow()
    history = train(sde, backend=alone(), out=folder / "whole", every=5, noise="adaptive")
    return state(sde), history.loss


@case
def interrupted_twice(rank: int, folder: Path) -> Any:
    for fails in (8, 13):
        stopped(folder / "parts", alone(), fails, noise="adaptive", resume=True)
    sde = flow()
    history = train(
        sde, backend=alone(), out=folder / "parts", every=5, noise="adaptive", resume=True
    )
    return state(sde), history.loss


@case
def gone_on_with(rank: int, folder: Path) -> Any:
    """From step 10 of the one process before to step 20."""
    return shown(stopped(folder / "chain", alone(), 11, resume=True))[:10]


@case
def a_loader_that_is_stopped(rank: int, folder: Path) -> Any:
    stopped(
        folder / "loader",
        alone(),
        11,
        data=DataLoader(Rows(), BATCH // WORLD, shuffle=True, drop_last=True),
    )


# ---------------------------------------------------------------------- afterwards


@case
def afterwards(rank: int, folder: Path) -> Any:
    sde, accelerator = mlp(), alone()
    net = sde.net
    for _ in range(2):
        train(
            sde,
            torch.randn(100, 2, generator=torch.Generator().manual_seed(1)),
            steps=5,
            backend=accelerator,
        )
    left = len(accelerator._models) + len(accelerator._optimizers)
    with scoresde.sharded():
        x = scoresde.sample(sde, 9, steps=5, generator=torch.Generator().manual_seed(3))
    return sde.net is net, left, all(p.grad is None for p in sde.parameters()), x, state(sde)


@case
def weights_of_rank_0(rank: int, folder: Path) -> Any:
    sde = mlp()
    if rank == 1:
        for p in sde.parameters():
            nn.init.normal_(p)
    sde.net.out.bias.requires_grad_(False)
    train(
        sde,
        torch.randn(100, 2, generator=torch.Generator().manual_seed(1)),
        steps=3,
        backend=alone(),
    )
    return state(sde)


# ---------------------------------------------------------------------- sharded weights


def sharding() -> Any:
    """An Accelerator that shards on the CPU: it would make one of several GPUs alone, but what it
    does then runs here, too.
    """
    accelerator = alone()
    accelerator.state.distributed_type = accelerate.DistributedType.FSDP
    accelerator.state.fsdp_plugin = accelerate.FullyShardedDataParallelPlugin(fsdp_version=2)
    return accelerator


@case
def sharded(rank: int, folder: Path) -> Any:
    sde = flow()
    net, kind = sde.net, type(sde.net)
    train(sde, torch.zeros(50, 2), validation=torch.ones(9, 2), every=10, backend=sharding())
    plain = all(type(p.data) is Tensor for p in sde.parameters())
    return shown(sde), state(sde), sde.net is net and type(sde.net) is kind and plain


@case
def sharded_and_stopped(rank: int, folder: Path) -> Any:
    return shown(stopped(folder / "sharded", sharding(), 11))[:10]


@case
def sharded_and_gone_on_with(rank: int, folder: Path) -> Any:
    """From where one process left it, by two."""
    sde = stopped(folder / "other", sharding(), None, resume=True)
    return shown(sde), state(sde)


# ---------------------------------------------------------------------- failures


@case
def nan_on_one_rank(rank: int, folder: Path) -> Any:
    sde = flow(nan=5 if rank == 1 else None)
    try:
        train(sde, backend=alone())
    finally:
        assert all(bool(value.isfinite().all()) for value in sde.state_dict().values())


@case
def a_write_that_fails(rank: int, folder: Path) -> Any:
    real, calls = storage.write, [0]

    def write(*arguments: Any) -> None:
        calls[0] += 1
        if calls[0] == 2:
            raise scoresde.CheckpointError("no space left on device")
        real(*arguments)

    storage.write = write  # type: ignore[assignment]
    try:
        train(flow(), backend=alone(), out=folder / "full", every=5)
    finally:
        storage.write = real


@case
def a_folder_in_use(rank: int, folder: Path) -> Any:
    train(flow(), backend=alone(), out=folder / "whole")


@case
def other_arguments(rank: int, folder: Path) -> Any:
    train(flow(), backend=alone(), lr=0.1 * (rank + 1))


@case
def other_data(rank: int, folder: Path) -> Any:
    train(flow(), torch.full((50, 2), float(rank)), backend=alone())


@case
def another_model(rank: int, folder: Path) -> Any:
    train(mlp() if rank else flow(), backend=alone())


@case
def bad_data_on_one_rank(rank: int, folder: Path) -> Any:
    train(flow(), torch.zeros(50, 2 + rank), backend=alone())


@case
def bad_values_on_one_rank(rank: int, folder: Path) -> Any:
    class Bad:
        def sample(self, n: int) -> Tensor:
            return torch.full((n, 2), math.nan if rank == 0 else 0.5) + torch.randn(n, 2)

    train(mlp(), Bad(), backend=alone())


@case
def an_odd_batch(rank: int, folder: Path) -> Any:
    train(flow(), batch_size=7, backend=alone())


@case
def a_wrapped_network(rank: int, folder: Path) -> Any:
    sde = flow()
    sde.net = nn.parallel.DistributedDataParallel(sde.net)
    train(sde, backend=alone())


FAIL = {  # what each rank raises, and words of its message
    "nan_on_one_rank": [("TrainingError", "the loss is nan")] * 2,
    "a_write_that_fails": [
        ("CheckpointError", "no space left"),
        ("CheckpointError", "on the main process"),
    ],
    "a_folder_in_use": [
        ("CheckpointError", "holds a run at step 30"),
        ("CheckpointError", "on the main process"),
    ],
    "other_arguments": [("ValueError", "lr is 0.1 on rank 0, 0.2 on rank 1")] * 2,
    "other_data": [("ValueError", "data is {")] * 2,
    "another_model": [("ValueError", 'dtype is "float64" on rank 0')] * 2,
    "bad_data_on_one_rank": [
        ("TrainingError", "rank 1 failed: ValueError: data has shape"),
        ("ValueError", "data has shape"),
    ],
    "bad_values_on_one_rank": [
        ("ValueError", "NaN"),
        ("TrainingError", "rank 0 failed: ValueError"),
    ],
    "an_odd_batch": [("ValueError", "take a multiple of 2")] * 2,
    "a_wrapped_network": [("ValueError", "give the network itself")] * 2,
}


def attempt(function: Callable[[int, Path], Any], rank: int, folder: Path) -> Outcome:
    try:
        return "came", function(rank, folder)
    except Exception as error:
        return type(error).__name__, str(error)


def work(rank: int, name: str) -> None:
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(WORLD),
        "MASTER_ADDR": "127.0.0.1",
    }
    timeout = datetime.timedelta(seconds=LIMIT)
    dist.init_process_group(
        "gloo", init_method=f"file://{name}/meet", rank=rank, world_size=WORLD, timeout=timeout
    )
    outcomes: dict[str, Outcome] = {}
    for key, function in CASES.items():
        outcomes[key] = attempt(function, rank, Path(name))
    torch.save(outcomes, f"{name}/{rank}.pt")
    dist.barrier()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("accelerate")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is no registered backbone
        torch.save(shown(stopped(folder / "chain", None, 11))[:10], folder / "first.pt")
    shutil.copytree(folder / "chain", folder / "other")
    torch.multiprocessing.set_forkserver_preload(
        ["scoresde", "accelerate", "torch._dynamo"]
    )  # imported once for both
    pair = torch.multiprocessing.start_processes(
        work, (str(folder),), WORLD, join=False, start_method="forkserver"
    )
    assert pair is not None
    try:
        end = time.monotonic() + LIMIT
        while not pair.join(max(end - time.monotonic(), 0)):
            assert time.monotonic() < end, f"the ranks hang: not done in {LIMIT} s"
        yield folder
    finally:
        for process in pair.processes:
            process.kill()


@pytest.fixture(scope="module")
def outcomes(folder: Path) -> list[dict[str, Outcome]]:
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(WORLD)]


def both(outcomes: list[dict[str, Outcome]], name: str) -> list[Any]:
    for rank in range(WORLD):
        assert outcomes[rank][name][0] == "came", outcomes[rank][name]
    return [outcomes[rank][name][1] for rank in range(WORLD)]


def agree(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def batches(*ranks: list[dict[str, Tensor]]) -> list[tuple[Tensor, Tensor]]:
    """What all ranks were shown at each step, together."""
    steps = []
    pieces = len(ranks[0]) // STEPS or 1
    for i in range(0, len(ranks[0]), pieces):
        some = [each for seen in ranks for each in seen[i : i + pieces]]
        steps.append(
            (torch.cat([each["x"] for each in some]), torch.cat([each["t"] for each in some]))
        )
    return steps


def replayed(steps: list[tuple[Tensor, Tensor]]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights and their average after E‖W·x + b − x/t‖² was made small at each step, in plain
    torch.
    """
    assert len(steps) == STEPS
    net = Line()
    optimizer = torch.optim.Adam(net.parameters(), betas=(0.9, 0.99))
    average = {name: p.detach().clone() for name, p in net.named_parameters()}
    for k, (x, t) in enumerate(steps, 1):
        optimizer.zero_grad()
        nn.functional.mse_loss(net.line(x), x / t[:, None]).backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.param_groups[0]["lr"] = LR * min(
            k / 3, 0.5 * (1 + math.cos(math.pi * (k - 1) / STEPS))
        )
        optimizer.step()
        decay = min(0.5 ** (1 / HALF), k / (9 + k)) if k > 1 else 0.0
        for name, p in net.named_parameters():
            average[name] = decay * average[name] + (1 - decay) * p.detach()
    return {name: p.detach() for name, p in net.named_parameters()}, average


def check(weights: dict[str, Tensor], steps: list[tuple[Tensor, Tensor]]) -> None:
    for part, wanted in zip(("net.", "ema."), replayed(steps), strict=True):
        for name, value in wanted.items():
            torch.testing.assert_close(weights[part + name], value, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(
    "name",
    [
        "a_table",
        "a_dataset",
        "a_loader",
        "accumulation",
        "scaled_losses",
        pytest.param("sharded", marks=fsdp),
    ],
)
def test_weights_are_those_of_a_loop_over_both_ranks_batches(
    name: str, outcomes: list[dict[str, Outcome]]
) -> None:
    (seen, one, *_), (other, two, *_) = both(outcomes, name)
    assert agree(one, two)
    check(one, batches(seen, other))


@pytest.mark.parametrize("name", ["a_table", "a_dataset"])
def test_two_ranks_share_the_rows_of_one_process(
    name: str, outcomes: list[dict[str, Outcome]]
) -> None:
    sde, (x, given) = flow(), rows()
    if name == "a_table":
        train(sde, x, given=given)
    else:
        train(sde, Rows())
    (seen, _), (other, _) = both(outcomes, name)
    for one, a, b in zip(shown(sde), seen, other, strict=True):
        assert torch.equal(one["row"], torch.cat([a["row"], b["row"]]))


def test_ranks_take_turns_at_a_loader(outcomes: list[dict[str, Outcome]]) -> None:
    sde = flow()
    train(sde, DataLoader(Rows(), BATCH // WORLD, shuffle=True, drop_last=True))  # type: ignore[arg-type]
    turns = [
        each["row"]
        for pair in zip(*(seen for seen, _ in both(outcomes, "a_loader")), strict=True)
        for each in pair
    ]
    for wanted, got in zip(shown(sde)[:12], turns[:12], strict=True):  # an epoch
        assert torch.equal(wanted["row"], got)


@pytest.mark.parametrize("name", ["a_table", "a_dataset", "a_loader", "a_law"])
def test_ranks_have_noise_and_draws_of_their_own(
    name: str, outcomes: list[dict[str, Outcome]]
) -> None:
    one, two = (
        torch.cat([torch.cat([each["t"], each["x"].flatten()]) for each in seen])
        for seen, _ in both(outcomes, name)
    )
    assert not set(one.tolist()) & set(two.tolist())


@pytest.mark.parametrize("name", ["a_law", "measured_by_a_loader", "weights_of_rank_0"])
def test_ranks_have_the_same_model(name: str, outcomes: list[dict[str, Outcome]]) -> None:
    one, two = both(outcomes, name)
    one, two = (one[1], two[1]) if name == "a_law" else (one, two)
    assert agree(one, two)
    if name == "weights_of_rank_0":
        assert torch.equal(one["net.out.bias"], mlp().state_dict()["net.out.bias"])


def test_layers_that_no_loss_depends_on_are_waited_for_by_none(
    outcomes: list[dict[str, Outcome]],
) -> None:
    one, two = both(outcomes, "spare_layers")
    for mine, theirs in zip(one, two, strict=True):
        assert agree(mine, theirs)
        assert torch.equal(mine["net.never.weight"], torch.full((2, 2), 0.5, dtype=torch.float64))
        assert not torch.equal(
            mine["net.sometimes.weight"], torch.full((2, 2), 0.5, dtype=torch.float64)
        )
        assert not torch.equal(mine["net.line.weight"], flow().state_dict()["net.line.weight"])


def test_conditions_that_the_network_takes_need_not_come(
    outcomes: list[dict[str, Outcome]],
) -> None:
    one, two = both(outcomes, "conditions_that_never_come")
    for (mine, learnt), (theirs, other), names in zip(
        one, two, ([], ["y"], ["vector"]), strict=True
    ):
        assert agree(mine, theirs)
        assert learnt == other
        assert list(learnt["conditions"]) == names
    torch.testing.assert_close(
        mine["conditions.vector.mean"], torch.tensor([139.0, 140.0], dtype=torch.float64)
    )


def test_half_precision_is_over_after_training(outcomes: list[dict[str, Outcome]]) -> None:
    for found in both(outcomes, "half_precision"):
        assert found == ({torch.bfloat16}, {torch.float32}, True, True, True, True)


def test_the_loss_scale_is_in_the_checkpoint(outcomes: list[dict[str, Outcome]]) -> None:
    for _, _, scaler in both(outcomes, "scaled_losses"):
        assert scaler["scale"] == 1024.0 * 2 ** (STEPS // 7)
        assert scaler["_growth_tracker"] == STEPS % 7


def test_an_interrupted_run_is_that_of_one_that_was_not(
    outcomes: list[dict[str, Outcome]],
) -> None:
    (whole, loss), (other, same) = both(outcomes, "uninterrupted")
    assert agree(whole, other)
    assert loss == same
    for weights, losses in both(outcomes, "interrupted_twice"):
        assert agree(weights, whole)
        assert losses == loss


@pytest.mark.filterwarnings("ignore:the run can be resumed")
def test_a_run_goes_from_one_rank_to_two_and_back(
    folder: Path, outcomes: list[dict[str, Outcome]]
) -> None:
    sde = stopped(folder / "chain", None, None, resume=True)
    check(
        state(sde),
        batches(torch.load(folder / "first.pt"))
        + batches(*both(outcomes, "gone_on_with"))
        + batches(shown(sde)),
    )


@pytest.mark.filterwarnings("ignore:the run can be resumed")
def test_a_loader_is_where_it_was_for_another_number_of_ranks(
    folder: Path, outcomes: list[dict[str, Outcome]]
) -> None:
    both(outcomes, "a_loader_that_is_stopped")
    loader: Any = DataLoader(Rows(), BATCH // WORLD, shuffle=True, drop_last=True)
    whole = flow()
    train(whole, loader)
    sde = stopped(folder / "loader", None, None, data=loader, resume=True)
    for wanted, got in zip(
        shown(whole)[20:], shown(sde)[:10], strict=True
    ):  # 10 steps of 2 batches came before
        assert torch.equal(wanted["row"], got["row"])


@fsdp
@pytest.mark.filterwarnings("ignore:the run can be resumed")
def test_a_sharded_run_goes_on_in_one_process(
    folder: Path, outcomes: list[dict[str, Outcome]]
) -> None:
    sde = stopped(folder / "sharded", None, None, resume=True)
    check(state(sde), batches(*both(outcomes, "sharded_and_stopped")) + batches(shown(sde)))


@fsdp
def test_a_run_of_one_process_goes_on_sharded(
    folder: Path, outcomes: list[dict[str, Outcome]]
) -> None:
    (seen, one), (other, two) = both(outcomes, "sharded_and_gone_on_with")
    assert agree(one, two)
    check(one, batches(torch.load(folder / "first.pt")) + batches(seen, other))


@fsdp
def test_a_sharded_network_is_whole_and_the_users_own_afterwards(
    outcomes: list[dict[str, Outcome]],
) -> None:
    assert [found[2] for found in both(outcomes, "sharded")] == [True, True]


def test_all_is_as_before_after_training(outcomes: list[dict[str, Outcome]]) -> None:
    (own, left, free, x, one), (_, _, _, same, two) = both(outcomes, "afterwards")
    assert (own, left, free) == (True, 0, True)
    assert torch.equal(x, same)
    assert agree(one, two)


@pytest.mark.parametrize("name", FAIL)
def test_all_ranks_fail_together(name: str, outcomes: list[dict[str, Outcome]]) -> None:
    for rank in range(WORLD):
        kind, text = FAIL[name][rank]
        assert outcomes[rank][name][0] == kind, outcomes[rank][name]
        assert text in outcomes[rank][name][1]


def test_what_is_no_accelerator() -> None:
    with pytest.raises(TypeError, match=r"an accelerate.Accelerator or a scoresde.Backend, got"):
        train(flow(), backend="bf16")
    other = types.SimpleNamespace(distributed_type="DEEPSPEED", backward=print)
    with pytest.raises(ValueError, match="distributes by DEEPSPEED"):
        train(flow(), backend=other)
    other.distributed_type, other.state = (
        "FSDP",
        types.SimpleNamespace(fsdp_plugin=types.SimpleNamespace(fsdp_version=1)),
    )
    with pytest.raises(ValueError, match="FSDP is supported in version 2"):
        train(flow(), backend=other)


@pytest.mark.parametrize("noise", ["uniform", "adaptive"])
def test_accumulated_gradients_are_those_of_the_batch(noise: str) -> None:
    sde, other = flow(), flow()
    train(sde, noise=noise)
    try:
        train(other, noise=noise, backend=alone(gradient_accumulation_steps=4))
    finally:
        accelerate.state.AcceleratorState._reset_state(True)
        accelerate.state.GradientState._reset_state()
    for name, value in sde.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], value, rtol=1e-11, atol=1e-11)
