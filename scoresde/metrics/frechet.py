"""The Fréchet distance between normal fits to two sets of samples, or to their features (FID).

With means μ and covariances Σ of the features f(x) of either set,

    d² = |μ₁ − μ₂|² + tr(Σ₁ + Σ₂ − 2·(Σ₁Σ₂)^½)     (Dowson and Landau 1982; Heusel et al. 2017)

is the squared 2-Wasserstein distance of N(μ₁, Σ₁) and N(μ₂, Σ₂). If the features are not normal, it
is a lower bound of their squared distance (Gelbrich 1990); zero means that their first two moments
agree.

(Σ₁Σ₂)^½ has the trace of (Σ₁^½ Σ₂ Σ₁^½)^½, which is the sum of the singular values of Σ₁^½ Σ₂^½.
These are real whatever the rounding, and singular covariances, of fewer samples than features, have
an exact distance: an eigenvalue λ of Σ below τ = F·2⁻⁵²·λ_max, which rounding alone could have made
of 0, counts as 0. Where k eigenvalues of Σ₁ truly lie in between, d² is too large by up to
2k·√(τ₁·λ_max,₂): for F = 2048 and λ_max = 1 by 1e-6 each; and likewise for those of Σ₂.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..common.checks import whole_number
from ..common.inputs import as_tensor
from ..common.names import choose

Features = Callable[[Tensor], Tensor]
Moments = tuple[Tensor, Tensor]


@torch.no_grad()
def frechet_distance(
    x: Tensor | Moments,
    y: Tensor | Moments,
    features: str | Features | None = None,
    *,
    batch_size: int = 256,
) -> Tensor:
    """Return the Fréchet distance d² = |μ₁ − μ₂|² + tr(Σ₁ + Σ₂ − 2·(Σ₁Σ₂)^½) of two sets.

    It is biased upwards, for equal normal distributions with Σ = I by (2F + ½·F(F + 1))/n, so
    compare sets of one size, or with `noise_floor`. With features="inception" and 50,000 samples it
    is called FID. It carries no gradient.

    Parameters
    ----------
    x, y : Tensor, shape (n, *shape), or a pair (mean, covariance)
        Samples, n ≥ 2 of each; or the `moments` of samples, (F,) and (F, F).
    features : callable (B, *shape) -> (B, F), or str, optional
        Any function or network, called without gradients and in eval mode; "inception", see
        `inception`. None for the samples themselves, flattened.
    batch_size : int
        Samples in a call of the features.

    Returns
    -------
    Tensor, shape (), float64
        d² ≥ 0, in squared units of the features. It costs about F³ operations; n may be below F.

    Raises
    ------
    TypeError
        For x or y that is neither samples nor a pair of tensors, or features that can't be called.
    ValueError
        For fewer than two samples, features that are empty, complex, not finite, too large to
        square or of different lengths, or a matrix that is no covariance.
    ImportError
        For "inception" without torch-fidelity: `pip install 'scoresde[fid]'`.

    References
    ----------
    Dowson and Landau, The Fréchet distance between multivariate normal distributions, 1982; Heusel
    et al., GANs trained by a two time-scale update rule, NeurIPS 2017; Chong and Forsyth,
    Effectively unbiased FID, CVPR 2020, for the bias.

    Examples
    --------
    >>> x = torch.tensor([[0.0, 1.0], [2.0, 5.0]])
    >>> frechet_distance(x, 3 + 2 * x)  # |μ|² + tr Σ = (4² + 6²) + (2 + 8)
    tensor(62., dtype=torch.float64)
    >>> one = torch.eye(1)
    >>> frechet_distance((torch.zeros(1), one), (torch.ones(1), 9 * one))  # 1² + (3 − 1)²
    tensor(5., dtype=torch.float64)
    """
    features = resolve_features(features)
    m1, c1 = _moments("x", x, features, batch_size)
    m2, c2 = _moments("y", y, features, batch_size)
    if m1.shape != m2.shape:
        raise ValueError(
            f"x has {len(m1)} features and y {len(m2)}; wanted samples of one shape, and one "
            "network"
        )
    m2 = m2.to(m1.device)
    c2 = c2.to(m1.device)
    cross = torch.linalg.svdvals(_root("x", c1) @ _root("y", c2)).sum()
    result: Tensor = ((m1 - m2).square().sum() + c1.trace() + c2.trace() - 2 * cross).clamp_min(0)
    return result


def _moments(
    name: str, value: Tensor | Moments, features: Features | None, batch_size: int
) -> Moments:
    """Moments of samples, or a pair that has been checked."""
    if isinstance(value, tuple | list):
        return _pair(name, value)
    return moments(value, features, batch_size=batch_size)


@torch.no_grad()
def moments(
    x: Tensor, features: str | Features | None = None, *, batch_size: int = 256
) -> Moments:
    """Return mean and covariance of features of samples, for `frechet_distance`.

    μ = 1/n·Σ f_i, Σ = 1/(n − 1)·Σ (f_i − μ)(f_i − μ)ᵀ, from one batch of features at a time.

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
    function = resolve_features(features)
    if not isinstance(x, Tensor):
        raise TypeError(
            f"x is a {type(x).__name__}; wanted a tensor, or a pair (mean, covariance)"
        )
    as_tensor(x, "x")
    if x.ndim < 1 or len(x) < 2 or x.is_complex():
        raise ValueError(
            f"x is {x.dtype} of shape {tuple(x.shape)}; wanted real numbers (n, *shape) with n ≥ 2"
        )
    batch_size = whole_number("batch_size", batch_size)
    count = 0
    mean = torch.zeros(0, device="cpu")
    scatter = torch.zeros(0, device="cpu")
    for part in torch.split(x, batch_size):  # Chan, Golub & LeVeque 1983
        f = _features_of(function, part)
        n = len(f)
        total = count + n
        here = f.mean(0)
        if not count:
            mean = torch.zeros_like(here)
            scatter = f.new_zeros(len(here), len(here))
        gap = here - mean
        scatter += (f - here).T @ (f - here) + torch.outer(gap, gap) * (count * n / total)
        mean = mean + gap * (n / total)
        count = total
    if not bool(scatter.isfinite().all()):
        raise ValueError(
            "features are too large: their squares overflow; divide both sets by their scale"
        )
    return mean, scatter / (count - 1)


def resolve_features(features: str | Features | None) -> Features | None:
    """Return the features that a name stands for; raise unless they can be called."""
    if isinstance(features, str):
        return FEATURES[choose("features", features, FEATURES)]()
    if features is not None and not callable(features):
        raise TypeError(
            f"features are a function of a batch, a name, or None; got {type(features).__name__}"
        )
    return features


def inception(weights: str | None = None) -> Features:
    """Return the 2048 features that FID is defined by: Inception-v3's last average, of
    torch-fidelity.

    The network is the one that others use, so that numbers can be compared. It takes images as
    bytes, (B, 3 or 1, H, W); gray images become three equal colors. torch-fidelity downloads the
    weights from its web page unless a file is given. The tests use a stand-in of the same
    interface, not the weights.

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
        raise ImportError(
            "features='inception' needs torch-fidelity: pip install 'scoresde[fid]'"
        ) from None
    net = FeatureExtractorInceptionV3(
        "inception-v3-compat", ["2048"], feature_extractor_weights_path=weights
    )
    return _Bytes(net)


FEATURES: dict[str, Callable[[], Features]] = {"inception": inception}
"""Features by name."""


class _Bytes(nn.Module):
    """A network of torch-fidelity: it takes images as bytes and returns features (B, F)."""

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype != torch.uint8 or x.ndim != 4 or x.shape[1] not in (1, 3):
            raise ValueError(
                f"features='inception' are of images as bytes, (B, 1 or 3, H, W), got {x.dtype} of "
                f"shape {tuple(x.shape)}; "
                "of samples on the unit scale, scoresde.dequantize.Uniform(256).values(x).byte()"
            )
        features: Tensor
        (features,) = self.net(x.expand(-1, 3, -1, -1).contiguous())
        return features


def _features_of(function: Features | None, x: Tensor) -> Tensor:
    """Features (B, F) of a batch, as float64; a network is called in eval mode."""
    f: Any
    if function is None:
        f = x.flatten(1) if x.ndim > 1 else x[:, None]
    elif isinstance(function, nn.Module):
        f = _evaluated(function, x)
    else:
        f = function(x)
    if not isinstance(f, Tensor) or f.ndim != 2 or len(f) != len(x):
        got = tuple(f.shape) if isinstance(f, Tensor) else type(f).__name__
        raise ValueError(f"features of {len(x)} samples are ({len(x)}, F), got {got}")
    if not f.shape[1] or f.is_complex():
        raise ValueError(
            f"features are real numbers, at least one a sample, got {f.dtype} of shape "
            f"{tuple(f.shape)}"
        )
    values: Tensor = f.double()
    if not bool(values.isfinite().all()):
        what = "samples" if function is None else "features"
        raise ValueError(f"{what} hold NaN or infinity; look where it comes from")
    return values


def _evaluated(net: nn.Module, x: Tensor) -> Any:
    """The output of a network in eval mode on its own device; its modes are restored."""
    training = [module for module in net.modules() if module.training]
    device = next((p.device for p in net.parameters()), x.device)
    net.eval()
    try:
        return net(x.to(device))
    finally:
        for module in training:
            module.training = True


def _pair(name: str, pair: Any) -> Moments:
    """A mean (F,) and a covariance (F, F) in float64, checked."""
    mean, cov = pair if len(pair) == 2 else (None, None)
    if not (isinstance(mean, Tensor) and isinstance(cov, Tensor)):
        raise TypeError(
            f"{name} is samples, or a pair of tensors (mean, covariance) from `moments`; got "
            f"{type(pair).__name__}"
        )
    for part in (mean, cov):
        as_tensor(part, name)
    fits = mean.ndim == 1 and len(mean) and cov.shape == (len(mean), len(mean))
    if not fits or mean.is_complex() or cov.is_complex():
        raise ValueError(
            f"{name} is (mean, covariance) of shapes (F,) and (F, F), real, got {mean.dtype} "
            f"{tuple(mean.shape)} and {cov.dtype} {tuple(cov.shape)}"
        )
    mean = mean.double()
    cov = cov.double()
    finite = mean.isfinite().all() and cov.isfinite().all()
    if not bool(finite and ((cov - cov.T).abs() <= 1e-5 * cov.abs().max()).all()):
        raise ValueError(
            f"{name} has a covariance that is not symmetric, or numbers that are not finite"
        )
    return mean, cov


def _root(name: str, cov: Tensor) -> Tensor:
    """Σ^½ of a covariance; eigenvalues that rounding could have made of 0 count as 0."""
    values, axes = torch.linalg.eigh(0.5 * (cov + cov.T))
    tiny = len(values) * torch.finfo(values.dtype).eps * values[-1:].abs()
    if bool((values < -1e-5 * values[-1].abs()).any()):
        raise ValueError(
            f"{name} has a covariance with an eigenvalue of {float(values[0]):.3g}; none may be "
            "negative"
        )
    values = torch.where(values > tiny, values, torch.zeros_like(values))
    root: Tensor = axes * values.sqrt() @ axes.T
    return root
