"""What of a state is stored anew together: a large tensor, or the small ones that share a chunk. What each became."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from raylog.codec.delta import Delta, DeltaName
from raylog.codec.tensors import NAME_CHARACTERS_MAX, Array, TensorSpec
from raylog.codec.units import TaggedUnit, Unit, plan_units, size_of, unit_bytes

PAYS_SHARE = 0.5
"""Of a group's bytes: with more in deltas it is stored anew, so a late node gets at most half as much again."""
CHAIN_MAX = 32
"""Deltas of a group, each in another shard."""

Group = tuple[Unit, ...]


@dataclass(slots=True)
class Step:
    """How a group goes into a version: `older` units are in the version before too, `fresh` ones are new."""

    group: Group
    older: Sequence[TaggedUnit] = ()
    fresh: Sequence[TaggedUnit] = ()
    arrays: dict[str, Array] = field(default_factory=dict)  # of the fresh deltas, by name
    chain: int = 0
    delta_bytes: int = 0

    @property
    def units(self) -> list[TaggedUnit]:
        return [*self.older, *self.fresh]

    def after(self) -> "Step":
        """The same group in the next version, if it does not change."""
        return Step(self.group, older=self.units, chain=self.chain, delta_bytes=self.delta_bytes)


def group_units(units: Iterable[Unit]) -> list[Group]:
    """Parts of one tensor are a group, and so is every unit of whole tensors."""
    groups: list[list[Unit]] = []
    for unit in units:
        if unit[0].begin:  # a part, and not the first
            groups[-1].append(unit)
        else:
            groups.append([unit])
    return [tuple(group) for group in groups]


def specs_of(group: Group) -> list[TensorSpec]:
    """The tensors of a group."""
    return [TensorSpec(one.name, one.dtype, one.shape) for one in group[0]]


def room_bytes(step: Step) -> int:
    """For one more delta, if that is to pay; none where a tensor's name is so long that its delta could have none."""
    names = [str(DeltaName(part, step.chain, spec.name)) for spec in specs_of(step.group) for part in Delta._fields]
    if step.chain >= CHAIN_MAX or max(map(len, names)) > NAME_CHARACTERS_MAX:
        return 0
    return int(PAYS_SHARE * sum(map(unit_bytes, step.group))) - step.delta_bytes


def changed_max(room: int, spec: TensorSpec, word_bytes: int) -> int:
    """So many words of a tensor may change for its delta to have at most `room` bytes."""
    words = size_of(spec) // word_bytes
    return max((room - words // 255 - 64) // (word_bytes + 1), 0)


def delta_units(deltas: dict[str, Delta], number: int, chunk_bytes: int) -> tuple[list[Unit], dict[str, Array]]:
    """A group's deltas (by tensor) in units of their own, and the arrays that they are made of, by name."""
    arrays: dict[str, Array] = {}
    for part in Delta._fields:
        for name, delta in deltas.items():
            arrays[str(DeltaName(part, number, name))] = getattr(delta, part)
    specs = [TensorSpec(name, array.dtype.name, array.shape) for name, array in arrays.items()]
    return plan_units(specs, chunk_bytes), arrays
