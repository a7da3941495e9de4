"""What each group of a state becomes in the next version: the same, changed by a delta, or stored anew."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np

from raylog.api.checkpoint.finite import has_nan
from raylog.api.checkpoint.known_units import KnownUnits, Reused
from raylog.api.checkpoint.tree import DOCUMENT
from raylog.api.sources.content import SourceTensor, UnitsContent
from raylog.api.weights.groups import Group, Step, changed_max, delta_units, group_units, room_bytes, specs_of
from raylog.codec.delta import Changes, Delta, delta_of, find_changes, words_of
from raylog.codec.tensors import Array, TensorSpec, bytes_of
from raylog.codec.units import Slice, TaggedUnit, Unit, plan_units, unit_bytes, unit_tag
from raylog.errors import UsageError

THREADS = 2


class Steps:
    """Of one version. `copy`: the tensors of the version before, flat, by name; they become those of this one. Whatever
    is stored comes from there, so a state that changes meanwhile does no harm. `key` tags units."""

    def __init__(self, known: KnownUnits, copy: dict[str, Array], key: bytes, chunk_bytes: int) -> None:
        self._known, self._copy, self._key, self._chunk_bytes = known, copy, key, chunk_bytes
        self.steps: list[Step] = []

    def take(
        self, tensors: Mapping[str, SourceTensor], document: bytes, before: Mapping[Group, Step]
    ) -> tuple[UnitsContent, Reused]:
        """What is to be sealed, and what is named again. `before`: the steps of the version before. Raises
        `UsageError` for a NaN."""
        groups = group_units(plan_units([_spec(tensor) for tensor in tensors.values()], self._chunk_bytes))
        with ThreadPoolExecutor(THREADS, thread_name_prefix="compare") as executor:
            advance = partial(self._advance, tensors)
            self.steps = list(executor.map(advance, groups, [before.get(group) for group in groups]))
        described = np.frombuffer(document, np.uint8)
        (group,) = [tuple(plan_units([TensorSpec(DOCUMENT, "uint8", described.shape)], self._chunk_bytes))]
        arrays = {**self._copy, DOCUMENT: described}
        head = Step(group, fresh=self._tagged(group, arrays))
        reused = self._choose(head)
        for step in self.steps:
            arrays |= step.arrays
        fresh = [one for step in (*self.steps, head) for one in step.units if one[1] not in reused.places]
        return UnitsContent(where="the weights", tagged=fresh, load=partial(_load, arrays)), reused

    def _advance(self, tensors: Mapping[str, SourceTensor], group: Group, before: Step | None) -> Step:
        found = {spec.name: tensors[spec.name].load(0, _items(spec)) for spec in specs_of(group)}
        changes = self._changes(group, found, before) if before else None
        if before is None or changes is None:
            self._copy |= {name: _copied(array, self._copy.get(name)) for name, array in found.items()}
            for spec in specs_of(group):
                _refuse_nan(spec, self._copy[spec.name])
            return self._whole(Step(group))
        return self._changed(before, changes)

    def _changes(self, group: Group, found: Mapping[str, Array], before: Step) -> dict[str, Changes] | None:
        """By tensor, where there are any; None when they do not pay."""
        room, changes = room_bytes(before), {}
        for spec in specs_of(group):
            words, after = words_of(self._copy[spec.name]), words_of(found[spec.name])
            differ = find_changes(words, after, changed_max(room, spec, after.itemsize))
            if differ is None:
                return None
            if differ.bits.size:
                _refuse_nan(spec, after[differ.positions])
                changes[spec.name] = differ
                room -= differ.bits.size * (after.itemsize + 1)
        return changes

    def _changed(self, step: Step, changes: Mapping[str, Changes]) -> Step:
        """The step after, with one delta more if anything changed."""
        deltas: dict[str, Delta] = {}
        for name, differ in changes.items():
            words = words_of(self._copy[name])
            differ.apply(words)
            deltas[name] = delta_of(differ, words)
        if not deltas:
            return step
        units, arrays = delta_units(deltas, step.chain, self._chunk_bytes)
        return Step(
            step.group,
            older=step.older,
            fresh=self._tagged(units, arrays),
            arrays=arrays,
            chain=step.chain + 1,
            delta_bytes=step.delta_bytes + sum(map(unit_bytes, units)),
        )

    def _whole(self, step: Step) -> Step:
        """The group stored anew, as it lies in the copy."""
        return Step(step.group, fresh=self._tagged(step.group, self._copy))

    def _choose(self, head: Step) -> Reused:
        """Which of all units are named again; groups of which some older unit cannot be are stored anew. If all can be,
        the document is sealed all the same: a version has content of its own."""
        is_head_wanted = True
        while True:
            steps = [*self.steps, *([head] if is_head_wanted else [])]
            wanted = {tag: unit for step in steps for unit, tag in step.units}
            reused = self._known.reuse(wanted)
            is_lost = [any(tag not in reused.places for _, tag in step.older) for step in self.steps]
            if any(is_lost):
                self.steps = [
                    self._whole(step) if lost else step for step, lost in zip(self.steps, is_lost, strict=True)
                ]
            elif len(reused.places) < len(wanted) or not is_head_wanted:
                return reused
            else:
                is_head_wanted = False

    def _tagged(self, units: Sequence[Unit], arrays: Mapping[str, Array]) -> list[TaggedUnit]:
        return [(unit, unit_tag(self._key, unit, partial(_load, arrays))) for unit in units]


def _spec(tensor: SourceTensor) -> TensorSpec:
    return TensorSpec(tensor.name, tensor.dtype, tensor.shape)


def _items(spec: TensorSpec) -> int:
    return int(np.prod(spec.shape, dtype=np.int64))


def _load(arrays: Mapping[str, Array], one: Slice) -> memoryview:
    return bytes_of(arrays[one.name])[one.begin : one.end]


def _copied(array: Array, target: Array | None) -> Array:
    """In the memory of `target` if it fits: fresh pages cost several times the copy itself."""
    if target is None or (target.dtype, target.size) != (array.dtype, array.size):
        return array.copy()
    np.copyto(target, array)
    return target


def _refuse_nan(spec: TensorSpec, array: Array) -> None:
    for part in _blocks(bytes_of(array)):
        if has_nan(part, spec.dtype):
            raise UsageError(f"tensor {spec.name} holds a NaN: publish the weights from before it, and find out why")


def _blocks(content: memoryview) -> Iterator[memoryview]:
    """Of a size that stays in a core's cache."""
    for first in range(0, content.nbytes, 1 << 20):
        yield content[first : first + (1 << 20)]
