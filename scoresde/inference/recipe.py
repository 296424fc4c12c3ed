"""`posterior`: a conditional model trained on simulated pairs, by one recipe for all of them."""

from __future__ import annotations

import math
from typing import Any, Unpack

import torch
from torch import Tensor

from ..common.checks import check_generator, real_number, true_or_false, whole_number
from ..common.inputs import as_reals
from ..common.names import choose
from ..common.random import draw_seed
from ..common.seeds import takes_seed
from ..common.user_warnings import warn
from ..model.require import require_sde
from ..model.score_sde import ScoreSDE
from ..training.keywords import PosteriorKeywords
from ..training.options import AUTO, as_averaging
from ..training.plan import as_steps
from .amortized import Posterior
from .observations import with_names
from .pairs import FEWEST, Pairs, Training, default_model
from .prior import Prior, as_prior
from .surrogate import retrained, wanted

BOUNDS = ("transform", "reject")
MOST_HELD_OUT = 0.9


@takes_seed
def posterior(
    prior: Any,
    theta: Any,
    x: Any,
    *,
    sde: ScoreSDE | None = None,
    bounds: str = "transform",
    held_out: float = 0.05,
    patience: int = 3,
    surrogate: bool = True,
    steps: int | str = 8000,
    lr: float | str = 2e-3,
    ema: float = 200.0,
    generator: torch.Generator | None = None,
    seed: int | None = None,
    **how: Unpack[PosteriorKeywords],
) -> Posterior:
    """Train a model of p(theta | x) on simulated pairs: neural posterior score estimation.

    Parameters
    ----------
    prior : torch.distributions.Distribution or pair of Tensor
        What theta was drawn from: of event shape (D,), or the corners (low, high) of a box.
    theta : Tensor, array or data frame, shape (N, D)
        Parameters, drawn from the prior.
    x : Tensor, array or data frame, shape (N, K)
        What the simulator made of each. The posterior keeps the column names of a frame, and
        matches later frames by them. Rows with NaN or infinite values are left out, with a
        warning: what is learnt is the posterior given that the simulator succeeds.
    sde : ScoreSDE, optional
        A model of shape (D,) to train, whose network takes x as a condition. By default the mean of
        two residual perceptrons of moderate size, `encoded_resmlp`, which are told how wide a
        Gaussian posterior is at x, and in which another perceptron reads x.
    bounds : str
        How the support of a bounded prior is kept. "transform": the model is one of parameters
        mapped to all of space. "reject": it is one of theta as it is, and draws outside are
        rejected.
    held_out : float
        Share of the pairs that are held out: their loss is watched, and the weights of its lowest
        value are kept, which may be those before training. At least 10 pairs are held out, or a
        fifth of them if that is fewer. At most 0.9; 0 for none. Nothing else is held out.
    patience : int
        Checks of this loss without a new lowest one before training stops, which it does not
        within 300 steps of the lowest. Checks come before training, after 20 steps, and then ever
        more rarely: see `Validation`, every="auto".
    surrogate : bool
        Whether to learn a simulator p(x | theta) too if training stops early, because there are too
        few pairs.
        A new network is then trained on the given pairs and on 20 times as many, at most 200,000.
        Their theta come from the prior, and their x from that model.
        It is trained for at most three times the steps, with four times the patience.
        The network with the lower held-out loss is kept; see `Posterior.surrogate_pairs`.
        All of it takes four to twenty times as long.
        It is skipped for your own network, for more than 50 numbers in x, with normal scores in
        place of heavy tails, if simulations failed, and if no step lowered the held-out loss.
        A log is that of the first training. Checkpoints of the others are in its folder.
    steps : int or "auto"
        Optimizer steps, at most. "auto" counts them by the pairs that are trained on: see `fit`.
    lr, ema
        The learning rate and the half-life of the average: see `fit`.
    generator : torch.Generator, optional
        The randomness of everything.
    seed : int, optional
        An integer in place of the generator.
    **how
        As for `fit`: batch_size, objective, checkpoints, backend, progress.

    Returns
    -------
    Posterior

    Raises
    ------
    TypeError, ValueError
        For arrays that do not fit one another or the prior, and parameters outside its support,
        before any work starts.
    TrainingError
        As `fit`.

    Warns
    -----
    UserWarning
        If simulations were left out, or learning a simulator failed.

    References
    ----------
    Geffner et al., Compositional score modeling for simulation-based inference, ICML 2023. Sharrock
    et al., Sequential neural score estimation, ICML 2024. Lueckmann et al., Benchmarking
    simulation-based inference, AISTATS 2021. Wiqvist et al., Sequential neural posterior and
    likelihood approximation, 2021.

    Examples
    --------
    >>> import scoresde
    >>> low, high = -torch.ones(2), torch.ones(2)
    >>> theta = low + (high - low) * torch.rand(500, 2)
    >>> x = theta + 0.1 * torch.randn(500, 2)
    >>> post = scoresde.posterior((low, high), theta, x, steps=50, progress=False)
    >>> post.sample((1000,), x=torch.tensor([0.5, 0.9])).shape
    torch.Size([1000, 2])
    """
    choose("bounds", bounds, BOUNDS)
    true_or_false("surrogate", surrogate)
    real_number("held_out", held_out, 0, MOST_HELD_OUT, closed=True, hint="try 0.05")
    _check({**how, "steps": steps, "lr": lr, "ema": ema, "patience": patience})
    check_generator(generator)
    known = as_prior(prior)
    if sde is not None:
        require_sde(sde, "posterior")
    names, theta, x = with_names(sde, theta, x)
    theta, x, failed = _pairs(known, theta, x)
    chance = torch.Generator().manual_seed(draw_seed(generator))
    if sde is None and x.ndim != 2:
        raise ValueError(
            f"x has shape {tuple(x.shape)}, wanted (N, K); flatten it, or give a model that takes "
            "it, sde=scoresde.build('rectified', 'resmlp', shape=(D,), image=…)"
        )
    free = torch.full((known.dim,), math.inf, dtype=torch.float64)
    low, high = (known.low, known.high) if bounds == "transform" else (-free, free)
    pairs = Pairs.divided(theta, x, held_out, chance)
    training = Training(steps, lr, ema, patience, how, chosen=sde is None)
    coordinates = pairs.measured(low, high, sde is None)
    told = x if sde is not None else coordinates.told(x)
    model = default_model(known.dim, told.shape[1], chance) if sde is None else sde
    made = Posterior(model, known, coordinates=coordinates)
    made._names = names
    w, _ = coordinates.forward(theta, x.flatten(1))
    made.history = training.fit(model, made.condition, w, told, pairs, chance)
    if surrogate and sde is None and not failed and wanted(made, pairs):
        made = retrained(made, pairs, training, chance)
    return made


def _check(how: dict[str, Any]) -> None:
    """Raise for bad numbers, and for arguments of `fit` that `posterior` sets."""
    own = {
        "given": "x is the condition",
        "validation": "held_out= and patience= say what is held out",
        "data": "theta and x are the data",
        "transforms": "theta is mapped by bounds=",
    }
    for name, why in own.items():
        if name in how:
            raise TypeError(f"posterior has no argument {name!r}: {why}")
    whole_number("patience", how["patience"])
    whole_number("batch_size", how.get("batch_size", 1))
    as_steps(how["steps"])
    as_averaging(how["ema"])
    if how["lr"] != AUTO:
        real_number("lr", how["lr"], 0, math.inf, hint="try 2e-3")


def _pairs(
    prior: Prior,
    theta: Any,
    x: Any,
) -> tuple[Tensor, Tensor, int]:
    """Parameters (N, D) and simulations (N, *shape) that can be trained on, on the CPU; checked.

    The last is how many simulations failed.
    """
    theta = _floating(theta, "theta")
    x = _floating(x, "x")
    if tuple(theta.shape[1:]) != (prior.dim,):
        raise ValueError(
            f"theta has shape {tuple(theta.shape)} and the prior {prior.dim} parameters: wanted "
            f"(N, {prior.dim})"
        )
    if not x[:1].numel() and len(x):
        raise ValueError(f"x has shape {tuple(x.shape)}: an observation has at least one number")
    if len(x) != len(theta):
        raise ValueError(f"theta has {len(theta)} rows and x has {len(x)}: wanted one x for each")
    outside = int((~prior.contains(theta) | ~theta.isfinite().all(1)).sum())
    if outside:
        raise ValueError(
            f"{outside} of {len(theta)} rows of theta lie outside the prior's support; draw them "
            "from the prior, prior.sample((N,))"
        )
    good = x.isfinite().flatten(1).all(1)
    bad = int((~good).sum())
    if len(theta) - bad < FEWEST:
        raise ValueError(
            f"{len(theta) - bad} pairs are left to train on, with {bad} simulations that are NaN "
            f"or infinite: wanted at least {FEWEST}"
        )
    if bad:
        warn(
            f"{bad} of {len(theta)} simulations have NaN or infinite values and are left out: the "
            "posterior is the one given that the simulator succeeds"
        )
        theta = theta[good]
        x = x[good]
    return theta, x, bad


def _floating(value: Any, what: str) -> Tensor:
    """Real numbers (N, …) on the CPU, with an axis for single ones."""
    numbers = as_reals(value, what).detach().cpu()
    if numbers.ndim == 0:
        raise ValueError(f"{what} is one number, wanted (N, D)")
    if not numbers.is_floating_point():
        numbers = numbers.to(torch.get_default_dtype())
    return numbers[:, None] if numbers.ndim == 1 else numbers
