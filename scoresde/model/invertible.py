"""Coupling flows as densities: log p(x) = log N(f(x); 0, I) + log|det ∂f/∂x|, f invertible.

They are samplers and densities in one network call, and less exact than a score model: RealNVP
needs many layers to separate modes, and NICE can't change volumes but by constants.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Unpack

import torch
from torch import Tensor

from ..backbones.coupling_layers import FLOWS
from ..backbones.keywords import FlowOptions
from ..common.checks import check_budget, check_generator, whole_number
from ..common.inputs import event_shape
from ..common.seeds import takes_seed
from .condition_scales import checked, standardized, warn_far
from .trainable import Trainable


class CouplingFlow(Trainable):
    """A density by an invertible network, which `fit` trains by maximum likelihood.

    log p(x) = log N(z; 0, I) + log|det ∂z/∂z̃| − log|det L|, with z = f(z̃) and z̃ the standardized
    data. It can be the `source` of a score model, or a learned prior.

    Parameters
    ----------
    net : nn.Module
        Called as net(x, t, **condition) with x (B, *shape) standardized, returns latents (B, n) and
        log|det| (B,); with a method inverse(z, **condition). `scoresde.coupling_flow` makes one.
    shape : tuple of int
        Shape of one sample.
    standardize : str, optional
        As for `ScoreSDE`.

    References
    ----------
    Dinh et al., NICE, ICLR workshop 2015; Density estimation using Real NVP, ICLR 2017.

    Examples
    --------
    >>> flow = scoresde.coupling_flow(shape=(2,), layers=4, width=16)
    >>> history = scoresde.fit(flow, scoresde.toy.Moons(), steps=20, progress=False)
    >>> x = flow.sample(5)
    >>> flow.log_prob(x).shape
    torch.Size([5])
    """

    stored_as = "coupling_flow"
    networks_by_name = FLOWS
    verbs = "a flow has .sample(n) and .log_prob(x)"
    objective = "maximum_likelihood"

    @takes_seed
    @torch.no_grad()
    def sample(
        self,
        n: int,
        generator: torch.Generator | None = None,
        *,
        seed: int | None = None,
        given: Mapping[str, Any] | None = None,
    ) -> Tensor:
        """Draw n samples.

        Parameters
        ----------
        n : int
        generator : torch.Generator, optional
        seed : int, optional
            An integer in place of the generator.
        given : dict of str to Tensor, optional
            Conditions by name, one for all or a row a sample.

        Returns
        -------
        Tensor, shape (n, *shape)
            In the units of the data.

        Raises
        ------
        TypeError, ValueError
            For n < 1, or conditions that the network does not take.

        Examples
        --------
        >>> scoresde.coupling_flow(shape=(1, 4, 4), layers=2).sample(3).shape
        torch.Size([3, 1, 4, 4])
        """
        n = whole_number("n", n)
        check_generator(generator)
        check_budget(f"n={n} samples", 8.0 * n * self.dim, device=self.device)
        device = self.device if generator is None else generator.device
        z = torch.randn(n, self.dim, generator=generator, device=device, dtype=self.state_dtype)
        inverse: Any = self.networks()[0].inverse
        x = inverse(z.to(self.device, self._net_dtype), **self._shown(given, n))
        return self.to_data(x.flatten(1).to(self.state_dtype))

    def log_prob(self, x: Tensor, *, given: Mapping[str, Any] | None = None) -> Tensor:
        """Return log p(x), or log p(x | given).

        Parameters
        ----------
        x : Tensor, shape (B, *shape)
            In the units of the data.
        given : dict of str to Tensor, optional
            As for `sample`.

        Returns
        -------
        Tensor, shape (B,)
            In nats, in the dtype of x, but at least that of the states: the network computes in
            its own.

        Raises
        ------
        TypeError, ValueError
            For x of the wrong shape or with NaN, or conditions that the network does not take.

        Examples
        --------
        An untrained flow is N(0, I):

        >>> scoresde.coupling_flow(shape=(2,)).log_prob(torch.zeros(1, 2)).exp() * 2 * math.pi
        tensor([1.0000], grad_fn=...)
        """
        x = self.accept(x)
        z = self.standardization.spread(self.from_data(x))
        shown = self._shown(given, len(x))
        latent, log_det = self.networks()[0](z.to(self._net_dtype), None, **shown)
        latent = latent.to(z.dtype)
        log_n = -0.5 * (latent.square() + math.log(2 * math.pi)).sum(1)
        found: Tensor = log_n + log_det.to(z.dtype) - self.log_scale
        return found

    @property
    def _net_dtype(self) -> torch.dtype:
        """The dtype of the network's weights."""
        weight = next(self.networks()[0].parameters(), None)
        return self.state_dtype if weight is None else weight.dtype

    def _shown(self, given: Mapping[str, Any] | None, n: int) -> dict[str, Tensor]:
        """Conditions as the network is given them, a row a sample."""
        if not given:
            return {}
        values = checked(self, given)
        warn_far(self, values)
        shown = standardized(self, values, self.networks()[0])
        for name, value in shown.items():
            if len(value) not in (1, n):
                raise ValueError(f"condition {name!r} has {len(value)} rows for {n} samples")
        return {name: value.expand(n, *value.shape[1:]) for name, value in shown.items()}


def coupling_flow(shape: tuple[int, ...], **options: Unpack[FlowOptions]) -> CouplingFlow:
    """Return an untrained coupling flow, RealNVP by default: N(0, I) until `fit` trains it.

    Parameters
    ----------
    shape : tuple of int
        Shape of one sample; the flow sees it flattened.
    **options
        kind="affine" (RealNVP) or "additive" (NICE), layers=12, width=64, depth=2, classes=0,
        vector=0, condition_dropout=0.1: see `CouplingLayers`; standardize= as for `build`.

    Returns
    -------
    CouplingFlow

    Raises
    ------
    TypeError, ValueError
        For unknown options, or values that make no flow.

    Examples
    --------
    >>> scoresde.coupling_flow(shape=(2,), kind="additive").net.kind
    'additive'
    """
    standardize = options.pop("standardize", None)
    shape = event_shape(shape)
    if not math.prod(shape) or not shape:
        raise ValueError(f"a sample of shape {shape} has no entries to transform; try shape=(1,)")
    net = FLOWS.build("coupling", shape, **options)
    return CouplingFlow(net, shape=shape, standardize=standardize)
