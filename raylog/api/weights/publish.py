"""One name's versions, published one after another: what changed since the last one is found, sealed and committed."""

import logging
from collections.abc import Sequence

from raylog.api.checkpoint.known_units import KnownUnits, Reused
from raylog.api.checkpoint.snapshot import Snapshot, lies_ready
from raylog.api.checkpoint.tree import take_apart
from raylog.api.put import Put
from raylog.api.put_options import PutOptions
from raylog.api.session import Session
from raylog.api.sources.content import UnitsContent
from raylog.api.sources.tensors import source_tensor
from raylog.api.weights.groups import Group, Step
from raylog.api.weights.steps import Steps
from raylog.catalog.manifest import ShardEntry
from raylog.catalog.state import Pending
from raylog.codec.keys import GroupKey, content_tag_key
from raylog.codec.tensors import Array
from raylog.errors import UsageError
from raylog.spec import Version

log = logging.getLogger("raylog.weights")


class Publisher:
    """Stores states as versions of `name`, one at a time. It keeps a copy of the last one, to compare the next with."""

    def __init__(self, session: Session, name: str, options: PutOptions) -> None:
        self._session, self._name, self._options = session, name, options
        self._known = KnownUnits(session, name, options)
        self._staged = Snapshot()  # what lies on an accelerator, or not in a row
        self._number = 0  # of the version that the two below are of; 0: none
        self._copy: dict[str, Array] = {}  # flat, by name
        self._last: dict[Group, Step] = {}

    def publish(self, state: object) -> Version:
        """The version that holds it, once it is committed; the state may change from then on. Raises `UsageError`
        naming the key of a tensor that holds a NaN or is of no stored type, and as `Client.put`."""
        taken = take_apart(state)
        for name, value in taken.arrays.items():
            source_tensor(name, value)  # refuses what has no stored form, before it is copied
        elsewhere = {name: value for name, value in taken.arrays.items() if not lies_ready(value)}
        tensors = {
            name: source_tensor(name, value) for name, value in (taken.arrays | self._staged.take(elsewhere)).items()
        }
        if not tensors:
            raise UsageError("expected a state with at least one tensor or array that is not empty")
        last, self._last = self._last, {}  # after an error all is stored anew
        prepared: list[tuple[Steps, UnitsContent, Reused]] = []

        def prepare(order: Pending, own_key: GroupKey) -> tuple[UnitsContent, Reused]:
            key = content_tag_key(self._known.look(order.base, own_key))
            steps = Steps(self._known, self._copy, key, self._session.settings.chunk_bytes)
            content, reused = steps.take(tensors, taken.document, last if order.base == self._number else {})
            prepared.append((steps, content, reused))
            return content, reused

        put = Put(self._session, self._name, self._options, None)
        version = put.run_prepared(prepare)
        steps, content, reused = prepared[-1]
        fresh = put.entries[len(reused.kept) :]
        self._known.learn(version.number, content.shards(self._session.settings.shard_bytes), fresh, reused)
        self._number, self._last = version.number, {step.group: step.after() for step in steps.steps}
        for name in self._copy.keys() - tensors.keys():
            del self._copy[name]
        _tell(version, steps.steps, fresh)
        return version


def _tell(version: Version, steps: Sequence[Step], fresh: Sequence[ShardEntry]) -> None:
    whole, changed = sum(not step.older for step in steps), sum(bool(step.arrays) for step in steps)
    stored_bytes = sum(entry.shard.stored_bytes for entry in fresh)
    log.info("%s: %d of %d groups anew, %d by delta, %d bytes", version, whole, len(steps), changed, stored_bytes)
