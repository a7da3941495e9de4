"""The answer: who runs where, what is missing and why, and what would make it fit. Encodes to JSON as it stands."""

from typing import Literal

import msgspec

from raylog.placement.model import Resource

Cause = Literal["no node fits", "quota", "spread", "capacity", "fragments"]


class Placement(msgspec.Struct, frozen=True, kw_only=True):
    """One worker on a node. `devices` maps the index of a GPU of that node to the share taken of it."""

    job: str
    worker: int
    node: str
    devices: dict[str, float] = {}


class Shortfall(msgspec.Struct, frozen=True, kw_only=True):
    """What a job does not get: `workers` of it, which is `amount` of `resource` (cores, bytes, devices)."""

    job: str
    workers: int
    resource: Resource
    amount: float
    cause: Cause
    reason: str


class Binding(msgspec.Struct, frozen=True, kw_only=True):
    """A limit that is reached: `used` of `limit` of a resource, of a tenant's quota, or of a spread's nodes."""

    constraint: str
    where: str
    used: float
    limit: float
    text: str


class Price(msgspec.Struct, frozen=True, kw_only=True):
    """The dual value of a resource at nodes of one shape: by how much of the cluster the relaxed problem's shortfall
    falls for each further part of the cluster of that resource there (1.0: one for one)."""

    resource: str
    nodes: str
    price: float


class Counterfactual(msgspec.Struct, frozen=True, kw_only=True):
    """A change, checked against this plan, with which the job would fit whole."""

    job: str
    change: str


class Measure(msgspec.Struct, frozen=True, kw_only=True):
    """One thing minimised, most important first. `bound`: no plan at all can have less; None where none is known."""

    name: str
    value: float
    bound: float | None


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """Placements and their reasons.

    `status`: "optimal" (proven), "feasible" (valid, `gap` says how far from the best it may be) or "time limit" (the
    best valid plan when the time was over). `gap`: by what part of the demand of its priority the first shortfall that
    is not proven may be too large (if all are: by what part of itself the secondary sum is); None without a bound.
    `secondary` states what decides among plans of equal shortfall.
    """

    placements: tuple[Placement, ...]
    shortfall: tuple[Shortfall, ...]
    binding: tuple[Binding, ...]
    prices: tuple[Price, ...]
    counterfactuals: tuple[Counterfactual, ...]
    objective: str
    secondary: str
    measures: tuple[Measure, ...]
    moves: int
    gap: float | None
    seconds: float
    status: Literal["optimal", "feasible", "time limit"]
    notes: tuple[str, ...] = ()

    def by_node(self, job: str | None = None) -> dict[str, int]:
        """Node -> number of workers there, of one job or of all."""
        counts: dict[str, int] = {}
        for placement in self.placements:
            if job is None or placement.job == job:
                counts[placement.node] = counts.get(placement.node, 0) + 1
        return counts
