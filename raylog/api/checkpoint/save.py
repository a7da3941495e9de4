"""One checkpoint stored: its tensors in units, of which those that a checkpoint before has too are only named."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from itertools import chain

import numpy as np

from raylog.api.checkpoint.finite import has_nan
from raylog.api.checkpoint.known_units import KnownUnits, Reused
from raylog.api.checkpoint.settle import Settler
from raylog.api.checkpoint.tree import DOCUMENT, Taken, prefix_of
from raylog.api.put import Put
from raylog.api.put_options import PutOptions
from raylog.api.session import Session
from raylog.api.sources.content import SourceTensor, UnitsContent
from raylog.api.sources.tensors import source_tensor
from raylog.api.together import Together
from raylog.catalog.state import Pending
from raylog.codec.keys import GroupKey, content_tag_key
from raylog.codec.tensors import STORED, TensorSpec, bytes_of
from raylog.codec.units import Load, Slice, Unit, plan_units, unit_tag
from raylog.errors import RaylogError, UsageError
from raylog.spec import Durability, Reference, Version

THREADS = 2
UNITS_AT_ONCE = 16  # that a thread tags before it is asked again, which costs about a tenth of a unit's time


class Saver:
    """Stores states as versions of `name`, one at a time."""

    def __init__(self, session: Session, name: str, options: PutOptions, *, rank: int, allow_nan: bool) -> None:
        self._session, self._name, self._options = session, name, options
        self._document = prefix_of(rank) + DOCUMENT
        self._allow_nan = allow_nan
        self._known = KnownUnits(session, name, options, rank)
        self._settler = Settler(session)

    def save(self, taken: Taken, labels: Mapping[str, str], together: Together | None) -> Version:
        """The version that holds it, and what the ranks have with which it is made `together`, once it is committed.
        What `taken` has must stay as it is until then. Raises `UsageError` naming the key of a tensor that holds a NaN
        or is of no stored type, `Cancelled` when another rank gave up, and as `Client.put`."""
        try:
            return self._save(taken, labels, together)
        except BaseException as error:
            if together is not None:
                with suppress(RaylogError):  # else the other ranks find out by their deadline
                    together.give_up(self._session, f"{type(error).__name__}: {error}")
            raise

    def _save(self, taken: Taken, labels: Mapping[str, str], together: Together | None) -> Version:
        tensors = {name: source_tensor(name, value) for name, value in taken.arrays.items()}
        document = source_tensor(self._document, np.frombuffer(taken.document, np.uint8))
        load = partial(_load, {**tensors, self._document: document})
        chunk_bytes = self._session.settings.chunk_bytes
        units = [
            *plan_units(map(_spec, tensors.values()), chunk_bytes),
            *plan_units([_spec(document)], chunk_bytes),  # by itself: it is seldom the same
        ]
        prepared: list[tuple[UnitsContent, Reused]] = []

        def prepare(order: Pending, own_key: GroupKey) -> tuple[UnitsContent, Reused]:
            prepared.append(self._prepare(units, load, order, own_key))
            return prepared[-1]

        put = Put(self._session, self._name, self._options.labelled(labels), None, together=together)
        version = put.run_prepared(prepare)
        content, reused = prepared[-1]
        if together and together.rank and self._tag_dek_id(version) != reused.tag_key.dek_id:
            self._known.forget()  # the first version of all: each rank tagged with its own key, and one was taken
        else:
            fresh = put.entries[len(reused.kept) :]
            self._known.learn(version.number, content.shards(self._session.settings.shard_bytes), fresh, reused)
        if self._options.durability is Durability.MEMORY:
            self._settler.settle(version, put.entries)
        return version

    def close(self, *, is_interrupted: bool) -> None:
        """Waits until what is promised in memory is on disks as well, unless the run was interrupted."""
        if is_interrupted:
            self._settler.cancel()
        self._settler.close()

    def _tag_dek_id(self, version: Version) -> str:
        """Empty when it cannot be asked for."""
        try:
            return self._session.manifest(Reference(self._name, version.number)).tag_dek_id
        except RaylogError:
            return ""

    def _prepare(
        self, units: Sequence[Unit], load: Load, order: Pending, own_key: GroupKey
    ) -> tuple[UnitsContent, Reused]:
        """What is to be sealed, and what is named again. The document is sealed always: a version has content."""
        key = content_tag_key(self._known.look(order.base, own_key))
        turns = [units[first : first + UNITS_AT_ONCE] for first in range(0, len(units), UNITS_AT_ONCE)]
        with ThreadPoolExecutor(THREADS, thread_name_prefix="tag") as executor:
            tags = list(chain.from_iterable(executor.map(partial(self._tags, load=load, key=key), turns)))
        reused = self._known.reuse(dict(zip(tags[:-1], units[:-1], strict=True)))
        fresh = [(unit, tag) for unit, tag in zip(units, tags, strict=True) if tag not in reused.places]
        return UnitsContent(where="the checkpoint", tagged=fresh, load=load), reused

    def _tags(self, units: Sequence[Unit], load: Load, key: bytes) -> list[bytes]:
        return [self._tag(unit, load, key) for unit in units]

    def _tag(self, unit: Unit, load: Load, key: bytes) -> bytes:
        for one in unit:
            if not self._allow_nan and has_nan(load(one), one.dtype):
                raise UsageError(
                    f"tensor {one.name} holds a NaN: load the step before and find out why, or save with allow_nan=True"
                )
        return unit_tag(key, unit, load)


def _spec(tensor: SourceTensor) -> TensorSpec:
    return TensorSpec(tensor.name, tensor.dtype, tensor.shape)


def _load(tensors: Mapping[str, SourceTensor], one: Slice) -> memoryview:
    item_bytes = STORED[one.dtype].itemsize
    return bytes_of(tensors[one.name].load(one.begin // item_bytes, one.end // item_bytes))
