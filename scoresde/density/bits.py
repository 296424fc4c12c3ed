"""Bits per dimension: of integers under a model of dequantized data, or of continuous data."""

from __future__ import annotations

from typing import Any, Unpack

import torch
from torch import Tensor

from ..common.checks import brief_repr, check_generator, whole_number
from ..common.inputs import as_floats
from ..common.progress import shows_progress
from ..common.seeds import takes_seed
from ..common.sharding import together
from ..model.protocol import Model
from ..model.require import matched, require_model
from .dequantize import Dequantization
from .options import DensityOptions
from .weighted_bits import Bits, bits_of_integers, weighted_bits


@takes_seed
@shows_progress
@together()
def bits_per_dim(
    sde: Model,
    values: Any,
    dequantization: Dequantization | None,
    *,
    draws: int = 1,
    generator: torch.Generator | None = None,
    seed: int | None = None,
    **how: Unpack[DensityOptions],
) -> Bits:
    """Return bits per dimension of discrete data, an upper bound on −log₂ P(v)/D of the model.

    It is −log (1/k)·Σ_j p(x_j)/q(x_j|v) over D·ln 2, with p by the probability-flow ODE. k = 1
    gives the usual number, which falls to −log₂ P(v)/D as k grows. It is a bound up to the
    `solver_error` and `prior_gap` of the result. The model is one of data on the unit scale, as
    `dequantization.dataset(values)` has them; a UserWarning says if values look unlike what it was
    trained on. With k > 1 take the exact trace: an estimated one counts too few bits, since the
    mean of exp(log p + error) is too large. For a `Latent`, p(x|z)·p(z)/q(z|x) replaces p(x), with
    one z from q(z|x) for each draw of the noise; the result is still an upper bound.

    Parameters
    ----------
    sde : ScoreSDE or Latent
    values : Tensor or array of integers 0 … L − 1, shape (B, *shape)
        For dequantization=None floating-point data in their own units.
    dequantization : Dequantization or None
        The data's scale and noise: `Uniform(levels)` or `TruncatedNormal(levels, std)` of
        `scoresde.dequantize`; None for continuous data, whose bits −log p(x)/(D·ln 2) depend on
        their units and may be negative.
    draws : int
        k, of the importance-weighted bound. More than one need noise that reaches all of the bin:
        Uniform, or a std of at least 0.25. Noise narrower than the model's own density in the bin
        hardly ever draws the points that weigh most, and `stderr` does not know of them.
    generator : torch.Generator, optional
        The randomness, of noise and of probes: that of sample i does not depend on the others.
    seed : int, optional
        An integer in place of the generator.
    **how
        For `likelihood`: solver=, trace=, rtol=, progress=, …

    Returns
    -------
    Bits

    Raises
    ------
    TypeError, ValueError
        For values that are no integers 0 … L − 1 or not of the model's shape, or other bad
        arguments.
    SolverError
        As `likelihood`.

    References
    ----------
    Theis et al., ICLR 2016. Burda et al., Importance weighted autoencoders, ICLR 2016, eq. 8.
    Song et al., ICLR 2021, sec. 4.3.

    Examples
    --------
    A Gaussian of standard deviation 0.2 at its mean has log₂(256·0.2·√2π) bits:

    >>> gaussian = scoresde.toy.GaussianMixture([[0.5, 0.5]], stds=0.2)
    >>> sde = scoresde.oracle(gaussian, scoresde.VPSDE())
    >>> uniform = scoresde.dequantize.Uniform(256)
    >>> scoresde.bits_per_dim(sde, torch.tensor([[128, 128]]), uniform).bits
    tensor([7.0...])
    """
    if isinstance(sde, Tensor):
        raise TypeError(
            "bits_per_dim takes a model and finds log p itself, got a Tensor; for a log p found "
            "elsewhere there is scoresde.dequantize.Uniform(256).bits(log_prob, log_q, dim)"
        )
    sde = require_model(sde, "bits_per_dim")
    draws = whole_number("draws", draws)
    check_generator(generator)
    if isinstance(dequantization, Dequantization):
        return bits_of_integers(sde, values, dequantization, draws, generator, {**how})
    if dequantization is not None:
        raise TypeError(
            "dequantization is an object such as Uniform(256), or None, "
            f"got {brief_repr(dequantization)}"
        )
    if draws > 1:
        raise ValueError(
            f"draws={draws} are of the noise in a bin, and continuous data "
            "(dequantization=None) have none"
        )
    sde, values = matched(sde, values)
    x = as_floats(values, sde.shape, "values")
    return weighted_bits(sde, x, x.new_zeros(len(x)), draws, generator, {**how})
