"""How a process gets a shard from nodes: one call."""

import threading
import time
from collections.abc import Sequence
from contextlib import closing

from raylog.errors import UsageError
from raylog.security.credentials import Credentials
from raylog.spec import CargoRecords, QosClass, ShardRef
from raylog.wire.bounds import Bounds
from raylog.wire.endpoints import ShardSink
from raylog.wire.fetcher import Fetcher, Progress, PullReport, Source
from raylog.wire.sessions import Sessions


def pull(
    ref: ShardRef,
    sources: Sequence[Source],
    sink: ShardSink,
    credentials: Credentials,
    *,
    deadline_s: float,
    qos: QosClass = QosClass.SHIP,
    streams: int = 2,
    on_progress: Progress | None = None,
    cancel: threading.Event | None = None,
    bounds: Bounds | None = None,
    records: CargoRecords = CargoRecords.ENCRYPTED,
) -> PullReport:
    """Gets one shard into `sink`, from all of `sources` at once, commits it there, and says what moved.

    `sink.create` is asked once the frame is here and matches `ref.frame_digest`; only what its writer lacks is moved,
    every chunk is verified by the writer, and a pull that fails leaves the writer closed with what it has: pull again
    to resume. `on_progress(verified_bytes, total_bytes)` is called in this thread about ten times a second. Setting
    `cancel` ends the pull within a second.

    With one source its error is raised as it is: `NotFound` (it has no such shard), `DamagedData` (what it has is not
    what the manifest says), `NotPermitted` (it does not accept us, or sends no `records` of this kind), `PeerFault`,
    `Unavailable`. With several, `Unavailable` with what each of them said (`NotFound` or `DamagedData` if that was it
    with all). Also
    `DeadlineExceeded` after `deadline_s` in all, `Cancelled`, and what the sink raises, such as `NoSpace`. Errors have
    `shard_id`, `chunk` and `peer` where these are known.
    """
    bounds = bounds or Bounds()
    if not sources:
        raise UsageError(f"shard {ref.shard_id}: expected at least one source")
    if not 1 <= streams <= bounds.streams_max:
        raise UsageError(f"expected 1 to {bounds.streams_max} streams, got {streams}")
    if deadline_s <= 0:
        raise UsageError(f"expected a deadline above 0 s, got {deadline_s}")
    deadline = time.monotonic() + deadline_s
    with closing(Sessions(lambda: credentials, bounds, streams, records)) as sessions:
        return Fetcher(
            ref, sources, sink, sessions, qos=qos, deadline=deadline, on_progress=on_progress, cancel=cancel
        ).run()
