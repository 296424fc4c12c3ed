"""Densities that are no mixtures: a checkerboard with hard edges, and a pinwheel.

A pinwheel turns Gaussian features f ~ N((1, 0), diag(s_r², s_t²)) by an angle that grows with f₀,
onto one of A arms, k uniform on 0 … A − 1:

    x = 2·R(−(2πk/A + a(f₀)))·f,        a(f₀) = min(rate·e^{f₀}, 1000).

Rotations keep the radius. With r = |x|/2, −θ the angle of x and f = r·(cos ψ, −sin ψ), the
features of x are all the ψ with

    F(ψ) = ψ + a(r·cos ψ) ≡ θ (mod 2π/A),      F′(ψ) = 1 + a′(f₀)·f₁,

and p(x) = Σ_ψ p(f)/(4·A·|F′(ψ)|), where 4·F′ is the Jacobian of the map. F rises, falls at most
once (where −rate·f₁·e^{f₀} > 1) and rises again. On each of these three pieces the multiples of
2π/A between its end values count the roots, and bisection finds all.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..common.checks import real_number, whole_number
from .density import Density

# Radians at which arms stop winding: beyond the mass, and it bounds the number of roots.
MOST_TWIST = 1000.0
BISECTIONS = 56
FOLD_BISECTIONS = 54


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
        return _square(4.0)

    def _sample(
        self, n: int, generator: torch.Generator | None, device: torch.device, dtype: torch.dtype
    ) -> Tensor:
        column, pair = torch.randint(4, (2, n), generator=generator, device=device)
        low = 2.0 * torch.stack([column - 2, 2 * (pair % 2) + column % 2 - 2], 1).to(dtype)
        u = torch.rand(n, 2, generator=generator, device=device, dtype=torch.float64)
        x = (low + 2 * u).to(dtype)
        return torch.where(x < low + 2, x, low)  # the far edge belongs to the light cell

    def _log_prob(self, x: Tensor) -> Tensor:
        inside = ((x >= -4) & (x < 4)).all(1) & (torch.floor(x / 2).sum(1) % 2 == 0)
        value = torch.where(inside, x.new_tensor(-math.log(32)), -math.inf)
        return torch.where(x.isnan().any(1), math.nan, value)

    def _entropy(self) -> float:
        return math.log(32)


def _square(half: float) -> tuple[Tensor, Tensor]:
    """The corners of the square [−half, half]²."""
    high = torch.full((2,), half, dtype=torch.float64, device="cpu")
    return -high, high


class Pinwheel(Density):
    """Arms of Gaussian blobs, twisted more the farther out.

    The density is exact but not smooth: where arms fold over (by default beyond all but 1e-8 of
    the mass) it is infinite on a line. `entropy` raises if folds hold too much mass for a
    quadrature. `log_prob` finds roots, and carries no gradient.

    Parameters
    ----------
    radial_std : float
        Standard deviation of the features along an arm, > 0.
    tangential_std : float
        Standard deviation of the features across an arm, > 0.
    arms : int
        How many, ≥ 1.
    rate : float
        Rate of the twist, ≥ 0, in radians.

    Raises
    ------
    ValueError
        For an argument out of its range.

    References
    ----------
    Johnson et al. 2016, Composing graphical models with neural networks; scaled as in
    Grathwohl et al. 2019, FFJORD, `toy_data.py`.

    Examples
    --------
    >>> round(Pinwheel().entropy(), 4)
    2.3178
    """

    _rows = 2048

    def __init__(
        self,
        radial_std: float = 0.3,
        tangential_std: float = 0.1,
        arms: int = 5,
        rate: float = 0.25,
    ) -> None:
        self.radial_std = real_number("radial_std", radial_std, 0, math.inf, hint="try 0.3")
        self.tangential_std = real_number(
            "tangential_std", tangential_std, 0, math.inf, hint="try 0.1"
        )
        self.arms = whole_number("arms", arms)
        hint = "mirror x for one that turns the other way"
        self.rate = real_number("rate", rate, 0, math.inf, closed=True, hint=hint)

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
        return _square(2 * math.hypot(1 + 4 * self.radial_std, 4 * self.tangential_std))

    def _twist(self, f0: Tensor) -> Tensor:
        """a(f₀), in radians."""
        return (self.rate * f0.exp()).clamp(max=MOST_TWIST)

    def _place(self, f: Tensor, k: Tensor) -> Tensor:
        """x of features f (n, 2) on arm k."""
        angle = 2 * math.pi / self.arms * k.to(f) + self._twist(f[:, 0])
        c = angle.cos()
        s = angle.sin()
        return 2 * torch.stack([c * f[:, 0] + s * f[:, 1], c * f[:, 1] - s * f[:, 0]], 1)

    def _features(self, z: Tensor) -> Tensor:
        """f of standard normal numbers z (n, 2)."""
        return z * z.new_tensor([self.radial_std, self.tangential_std]) + z.new_tensor([1.0, 0.0])

    def _sample(
        self, n: int, generator: torch.Generator | None, device: torch.device, dtype: torch.dtype
    ) -> Tensor:
        k = torch.randint(self.arms, (n,), generator=generator, device=device)
        z = torch.randn(n, 2, generator=generator, device=device, dtype=torch.float64)
        return self._place(self._features(z), k).to(dtype)

    def _folds(self, r: Tensor) -> tuple[Tensor, Tensor]:
        """Where on (0, π) F stops rising and where it resumes; one point if it always rises."""
        # cos ψ = r·sin²ψ, without cancellation
        steepest = 2 * r / (1 + (1 + 4 * r.square()).sqrt())
        middle = steepest.clamp(max=1).acos()
        # before this angle the twist is at its limit and F′ = 1
        free = (self._limit / r).clamp(-1, 1).acos()

        def falls(psi: Tensor) -> Tensor:
            return (self.rate * r).log() + psi.sin().log() + r * psi.cos() > 0

        any_fold = falls(middle)
        ends = []
        for outside in (torch.zeros_like(r), torch.full_like(r, math.pi)):
            inside = middle
            for _ in range(FOLD_BISECTIONS):
                half = (inside + outside) / 2
                below = falls(half)
                inside = torch.where(below, half, inside)
                outside = torch.where(below, outside, half)
            ends.append(torch.where(any_fold, inside, middle))
        return torch.maximum(ends[0], free), torch.maximum(ends[1], free)

    @property
    def _limit(self) -> float:
        """f₀ at which the twist reaches its limit."""
        return math.log(MOST_TWIST / self.rate) if self.rate else math.inf

    def _F(self, r: Tensor, psi: Tensor) -> Tensor:
        """F(ψ)."""
        return psi + self._twist(r * psi.cos())

    def _log_prob(self, x: Tensor) -> Tensor:
        x = x.detach()  # the derivative of a root is not that of its bisection
        bad = x.isnan().any(1)
        r = (torch.hypot(x[:, 0], x[:, 1]) / 2).nan_to_num(0.0).clamp(1e-300, 1e150)
        theta = torch.where(bad, 0.0, -torch.atan2(x[:, 1], x[:, 0]))
        point, psi = self._roots(r, theta)
        r = r[point]
        f0 = r * psi.cos()
        f1 = -r * psi.sin()
        slope = 1 + torch.where(f0 < self._limit, self._twist(f0) * f1, 0.0)
        square = ((f0 - 1) / self.radial_std).square() + (f1 / self.tangential_std).square()
        scale = 8 * math.pi * self.radial_std * self.tangential_std * self.arms
        term = -0.5 * square - slope.abs().log() - math.log(scale)
        top = term.new_full((len(x),), -math.inf).scatter_reduce(0, point, term, "amax")
        top = top.clamp(min=-1e300)  # −inf − (−inf) at infinity
        total = torch.zeros_like(top).index_add(0, point, (term - top[point]).exp())
        return torch.where(bad, math.nan, top + total.log())

    def _roots(self, r: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
        """All roots ψ of F(ψ) ≡ θ (mod 2π/A), and which point each belongs to."""
        period = 2 * math.pi / self.arms
        first, second = self._folds(r)
        pi = torch.full_like(r, math.pi)
        knots = torch.stack([-pi, first, second, pi], 1)
        # on each piece F = θ + i·period for the integers i from low + 1 to high
        level = ((self._F(r.unsqueeze(1), knots) - theta.unsqueeze(1)) / period).floor()
        low = torch.minimum(level[:, :-1], level[:, 1:])
        high = torch.maximum(level[:, :-1], level[:, 1:])
        count = (high - low).long().flatten()
        piece = torch.repeat_interleave(torch.arange(count.numel(), device=r.device), count)
        first_of_piece = (count.cumsum(0) - count)[piece]
        i = torch.arange(len(piece), device=r.device) - first_of_piece + 1 + low.flatten()[piece]
        point = piece // 3
        r = r[point]
        target = theta[point] + i * period
        left = knots[:, :-1].flatten()[piece]
        right = knots[:, 1:].flatten()[piece]
        rising = piece % 3 != 1
        for _ in range(BISECTIONS):
            psi = (left + right) / 2
            early = (self._F(r, psi) < target) == rising
            left = torch.where(early, psi, left)
            right = torch.where(early, right, psi)
        return point, (left + right) / 2

    def _entropy(self) -> float:
        """−E[log p] over the features of one arm by the trapezoid rule, refined to 1e-7."""
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
            f"the arms of this pinwheel fold too much for a quadrature; its last value is "
            f"{last:.6f}: estimate the entropy with "
            "-p.log_prob(p.sample(100_000, dtype=torch.float64)).mean()"
        )
