"""A source on this very machine: its chunks are copied out of its arena or file, and verified as any others are.

It takes the place of a `ClientSession` for one pull. The way is the node's Unix socket (local.py), which only processes
of the same user may use; no byte crosses a network, so nothing is encrypted on the way.
"""

import os
import queue
import threading
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from raylog.errors import DamagedData, NotFound, RaylogError
from raylog.spec import ShardRef
from raylog.wire.endpoints import ShardWriter
from raylog.wire.local_client import LocalClient, LocalShard
from raylog.wire.receiver import Receiver

COPIERS = 2
_SHM = Path("/dev/shm")  # noqa: S108 - to know the machine by, nothing is put there
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def machine_id() -> str:
    """The same for two processes that can map each other's memory files: one kernel, one /dev/shm, one user."""
    return f"{_BOOT_ID.read_text().strip()}-{_SHM.stat().st_dev}-{os.getuid()}"


class SameMachine:
    """One pull from the node whose socket is `path`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._wanted: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._unwanted: set[int] = set()
        self._has_failed = threading.Event()

    def open(self, ref: ShardRef, receiver: Receiver) -> None:
        """As `ClientSession.open`; without a link to share, no class matters."""
        receiver.opened(self, 0)
        threading.Thread(target=self._run, args=(ref, receiver), name="raylog-same-machine", daemon=True).start()

    def ready(self, pull: int) -> None:
        """Nothing to do: chunks are copied when they are asked for."""

    def ask(self, pull: int, chunks: Iterable[int]) -> None:
        for chunk in chunks:
            self._unwanted.discard(chunk)
            self._wanted.put(chunk)

    def recall(self, pull: int, chunks: Iterable[int]) -> None:
        self._unwanted.update(chunks)

    def cancel(self, pull: int, chunks: Iterable[int]) -> None:
        self._unwanted.update(chunks)

    def leave(self, pull: int) -> None:
        for _ in range(COPIERS):
            self._wanted.put(None)

    def _run(self, ref: ShardRef, receiver: Receiver) -> None:
        try:
            with LocalClient(self._path) as client, client.open(ref.shard_id) as shard:
                if shard.frame.digest != ref.frame_digest:
                    raise NotFound(f"shard {ref.shard_id} at {self._path} has another frame", shard_id=ref.shard_id)
                receiver.framed(shard.frame)
                receiver.offered([(0, len(shard.frame.chunks))])
                helpers = [
                    threading.Thread(target=self._copy, args=(shard, receiver), name="raylog-same-machine", daemon=True)
                    for _ in range(COPIERS - 1)
                ]
                for helper in helpers:
                    helper.start()
                self._copy(shard, receiver)
                for helper in helpers:
                    helper.join()
            receiver.finished(0)
        except RaylogError as error:
            self._fail(receiver, error)

    def _copy(self, shard: LocalShard, receiver: Receiver) -> None:
        """Chunk after chunk, until the pull is left."""
        while (chunk := self._wanted.get()) is not None:
            if chunk in self._unwanted:
                self._unwanted.discard(chunk)
                continue
            try:
                self._take(shard, chunk, receiver)
            except DamagedData as error:  # on its disk
                receiver.damaged(chunk, error.with_traceback(None))
            except RaylogError as error:
                self._fail(receiver, error)

    @staticmethod
    def _take(shard: LocalShard, chunk: int, receiver: Receiver) -> None:
        sealed = shard.chunk(chunk)
        writer = receiver.take()
        if writer is None:
            return
        try:
            _store(writer, chunk, sealed)
            tell = partial(receiver.stored, chunk, len(sealed))
        except DamagedData as error:
            tell = partial(receiver.damaged, chunk, error.with_traceback(None))
        except RaylogError as error:
            tell = partial(receiver.broken, error.with_traceback(None))
        finally:
            receiver.put_down()
        tell()

    def _fail(self, receiver: Receiver, error: RaylogError) -> None:
        if not self._has_failed.is_set():
            self._has_failed.set()
            receiver.failed(error)


def _store(writer: ShardWriter, chunk: int, sealed: memoryview) -> None:
    place = writer.chunk_buffer(chunk)
    if place is None:
        writer.write_chunk(chunk, sealed)
        return
    place[:] = sealed
    del place  # whoever keeps an error of the next line must not keep the sink's memory
    writer.commit_chunk(chunk)
