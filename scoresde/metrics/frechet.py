"""The Fréchet distance between the normal laws of two sets of samples, or of what a network sees in them (FID).

With means μ and covariances Σ of the features f(x) of either set,

    d² = |μ₁ − μ₂|² + tr(Σ₁ + Σ₂ − 2·(Σ₁Σ₂)^½)            (Dowson and Landau 1982; Heusel et al. 2017)

is the squared 2-Wasserstein distance of N(μ₁, Σ₁) and N(μ₂, Σ₂). Of features that are not normal it is a lower bound on theirs
(Gelbrich 1990), and zero says no more than that the first two moments agree.

(Σ₁Σ₂)^½ has the trace of (Σ₁^½ Σ₂ Σ₁^½)^½, which is the sum of the singular values of Σ₁^½ Σ₂^½. These are real whatever the
rounding, and singular covariances, of fewer samples than features, have an exact distance: an eigenvalue λ of Σ below
τ = F·2⁻⁵²·λ_max, which rounding alone could have left of 0, counts as 0. Where k eigenvalues of Σ₁ truly lie in between, d² is
too large by up to 2k·√(τ₁·λ_max,₂), for F = 2048 and λ_max = 1 by 1e-6 for each of them; and likewise for those of Σ₂.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..checks import whole
from ..inputs import as_tensor
from ..registry import choose

Features = Callable[[Tensor], Tensor]
Moments = tuple[Tensor, Tensor]


@torch.no_grad()
def frechet_distance(
    x: Tensor | Moments, y: Tensor | Moments, features: str | Features | None = None, *, batch_size: int = 256
) -> Tensor:
    """Return the Fréchet distance d² = |μ₁ − μ₂|² + tr(Σ₁ + Σ₂ − 2·(Σ₁Σ₂)^½) of features of two sets of samples.

    It is biased upwards, of equal normal laws with Σ = I by (2F + ½·F(F + 1))/n, so compare sets of one size, or with
    `noise_floor`. With features="inception" and 50,000 samples it is called FID. It carries no gradient.

    Parameters
    ----------
    x, y : Tensor, shape (n, *shape), or a pair (mean, covariance)
        Samples, n ≥ 2 of each; or what `moments` returned for them, (F,) and (F, F).
    features : callable (B, *shape) -> (B, F), or str, optional
        What is seen in samples: any function or network, called without gradients and in eval mode; "inception", see
        `inception`. None for the samples themselves, flattened.
    batch_size : int
        Samples given to it at once.

    Returns
    -------
    Tensor, shape (), float64
        d² ≥ 0, in squared units of the features. It costs some F³ operations; n may be below F.

    Raises
    ------
    TypeError
        For what is neither samples nor a pair of tensors, or features that can't be called.
    ValueError
        For fewer than two samples, features that are none, complex, not finite, too large to be squared or of different lengths,
        or a matrix that is no covariance.
    ImportError
        For "inception" without torch-fidelity: `pip install 'scoresde[fid]'`.

    References
    ----------
    Dowson and Landau, The Fréchet distance between multivariate normal distributions, 1982; Heusel et al., GANs trained by
    a two time-scale update rule, NeurIPS 2017; Chong and Forsyth, Effectively unbiased FID, CVPR 2020, for the bias.

    Examples
    --------
    >>> x = torch.tensor([[0.0, 1.0], [2.0, 5.0]])
    >>> frechet_distance(x, 3 + 2 * x)                                         # |μ|² + tr Σ = (4² + 6²) + (2 + 8)
    tensor(62., dtype=torch.float64)
    >>> frechet_distance((torch.zeros(1), torch.eye(1)), (torch.ones(1), 9 * torch.eye(1)))  # 1² + (3 − 1)²
    tensor(5., dtype=torch.float64)
    """
    features = resolve_features(features)
    (m1, c1), (m2, c2) = (
        _pair(name, value) if isinstance(value, tuple | list) else moments(value, features, batch_size=batch_size)
        for name, value in (("x", x), ("y", y))
    )
    if m1.shape != m2.shape:
        raise ValueError(f"x has {len(m1)} features and y {len(m2)}; wanted samples of one shape, seen by one network")
    m2, c2 = m2.to(m1.device), c2.to(m1.device)
    cross = torch.linalg.svdvals(_root("x", c1) @ _root("y", c2)).sum()
    result: Tensor = ((m1 - m2).square().sum() + c1.trace() + c2.trace() - 2 * cross).clamp_min(0)
    return result


@torch.no_grad()
def moments(x: Tensor, features: str | Features | None = None, *, batch_size: int = 256) -> Moments:
    """Return mean and covariance of features of samples: what `frechet_distance` needs to know of a set, to be kept for later.

    μ = 1/n·Σ f_i, Σ = 1/(n − 1)·Σ (f_i − μ)(f_i − μ)ᵀ, a batch at a time: features are not held.

    Parameters
    ----------
    x : Tensor, shape (n, *shape)
        n ≥ 2.
    features, batch_size
        As for `frechet_distance`.

    Returns
    -------
    mean, covariance : Tensor, shape (F,) and (F, F), float64

    Raises
    ------
    TypeError, ValueError, ImportError
        As `frechet_distance`.

    Examples
    --------
    >>> moments(torch.tensor([[0.0, 1.0], [2.0, 5.0]]))
    (tensor([1., 3.], dtype=torch.float64), tensor([[2., 4.],
            [4., 8.]], dtype=torch.float64))
    """
    see = resolve_features(features)
    if not isinstance(x, Tensor):
        raise TypeError(f"x is a {type(x).__name__}; wanted a tensor, or a pair (mean, covariance)")
    as_tensor(x, "x")
    if x.ndim < 1 or len(x) < 2 or x.is_complex():
        raise ValueError(f"x is {x.dtype} of shape {tuple(x.shape)}; wanted real numbers (n, *shape) with n ≥ 2")
    batch_size = whole("batch_size", batch_size)
    count, mean, scatter = 0, torch.zeros(0, device="cpu"), torch.zeros(0, device="cpu")
    for part in torch.split(x, batch_size):  # Chan, Golub & LeVeque 1983
        f = _seen(see, part)
        n, total, here = len(f), count + len(f), f.mean(0)
        if not count:
            mean, scatter = torch.zeros_like(here), f.new_zeros(len(here), len(here))
        gap = here - mean
        scatter += (f - here).T @ (f - here) + torch.outer(gap, gap) * (count * n / total)
        mean, count = mean + gap * (n / total), total
    if not bool(scatter.isfinite().all()):
        raise ValueError("features are too large: squared they overflow; divide both sets by their scale")
    return mean, scatter / (count - 1)


def resolve_features(features: str | Features | None) -> Features | None:
    """Return features as something to call, a name having been looked up; raise for what can't be.

    Parameters
    ----------
    features : str, callable or None

    Returns
    -------
    callable or None

    Raises
    ------
    TypeError, ValueError, ImportError
        As `frechet_distance`.

    Examples
    --------
    >>> resolve_features("incepton")
    Traceback (most recent call last):
    ValueError: unknown features 'incepton'. Did you mean 'inception'? There are: inception.
    """
    if isinstance(features, str):
        return FEATURES[choose("features", features, FEATURES)]()
    if features is not None and not callable(features):
        raise TypeError(f"features is called with a batch, or a name, or None; got {type(features).__name__}")
    return features


def inception(weights: str | None = None) -> Features:
    """Return the 2048 features that FID is defined by: Inception-v3's last average, of torch-fidelity.

    The network is the one that others use, so that numbers can be compared. It takes images as bytes, (B, 3 or 1, H, W), gray
    ones as three equal colors. Its weights are fetched by torch-fidelity from its web page; where that can't be, give a file. It
    was tested here with a stand-in of the same interface only, not with the weights.

    Parameters
    ----------
    weights : path, optional
        torch-fidelity's file of weights.

    Returns
    -------
    callable (B, C, H, W) -> (B, 2048)

    Raises
    ------
    ImportError
        Without torch-fidelity: `pip install 'scoresde[fid]'`.

    References
    ----------
    Heusel et al. 2017; Obukhov et al., torch-fidelity, 2020, "inception-v3-compat".

    Examples
    --------
    >>> see = inception()  # doctest: +SKIP
    >>> see(torch.zeros(4, 1, 28, 28, dtype=torch.uint8)).shape  # doctest: +SKIP
    torch.Size([4, 2048])
    """
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ImportError:
        raise ImportError("features='inception' needs torch-fidelity: pip install 'scoresde[fid]'") from None
    return _Bytes(FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path=weights))


FEATURES: dict[str, Callable[[], Features]] = {"inception": inception}
"""Features by name."""


class _Bytes(nn.Module):
    """A network of torch-fidelity, which wants bytes in three colors and returns a tuple, behind the interface wanted here."""

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype != torch.uint8 or x.ndim != 4 or x.shape[1] not in (1, 3):
            raise ValueError(
                f"features='inception' are of images as bytes, (B, 1 or 3, H, W), got {x.dtype} of shape {tuple(x.shape)}; "
                "of samples on the unit scale, scoresde.dequantize.Uniform(256).values(x).byte()"
            )
        (seen,) = self.net(x.expand(-1, 3, -1, -1).contiguous())
        found: Tensor = seen
        return found


def _seen(see: Features | None, x: Tensor) -> Tensor:
    """Features of a batch, as float64."""
    if isinstance(see, nn.Module):
        modes = [module for module in see.modules() if module.training]
        home = next((p.device for p in see.parameters()), x.device)
        see.eval()
        try:
            f = see(x.to(home))
        finally:
            for module in modes:
                module.training = True
    else:
        f = x.flatten(1) if see is None and x.ndim > 1 else x[:, None] if see is None else see(x)
    if not isinstance(f, Tensor) or f.ndim != 2 or len(f) != len(x):
        got = tuple(f.shape) if isinstance(f, Tensor) else type(f).__name__
        raise ValueError(f"features of {len(x)} samples are ({len(x)}, F), got {got}")
    if not f.shape[1] or f.is_complex():
        raise ValueError(f"features are real numbers, at least one a sample, got {f.dtype} of shape {tuple(f.shape)}")
    f = f.double()
    if not bool(f.isfinite().all()):
        raise ValueError(f"{'samples' if see is None else 'features'} hold NaN or infinity; find the culprit")
    return f


def _pair(name: str, pair: Any) -> Moments:
    mean, cov = pair if len(pair) == 2 else (None, None)
    if not (isinstance(mean, Tensor) and isinstance(cov, Tensor)):
        raise TypeError(f"{name} is samples, or a pair of tensors (mean, covariance) from `moments`; got {type(pair).__name__}")
    for part in (mean, cov):
        as_tensor(part, name)
    if mean.ndim != 1 or not len(mean) or cov.shape != (len(mean), len(mean)) or mean.is_complex() or cov.is_complex():
        raise ValueError(
            f"{name} is (mean, covariance) of shapes (F,) and (F, F), real, got {mean.dtype} {tuple(mean.shape)} and "
            f"{cov.dtype} {tuple(cov.shape)}"
        )
    mean, cov = mean.double(), cov.double()
    if not bool(mean.isfinite().all() and cov.isfinite().all() and ((cov - cov.T).abs() <= 1e-5 * cov.abs().max()).all()):
        raise ValueError(f"{name} has a covariance that is not symmetric, or numbers that are not finite")
    return mean, cov


def _root(name: str, cov: Tensor) -> Tensor:
    """Σ^½ of a covariance; what rounding alone could have left of an eigenvalue 0 is 0."""
    values, axes = torch.linalg.eigh(0.5 * (cov + cov.T))
    tiny = len(values) * torch.finfo(values.dtype).eps * values[-1:].abs()
    if bool((values < -1e-5 * values[-1].abs()).any()):
        raise ValueError(f"{name} has a covariance with an eigenvalue of {float(values[0]):.3g}; none is negative")
    root: Tensor = axes * torch.where(values > tiny, values, torch.zeros_like(values)).sqrt() @ axes.T
    return root
