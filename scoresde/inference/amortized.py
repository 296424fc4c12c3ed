"""A conditional model and a prior as a posterior p(theta | x), for any observation x."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import Tensor

from ..common.checks import check_generator, true_or_false, whole_number
from ..common.inputs import as_reals
from ..common.progress import part, shows_progress
from ..common.seeds import takes_seed
from ..density.options import DensityOptions, ModeOptions, RandomDensityOptions
from ..model.require import require_sde
from ..model.score_sde import ScoreSDE
from ..sampling.options import SampleOptions
from ..training.history import History
from .coordinates import Coordinates
from .files import save_posterior
from .flat_rows import FlatRows
from .iid import IIDPosterior, Product
from .modes import mode
from .observations import condition_name, joint_shape, sample_size
from .prior import as_prior
from .rejection import Acceptance, share_inside


class Posterior(FlatRows):
    """p(theta | x): a model with one condition, and a prior whose support it keeps to.

    With `coordinates`, as `scoresde.posterior` makes them, the model is one of transformed
    parameters, and nothing lies outside the support. Without, as for a model trained by hand on
    theta itself, draws outside the support are rejected, and

        log p(theta | x) = log p_model(theta | x) − log A(x),      −∞ outside,

    with A(x), the model's share inside, estimated by draws: see `acceptance`. Data frames are
    matched by the column names of the training data, arrays and tensors by position.

    Parameters
    ----------
    sde : ScoreSDE
        Of shape (D,), with a condition.
    prior : torch.distributions.Distribution or pair of Tensor
        Of event shape (D,), or the corners (low, high) of a box.
    coordinates : Coordinates, optional
        Those of the parameters that the model is one of.
    condition : str, optional
        The network's name of x, if it takes more than one condition: "vector" by default.

    Attributes
    ----------
    sde : ScoreSDE
        The model.
    prior : torch.distributions.Distribution
        The prior.
    history : History or None
        That of its training, if `scoresde.posterior` made it.
    surrogate_pairs : int
        Pairs of a learnt simulator that the model was trained on too; 0 for none.

    Raises
    ------
    TypeError, ValueError
        For a model without conditions, or a prior that is none or of another dimension.

    Examples
    --------
    >>> import scoresde
    >>> sde = scoresde.build("vp", "resmlp", shape=(2,), vector=3)
    >>> post = scoresde.Posterior(sde, (-torch.ones(2), torch.ones(2)))
    >>> post.sample((4,), x=torch.zeros(3)).shape
    torch.Size([4, 2])
    """

    def __init__(
        self,
        sde: ScoreSDE,
        prior: Any,
        *,
        coordinates: Coordinates | None = None,
        condition: str | None = None,
    ) -> None:
        self.sde = require_sde(sde, "Posterior")
        self._prior = as_prior(prior)
        if tuple(sde.shape) != (self._prior.dim,):
            raise ValueError(
                f"the prior has {self._prior.dim} parameters and the model is one of shape "
                f"{tuple(sde.shape)}"
            )
        self._prior.check_resolved(sde.state_dtype)
        self.condition = condition_name(sde, condition)
        self.coordinates = coordinates
        kept = False
        if coordinates is not None and self._prior.box:
            kept = torch.equal(coordinates.support.low, self._prior.low)
            kept = kept and torch.equal(coordinates.support.high, self._prior.high)
        self.leaks = not (kept or self._prior.everywhere)
        self.history: History | None = None
        self._shares: dict[bytes, float] = {}

    @property
    def prior(self) -> Any:
        """The prior, a torch distribution."""
        return self._prior.law

    @takes_seed
    @shows_progress
    def sample(
        self,
        sample_shape: Any = (),
        x: Any = None,
        *,
        generator: torch.Generator | None = None,
        seed: int | None = None,
        **how: Unpack[SampleOptions],
    ) -> Tensor:
        """Draw parameters given x, all inside the prior's support.

        Parameters
        ----------
        sample_shape : tuple of int, or int
        x : Tensor, array, Series or data frame, shape (K,) or (B, K)
            One observation, or several, each with a posterior of its own.
        generator : torch.Generator, optional
            The only source of randomness when given.
        seed : int, optional
            An integer in place of the generator.
        **how
            As for `scoresde.sample`: solver, steps, rtol, atol, batch_size, progress, ….

        Returns
        -------
        Tensor, shape (*sample_shape, D) or (*sample_shape, B, D)

        Raises
        ------
        TypeError, ValueError
            For x of another shape or with NaN in it.
        SolverError
            As `scoresde.sample`; and if too few draws lie inside the support to go on.

        Warns
        -----
        UserWarning
            If fewer than 5% of the model's draws lie inside the support.

        Examples
        --------
        See `Posterior`.
        """
        check_generator(generator)
        rows, batch = self._observations(x)
        shape = sample_size(sample_shape, len(rows) * self._prior.dim)
        n = math.prod(shape)
        index = torch.arange(len(rows)).repeat(n)
        if not len(index):
            return self.sde.scale.new_empty(*shape, *batch, self._prior.dim)
        theta = self._sampled(rows, index, generator, {**how})
        return theta.reshape(*shape, *batch, self._prior.dim)

    @shows_progress
    def log_prob(
        self,
        theta: Any,
        x: Any = None,
        *,
        normalized: bool = True,
        **how: Unpack[RandomDensityOptions],
    ) -> Tensor:
        """Return log p(theta | x), −∞ outside the prior's support.

        Parameters
        ----------
        theta : Tensor, array or data frame, shape (…, D)
        x : Tensor, array, Series or data frame, shape (K,) or (B, K)
            With B observations, theta (…, B, D) or (D,) has one for each.
        normalized : bool
            Whether to divide by the model's share inside the support where it leaks: see
            `acceptance`, which draws 4,096 samples for each new x.
        **how
            As for `scoresde.log_prob`: solver, rtol, atol, batch_size, seed, progress, ….

        Returns
        -------
        Tensor, shape (…) or (…, B)
            Nats. Gradients flow to theta.

        Raises
        ------
        TypeError, ValueError, SolverError
            As `sample` and `scoresde.log_prob`.

        Examples
        --------
        >>> import scoresde
        >>> sde = scoresde.build("vp", "resmlp", shape=(2,), vector=3)
        >>> post = scoresde.Posterior(sde, (-torch.ones(2), torch.ones(2)))
        >>> post.log_prob(torch.tensor([[0.0, 0.0], [0.0, 2.0]]), x=torch.zeros(3)).isinf()
        tensor([False,  True])
        """
        true_or_false("normalized", normalized)
        theta = self._parameters(theta).to(self.sde.scale.device)
        rows, batch = self._observations(x)
        shape = joint_shape(theta, batch, self._prior.dim)
        if not theta.is_floating_point():
            theta = theta.to(self.sde.state_dtype)
        if bool(theta.isnan().any()):
            raise ValueError("theta has NaN values")
        flat = theta.expand(*shape, theta.shape[-1]).reshape(-1, theta.shape[-1])
        index = torch.arange(len(rows)).reshape(batch).expand(shape).reshape(-1)
        return self._flat_log_prob(flat, rows, index, normalized, {**how}).reshape(shape)

    @takes_seed
    @shows_progress
    def map(
        self,
        x: Any = None,
        *,
        draws: int = 500,
        steps: int = 20,
        generator: torch.Generator | None = None,
        seed: int | None = None,
        **how: Unpack[ModeOptions],
    ) -> Tensor:
        """Return the likeliest parameters that an ascent from draws finds.

        The likeliest of some draws climb the gradient of log p(theta | x), and the best point in
        the support is returned. Where the density rises up to the edge, that point lies just
        inside.

        Parameters
        ----------
        x : Tensor, array, Series or data frame, shape (K,) or (B, K)
        draws : int
            Samples to begin with, for each observation.
        steps : int
            Iterations of L-BFGS; 0 for the likeliest draw.
        generator : torch.Generator, optional
            Draws the samples.
        seed : int, optional
            An integer in place of the generator.
        **how
            As for `log_prob`; progress shows a bar.

        Returns
        -------
        Tensor, shape (D,) or (B, D)

        Raises
        ------
        TypeError, ValueError, SolverError
            As `sample`.

        Examples
        --------
        See `Posterior`.
        """
        whole_number("draws", draws)
        whole_number("steps", steps, 0)
        check_generator(generator)
        rows, batch = self._observations(x)
        if not len(rows):
            return self.sde.scale.new_empty(*batch, self._prior.dim)
        found = []
        for i, row in enumerate(rows):
            with part(i, i + 1, len(rows), "observation"):
                found.append(mode(self, row[None], draws, steps, generator, {**how}))
        return torch.stack(found).reshape(*batch, self._prior.dim)

    @takes_seed
    @shows_progress
    def iid(
        self,
        x: Any,
        *,
        draws: int = 1000,
        generator: torch.Generator | None = None,
        seed: int | None = None,
        **how: Unpack[DensityOptions],
    ) -> IIDPosterior:
        """Return p(theta | x_1, …, x_k) of k observations that were made with the same theta.

        It is proportional to p(theta)^(1 − k)·Π p(theta | x_i). Importance sampling draws from it,
        with about 3·k·draws densities of the model, exactly in the limit of many draws.

        Parameters
        ----------
        x : Tensor, array or data frame, shape (k, K)
            Independent observations.
        draws : int
            Weighted points.
        generator : torch.Generator, optional
            The only source of randomness when given.
        seed : int, optional
            An integer in place of the generator.
        **how
            As for `log_prob`, with its progress; 24 fixed steps by default.

        Returns
        -------
        IIDPosterior
            With `sample`, `log_prob`, `theta`, `weights`, `ess`.

        Raises
        ------
        TypeError, ValueError, SolverError
            For x of another shape, a prior without density, observations that agree on no theta.

        Warns
        -----
        UserWarning
            If the effective number of points is below 5% of `draws`, or if the observations are
            1,000 times as probable with a theta for each: they contradict one another.

        Examples
        --------
        >>> sde = scoresde.build("vp", "resmlp", shape=(2,), vector=3, width=16)
        >>> post = scoresde.Posterior(sde, (-3 * torch.ones(2), 3 * torch.ones(2)))
        >>> both = post.iid(torch.zeros(2, 3), draws=200)
        >>> both.sample((5,)).shape, both.log_prob(torch.zeros(4, 2)).shape
        (torch.Size([5, 2]), torch.Size([4]))
        """
        check_generator(generator)
        draws = whole_number("draws", draws, 2)
        rows, batch = self._observations(x)
        if len(batch) != 1 or not len(rows):
            came = tuple(as_reals(x, "x").shape)
            raise ValueError(f"x has shape {came}, wanted (k, …): k observations of one theta")
        return IIDPosterior(Product(self, rows, {**how}), draws, generator)

    def acceptance(self, x: Any = None, *, n: int = 4096) -> Acceptance:
        """Estimate the share of the model's draws inside the prior's support, with its error.

        Parameters
        ----------
        x : Tensor, array, Series or data frame, shape (K,) or (B, K)
        n : int
            Draws for each observation, from a seed of their own.

        Returns
        -------
        Acceptance
            `share` and its standard error `stderr`, of shape () or (B,). log_prob errs by about
            stderr/share.

        Raises
        ------
        TypeError, ValueError, SolverError
            As `sample`.

        Examples
        --------
        >>> import scoresde
        >>> sde = scoresde.build("vp", "resmlp", shape=(1,), vector=1)
        >>> post = scoresde.Posterior(sde, ([-9.0], [9.0]))
        >>> post.acceptance(torch.zeros(1), n=100)
        Acceptance(share=tensor(1.), stderr=tensor(0.0070), n=100)
        """
        n = whole_number("n", n)
        rows, batch = self._observations(x)
        if not self.leaks:
            return Acceptance(torch.ones(batch), torch.zeros(batch), n)
        shares = [share_inside(self, row[None], n) for row in rows]
        return Acceptance.of(torch.tensor(shares).reshape(batch), n)

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Save model, coordinates and prior; `scoresde.load_posterior` reads them.

        A box, independent normals and a `MultivariateNormal` are written as numbers. Any other
        prior is not kept: give it to `load_posterior`.

        Parameters
        ----------
        folder : path

        Returns
        -------
        Path
            The folder, which `scoresde.load` reads too, for the model alone.

        Raises
        ------
        TypeError, ValueError, CheckpointError
            As `scoresde.save`.

        Examples
        --------
        See `scoresde.load_posterior`.
        """
        return save_posterior(self, folder)
