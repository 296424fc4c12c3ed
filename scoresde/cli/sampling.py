"""`scoresde sample`: draw samples from a model into a file."""

from __future__ import annotations

import argparse

import torch

from ..common.sharding import sharded
from ..data import files
from ..data.files.formats import writable
from ..data.files.mixed import check_table_path
from ..guidance.free import classifier_free
from ..model.protocol import Model
from ..sampling.trajectory import sample as draw
from ..sampling.trajectory import solve
from ..solvers import SOLVERS
from ..storage.models import load
from .devices import is_main, place, say
from .inputs import conditions, with_constants
from .parser import DEVICE, GIVEN, IMPORT, MODEL, SEED, Command, option
from .tables import write_rows


def sample(args: argparse.Namespace) -> None:
    """Draw samples and write them."""
    writable(args.out)
    generator = torch.Generator().manual_seed(args.seed)
    sde = load(args.model)
    if sde.table is not None:
        check_table_path(args.out)
    _, texts = conditions(args)
    conditioned = _guided(with_constants(sde, texts), args.guidance, texts)
    engine = place(sde, args.device)
    if sde.table is not None:
        with sharded():
            rows = draw(
                conditioned, args.n, solver=args.solver, steps=args.steps, generator=generator
            )
        if is_main(engine):
            write_rows(args.out, rows)
        say(engine, f"{args.out}: {args.n:,} rows")
        return
    with sharded():
        solution = solve(
            conditioned, args.n, solver=args.solver, steps=args.steps, generator=generator
        )
    if is_main(engine):
        files.write(args.out, solution.x[-1].cpu(), columns=sde.schema.columns)
    nfe = float(solution.nfe.double().mean())
    say(engine, f"{args.out}: {args.n:,} samples, {nfe:.0f} evaluations each")


def _guided(sde: Model, scale: float | None, texts: dict[str, str]) -> Model:
    """The model under classifier-free guidance, if a scale is given."""
    if scale is None:
        return sde
    if not texts:
        raise ValueError("--guidance strengthens a condition: name it by --given, such as y=3")
    return classifier_free(sde, scale)


COMMANDS = {
    "sample": Command(
        help="draw samples from a model",
        run=sample,
        options=(
            MODEL,
            option("-n", type=int, default=1, help="how many (default: %(default)s)"),
            option(
                "--solver",
                help=f"(default: the model's own, mostly adams) {', '.join(SOLVERS)}",
            ),
            option(
                "--steps",
                type=int,
                help="a fixed number of steps; without it adaptive solvers go by tolerances",
            ),
            SEED,
            GIVEN,
            option(
                "--guidance",
                type=float,
                metavar="SCALE",
                help="classifier-free guidance towards --given: 1 is none, 0 leaves the condition "
                "out, more than 1 strengthens it",
            ),
            DEVICE,
            option(
                "--out",
                required=True,
                help=f"{', '.join(files.WRITERS)}; tables have the header of the data",
            ),
            IMPORT,
        ),
    )
}
