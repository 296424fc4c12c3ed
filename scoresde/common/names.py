"""Names that users type: what an unknown one may have meant, and what other libraries call it."""

from __future__ import annotations

import difflib
import functools
import inspect
import re
from collections.abc import Callable, Iterable
from typing import ParamSpec, TypeVar

from .checks import brief_repr

P = ParamSpec("P")
T = TypeVar("T")

FOREIGN_ARGUMENTS: dict[str, str] = {
    name: instead
    for names, instead in (
        (
            "seed",
            "functions that draw random numbers take one, as sample(sde, n, seed=0) does; for the "
            "weights of a new network write torch.manual_seed(seed) before",
        ),
        ("random_state random_seed rng", "write seed=, an integer, or generator="),
        ("device", "it runs where the model is: write sde.to(device)"),
        (
            "dtype precision",
            "it runs in the dtype of the model: write sde.double() or sde.float()",
        ),
        (
            "progress_bar show_progress show_progress_bars verbose disable_tqdm tqdm",
            "write progress=, True or False",
        ),
        ("num_samples n_samples nsamples num size sample_shape", "the number of samples is n"),
        ("num_steps n_steps nsteps num_inference_steps num_timesteps timesteps", "write steps="),
        (
            "epochs max_epochs num_epochs n_epochs",
            "write steps=, which are epochs * len(data) // batch_size",
        ),
        ("iterations num_iterations n_iter max_iter", "write steps="),
        ("method sampler scheduler algorithm", "write solver=, a name in scoresde.SOLVERS"),
        ("tol tolerance", "write rtol= and atol="),
        ("batch batchsize bs", "write batch_size="),
        ("learning_rate", "write lr="),
        ("optimizer optim", "fit takes Adam, with lr="),
        (
            "y label labels class_labels cond condition conditions context conditioning",
            "write sde.given(y=...), and in fit given={'y': ...}",
        ),
        (
            "guidance guidance_scale cfg cfg_scale",
            "write scoresde.classifier_free(sde.given(y=...), scale)",
        ),
        ("x_T xT latent latents init_noise", "write scoresde.decode(sde, latent)"),
        (
            "return_trajectory trajectory return_all return_intermediates",
            "write scoresde.solve(sde, n, times=...)",
        ),
        ("t_span t_eval ts", "write scoresde.solve(sde, n, times=...), decreasing from 1 to 0"),
        ("num_probes n_probes", "write probes=, with trace='hutchinson'"),
        (
            "checkpoint_dir save_dir output_dir folder path",
            "write checkpoints=, a folder, in fit; out= elsewhere",
        ),
    )
    for name in names.split()
}
"""Arguments of other libraries by name, and what to write here instead."""


MOST_LISTED = 60


def nearest(name: str, choices: Iterable[str], unlisted: Iterable[str] = ()) -> str:
    """The end of "unknown name" messages: the nearest name, if any is near, and all choices."""
    choices = sorted(choices)
    plain = {plain_name(choice): choice for choice in (*unlisted, *choices)}
    if not plain:
        return "It takes none."
    near = difflib.get_close_matches(plain_name(str(name)), plain, n=1, cutoff=0.5)
    hint = f"Did you mean {plain[near[0]]!r}? " if near else ""
    more = f" and {len(choices) - MOST_LISTED:,} more" if len(choices) > MOST_LISTED else ""
    return f"{hint}There are: {', '.join(choices[:MOST_LISTED])}{more}."


def choose(kind: str, name: object, choices: Iterable[str]) -> str:
    """Return a name if it is one of the choices; raise ValueError with the nearest otherwise."""
    if isinstance(name, str) and name in choices:
        return name
    raise ValueError(
        f"unknown {kind} {brief_repr(name)}. {nearest(brief_repr(name, str), choices)}"
    )


def suggest_arguments(verb: Callable[P, T]) -> Callable[P, T]:
    """Decorate a function: an unknown keyword raises a TypeError that says what to write."""
    known = list(inspect.signature(verb).parameters)

    @functools.wraps(verb)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        for name in kwargs:
            if name in known:
                continue
            hint = f". {nearest(name, known)}"
            if name in FOREIGN_ARGUMENTS:
                hint = f": {FOREIGN_ARGUMENTS[name]}"
            raise TypeError(f"{verb.__name__} has no argument {name!r}{hint}")
        return verb(*args, **kwargs)

    return call


def plain_name(name: str) -> str:
    """A name as other libraries may spell it: "DPM++ 2M" is "dpmpp2m"."""
    return re.sub(r"[-_ .]", "", name.lower().replace("++", "pp"))
