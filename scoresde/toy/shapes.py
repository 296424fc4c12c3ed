"""Densities that are no mixtures: a checkerboard with hard edges, a pinwheel by change of variables.

A pinwheel twists Gaussian features f ~ N((1, 0), diag(s_r², s_t²)) by an angle that grows with f₀, onto one
of A arms:

    x = 2·R(−(2πk/A + a(f₀)))·f,        a(f₀) = min(rate·e^{f₀}, 1000),        k uniform on 0 … A − 1.

Rotations keep the radius. With r = |x|/2, −θ the angle of x and f = r·(cos ψ, −sin ψ), the features behind x
are all the ψ with

    F(ψ) = ψ + a(r·cos ψ) ≡ θ (mod 2π/A),    and    p(x) = Σ_ψ p(f)/(4·A·|F′(ψ)|),    F′(ψ) = 1 + a′(f₀)·f₁,

4·F′ being the Jacobian of the map. F rises, falls at most once (where −rate·f₁·e^{f₀} > 1) and rises again;
on each of the three pieces the multiples of 2π/A between its end values count the roots, and bisection finds
all.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..checks import number, whole
from .density import Density

_TURNS = 1000.0  # radians at which arms stop winding: beyond the mass, and it bounds the number of roots


class Checkerboard(Density):
    """The uniform density on the eight dark cells, of side 2, of a 4×4 board over [−4, 4]².

    References
    ----------
    Grathwohl et al. 2019, FFJORD, `toy_data.py`.

    Examples
    --------
    >>> p = Checkerboard()
    >>> bool((p.log_prob(p.sample(100)) == -p.entropy()).all())
    True
    """

    def bounds(self) -> tuple[Tensor, Tensor]:
        """Return the corners of the board.

        Returns
        -------
        low, high : Tensor, shape (2,), float64

        Examples
        --------
        >>> low, high = Checkerboard().bounds()
        >>> low, high
        (tensor([-4., -4.], dtype=torch.float64), tensor([4., 4.], dtype=torch.float64))
        """
        return torch.full((2,), -4.0, dtype=torch.float64, device="cpu"), torch.full((2,), 4.0, dtype=torch.float64, device="cpu")

    def _sample(self, n: int, generator: torch.Generator | None, device: torch.device, dtype: torch.dtype) -> Tensor:
        column, pair = torch.randint(4, (2, n), generator=generator, device=device)
        low = 2.0 * torch.stack([column - 2, 2 * (pair % 2) + column % 2 - 2], 1).to(dtype)
        u = torch.rand(n, 2, generator=generator, device=device, dtype=torch.float64)
        x = (low + 2 * u).to(dtype)
        return torch.where(x < low + 2, x, low)  # the far edge is the light cell's

    def _log_prob(self, x: Tensor) -> Tensor:
        inside = ((x >= -4) & (x < 4)).all(1) & (torch.floor(x / 2).sum(1) % 2 == 0)
        value = torch.where(inside, x.new_tensor(-math.log(32)), -math.inf)
        return torch.where(x.isnan().any(1), math.nan, value)

    def _entropy(self) -> float:
        return math.log(32)


class Pinwheel(Density):
    """Arms of Gaussian blobs, twisted the more the farther out.

    The density is exact but not smooth: where arms fold over (by default beyond all but 1e-8 of the mass) it
    is infinite on a line. The entropy is refused where folds hold too much mass for a quadrature. `log_prob`
    finds roots, and carries no gradient.

    Parameters
    ----------
    radial_std : float
        Of the features along an arm, > 0.
    tangential_std : float
        Of the features across an arm, > 0.
    arms : int
        How many, ≥ 1.
    rate : float
        Of the twist, ≥ 0, in radians.

    Raises
    ------
    ValueError
        For an argument out of its range.

    References
    ----------
    Johnson et al. 2016, Composing graphical models with neural networks; scaled as in Grathwohl et
    al. 2019, FFJORD, `toy_data.py`.

    Examples
    --------
    >>> round(Pinwheel().entropy(), 4)
    2.3178
    """

    _rows = 2048

    def __init__(self, radial_std: float = 0.3, tangential_std: float = 0.1, arms: int = 5, rate: float = 0.25) -> None:
        self.radial_std = number("radial_std", radial_std, 0, math.inf, hint="try 0.3")
        self.tangential_std = number("tangential_std", tangential_std, 0, math.inf, hint="try 0.1")
        self.arms = whole("arms", arms)
        self.rate = number("rate", rate, 0, math.inf, closed=True, hint="mirror x for one that turns the other way")

    def bounds(self) -> tuple[Tensor, Tensor]:
        """Return the square around every feature within 4 stds.

        Returns
        -------
        low, high : Tensor, shape (2,), float64

        Examples
        --------
        >>> low, high = Pinwheel(radial_std=0.25, tangential_std=1e-9).bounds()
        >>> low, high  # ± 2·(1 + 4·0.25)
        (tensor([-4., -4.], dtype=torch.float64), tensor([4., 4.], dtype=torch.float64))
        """
        half = 2 * math.hypot(1 + 4 * self.radial_std, 4 * self.tangential_std)
        return torch.full((2,), -half, dtype=torch.float64, device="cpu"), torch.full(
            (2,), half, dtype=torch.float64, device="cpu"
        )

    def _twist(self, f0: Tensor) -> Tensor:
        return (self.rate * f0.exp()).clamp(max=_TURNS)

    def _place(self, f: Tensor, k: Tensor) -> Tensor:
        angle = 2 * math.pi / self.arms * k.to(f) + self._twist(f[:, 0])
        c, s = angle.cos(), angle.sin()
        return 2 * torch.stack([c * f[:, 0] + s * f[:, 1], c * f[:, 1] - s * f[:, 0]], 1)

    def _features(self, z: Tensor) -> Tensor:
        return z * z.new_tensor([self.radial_std, self.tangential_std]) + z.new_tensor([1.0, 0.0])

    def _sample(self, n: int, generator: torch.Generator | None, device: torch.device, dtype: torch.dtype) -> Tensor:
        k = torch.randint(self.arms, (n,), generator=generator, device=device)
        z = torch.randn(n, 2, generator=generator, device=device, dtype=torch.float64)
        return self._place(self._features(z), k).to(dtype)

    def _folds(self, r: Tensor) -> tuple[Tensor, Tensor]:
        """Where F stops and where it resumes rising on (0, π); one and the same point if it always rises."""
        steepest = 2 * r / (1 + (1 + 4 * r.square()).sqrt())  # cos ψ = r·sin²ψ, without cancellation
        middle = steepest.clamp(max=1).acos()
        free = (self._limit / r).clamp(-1, 1).acos()  # before this angle the twist is at its limit and F′ = 1

        def falls(psi: Tensor) -> Tensor:
            return (self.rate * r).log() + psi.sin().log() + r * psi.cos() > 0

        any_fold = falls(middle)
        ends = []
        for outside in (torch.zeros_like(r), torch.full_like(r, math.pi)):
            inside = middle
            for _ in range(54):
                half = (inside + outside) / 2
                below = falls(half)
                inside, outside = torch.where(below, half, inside), torch.where(below, outside, half)
            ends.append(torch.where(any_fold, inside, middle))
        return torch.maximum(ends[0], free), torch.maximum(ends[1], free)

    @property
    def _limit(self) -> float:
        return math.log(_TURNS / self.rate) if self.rate else math.inf

    def _log_prob(self, x: Tensor) -> Tensor:
        x = x.detach()  # autograd would see through the density of the roots, not through the roots
        bad, period = x.isnan().any(1), 2 * math.pi / self.arms
        r = (torch.hypot(x[:, 0], x[:, 1]) / 2).nan_to_num(0.0).clamp(1e-300, 1e150)
        theta = torch.where(bad, 0.0, -torch.atan2(x[:, 1], x[:, 0]))
        first, second = self._folds(r)
        knots = torch.stack([torch.full_like(r, -math.pi), first, second, torch.full_like(r, math.pi)], 1)

        def F(r: Tensor, psi: Tensor) -> Tensor:
            return psi + self._twist(r * psi.cos())

        # on each piece F = θ + i·period for the integers i from low + 1 to high
        level = ((F(r.unsqueeze(1), knots) - theta.unsqueeze(1)) / period).floor()
        low, high = torch.minimum(level[:, :-1], level[:, 1:]), torch.maximum(level[:, :-1], level[:, 1:])
        count = (high - low).long().flatten()
        piece = torch.repeat_interleave(torch.arange(count.numel(), device=x.device), count)
        first_of_piece = (count.cumsum(0) - count)[piece]
        i = torch.arange(len(piece), device=x.device) - first_of_piece + 1 + low.flatten()[piece]
        point = piece // 3
        r, target = r[point], theta[point] + i * period
        left, right = knots[:, :-1].flatten()[piece], knots[:, 1:].flatten()[piece]
        rising = piece % 3 != 1
        for _ in range(56):
            psi = (left + right) / 2
            early = (F(r, psi) < target) == rising
            left, right = torch.where(early, psi, left), torch.where(early, right, psi)
        psi = (left + right) / 2
        f0, f1 = r * psi.cos(), -r * psi.sin()
        slope = 1 + torch.where(f0 < self._limit, self._twist(f0) * f1, 0.0)
        square = ((f0 - 1) / self.radial_std).square() + (f1 / self.tangential_std).square()
        scale = 8 * math.pi * self.radial_std * self.tangential_std * self.arms
        term = -0.5 * square - slope.abs().log() - math.log(scale)
        top = term.new_full((len(x),), -math.inf).scatter_reduce(0, point, term, "amax")
        top = top.clamp(min=-1e300)  # −inf − (−inf) at infinity
        total = torch.zeros_like(top).index_add(0, point, (term - top[point]).exp())
        return torch.where(bad, math.nan, top + total.log())

    def _entropy(self) -> float:
        """−E[log p] over the features of one arm by the trapezoid rule, refined until it stands still."""
        last = math.inf
        for steps in (72, 144, 288):
            z = torch.linspace(-9, 9, steps + 1, dtype=torch.float64, device="cpu")
            w = torch.exp(-0.5 * z.square()) * (18 / steps) / math.sqrt(2 * math.pi)
            x = self._place(self._features(torch.cartesian_prod(z, z)), z.new_zeros(()))
            w2 = torch.outer(w, w).flatten()
            value = -float((w2 * self.log_prob(x)).sum() / w2.sum())
            if abs(value - last) < 1e-7:
                return value
            last = value
        raise ValueError(
            f"the arms of this pinwheel fold too much for a quadrature; {last:.6f} was the last value: "
            "estimate the entropy with -p.log_prob(p.sample(100_000, dtype=torch.float64)).mean()"
        )
