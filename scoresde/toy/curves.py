"""Noisy curves: x = c(τ) + noise·ε with τ drawn along a curve in the plane and ε ~ N(0, I).

    p(x) = 1/A Σ_a ∫₀¹ q·τ^(q−1) N(x; c_a(τ), noise²·I) dτ,        A arcs of equal mass, τ = U^(1/q)

The integrand is as smooth as a Gaussian, so a quadrature with a few nodes per `noise` along the
arc is exact to rounding. Its nodes and weights are a Gaussian mixture, which has the density, the
score and the posterior means of the continuous curve; sampling alone uses the curve itself.
"""

from __future__ import annotations

import functools
import math
from abc import abstractmethod
from typing import ClassVar

import numpy as np
import torch
from scipy.special import roots_legendre
from torch import Tensor

from ..common.checks import real_number
from .mixture import GaussianMixture

NODES = 1_000_000  # of quadrature along one arc, at most
PANEL_NODES = 512  # of a Gauss–Legendre rule, at most


class NoisyCurve(GaussianMixture):
    """A curve in the plane blurred by a Gaussian; a new one gives `curve` and its number of arcs.

    With the default `resolution` log p is right to 1e-9 nats in the box of `bounds` and to 1e-7 in
    twice that box.

    Parameters
    ----------
    noise : float
        Standard deviation of the blur, > 0, in the units of x.

    Attributes
    ----------
    arcs : int
        The number A of arcs.
    closed : bool
        Whether each arc ends where it begins.
    power : int
        The q in τ = U^(1/q).
    resolution : float
        Nodes per noise along the arc.

    Raises
    ------
    TypeError, ValueError
        If noise is not a positive number.

    Examples
    --------
    >>> class Circle(NoisyCurve):
    ...     closed = True
    ...     def curve(self, tau, arc):
    ...         return torch.stack([(2 * math.pi * tau).cos(), (2 * math.pi * tau).sin()], 1)
    >>> Circle(noise=0.1).mean().abs().max() < 1e-12
    tensor(True)
    """

    arcs: ClassVar[int] = 1
    closed: ClassVar[bool] = False
    power: ClassVar[int] = 1
    resolution: ClassVar[float] = 2.0

    def __init__(self, noise: float) -> None:
        self.noise = real_number("noise", noise, 0, math.inf, hint="try 0.1")
        points, weights = zip(*(self._nodes(arc) for arc in range(self.arcs)), strict=True)
        super().__init__(torch.cat(points), self.noise, torch.cat(weights))

    @abstractmethod
    def curve(self, tau: Tensor, arc: Tensor) -> Tensor:
        """Return the points c_a(τ) of the curve.

        Parameters
        ----------
        tau : Tensor, shape (n,)
            In [0, 1].
        arc : Tensor of int, shape (n,)
            0 … arcs − 1.

        Returns
        -------
        Tensor, shape (n, 2)
            In the units of x.

        Examples
        --------
        >>> Rings().curve(torch.tensor([0.0, 0.0]), torch.tensor([0, 3]))
        tensor([[3.0000, 0.0000],
                [0.7500, 0.0000]])
        """

    def _nodes(self, index: int) -> tuple[Tensor, Tensor]:
        """Nodes (K, 2) and weights (K,) of an arc: equidistant if closed, else Gauss–Legendre."""
        tau = torch.linspace(0, 1, 2049, dtype=torch.float64, device="cpu")
        arc = torch.full_like(tau, index, dtype=torch.long)
        speed = self.curve(tau, arc).diff(dim=0).norm(dim=1) * 2048
        middle = (tau[1:] + tau[:-1]) / 2
        # neighboring Gauss–Legendre nodes are π √(τ(1 − τ))/K apart
        stretch = speed if self.closed else speed * math.pi * (middle * (1 - middle)).sqrt()
        wanted = self.resolution * float(stretch.max()) / self.noise
        if not wanted < NODES:
            least = self.resolution * float(stretch.max()) / NODES
            raise ValueError(
                f"noise={self.noise:.3g} asks for {wanted:.1e} nodes of quadrature along one arc; "
                f"take at least {least:.1e}"
            )
        K = 16 + math.ceil(wanted)
        if self.closed:
            tau = torch.arange(K, dtype=torch.float64, device="cpu") / K
            w = torch.full((K,), 1 / K, dtype=torch.float64, device="cpu")
        else:
            tau, w = _gauss_legendre(K)
        arc = torch.full_like(tau, index, dtype=torch.long)
        return self.curve(tau, arc), w * self.power * tau ** (self.power - 1)

    def _sample(
        self, n: int, generator: torch.Generator | None, device: torch.device, dtype: torch.dtype
    ) -> Tensor:
        arc = torch.randint(self.arcs, (n,), generator=generator, device=device)
        u = torch.rand(n, generator=generator, device=device, dtype=torch.float64)
        tau = u ** (1 / self.power)
        eps = torch.randn(n, 2, generator=generator, device=device, dtype=torch.float64)
        return (self.curve(tau, arc) + self.noise * eps).to(dtype)


def _gauss_legendre(k: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights on [0, 1], about as dense as those of k nodes; many of them in panels."""
    panels = -(-k // PANEL_NODES)
    z, v = _panel(min(k, PANEL_NODES))
    left = np.arange(panels)[:, None]
    tau = (left + (z + 1) / 2) / panels
    return torch.from_numpy(tau.ravel()), torch.from_numpy(np.tile(v / 2 / panels, panels))


@functools.lru_cache(maxsize=8)
def _panel(k: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights of k points on [−1, 1]."""
    nodes, weights = roots_legendre(k)
    return nodes, weights


def _polar(radius: Tensor, angle: Tensor) -> Tensor:
    """Points (n, 2) from polar coordinates."""
    return torch.stack([radius * angle.cos(), radius * angle.sin()], 1)


class Moons(NoisyCurve):
    """Two interleaving half circles of radius 2: scikit-learn's `make_moons` times 2, minus (1,
    0.2).

    Parameters
    ----------
    noise : float
        Standard deviation, in the units of x; the default 0.2 is `make_moons(noise=0.1)` times 2.

    Raises
    ------
    TypeError, ValueError
        If noise is not a positive number.

    References
    ----------
    scikit-learn `make_moons`, scaled as in Grathwohl et al. 2019, FFJORD, `toy_data.py`.

    Examples
    --------
    >>> round(Moons().entropy(), 4)
    2.3939
    """

    arcs = 2

    def __init__(self, noise: float = 0.2) -> None:
        super().__init__(noise)

    def curve(self, tau: Tensor, arc: Tensor) -> Tensor:
        """Return points on the upper moon for arc 0, on the lower moon for arc 1.

        Examples
        --------
        >>> Moons().curve(torch.tensor([0.5, 0.5]), torch.tensor([0, 1]))
        tensor([[-1.0000,  1.8000],
                [ 1.0000, -1.2000]])
        """
        upper = _polar(torch.full_like(tau, 2.0), math.pi * tau) - tau.new_tensor([1.0, 0.2])
        return torch.where(arc.unsqueeze(1) == 0, upper, tau.new_tensor([0.0, 0.6]) - upper)


class Rings(NoisyCurve):
    """Four concentric rings of radius 3, 9/4, 3/2 and 3/4, a quarter of the mass on each.

    Parameters
    ----------
    noise : float
        Standard deviation, in the units of x.

    Raises
    ------
    TypeError, ValueError
        If noise is not a positive number.

    References
    ----------
    Grathwohl et al. 2019, FFJORD, `toy_data.py`, which adds 0.08 after the scaling by 3, as here.

    Examples
    --------
    >>> round(Rings().entropy(), 4)
    2.6232
    """

    arcs = 4
    closed = True

    def __init__(self, noise: float = 0.08) -> None:
        super().__init__(noise)

    def curve(self, tau: Tensor, arc: Tensor) -> Tensor:
        """Return points on the rings; arc 0 is the outermost.

        Examples
        --------
        >>> Rings().curve(torch.zeros(4), torch.arange(4)).norm(dim=1)
        tensor([3.0000, 2.2500, 1.5000, 0.7500])
        """
        return _polar(0.75 * (4 - arc), 2 * math.pi * tau)


class SwissRoll(NoisyCurve):
    """One spiral arm (t·cos t, t·sin t)/5 with t uniform in [1.5π, 4.5π].

    Parameters
    ----------
    noise : float
        Standard deviation, in the units of x; the default 0.2 is `make_swiss_roll(noise=1)` over 5.

    Raises
    ------
    TypeError, ValueError
        If noise is not a positive number.

    References
    ----------
    scikit-learn `make_swiss_roll`, scaled as in Grathwohl et al. 2019, FFJORD, `toy_data.py`.

    Examples
    --------
    >>> round(SwissRoll().entropy(), 4)
    2.6696
    """

    def __init__(self, noise: float = 0.2) -> None:
        super().__init__(noise)

    def curve(self, tau: Tensor, arc: Tensor) -> Tensor:
        """Return points on the roll, from the inside out.

        Examples
        --------
        >>> ends = SwissRoll().curve(torch.tensor([0.0, 1.0]), torch.tensor([0, 0]))
        >>> ends.norm(dim=1) / (0.3 * math.pi)
        tensor([1.0000, 3.0000])
        """
        t = 1.5 * math.pi * (1 + 2 * tau)
        return _polar(t / 5, t)


class TwoSpirals(NoisyCurve):
    """Two spiral arms ±(−t·cos t, t·sin t)/3 that meet at the origin, with t = 3π·√U.

    FFJORD adds N(0, 0.1²) and, to each arm, a jitter U(0, 1/6) on either axis, which has no
    compact mixture. Here one Gaussian of the same variance (0.01 + 1/432 = 0.111²) replaces both,
    and the arms stay centered. The entropy is 2.6453 against FFJORD's 2.6455; without any jitter,
    at noise 0.1, it would be 2.5406.

    Parameters
    ----------
    noise : float
        Standard deviation, in the units of x.

    Raises
    ------
    TypeError, ValueError
        If noise is not a positive number.

    References
    ----------
    Grathwohl et al. 2019, FFJORD, `toy_data.py`, except for the jitter.

    Examples
    --------
    >>> round(TwoSpirals().entropy(), 4)
    2.6453
    """

    arcs = 2
    power = 2  # t² is uniform

    def __init__(self, noise: float = 0.111) -> None:
        super().__init__(noise)

    def curve(self, tau: Tensor, arc: Tensor) -> Tensor:
        """Return points on FFJORD's first arm for arc 0, on its opposite for arc 1, outwards.

        Examples
        --------
        >>> tau = torch.tensor([0.0, 0.5, 1.0])
        >>> first = TwoSpirals().curve(tau, torch.zeros(3))
        >>> second = TwoSpirals().curve(tau, torch.ones(3))
        >>> torch.equal(first, -second), first.norm(dim=1) / math.pi
        (True, tensor([0.0000, 0.5000, 1.0000]))
        """
        t = 3 * math.pi * tau
        return _polar((2 * arc - 1) * t / 3, -t)
