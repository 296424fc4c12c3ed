"""What a trained model is worth on held-out data, in one call: bits/dim or log p, a sheet of
samples, the Fréchet distance.

Integers are scored in bits per dimension (see `scoresde.density.bits`), with uniform
dequantization and, if several draws are asked for, by the importance-weighted bound as well. Of
other data log p(x) is evaluated, in nats.

The seed determines all randomness: the order of the data, their noise, their probes, the samples.
There is one random order of the data. The first n are scored, and samples take the conditions of
the first ones, again and again. So data sorted by class do no harm, and the data that were scored
before an interruption are a random subset. The data are scored `SCORED_AT_ONCE` at a time, each
part with a separate random stream; the file is written after each part.

The table `scoresde.evaluation.measures.MEASURES` holds all measures.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from ..common import plotting
from ..common.checks import as_path, check_budget, check_seed, whole_number
from ..common.progress import check_progress
from ..common.sharding import share
from ..density.density_ode import check_how
from ..density.dequantize import Uniform
from ..density.options import ScoreOptions
from ..metrics.frechet import Features, moments, resolve_features
from ..model.eval_mode import evaluating
from ..model.latent import Latent
from ..model.protocol import Model
from ..model.require import require_model
from ..sampling.plan import tolerance
from .held_out import check_values, held_out, is_discrete, random_order
from .measures import DRAWN_AT_ONCE, MEASURES, SCORED_AT_ONCE, Task, as_bytes
from .results import Evaluation, fingerprint
from .table_rows import Rows, evaluate_rows, new_evaluation

EXACT_TRACE_DIM = 256  # numbers of a sample up to which the trace is exact, unless the user says
DEFAULT_PROBES = 2
INTEGER_TOLERANCE = 1e-4  # of the likelihood of integers, in nats; bits/dim divide it by D·ln 2
FINGERPRINT_ROWS = 1000  # data that the fingerprint reads


def evaluate(
    sde: Model,
    data: Any,
    *,
    given: Mapping[str, Tensor] | None = None,
    n: int = 1000,
    draws: int = 1,
    levels: int = 256,
    samples: int = 64,
    fid: int = 0,
    features: str | Features | None = "inception",
    seed: int = 0,
    out: str | os.PathLike[str] | None = None,
    notes: Mapping[str, Any] | None = None,
    progress: bool | None = None,
    **options: Unpack[ScoreOptions],
) -> Evaluation:
    """Score held-out data, draw a sheet of samples, and measure the Fréchet distance, by one seed.

    Integers are scored in bits/dim, −log₂ P(v)/D from above, other numbers by the mean of log p(x)
    in nats. Errors by solver and prior are measured on the first 128, as they take a second solve.
    All arguments are checked before the work. If it is interrupted, what was measured so
    far is in `out`. Results of the same model, data and seed that the file there holds are kept
    until they are measured again; results of others are replaced by the first new one.

    What is measured are the rows of `scoresde.evaluation.measures.MEASURES`; a new metric is one
    row of it.

    Parameters
    ----------
    sde : ScoreSDE or Latent
        For a Latent, bits/dim are the bound of `latent_bound`, with one latent for each draw of the
        noise; floating-point data are not scored.
    data : Tensor, array, data frame or Samples, shape (N, *shape)
        Held-out: integers 0 … levels − 1 for a model of the unit scale, or floating-point data in
        their own units. For a model of a `Table`, a data frame with its columns: log p is then that
        of `log_prob`, in the units of the columns. `metrics` has the levels `coverage`, and the
        share of held-out rows inside the model's regions of these probabilities, by density and
        by column. The shares of a calibrated model equal the levels.
    given : mapping of str to Tensor, optional
        Conditions by name, one row per datum. Samples take those of the data in the seed's random
        order, round after round.
    n : int
        How many to score, a random subset of that seed; all if there are no more. 0 for none.
    draws : int
        k. More than one evaluates the importance-weighted bound with k draws, after the usual one,
        which takes k times as long.
    levels : int
        L, the number of levels of integers.
    samples : int
        How many to draw, 0 for none. With `out` they are written there: images, (1 or 3, H, W), on
        a sheet, samples.png; vectors as a table, samples.csv, with the model's column names, and
        up to 8 columns beside the data in pairs.png; others as an array, samples.npy.
    fid : int
        How many samples to draw for the Fréchet distance to all of `data`; for a useful one, far
        more than features. 0 for none.
    features : str, callable or None
        As for `frechet_distance`; integers reach them as bytes 0 … 255, ⌊(v + ½)·256/L⌋. None
        takes the integers themselves.
    seed : int
        The seed of all randomness, 0 ≤ seed < 2⁶³.
    out : path, optional
        A folder for evaluation.json and the samples; made if it does not exist.
    notes : mapping, optional
        For the file alone, such as where model and data come from. What JSON can't hold is written
        as its `str`.
    progress : bool, optional
        Show a progress bar. By default on a terminal, from two seconds on.
    **options
        Of the likelihood: rtol=, atol=, steps=, batch_size=, … as for `likelihood`, and
        trace= : "exact" or "hutchinson"; by default exact for samples of up to 256 numbers, unless
        probes are given, and for several draws of a Latent;
        probes= : of an estimated trace, by default 2; one probe does not show the error of one
        value, but that of the mean;
        solver= : by default "adams", for integers with rtol = atol = 1e-4; samples are drawn by
        the model's own solver.

    Returns
    -------
    Evaluation

    Raises
    ------
    TypeError, ValueError, OSError, ImportError
        For data of another shape or kind than the model's, bad arguments, a folder that can't be
        written, or a missing package.
    SolverError
        As `likelihood`.

    References
    ----------
    Theis et al., ICLR 2016, and Burda et al., ICLR 2016, eq. 8, for the bits; Heusel et al.,
    NeurIPS 2017, for the distance.

    Examples
    --------
    >>> mixture = scoresde.toy.EightGaussians()
    >>> sde = scoresde.oracle(mixture, scoresde.RectifiedFlow())
    >>> how = {"n": 100, "samples": 4, "fid": 200, "features": None, "progress": False}
    >>> held_out = mixture.sample(200, generator=torch.Generator().manual_seed(0))
    >>> found = evaluate(sde, held_out, **how)
    >>> found
    model          RectifiedFlow(), MixtureDenoiser, (2,)  (0 parameters)
    data           100 of 200, drawn at random with seed 0
    mean log p(x)  -... ± ... nats  (100 data, exact trace, ... evaluations each, ... s)
                   errors of one  (trace 0, solver ..., prior ...)
    samples        4  (... evaluations each, ... s)
    Fréchet d²     ...  (points, 200 samples, 200 data, ... s)
    >>> abs(found.score.mean + mixture.entropy()) < 4 * found.score.stderr
    True
    """
    sde = require_model(sde, "evaluate")
    n = whole_number("n", n, 0)
    samples = whole_number("samples", samples, 0)
    fid = whole_number("fid", fid, 0)
    seed = check_seed(seed)
    draws = whole_number("draws", draws)
    folder = None if out is None else as_path(out, "out")
    if sde.table is not None:
        _refuse_options_of_tensors(given, draws, fid)
        return _of_table(Rows(sde, data, n, seed), samples, folder, notes, options, progress)
    noise: Uniform | None = Uniform(levels)
    _check_arguments(sde, samples, fid, notes)
    rows = held_out(sde, data, given)
    n = min(n, len(rows))
    sketch = min(FINGERPRINT_ROWS, len(rows))
    order = random_order(len(rows), max(n, samples, fid, sketch), seed)
    scored = rows.rows(order[: max(n, 1)])
    discrete = is_discrete(scored)
    if not discrete:
        noise = None
    task = Task(
        sde=sde,
        data=rows,
        order=order,
        scored=scored,
        noise=noise,
        n=n,
        draws=draws,
        samples=samples,
        fid=fid,
        features=features,
        seed=seed,
        folder=folder,
        options=_likelihood_options(sde, discrete, draws, {**options}),
        progress=check_progress(progress),
    )
    _check(task)
    _make_folder(task)
    return _measured(task, _new_evaluation(task, order[:sketch], notes))


def _measured(task: Task, evaluation: Evaluation) -> Evaluation:
    """Record what each measure finds, and write the file after each."""
    task.evaluation = evaluation
    folder = task.folder
    kept = evaluation.kept(folder) if folder is not None and task.writes else {}
    for measure in MEASURES.values():
        for results in measure(task):
            evaluation.record(results)
            if folder is not None and task.writes:
                evaluation.write(folder, kept)
    return evaluation


def _refuse_options_of_tensors(given: object, draws: int, fid: int) -> None:
    """Raise for arguments that models of tables do not take."""
    if given is not None or draws > 1 or fid:
        raise TypeError(
            "given=, draws= and fid= are for models of tensors, and this one has learnt a "
            "table, whose rows have their categories: leave them out"
        )


def _of_table(
    rows: Rows,
    samples: int,
    folder: Path | None,
    notes: Mapping[str, Any] | None,
    options: Mapping[str, Any],
    progress: bool | None,
) -> Evaluation:
    """Evaluate a model on rows of the table that it has learnt."""
    sde = rows.sde
    _check_arguments(sde, samples, 0, notes)
    how = _likelihood_options(sde, False, 1, options)
    check_how(sde, **how)
    writes = _writable(folder)
    new = new_evaluation(
        rows, *_about(sde), device=_device_name(sde.scale.device), notes=dict(notes or {})
    )
    shown = check_progress(progress)
    if not writes:
        folder = None
    return evaluate_rows(rows, new, samples, folder, how, shown)


def _check_arguments(sde: Model, samples: int, fid: int, notes: object) -> None:
    """Raise for more samples than memory or time allow, one sample for a distance, bad notes."""
    if not isinstance(notes, Mapping | None):
        raise TypeError(
            f"notes is a mapping such as {{'model': path}}, got {type(notes).__name__}"
        )
    for name, count in (("samples", samples), ("fid", fid)):
        nbytes = float(count) * (8 + 4 * sde.dim)
        check_budget(
            f"{name}={count}", nbytes, calls=count // DRAWN_AT_ONCE, device=sde.scale.device
        )
    if fid == 1:
        raise ValueError("fid is how many samples the Fréchet distance takes, at least 2, got 1")


def _likelihood_options(
    sde: Model, discrete: bool, draws: int, options: Mapping[str, Any]
) -> dict[str, Any]:
    """The options of the likelihood, defaults filled in; probes are 0 for the exact trace."""
    trace = options.get("trace")
    probes = options.get("probes")
    if trace == "exact" and probes is not None:
        raise ValueError(
            f"probes={probes} are of an estimated trace; leave them out, or trace='exact'"
        )
    if trace is None:
        small = sde.dim <= EXACT_TRACE_DIM
        if isinstance(sde, Latent):  # one draw's log p(z) needs no exact trace, several do
            small = draws > 1
        trace = "exact" if small and probes is None else "hutchinson"
    probes = DEFAULT_PROBES if probes is None else whole_number("probes", probes)
    if trace == "hutchinson" and probes >= sde.dim:
        trace = "exact"  # as in `likelihood`: it costs no more
    solver = options.get("solver", "adams")
    chosen = {"trace": trace, "probes": probes, "solver": solver}
    more = {name: value for name, value in options.items() if name not in chosen}
    if discrete and solver == "adams" and not {"rtol", "atol", "steps"} & more.keys():
        more |= dict.fromkeys(("rtol", "atol"), max(INTEGER_TOLERANCE, tolerance(sde)))
    return chosen | more


def _check(task: Task) -> None:
    """Raise for arguments with which a measure would fail; prepare data and features."""
    sde = task.sde
    device = sde.scale.device
    if task.fid and len(task.data) < 2:
        raise ValueError("the Fréchet distance takes at least 2 data, got 1")
    if task.n and task.noise is None and isinstance(sde, Latent):
        raise TypeError(
            "evaluate scores a Latent by bits/dim of integers, and the data are "
            f"{task.scored.dtype}: scoresde.latent_bound(model, x) bounds log p, or n=0 for "
            "samples alone"
        )
    if task.draws > 1 and task.noise is None:
        raise ValueError(
            f"draws={task.draws} are of the noise of integers, and the data are {task.scored.dtype}"
        )
    if task.n:
        nbytes = 4.0 * min(task.n, SCORED_AT_ONCE) * sde.dim * task.draws
        check_budget(f"draws={task.draws}", nbytes, device=device)
    values = task.data.rows(slice(None)) if task.fid else task.scored
    check_values(sde, values, task.noise)
    task.data.model(task.order[: max(task.n, task.samples, task.fid)])  # checks all their labels
    if task.n or len(task.options) > 3:
        check_how(sde, **task.options)
    if task.fid:
        task.network = resolve_features(task.features)
        if isinstance(task.features, str) and isinstance(task.network, nn.Module):
            task.network = task.network.to(device)
        if task.as_bytes:
            parts = torch.split(values, DRAWN_AT_ONCE)
            values = torch.cat([as_bytes(part, task.levels) for part in parts])
        task.truth = values
        moments(values[:2], task.network)
    if task.samples and task.is_image:
        plotting._pyplot()
    with torch.no_grad(), evaluating(sde):  # a network that requires a condition raises here
        one = task.data.model(task.order[:1]).slice_conditions(0, 1, 1)
        one.network_fn()(torch.zeros(1, sde.dim, dtype=sde.state_dtype, device=device), 0.8, None)


def _make_folder(task: Task) -> None:
    """Make the folder of a task, and say whether this process writes there."""
    task.writes = _writable(task.folder)


def _writable(folder: Path | None) -> bool:
    """Make the folder, in one of several processes; raise ValueError if it can't be written."""
    if folder is None or share(2**20)[0] != 0:
        return False
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"can't write to {folder}: {error.strerror}") from None
    if not os.access(folder, os.W_OK):
        raise ValueError(f"can't write to {folder}: it is read-only")
    return True


def _new_evaluation(task: Task, sketch: Tensor, notes: Mapping[str, Any] | None) -> Evaluation:
    """An evaluation without results; its fingerprint reads the rows of the sketch."""
    sde = task.sde
    total = len(task.data)
    conditions = {n: value.cpu() for n, value in task.data.model(sketch).condition.items()}
    values = task.data.rows(sketch)
    model, parameters = _about(sde)
    return Evaluation(
        model=model,
        parameters=parameters,
        total=total,
        levels=task.levels,
        conditions=tuple(conditions),
        seed=task.seed,
        fingerprint=fingerprint(sde, values, conditions, total, task.levels),
        device=_device_name(sde.scale.device),
        notes=dict(notes or {}),
    )


def _about(sde: Model) -> tuple[str, int]:
    """The model in words, and its number of parameters."""
    nets = [net for part in sde._evaluated() for net in part.networks(raw=True)]
    names = ", ".join(type(net).__name__ for net in nets)
    count = sum(p.numel() for net in nets for p in net.parameters())
    return f"{sde.process!r}, {names}, {sde.shape}", count


def _device_name(device: torch.device) -> str:
    """The name of a device, for the file."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device}, {torch.get_num_threads()} threads"
