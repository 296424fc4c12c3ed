"""Denoising score matching and flow matching as one loss, and the loop that minimizes it.

With z = cos φ·x0 + sin φ·ε and the network's output turned into a velocity on the arc (see `scoresde.prediction`), every
objective of the field is

    L = E_{x0, ε, φ} w(φ)·e²,      e² = ‖(out − a·x0 − b·ε)/det‖²/D,

the squared error of the arc velocity: the error of x̂0 is sin φ·e, that of ε̂ cos φ·e. A weight w and a law of φ are what
papers differ in; both are rows of a table.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from .checks import number, whole
from .data import Source
from .errors import TrainingError
from .plan import check_generator
from .process import Process
from .random import draw_seed
from .registry import nearest
from .sde import ScoreSDE, require_sde

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


NOISES: dict[str, Callable[[Process, Tensor], Tensor]] = {
    "lognormal": _lognormal,
    "uniform": _uniform,
    "likelihood": _likelihood_law,
}
"""Laws of the noise level in training, by name, as functions (process, quantile in (0, 1)) -> φ: `lognormal`
(log σ/α ~ N(−1.5, 1.5²), the default: the law of Karras et al. 2022, table 1, with a P_mean and P_std that suit the likelihood
of the ODE), `uniform` (t ~ U[0, 1]), `likelihood` (log sin φ
uniform from φ0 = max(φ(0), `Process.hair`): with weight `edm`, which is 1, the loss times D·log(sin φ(1)/sin φ0) is −`elbo` but
for a constant; so is, at more noise, D/2 times the loss with weight `likelihood` and uniform t. That is maximum-likelihood
training with importance-sampled noise levels, Song et al. 2021b)."""


def loss(
    sde: ScoreSDE,
    x0: Tensor,
    *,
    weight: str = "edm",
    noise: str = "lognormal",
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
    noise : str
        A key of `scoresde.NOISES`: the law of the noise level; one stratified draw per batch.
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
    sde = require_sde(sde, "loss")
    check_generator(generator)
    _check_names(weight, noise)
    x0 = sde.accept(x0, "x0")
    given = sde.given(**condition) if condition else sde
    return _loss(given.rows(0, len(x0), len(x0)), x0, weight, noise, generator)


def _check_names(weight: str, noise: str) -> None:
    for kind, name, table in (("weight", weight, WEIGHTS), ("noise", noise, NOISES)):
        if name not in table:
            raise ValueError(f"unknown {kind} {name!r}. {nearest(name, table)}")


def _loss(sde: ScoreSDE, x0: Tensor, weight: str, noise: str, generator: torch.Generator | None) -> Tensor:
    b, device = len(x0), x0.device
    z0 = sde.from_data(x0).to(sde.state_dtype)
    eps = torch.randn(z0.shape, generator=generator, device=device, dtype=z0.dtype)
    jitter = torch.rand(b, generator=generator, device=device, dtype=torch.float64)
    strata = torch.randperm(b, generator=generator, device=device)
    phi = NOISES[noise](sde.process, (strata + jitter) / b)
    c = sde.coefficients(phi).to(z0)
    error = sde.output(c.cos * z0 + c.sin * eps, phi) - (c.a * z0 + c.b * eps)
    if sde.predict != "edm":  # whose determinant is −1
        error = error / c.det
    if weight == "edm":
        return error.square().mean()
    return (WEIGHTS[weight](sde.process, phi).to(z0.dtype).unsqueeze(1) * error.square()).mean()


@dataclass
class History:
    """What happened during `fit`.

    Attributes
    ----------
    step : list of int
        Steps at which the loss was noted.
    loss : list of float
        Mean training loss since the note before.
    seconds : float
        Wall time of the loop.

    Examples
    --------
    >>> History([100, 200], [0.8, 0.5], 1.5)
    History(steps=200, loss=0.5, seconds=1.5)
    """

    step: list[int] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    seconds: float = 0.0

    def __repr__(self) -> str:
        """One line."""
        last = f"{self.loss[-1]:.4g}" if self.loss else "none"
        return f"History(steps={self.step[-1] if self.step else 0}, loss={last}, seconds={self.seconds:.1f})"


@torch.inference_mode(False)
@torch.enable_grad()
def fit(
    sde: ScoreSDE,
    data: Any,
    *,
    steps: int = 10_000,
    batch_size: int = 512,
    lr: float = 3e-3,
    weight: str = "edm",
    noise: str = "lognormal",
    ema: float = 0.999,
    given: Mapping[str, Tensor] | None = None,
    generator: torch.Generator | None = None,
    progress: bool = True,
) -> History:
    """Train a model by denoising score matching (flow matching, for a rectified flow: the same loss).

    Minimizes E w(φ)·‖arc-velocity error‖² with Adam (β = 0.9, 0.99), gradients clipped to norm 1, warm-up and cosine decay
    of the learning rate to 0, and keeps an exponential average of the weights, which eval mode uses. Mean and scale of the
    data are measured the first time and kept in the model. A second `fit` goes on from the raw weights.

    Parameters
    ----------
    sde : ScoreSDE
        Trained in place, and left in eval mode.
    data : Tensor, array, Dataset, DataLoader, or an object with .sample(n)
        Samples of shape sde.shape, floating point, in any units.
    steps : int
        Optimizer steps.
    batch_size : int
        Samples per step (a DataLoader brings its own).
    lr : float
        Peak learning rate.
    weight : str
        A key of `scoresde.WEIGHTS`.
    noise : str
        A key of `scoresde.NOISES`.
    ema : float
        Decay of the average per step, in [0, 1); it starts faster, as (1 + k)/(10 + k).
    given : mapping of str to Tensor, optional
        Conditions by name, one row per sample, for tensors and arrays.
    generator : torch.Generator, optional
        The randomness of batches and noise. Without one, torch's global generator.
    progress : bool
        Show a progress bar (on a terminal).

    Returns
    -------
    History

    Raises
    ------
    TypeError, ValueError
        For bad arguments or data, before any work starts.
    TrainingError
        If the loss is not finite.

    References
    ----------
    Song et al. 2021; Karras et al. 2022; Lipman et al. 2023.

    Examples
    --------
    >>> import scoresde
    >>> sde = scoresde.build("rectified", "mlp", shape=(2,))
    >>> scoresde.fit(sde, torch.randn(1000, 2), steps=20, progress=False)
    History(steps=20, loss=..., seconds=...)
    """
    sde = require_sde(sde, "fit")
    check_generator(generator)
    _check_names(weight, noise)
    whole("steps", steps)
    whole("batch_size", batch_size)
    number("lr", lr, 0, math.inf, hint="try 3e-3")
    number("ema", ema, 0, 1 - 1e-12, closed=True, hint="try 0.999, or 0 for none")
    if sde.condition:
        raise ValueError("fit trains the whole model, not one conditioned by given(...): pass labels as fit(..., given={'y': y})")
    parameters = [p for p in sde.net.parameters() if p.requires_grad]
    if not parameters:
        raise ValueError("this model's network has no parameters to train (an oracle?)")
    device = sde.scale.device
    random = torch.Generator(device).manual_seed(draw_seed(generator))
    source = Source(data, sde, batch_size, random, given)
    if not bool(sde.measured):
        sde.standardize(source.measure)

    average = _Average(sde.net, ema, sde.ema)
    optimizer = torch.optim.Adam(parameters, lr=lr, betas=(0.9, 0.99), fused=_can_fuse(parameters))
    warm = max(1, min(200, steps // 10))
    note = max(1, min(100, steps // 10))
    sound: list[Tensor] = [p.clone() for p in average.weights]  # the average when the loss was last seen to be finite
    history, total, began = History(), torch.zeros((), device=device), time.perf_counter()
    sde.train()
    bar = tqdm(total=steps, desc="fit", disable=None if progress else True, mininterval=0.5)
    try:
        for step, (x, condition) in zip(range(1, steps + 1), source, strict=False):
            part = sde.holding(condition) if condition else sde
            for group in optimizer.param_groups:
                group["lr"] = lr * min(step / warm, 0.5 * (1 + math.cos(math.pi * (step - 1) / steps)))
            value = _loss(part, x, weight, noise, random)
            optimizer.zero_grad(set_to_none=True)
            value.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            average.update()
            total += value.detach()
            if step % note == 0 or step == steps:
                mean = float(total) / (step - (history.step[-1] if history.step else 0))
                if not (math.isfinite(mean) and all(bool(p.isfinite().all()) for p in average.weights)):
                    torch._foreach_copy_(average.weights, sound)
                    sde.net.load_state_dict(average.module.state_dict())
                    raise TrainingError(f"the loss is {mean} after step {step}, or a weight not finite; lower lr (now {lr:g})")
                torch._foreach_copy_(sound, average.weights)
                history.step.append(step)
                history.loss.append(mean)
                total.zero_()
                bar.set_postfix(loss=f"{mean:.4f}", refresh=False)
                bar.update(step - bar.n)
    finally:
        bar.close()
        if average.moved:  # else what there was before is better
            sde.ema = average.result()
        sde.eval()
        history.seconds = time.perf_counter() - began
    return history


class _Average:
    """Exponential average of a network's weights, all at once, whose decay grows as (1 + k)/(10 + k) up to `decay`.

    PyTorch's AveragedModel does the same, but walks over the modules at every step, which costs 0.1 to 0.3 ms.
    """

    def __init__(self, net: nn.Module, decay: float, before: nn.Module | None) -> None:
        self.net, self.decay, self.count, self.moved = net, decay, 0 if before is None else 10**9, False
        self.module = copy.deepcopy(net).requires_grad_(False)
        if before is not None:  # a second fit goes on with the average as well
            self.module.load_state_dict(before.state_dict())
        self.current: list[Tensor] = [p.detach() for p in net.parameters()]
        self.weights: list[Tensor] = list(self.module.parameters())

    @torch.no_grad()
    def update(self) -> None:
        """w̄ ← d·w̄ + (1 − d)·w; the first weights are taken as they are."""
        decay = min(self.decay, (1 + self.count) / (10 + self.count)) if self.count else 0.0
        torch._foreach_lerp_(self.weights, self.current, 1 - decay)
        self.count, self.moved = self.count + 1, True

    @torch.no_grad()
    def result(self) -> nn.Module:
        """The averaged network, with the buffers of the one it follows."""
        for mine, theirs in zip(self.module.buffers(), self.net.buffers(), strict=True):
            mine.copy_(theirs)
        return self.module


def _can_fuse(parameters: list[torch.nn.Parameter]) -> bool:
    return all(p.is_floating_point() and p.device.type in ("cpu", "cuda", "mps") for p in parameters)
