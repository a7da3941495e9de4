"""One checkpoint stored: its tensors in units, of which those that a checkpoint before has too are only named."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np

from raylog.api.checkpoint.finite import has_nan
from raylog.api.checkpoint.known_units import KnownUnits, Reused
from raylog.api.checkpoint.tree import DOCUMENT, Taken
from raylog.api.put import Put, PutOptions
from raylog.api.session import Session
from raylog.api.sources.content import SourceTensor, UnitsContent
from raylog.api.sources.tensors import source_tensor
from raylog.catalog.state import Pending
from raylog.codec.keys import GroupKey
from raylog.codec.tensors import STORED, TensorSpec, bytes_of
from raylog.codec.units import Load, Slice, Unit, plan_units, tag_key, unit_tag
from raylog.errors import UsageError
from raylog.spec import Version

THREADS = 2


class Saver:
    """Stores states as versions of `name`, one at a time."""

    def __init__(self, session: Session, name: str, options: PutOptions, *, allow_nan: bool) -> None:
        self._session, self._name, self._options = session, name, options
        self._allow_nan = allow_nan
        self._known = KnownUnits(session, name, options)

    def save(self, taken: Taken, labels: Mapping[str, str]) -> Version:
        """The version that holds it, once it is committed. What `taken` has must stay as it is until then. Raises
        `UsageError` naming the key of a tensor that holds a NaN or is of no stored type, and as `Client.put`."""
        tensors = {name: source_tensor(name, value) for name, value in taken.arrays.items()}
        document = source_tensor(DOCUMENT, np.frombuffer(taken.document, np.uint8))
        chunk_bytes = self._session.settings.chunk_bytes
        units = [
            *plan_units(map(_spec, tensors.values()), chunk_bytes),
            *plan_units([_spec(document)], chunk_bytes),  # by itself: it is seldom the same
        ]
        prepared: list[tuple[UnitsContent, Reused]] = []

        def prepare(order: Pending, own_key: GroupKey) -> tuple[UnitsContent, Reused]:
            prepared.append(self._prepare(units, partial(_load, {**tensors, DOCUMENT: document}), order, own_key))
            return prepared[-1]

        put = Put(self._session, self._name, self._options.labelled(labels), None)
        version = put.run_prepared(prepare)
        content, reused = prepared[-1]
        fresh = put.entries[len(reused.kept) :]
        self._known.learn(version.number, content.shards(self._session.settings.shard_bytes), fresh, reused)
        return version

    def _prepare(
        self, units: Sequence[Unit], load: Load, order: Pending, own_key: GroupKey
    ) -> tuple[UnitsContent, Reused]:
        """What is to be sealed, and what is named again. The document is sealed always: a version has content."""
        key = tag_key(self._known.look(order.base, own_key))
        with ThreadPoolExecutor(THREADS, thread_name_prefix="tag") as executor:
            tags = list(executor.map(partial(self._tag, load=load, key=key), units))
        reused = self._known.reuse(dict(zip(tags[:-1], units[:-1], strict=True)))
        fresh = [(unit, tag) for unit, tag in zip(units, tags, strict=True) if tag not in reused.places]
        return UnitsContent(where="the checkpoint", tagged=fresh, load=load), reused

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
