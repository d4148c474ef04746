"""The search of Nelder and Mead on the unit box, from fixed starts: the same objective gives the same point.

References
----------
.. [1] Nelder and Mead, "A simplex method for function minimization", The Computer Journal 7(4), 1965.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from simtrain.validate.intervals import Array


def minimise(objective: Callable[[Array], float], starts: Sequence[Sequence[float]], iterations: int = 350) -> Array:
    """Return the point of the unit box with the least objective, by Nelder and Mead from each start and once more from the best.

    Parameters
    ----------
    objective
        Function of a point in the unit box.
    starts
        Where to begin.
    iterations
        Steps from each start.

    Examples
    --------
    >>> minimise(lambda x: float(((x - [0.25, 2.0]) ** 2).sum()), [[0.5, 0.5]]).round(3).tolist()
    [0.25, 1.0]
    """

    def bounded(x: Array) -> float:
        inside = np.clip(x, 0, 1)
        return objective(inside) + float(((x - inside) ** 2).sum())

    found = [_simplex(bounded, np.array(start, dtype=float), 0.15, iterations) for start in starts]
    best = _simplex(bounded, min(found, key=bounded), 0.03, iterations)
    return np.clip(best, 0, 1)


def _simplex(f: Callable[[Array], float], start: Array, step: float, iterations: int) -> Array:
    """Run one Nelder-Mead search: reflect the worst corner, expand, contract, or shrink towards the best."""
    points = [start, *(start + step * unit * (1 if s < 1 - step else -1) for unit, s in zip(np.eye(start.size), start))]
    values = [f(p) for p in points]
    for _ in range(iterations):
        order = np.argsort(values, kind="stable")
        points, values = [points[i] for i in order], [values[i] for i in order]
        if values[-1] - values[0] < 1e-12:
            break
        centre = np.mean(points[:-1], axis=0)
        towards = [centre + scale * (centre - points[-1]) for scale in (1.0, 2.0, -0.5)]
        reflected = f(towards[0])
        if reflected < values[0]:
            expanded = f(towards[1])
            points[-1], values[-1] = (towards[1], expanded) if expanded < reflected else (towards[0], reflected)
        elif reflected < values[-2]:
            points[-1], values[-1] = towards[0], reflected
        elif (contracted := f(towards[2])) < values[-1]:
            points[-1], values[-1] = towards[2], contracted
        else:
            points = [points[0], *(0.5 * (p + points[0]) for p in points[1:])]
            values = [values[0], *(f(p) for p in points[1:])]
    return points[int(np.argmin(values))]
