"""Explicit Runge–Kutta methods as data: rows of one table.

A tableau (a, b, c) takes the stages k_i = v(y + h·Σ_j a_ij·k_j, φ + c_i·h) to y' = y + h·Σ
b_i·k_i. Everything else about a method is more rows of weights: b̂ of lower order for the error
estimate h·Σ(b_i − b̂_i)·k_i, and polynomials b_i(θ) = Σ_m d_im·θ^m for the state y + h·Σ
b_i(θ)·k_i at the fraction θ of a step. A method is *closed* when its last stage is the velocity at
y', which is the first stage of the next step.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from dataclasses import dataclass

Row = tuple[float, ...]


@dataclass(frozen=True)
class Tableau:
    """A Butcher tableau, with what step control and dense output need.

    It is explicit, and no node lies outside the step: the arc ends where the data do.

    Parameters
    ----------
    order : int
        Order of the solution.
    a : tuple of tuples
        Strictly lower triangle; row i has i entries.
    b : tuple
        Weights.
    b_hat : tuple, optional
        Weights of an embedded method: of order − 1, so that ‖h·Σ(b − b̂)·k‖ = O(h^order); or of
        any order, together with b_low.
    b_low : tuple, optional
        Weights of a third, still lower order. The estimate then is ‖e‖²/√(‖e‖² + ‖e_low‖²/100)
        (Hairer, Nørsett & Wanner 1993, II.10): with orders 8, 5 and 3 that is O(h^6)²/O(h^4) =
        O(h^8).
    dense : tuple of tuples, optional
        Row i holds d_i1, d_i2, … of stage i of the closed method and then of the extra stages.
        Without it states inside a step come from the cubic through both ends and their slopes
        (order 3).
    extra : tuple of tuples
        Rows of a for stages that only dense output needs; they may use those of the closed method.

    Raises
    ------
    ValueError
        If the rows do not fit each other.

    Examples
    --------
    >>> from scoresde.solvers import TABLEAUS, Tableau
    >>> TABLEAUS["heun"].c
    (0.0, 1.0)
    >>> Tableau(2, ((), (1.0,)), (1.0,))
    Traceback (most recent call last):
    ValueError: a tableau of 1 stages has rows of a with 0 entries, got 0, 1; b_hat and b_low ...
    """

    order: int
    a: tuple[Row, ...]
    b: Row
    b_hat: Row | None = None
    b_low: Row | None = None
    dense: tuple[Row, ...] | None = None
    extra: tuple[Row, ...] = ()

    def __post_init__(self) -> None:
        n = len(self.b)
        rows = [len(row) for row in self.a]
        embedded = [row for row in (self.b_hat, self.b_low) if row is not None]
        if rows != list(range(n)) or any(len(row) != n for row in embedded):
            wanted, came = (", ".join(map(str, sizes)) for sizes in (range(n), rows))
            raise ValueError(
                f"a tableau of {n} stages has rows of a with {wanted} entries, got {came}; "
                "b_hat and b_low have as many entries as b"
            )
        for name in ("b", "b_hat", "b_low"):
            weights = getattr(self, name)
            if weights is not None and not abs(math.fsum(weights) - 1) < 1e-9:
                raise ValueError(f"weights {name} add up to 1, got {math.fsum(weights):g}")

    @functools.cached_property
    def c(self) -> Row:
        """Nodes: the row sums of a, and exactly 1 where they are 1 up to rounding."""
        sums = (math.fsum(row) for row in self.a)
        return tuple(1.0 if abs(c - 1) < 1e-14 else c for c in sums)

    @functools.cached_property
    def fsal(self) -> bool:
        """First same as last: the method is closed as it stands."""
        return self.b[-1] == 0 and self.a[-1] == self.b[:-1]

    @functools.cached_property
    def closed(self) -> Tableau:
        """The same method with the velocity at the end of the step as its last stage."""
        if self.fsal:
            return self
        hat, low = (None if row is None else (*row, 0.0) for row in (self.b_hat, self.b_low))
        return dataclasses.replace(
            self, a=(*self.a, self.b), b=(*self.b, 0.0), b_hat=hat, b_low=low
        )

    @functools.cached_property
    def errors(self) -> tuple[Row, ...]:
        """b − b̂, and b − b̂_low where there is that."""
        hats = [row for row in (self.b_hat, self.b_low) if row is not None]
        return tuple(tuple(x - y for x, y in zip(self.b, row, strict=True)) for row in hats)

    @functools.cached_property
    def interpolant(self) -> tuple[Row, ...]:
        """d: `dense`, or the cubic Hermite polynomial of the closed method."""
        if self.dense is not None:
            return self.dense
        b = self.closed.b
        rows = [[0.0, 3 * w, -2 * w] for w in b]  # (3θ² − 2θ³)·(y' − y)
        first = [1, -2, 1]  # h·θ(θ − 1)²·k_first
        last = [0, -1, 1]  # h·θ²(θ − 1)·k_last
        rows[0] = [x + y for x, y in zip(rows[0], first, strict=True)]
        rows[-1] = [x + y for x, y in zip(rows[-1], last, strict=True)]
        return tuple(map(tuple, rows))


# fmt: off
TABLEAUS: dict[str, Tableau] = {
    "euler": Tableau(1, ((),), (1.0,)),
    "midpoint": Tableau(2, ((), (1 / 2,)), (0.0, 1.0)),
    "heun": Tableau(2, ((), (1.0,)), (1 / 2, 1 / 2)),
    "rk4": Tableau(4, ((), (1 / 2,), (0.0, 1 / 2), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6)),
    # Bogacki & Shampine 1989; their interpolant is the cubic Hermite polynomial.
    "bosh3": Tableau(
        order=3,
        a=((), (1 / 2,), (0.0, 3 / 4), (2 / 9, 1 / 3, 4 / 9)),
        b=(2 / 9, 1 / 3, 4 / 9, 0.0),
        b_hat=(7 / 24, 1 / 4, 1 / 3, 1 / 8),
    ),
    # Dormand & Prince 1980; interpolant of order 4 by Shampine 1986.
    "rk45": Tableau(
        order=5,
        a=(
            (),
            (1 / 5,),
            (3 / 40, 9 / 40),
            (44 / 45, -56 / 15, 32 / 9),
            (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
            (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
            (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
        ),
        b=(35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84, 0.0),
        b_hat=(5179 / 57600, 0.0, 7571 / 16695, 393 / 640, -92097 / 339200, 187 / 2100, 1 / 40),
        dense=(
            (1.0, -8048581381 / 2820520608, 8663915743 / 2820520608, -12715105075 / 11282082432),
            (0.0, 0.0, 0.0, 0.0),
            (0.0, 131558114200 / 32700410799, -68118460800 / 10900136933,
             87487479700 / 32700410799),
            (0.0, -1754552775 / 470086768, 14199869525 / 1410260304, -10690763975 / 1880347072),
            (0.0, 127303824393 / 49829197408, -318862633887 / 49829197408,
             701980252875 / 199316789632),
            (0.0, -282668133 / 205662961, 2019193451 / 616988883, -1453857185 / 822651844),
            (0.0, 40617522 / 29380423, -110615467 / 29380423, 69997945 / 29380423),
        ),
    ),
    # Tsitouras 2011; the smallest entry of each row of a is rounded such that the nodes are right
    # to the last bit.
    "tsit5": Tableau(
        order=5,
        a=(
            (),
            (0.161,),
            (-0.008480655492357004, 0.335480655492357),
            (2.8971530571054935, -6.359448489975075, 4.3622954328695815),
            (5.325864828439257, -11.748883564062828, 7.4955393428898365, -0.09249506636175595),
            (5.86145544294642, -12.92096931784711, 8.159367898576159, -0.071584973281401,
             -0.028269050394068254),
            (0.09646076681806523, 0.01, 0.4798896504144996, 1.379008574103742, -3.290069515436081,
             2.324710524099774),
        ),
        b=(0.09646076681806523, 0.01, 0.4798896504144996, 1.379008574103742, -3.290069515436081,
           2.324710524099774, 0.0),
        b_hat=(0.09468075576583945, 0.009183565540343254, 0.4877705284247616, 1.234297566930479,
               -2.7077123499835256, 1.866628418170587, 0.015151515151515152),
        dense=(
            (1.0, -2.763706197274826, 2.9132554618219126, -1.0530884977290216),
            (0.0, 0.1317, -0.2234, 0.1017),
            (0.0, 3.9302962368947516, -5.941033872131505, 2.490627285651253),
            (0.0, -12.411077166933676, 30.33818863028232, -16.548102889244902),
            (0.0, 37.50931341651104, -88.1789048947664, 47.37952196281928),
            (0.0, -27.896526289197286, 65.09189467479366, -34.87065786149661),
            (0.0, 1.5, -4.0, 2.5),
        ),
    ),
    # Hairer, Nørsett & Wanner 1993, II.10: 12 stages by Dormand & Prince, the rest by Hairer.
    "dop853": Tableau(
        order=8,
        a=(
            (),
            (0.05260015195876773,),
            (0.0197250569845379, 0.0591751709536137),
            (0.02958758547680685, 0.0, 0.08876275643042054),
            (0.2413651341592667, 0.0, -0.8845494793282861, 0.924834003261792),
            (0.037037037037037035, 0.0, 0.0, 0.17082860872947386, 0.12546768756682242),
            (0.037109375, 0.0, 0.0, 0.17025221101954405, 0.06021653898045596, -0.017578125),
            (0.03709200011850479, 0.0, 0.0, 0.17038392571223998, 0.10726203044637328,
             -0.015319437748624402, 0.008273789163814023),
            (0.6241109587160757, 0.0, 0.0, -3.3608926294469414, -0.868219346841726,
             27.59209969944671, 20.154067550477894, -43.48988418106996),
            (0.47766253643826434, 0.0, 0.0, -2.4881146199716677, -0.590290826836843,
             21.230051448181193, 15.279233632882423, -33.28821096898486, -0.020331201708508627),
            (-0.9371424300859873, 0.0, 0.0, 5.186372428844064, 1.0914373489967295,
             -8.149787010746927, -18.52006565999696, 22.739487099350505, 2.4936055526796523,
             -3.0467644718982196),
            (2.273310147516538, 0.0, 0.0, -10.53449546673725, -2.0008720582248625,
             -17.9589318631188, 27.94888452941996, -2.8589982771350235, -8.87285693353063,
             12.360567175794303, 0.6433927460157636),
        ),
        b=(0.054293734116568765, 0.0, 0.0, 0.0, 0.0, 4.450312892752409, 1.8915178993145003,
           -5.801203960010585, 0.3111643669578199, -0.1521609496625161, 0.20136540080403034,
           0.04471061572777259),
        b_hat=(0.04117368912237388, 0.0, 0.0, 0.0, 0.0, 5.675469339128614, 2.3872768489717506,
               -7.465581142465571, 0.6614932157077936, -0.48634006837553356, 0.11944219431891463,
               0.06706592359165889),
        b_low=(0.2440944881889764, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.7338466882816118, 0.0, 0.0,
               0.022058823529411766),
        dense=(
            (1.0, -10.266057073759306, 48.161850968566455, -114.93304874997833, 147.46446875669767,
             -97.06685363011368, 25.69393346270375),
            *((0.0,) * 7,) * 4,
            (0.0, 13.917653631776604, -154.78787266663716, 522.9219089608218, -456.25918840208783,
             -75.53193732135753, 154.18974869023643),
            (0.0, 2.6056037519936095, -21.622822384626506, 2.535182028966755, 292.25417465990404,
             -505.40999933296894, 231.5293791760455),
            (0.0, -15.018944223519684, 160.09447708973047, -474.3071826037644, 135.96036916173838,
             545.1091945264187, -357.6391179106141),
            (0.0, 3.050527683318488, -38.54396729189063, 174.47140009219885, -337.0513470238771,
             291.78987509083254, -93.40532418362432),
            (0.0, -1.3278744327655212, 16.661770430049543, -74.44027814126304, 140.75210016191608,
             -119.2562021040512, 37.45832313645163),
            (0.0, 2.844533632672879, -36.55829548991012, 170.69007169147514, -345.9748485480496,
             313.299553623578, -104.0996495089623),
            (0.0, 0.7657106259527866, -9.906995535619366, 46.8029919188744, -96.5198694669957,
             88.74316650017616, -29.8402934266605),
            (0.0, -1.0889903364513334, 14.097013042320002, -66.68230591294363, 137.96299063474376,
             -127.82216401767992, 43.53345659001114),
            (0.0, 18.148505520854727, -127.63310949253875, 357.3419516129657, -500.7031507909224,
             349.17035710882897, -96.32455395918828),
            (0.0, -9.194632392478356, 93.3567459327894, -282.6272618704363, 361.14007718803333,
             -201.85219053352347, 39.17726167561544),
            (0.0, -4.436036387594894, 56.68120539776666, -261.77342902691703, 520.9742236688993,
             -461.17279991013964, 149.72683625798564),
        ),
        extra=(
            (0.056167502283047954, 0.0, 0.0, 0.0, 0.0, 0.0, 0.25350021021662483,
             -0.2462390374708025, -0.12419142326381637, 0.15329179827876568, 0.00820105229563469,
             0.007567897660545699, -0.008298),
            (0.03183464816350214, 0.0, 0.0, 0.0, 0.0, 0.028300909672366776, 0.053541988307438566,
             -0.05492374857139099, 0.0, 0.0, -0.00010834732869724932, 0.0003825710908356584,
             -0.00034046500868740456, 0.1413124436746325),
            (-0.42889630158379194, 0.0, 0.0, 0.0, 0.0, -4.697621415361164, 7.683421196062599,
             4.06898981839711, 0.3567271874552811, 0.0, 0.0, 0.0, -0.0013990241651590145,
             2.9475147891527724, -9.15095847217987),
        ),
    ),
}
"""Explicit methods by name; those with b̂ choose their own steps.

euler (order 1), midpoint and heun (2), bosh3 (3, embedded 2, dense 3), rk4 (4), rk45 and tsit5 (5,
embedded 4, dense 4), dop853 (8, embedded 5 and 3, dense 7 with three more evaluations in a step
that holds a wanted time).
"""
# fmt: on
