"""What happened during a training run, as lists of numbers that can draw themselves."""

from __future__ import annotations

import base64
import html
import io
import os
from dataclasses import dataclass, field
from typing import Any


@dataclass
class History:
    """What happened during `fit`.

    Attributes
    ----------
    step : list of int
        Steps at which the loss was noted.
    loss : list of float
        Mean training loss since the note before.
    checked : list of int
        Steps at which the validation loss was evaluated.
    validation : list of float
        Loss of the averaged network on the fixed validation examples.
    best : int or None
        The step whose average was kept because its validation loss was lowest, if `patience` was
        given; 0 for the weights that training began with.
    held_out : list of int
        Numbers of the rows that `fit` did not train on, by validation="auto".
    gap : float or None
        How much more the loss of the kept average fell on training rows than on the held-out ones,
        both with the same noise: what it has learnt by heart. None if nothing was held out.
    seconds : float
        Wall time of the loop, over all parts of an interrupted run.

    Examples
    --------
    >>> History([100, 200], [0.8, 0.5], seconds=1.5)
    History(steps=200, loss=0.5, seconds=1.5)
    """

    step: list[int] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    checked: list[int] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)
    best: int | None = None
    held_out: list[int] = field(default_factory=list)
    gap: float | None = None
    seconds: float = 0.0

    def __repr__(self) -> str:
        """One line."""
        last = f"{self.loss[-1]:.4g}" if self.loss else "none"
        check = f", validation={self.validation[-1]:.4g}" if self.validation else ""
        steps = self.step[-1] if self.step else 0
        best = "" if self.best is None else f", best={self.best}"
        held = f", held_out={len(self.held_out)} rows" if self.held_out else ""
        rest = f"{check}{best}{held}, seconds={self.seconds:.1f}"
        return f"History(steps={steps}, loss={last}{rest})"

    def _repr_html_(self) -> str | None:
        """The line and the curves, for notebooks; None, so the text, without matplotlib."""
        if not self.loss:
            return None
        picture = io.BytesIO()
        try:
            figure: Any = self.plot()
            figure.savefig(picture, format="png", dpi=100)
        except Exception:  # no matplotlib, or none that can draw
            return None
        inline = base64.b64encode(picture.getvalue()).decode()
        text = html.escape(repr(self))
        return f'<pre>{text}</pre><img alt="loss over steps" src="data:image/png;base64,{inline}">'

    def plot(self, path: str | os.PathLike[str] | None = None) -> object:
        """Draw the losses over the steps.

        Parameters
        ----------
        path : path, optional
            Where to save the figure: .png, .pdf, .svg.

        Returns
        -------
        matplotlib.figure.Figure

        Raises
        ------
        ImportError
            Without matplotlib: `pip install scoresde[plot]`.

        Examples
        --------
        >>> figure = History([100, 200], [0.8, 0.5]).plot()
        >>> figure.axes[0].get_ylabel()
        'loss'
        """
        from ..common.plotting import curves

        lines = {"training": (self.step, self.loss)}
        if self.validation:
            lines["validation, averaged weights"] = (self.checked, self.validation)
        return curves(lines, path, mark=self.best)
