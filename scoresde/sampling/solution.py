"""What `solve` returns."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..common.result_tables import ALL, FEW, Grid, ShownAsTable, counted, extent, spread


@dataclass(frozen=True, repr=False)
class Solution(ShownAsTable):
    """A solved trajectory, in the units of the data.

    Attributes
    ----------
    t : Tensor, shape (T,), float64
        Process times of the states, in the order of the solve.
    x : Tensor, shape (T, n, *shape)
        States.
    nfe : Tensor of int, shape (n,)
        Network evaluations of each sample.
    accepted, rejected : Tensor of int, shape (n,)
        Steps of each sample.

    Examples
    --------
    >>> import scoresde
    >>> gaussian = scoresde.toy.GaussianMixture(torch.zeros(1, 2), 1.0)
    >>> sde = scoresde.oracle(gaussian, scoresde.VPSDE())
    >>> solution = scoresde.solve(sde, 5, solver="heun", steps=10)
    >>> solution
    Solution: 5 samples of shape (2,), 20 evaluations and 10 steps each
    t  mean  std  min  max
    1   ...
    0   ...
    >>> solution.x.shape, solution.nfe
    (torch.Size([2, 5, 2]), tensor([20, 20, 20, 20, 20]))
    """

    t: Tensor
    x: Tensor
    nfe: Tensor
    accepted: Tensor
    rejected: Tensor

    def _grid(self) -> Grid:
        shape = tuple(self.x.shape[2:])
        title = f"Solution: {counted(self.x.shape[1], 'sample')} of shape {shape}, "
        title += f"{extent(self.nfe)} evaluations and {extent(self.accepted)} steps each"
        if bool((self.rejected > 0).any()):
            title += f", {extent(self.rejected)} rejected"
        times = self.t.tolist()
        chosen = list(range(len(times)))
        if len(times) > ALL:
            chosen = [*range(FEW), len(times) - 1]
        rows = [[f"{times[k]:.3g}", *spread(self.x[k])] for k in chosen]
        if len(times) > ALL:
            rows.insert(FEW, ["…", "", "", "", ""])
        return Grid(title, ["t", "mean", "std", "min", "max"], rows)
