"""The local node's copy of one shard while a version is read: found damaged, it is mended there and read again."""

import os
from types import TracebackType
from typing import Self

from raylog.api.pulls import Pulls
from raylog.api.session import Session
from raylog.codec.frame import Frame
from raylog.errors import DamagedData, NotFound, RaylogError
from raylog.spec import Durability, QosClass, ShardRef
from raylog.wire.local_client import LocalShard


class LocalCopy:
    """A shard of the version `name`, pinned in the local node's store; pulled first if it is not there.

    Its frame is the manifest's. Raises `DamagedData` when the node holds another shard under its id.
    """

    def __init__(self, session: Session, pulls: Pulls, name: str, ref: ShardRef) -> None:
        self._session, self._name, self._ref = session, name, ref
        self._process = os.getpid()
        try:
            self._shard = self._open()
        except (NotFound, DamagedData) as error:  # damaged: its frame; the node puts it aside and pulls it anew
            pulls.pull(session.local, ref, QosClass.READ, Durability.DISK if isinstance(error, DamagedData) else None)
            self._shard = self._open()
        if self._shard.frame.digest != ref.frame_digest:
            self._shard.close()
            raise DamagedData(
                f"shard {ref.shard_id} on node {session.local.node_id} is not the one that the manifest of "
                f"{name} names; run 'raylog verify {name}'"
            )

    @property
    def frame(self) -> Frame:
        return self._shard.frame

    @property
    def is_held(self) -> bool:
        """Whether it can be read still; False once the connection to the node has gone."""
        return self._shard.is_held

    def chunk(self, number: int) -> memoryview:
        """The sealed bytes of a chunk as `LocalShard.chunk` gives them: those of the arena are not verified."""
        return self._shard.chunk(number)

    def mend(self, number: int) -> None:
        """Has the node replace a chunk that does not open, and opens the shard anew: a copy that was put aside, or an
        extent that its shard has left, stays as it was for whoever still looks at it.

        Raises `DamagedData` when the chunk is not the sealed one even then, and in a forked process.
        """
        if os.getpid() != self._process:  # Ray's connection is not for a forked one
            raise DamagedData(
                f"{self._name}: shard {self._ref.shard_id}, chunk {number} is damaged or has gone, and this forked "
                f"process cannot mend it: run 'raylog verify {self._name}' and read again",
                shard_id=self._ref.shard_id,
                chunk=number,
            )
        is_current = self._shard.is_current()  # else these are other bytes, not damaged ones
        try:
            if is_current:
                self._session.repair(self._session.local, self._ref, [number])
            mended = self._open()
            self._shard.close()
            self._shard = mended
            mended.frame.verify_chunk(number, mended.chunk(number))
        except RaylogError as error:
            raise DamagedData(
                f"{self._name}: shard {self._ref.shard_id}, chunk {number} is damaged on node "
                f"{self._session.local.node_id} and could not be mended ({error}); bring back a node that holds "
                f"another replica and read again, or put {self._name} anew",
                shard_id=self._ref.shard_id,
                chunk=number,
            ) from error

    def _open(self) -> LocalShard:
        return self._session.store.open(self._ref.shard_id)

    def close(self) -> None:
        self._shard.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
