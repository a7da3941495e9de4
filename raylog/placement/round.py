"""From workers per group of nodes, as the solver says it, to whole workers on single nodes and devices.

The ledger checks every worker again, per device; what found no room where the solver saw some goes anywhere it fits.
"""

from typing import Literal

import numpy as np

from raylog.placement.formulate import Open, Place
from raylog.placement.greedy import complete
from raylog.placement.linear import Linear, Vector
from raylog.placement.packing import Packing
from raylog.placement.shapes import Shapes

Manner = Literal["first fit", "even"]
MANNERS: tuple[Manner, ...] = ("first fit", "even")
_WHOLE = 1e-6  # the solver's own tolerance of an integer


def round_to_nodes(shapes: Shapes, linear: Linear, x: Vector, manner: Manner, *, is_exact: bool) -> Packing:
    """The solver's `x` as a packing.

    Of a group of nodes "first fit" fills one after the other, the largest workers first, "even" gives each node in use
    an equal part before the rest is filled so: neither is always the better. Jobs of a higher priority find room,
    anywhere, before those of a lower one are looked at; an exact `x` fits as it is and is taken in one go.
    """
    packing = Packing(shapes)
    wanted: dict[float, list[dict[Place, int]]] = {}
    opened = [0] * len(shapes.nodes)
    for number in np.flatnonzero(x > _WHOLE):
        column = linear.columns[number]
        if isinstance(column, Place):
            priority = 0.0 if is_exact else shapes.jobs[column.job].priority
            groups = wanted.setdefault(priority, [{} for _ in shapes.nodes])
            groups[column.node][column] = int(x[number] + _WHOLE)
        elif isinstance(column, Open):
            opened[column.node] = min(int(np.ceil(x[number] - _WHOLE)), shapes.nodes[column.node].count)
    for priority in sorted(wanted, reverse=True):
        for group, places in enumerate(wanted[priority]):
            _fill_group(packing, group, places, opened[group], manner)
        if not is_exact:
            complete(packing, priority)
    complete(packing)
    return packing


def _fill_group(packing: Packing, group: int, wanted: dict[Place, int], opened: int, manner: Manner) -> None:
    shapes = packing.shapes
    first = shapes.nodes[group].first
    order = sorted(wanted, key=lambda place: _rank(shapes, place))
    if manner == "even" and opened:
        for node in range(first, first + opened):
            for place in order:
                _place(packing, place, node, wanted[place] // opened)
        left = {place: wanted[place] - (wanted[place] // opened) * opened for place in order}
    else:
        left = dict(wanted)
    for place in order:
        for node in range(first, first + opened):
            if not left[place]:
                break
            left[place] -= _place(packing, place, node, left[place])


def _place(packing: Packing, place: Place, node: int, workers: int) -> int:
    return packing.place(place.job, node, workers, place.site.indices if place.site else ())


def _rank(shapes: Shapes, place: Place) -> tuple[int, float, int]:
    """Fractions for which the solver chose the device go first. Where it did not, they come after whole devices (which
    they spoil). Large workers before small ones."""
    worker = shapes.jobs[place.job].worker
    is_chosen = worker.is_fraction and place.site is not None and len(place.site.indices) == 1
    return (0 if is_chosen else 1 if worker.devices else 2, -shapes.size(place.job), place.job)
