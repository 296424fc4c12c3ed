"""Denoising score matching and flow matching as one loss.

With z = cos φ·x0 + sin φ·ε and the network's output turned into a velocity on the arc (see `scoresde.prediction`), every
objective of the field is

    L = E_{x0, ε, φ} w(φ)·e²,      e² = ‖(out − a·x0 − b·ε)/det‖²/D,

the squared error of the arc velocity: the error of x̂0 is sin φ·e, that of ε̂ cos φ·e. A weight w and a law of φ are what
papers differ in; both are rows of a table. To a network it is a regression of a·x0 + b·ε on (x_t, t), and `corrupt` states it
as one, for as many training steps at a time as one likes.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from .checks import check_generator, said
from .process import Process
from .random import draw_seed
from .registry import Registry, choose, nearest
from .sde import ScoreSDE, matched, misshapen, require_sde
from .source import starts

Weight = Callable[[Process, Tensor], Tensor]

_SNR_CAP = 5.0


def _likelihood(process: Process, phi: Tensor) -> Tensor:
    t = process.time(phi)
    alpha, sigma = process.alpha(t), process.sigma(t)
    turn = (alpha * process.dsigma(t) - sigma * process.dalpha(t)) / process.radius(t) ** 2  # dφ/dt
    return 2 * turn * torch.cos(phi) / torch.sin(phi)


def _velocity(process: Process, phi: Tensor) -> Tensor:
    t = process.time(phi)
    alpha, sigma = process.alpha(t), process.sigma(t)
    return ((alpha * process.dsigma(t) - sigma * process.dalpha(t)) / process.radius(t)) ** 2


WEIGHTS: dict[str, Weight] = {
    "edm": lambda process, phi: torch.ones_like(phi),
    "sigma2": lambda process, phi: torch.cos(phi) ** 2,
    "likelihood": _likelihood,
    "min_snr": lambda process, phi: torch.minimum(torch.cos(phi) ** 2, _SNR_CAP * torch.sin(phi) ** 2),
    "velocity": _velocity,
}
"""Weights w(φ) of the squared arc-velocity error, by name: `edm` 1 (Karras et al. 2022, λ(σ) at σ_data = 1), `sigma2` cos²φ, that
is σ²·‖score error‖² = ‖ε error‖² (Song et al. 2021, eq. 7 with λ = σ²), `likelihood` g²·‖score error‖² (Song et al. 2021b; the
bound on log p when t is uniform), `min_snr` min(SNR, 5)·‖x0 error‖² (Hang et al. 2023), `velocity` ‖dx/dt error‖² (flow
matching, Lipman et al. 2023)."""


def _lognormal(process: Process, q: Tensor, mean: float = -1.5, std: float = 1.5) -> Tensor:
    """log tan φ ~ N(mean, std²), cut to the process's stretch of the arc."""
    ends = [math.log(math.tan(max(min(p, math.pi / 2 - 1e-6), 1e-6))) for p in (process.phi_min, process.phi_max)]
    low, high = (0.5 * math.erfc(-(end - mean) / std / math.sqrt(2)) for end in ends)
    return torch.atan(torch.exp(mean + std * torch.special.ndtri(low + (high - low) * q)))


def _uniform(process: Process, q: Tensor) -> Tensor:
    """T uniform on [0, 1]."""
    return process.phi(q).clamp_min(1e-6)


def _likelihood_law(process: Process, q: Tensor) -> Tensor:
    """Density ∝ cot φ, d log sin φ: importance sampling of the bound on log p, whose weight is then 1."""
    low = math.sin(max(process.phi_min, process.hair))
    return torch.asin(low * (math.sin(process.phi_max) / low) ** q)


def _logit_normal(process: Process, q: Tensor) -> Tensor:
    """log(t/(1 − t)) ~ N(0, 1)."""
    return process.phi(torch.sigmoid(torch.special.ndtri(q))).clamp_min(1e-6)


def _u_shaped(process: Process, q: Tensor, a: float = 4.0) -> Tensor:
    """t with density ∝ e^{at} + e^{a(1 − t)}, that is cosh(a·(t − ½)): sinh(a·(t − ½)) is uniform."""
    return process.phi(0.5 + torch.asinh((2 * q - 1) * math.sinh(0.5 * a)) / a).clamp_min(1e-6)


NOISES: dict[str, Callable[[Process, Tensor], Tensor]] = {
    "lognormal": _lognormal,
    "uniform": _uniform,
    "logit_normal": _logit_normal,
    "u_shaped": _u_shaped,
    "likelihood": _likelihood_law,
    "adaptive": _likelihood_law,
}
"""Laws of the noise level in training, by name, as functions (process, quantile in (0, 1)) -> φ:
`lognormal` (log σ/α ~ N(−1.5, 1.5²), the default: the law of Karras et al. 2022, table 1, with a
P_mean and P_std that suit the likelihood of the ODE), `uniform` (t ~ U[0, 1]), `logit_normal`
(log(t/(1 − t)) ~ N(0, 1), Esser et al. 2024, section 3.1: mostly the middle of the path),
`u_shaped` (density ∝ e^{4t} + e^{4(1 − t)}: mostly its ends, for pairs that lie on straight paths,
Lee et al. 2024, as their code draws it), `likelihood` (log sin φ uniform from φ0 = max(φ(0),
`Process.hair`): with weight `edm`, which is 1, the loss times D·log(sin φ(1)/sin φ0) is −`elbo` but
for a constant; so is, at more noise, D/2 times the loss with weight `likelihood` and uniform t.
That is maximum-likelihood training with importance-sampled noise levels, Song et al. 2021b),
`adaptive` (the same expectation as `likelihood`; `fit` learns to draw levels where the loss varies
most and divides by how often it does: `AdaptiveLaw`)."""


def loss(
    sde: ScoreSDE,
    x0: Tensor,
    *,
    weight: str = "edm",
    noise: str | None = None,
    generator: torch.Generator | None = None,
    **condition: Tensor,
) -> Tensor:
    """Return the denoising score matching loss of a batch, E w(φ)·‖arc-velocity error‖²/D, as a scalar with gradients.

    For `RectifiedFlow()` with predict="v", weight="velocity" and noise="uniform" this is the flow-matching loss
    E‖net(x_t, t) − (ε − x0)‖²/D.

    Parameters
    ----------
    sde : ScoreSDE
        In train mode its raw network is used, in eval mode the averaged one.
    x0 : Tensor, shape (B, *shape)
        Data, in their own units.
    weight : str
        A key of `scoresde.WEIGHTS`.
    noise : str, optional
        A key of `scoresde.NOISES`: the law of the noise level; one stratified draw per batch. As in `fit`, by default
        "lognormal", and "uniform" for a model with a source.
    generator : torch.Generator, optional
        On the model's device.
    **condition : Tensor
        Handed to the network by name, one row per sample.

    Returns
    -------
    Tensor, shape ()
        Dimensionless: in units of the standardized data's variance.

    Raises
    ------
    TypeError, ValueError
        For x0 of the wrong shape or dtype, or unknown names.

    References
    ----------
    Vincent 2011; Song et al. 2021, eq. 7; Karras et al. 2022, eq. 8; Lipman et al. 2023, eq. 9.

    Examples
    --------
    >>> import scoresde
    >>> sde = scoresde.build("vp", "mlp", shape=(2,))
    >>> loss(sde, torch.randn(64, 2)).requires_grad
    True
    """
    sde, x0 = matched(require_sde(sde, "loss"), x0)
    check_generator(generator)
    noise = ("lognormal" if sde.source is None else "uniform") if noise is None else noise
    check_names(weight, noise)
    x0 = sde.accept(x0, "x0")
    given = (sde.given(**condition) if condition else sde).rows(0, len(x0), len(x0))
    if sde.source is None:
        eps = torch.randn(len(x0), sde.dim, generator=generator, device=x0.device, dtype=sde.state_dtype)
    else:
        eps = sde.from_start(starts(sde.source, draw_seed(generator), 0, len(x0), sde.shape).to(x0))
    phi = law(noise)(sde.process, quantiles(1, len(x0), generator, x0.device))
    examples = corrupt(given, x0, eps, phi, weight, given.shown(given.condition))
    return mean_error(answer(given.varying(given.network()), examples), examples)


def check_names(weight: str, noise: str) -> None:
    """Raise ValueError for a weight or a law of noise levels that there is not.

    Parameters
    ----------
    weight, noise : str

    Raises
    ------
    ValueError
        With the nearest name.

    Examples
    --------
    >>> check_names("edn", "uniform")
    Traceback (most recent call last):
    ValueError: unknown weight 'edn'. Did you mean 'edm'? There are: ...
    """
    choose("weight", weight, WEIGHTS)
    law(noise)


def law(noise: str) -> Callable[[Process, Tensor], Tensor]:
    """Return a law of noise levels: one of `NOISES`, or "nodes:k", the times 1/k, 2/k … 1 alone.

    Parameters
    ----------
    noise : str

    Returns
    -------
    callable (process, quantile) -> φ

    Raises
    ------
    ValueError
        With the nearest name.

    Examples
    --------
    >>> law("nodes:1")(scoresde.RectifiedFlow(), torch.tensor([0.3, 0.8]).double())
    tensor([1.5708, 1.5708], dtype=torch.float64)
    """
    name, colon, k = noise.partition(":") if isinstance(noise, str) else (noise, "", "")
    if colon and name == "nodes" and k.isdecimal() and len(k) < 10 and int(k):
        return lambda process, q: process.phi(((q * int(k)).floor() + 1).clamp_max(int(k)) / int(k))
    if not isinstance(noise, str) or noise not in NOISES:
        raise ValueError(f"unknown noise {said(noise)}. {nearest(noise, [*NOISES, 'nodes:1'])}")
    return NOISES[noise]


def quantiles(k: int, b: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
    """Return quantiles of k batches of b noise levels, stratified: each batch has one in each of b equal intervals.

    Parameters
    ----------
    k, b : int
    generator : torch.Generator or None
    device : torch.device

    Returns
    -------
    Tensor, shape (k·b,), float64
        In (0, 1); which row of a batch has which stratum is random, and the same in all k.

    Examples
    --------
    >>> quantiles(3, 4, None, torch.device("cpu")).reshape(3, 4).mul(4).floor().sort().values
    tensor([[0., 1., 2., 3.],
            [0., 1., 2., 3.],
            [0., 1., 2., 3.]], dtype=torch.float64)
    """
    jitter = torch.rand((k, b), generator=generator, device=device, dtype=torch.float64)
    strata = torch.randperm(b, generator=generator, device=device)
    return ((strata + jitter) / b).flatten()


@dataclass(frozen=True)
class Examples:
    """Rows of a regression: weight·(net(x, t, **condition) − target)² is to be small.

    Attributes
    ----------
    x : Tensor, shape (B, *shape)
    t : Tensor, shape (B,)
        As the network is shown them, in its dtype.
    target : Tensor, shape (B, n)
    weight : Tensor, shape (B, 1), or None
        None for 1.
    condition : dict of str to Tensor
        One row per example, or one for all.

    Examples
    --------
    >>> examples = Examples(torch.zeros(4, 2), torch.zeros(4), torch.zeros(4, 2))
    >>> examples[1:3].x.shape
    torch.Size([2, 2])
    """

    x: Tensor
    t: Tensor
    target: Tensor
    weight: Tensor | None = None
    condition: dict[str, Tensor] = field(default_factory=dict)

    def __getitem__(self, rows: slice) -> Examples:
        """Some of the rows."""
        return Examples(
            self.x[rows],
            self.t[rows],
            self.target[rows],
            None if self.weight is None else self.weight[rows],
            {name: value[rows] if len(value) > 1 else value for name, value in self.condition.items()},
        )

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.x)


def corrupt(
    sde: ScoreSDE,
    x0: Tensor,
    eps: Tensor,
    phi: Tensor,
    weight: str,
    condition: dict[str, Tensor],
    ratio: Tensor | None = None,
) -> Examples:
    """State denoising at noise levels φ as a regression.

    Parameters
    ----------
    sde : ScoreSDE
    x0 : Tensor, shape (B, *shape)
        Data, in their own units.
    eps : Tensor, shape (B, n)
        Noise.
    phi : Tensor, shape (B,), float64
        Angles in radians.
    weight : str
        A key of `WEIGHTS`.
    condition : dict of str to Tensor
        As the network is shown them.
    ratio : Tensor, shape (B,), optional
        A further factor of the weight: the density of the law that is meant over that which φ was drawn from.

    Returns
    -------
    Examples

    Examples
    --------
    >>> import scoresde
    >>> sde = scoresde.build("rectified", "mlp", shape=(2,), fourier=0)
    >>> phi = torch.full((1,), math.pi / 4, dtype=torch.float64)
    >>> corrupt(sde, torch.ones(1, 2), torch.zeros(1, 2), phi, "edm", {}).target  # sin φ·x0 − cos φ·ε
    tensor([[0.7071, 0.7071]])
    """
    z0 = sde.from_data(x0).to(sde.state_dtype)
    c = sde.coefficients(phi).to(z0)
    parameter = next(sde.net.parameters(), z0)
    x, t, _ = sde.inputs(c.cos * z0 + c.sin * eps, phi, parameter.dtype)
    factor: Any = None
    if weight != "edm":
        factor = WEIGHTS[weight](sde.process, phi).to(z0).unsqueeze(1)
    if sde.predict != "edm":  # whose determinant is −1
        factor = 1 / c.det**2 if factor is None else factor / c.det**2
    if ratio is not None:
        factor = ratio.to(z0).unsqueeze(1) * (1 if factor is None else factor)
    return Examples(x, t, c.a * z0 + c.b * eps, factor, condition)


def answer(net: Callable[..., Any], examples: Examples) -> Tensor:
    """Return what a network says to examples, in the target's shape and dtype.

    Parameters
    ----------
    net : callable
    examples : Examples

    Returns
    -------
    Tensor, shape (B, n)

    Raises
    ------
    ValueError
        If the network returns another shape than it was given.

    Examples
    --------
    >>> answer(lambda x, t: x + 1, Examples(torch.zeros(1, 2), torch.zeros(1), torch.zeros(1, 2)))
    tensor([[1., 1.]])
    """
    x, target = examples.x, examples.target
    condition = {name: value.expand(len(x), *value.shape[1:]) for name, value in examples.condition.items()}
    out = net(x, examples.t, **condition)
    if not isinstance(out, Tensor) or out.shape not in (x.shape, target.shape):
        raise ValueError(misshapen(x, out))
    if out.shape != target.shape:
        out = out.reshape(target.shape)
    return out if out.dtype == target.dtype else out.to(target.dtype)


def errors(out: Tensor, examples: Examples) -> Tensor:
    """Return the weighted squared error of each example, a mean over its dimensions.

    Parameters
    ----------
    out : Tensor, shape (B, n)
        From `answer`.
    examples : Examples

    Returns
    -------
    Tensor, shape (B,)

    Examples
    --------
    >>> errors(torch.tensor([[1.0, 2.0]]), Examples(torch.zeros(1, 2), torch.zeros(1), torch.zeros(1, 2)))
    tensor([2.5000])
    """
    square = (out - examples.target).square()
    return (square if examples.weight is None else examples.weight * square).mean(1)


def mean_error(out: Tensor, examples: Examples) -> Tensor:
    """Return the mean of `errors`.

    Parameters
    ----------
    out : Tensor, shape (B, n)
        From `answer`.
    examples : Examples

    Returns
    -------
    Tensor, shape ()

    Examples
    --------
    >>> mean_error(torch.tensor([[1.0, 2.0]]), Examples(torch.zeros(1, 2), torch.zeros(1), torch.zeros(1, 2)))
    tensor(2.5000)
    """
    if examples.weight is None:
        return torch.nn.functional.mse_loss(out, examples.target)
    return (examples.weight * (out - examples.target).square()).mean()


class Objective(abc.ABC):
    """What else a model can learn than to denoise: a loss of its own.

    Subclass it, give `kind` and `__call__`, and register: `@scoresde.OBJECTIVES.register("name")`.

    Attributes
    ----------
    kind : str
        Of the model that it makes: see `ScoreSDE`.

    Examples
    --------
    >>> list(OBJECTIVES)
    ['denoising', ...]
    """

    kind: ClassVar[str]

    def check(self, sde: ScoreSDE) -> None:
        """Raise ValueError for a model that can't learn this.

        Parameters
        ----------
        sde : ScoreSDE

        Examples
        --------
        See `Objective`.
        """
        return

    def coupling(self, sde: ScoreSDE) -> Any:
        """Return the coupling that pairs come from unless `fit` is told, a name or an object.

        Parameters
        ----------
        sde : ScoreSDE

        Returns
        -------
        str or Coupling

        Examples
        --------
        See `Objective`.
        """
        return "independent"

    @abc.abstractmethod
    def __call__(
        self,
        net: Callable[..., Any],
        sde: ScoreSDE,
        z0: Tensor,
        eps: Tensor,
        q: Tensor,
        condition: dict[str, Tensor],
        progress: float,
        generator: torch.Generator,
    ) -> Tensor:
        """Return the loss of a batch, with gradients.

        Parameters
        ----------
        net : callable (x, label, **condition)
            The raw network.
        sde : ScoreSDE
        z0, eps : Tensor, shape (B, n)
            Standardized data, and what their paths begin in.
        q : Tensor, shape (B,), float64
            Quantiles in (0, 1), for noise levels; stratified over the batch, of which these rows may be a piece.
        condition : dict of str to Tensor
        progress : float
            Which part of all steps is done, in [0, 1].
        generator : torch.Generator
            For all further randomness.

        Returns
        -------
        Tensor, shape ()

        Examples
        --------
        See `Objective`.
        """


OBJECTIVES: Registry[Objective | None] = Registry("objective", "scoresde.OBJECTIVES")
"""What `fit` can train a model for, by name. "denoising", the one of all models that have a score or a velocity, is `loss`."""
OBJECTIVES.add("denoising", lambda: None)


class AdaptiveLaw:
    """Noise levels drawn where the loss varies most, with the loss's expectation left as it is.

    The quantiles q of a law are cut into `BINS` intervals. With m_i the mean of the squared loss in interval i, the density
    p(q) ∝ √m_i minimizes the variance of loss/p (importance sampling), and a tenth of all draws stays uniform. It is what the
    learned noise schedule of VDM does (Kingma et al. 2021, section 5.3), by counting (Nichol &
    Dhariwal 2021).

    Parameters
    ----------
    base : callable
        A law of `NOISES`.
    device : torch.device

    Examples
    --------
    >>> import scoresde
    >>> law = AdaptiveLaw(NOISES["likelihood"], torch.device("cpu"))
    >>> phi, ratio, bins = law(scoresde.VPSDE(), torch.tensor([0.25, 0.5]).double())
    >>> ratio  # nothing learned yet
    tensor([1., 1.], dtype=torch.float64)
    """

    BINS, UNIFORM, RATE = 64, 0.1, 0.2

    def __init__(self, base: Callable[[Process, Tensor], Tensor], device: torch.device) -> None:
        self.base = base
        self.moments = torch.ones(self.BINS, device=device, dtype=torch.float64)
        self.sums = torch.zeros(2, self.BINS, device=device, dtype=torch.float64)  # of squared losses, and how many

    def __call__(self, process: Process, q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return levels φ, the factors 1/p of their losses, and the intervals they are of."""
        density = self.moments.sqrt() + 1e-300  # uniform if all are 0
        density = (1 - self.UNIFORM) * density / density.mean() + self.UNIFORM
        edges = torch.cat([density.new_zeros(1), density.cumsum(0) / self.BINS])
        bins = torch.searchsorted(edges[1:-1], q, right=True)
        there = (bins + (q - edges[bins]) * self.BINS / density[bins]) / self.BINS
        return self.base(process, there.clamp(0, 1)), 1 / density[bins], bins

    def note(self, bins: Tensor, losses: Tensor) -> None:
        """Count losses, one a row, as they are without the factors 1/p; `learn` makes them tell. Infinite and NaN ones are not
        counted: mixed precision passes over such steps.
        """
        square = losses.double().square()
        finite = square.isfinite()
        which = torch.nn.functional.one_hot(bins, self.BINS).to(self.sums.dtype)  # a product, whose order of summation is fixed
        self.sums += torch.stack([square.where(finite, 0), finite.to(square)]) @ which

    def learn(self) -> None:
        """Move the moments towards what was counted since, where anything was, and begin to count anew."""
        total, count = self.sums
        seen = count > 0
        first = torch.where(seen, total / count.clamp_min(1), self.moments)
        self.moments = torch.where(seen, torch.lerp(self.moments, first, self.RATE), self.moments)
        self.sums.zero_()
