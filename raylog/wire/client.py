"""How a process gets a shard from a node: one call."""

import threading
import time
from dataclasses import dataclass

from raylog.errors import UsageError
from raylog.security.credentials import Credentials
from raylog.spec import QosClass, ShardRef
from raylog.wire.bounds import Bounds
from raylog.wire.client_session import ClientSession, Progress
from raylog.wire.endpoints import ShardSink


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerAddress:
    """Where a node's `WireServer` listens; `host` is a name or an address of either family."""

    node_id: str
    host: str
    control_port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PullReport:
    """What a pull moved: sealed bytes and chunks that came and were verified (not those that were here before), the
    seconds it took, and how many chunks had to be asked for again."""

    bytes: int
    chunks: int
    seconds: float
    retried: int


def pull(
    ref: ShardRef,
    source: PeerAddress,
    sink: ShardSink,
    credentials: Credentials,
    *,
    deadline_s: float,
    qos: QosClass = QosClass.SHIP,
    streams: int = 2,
    on_progress: Progress | None = None,
    cancel: threading.Event | None = None,
    bounds: Bounds | None = None,
) -> PullReport:
    """Gets one shard from one node into `sink`, commits it there, and says what moved.

    `sink.create` is asked once the frame is here and matches `ref.frame_digest`; only what its writer lacks is moved,
    every chunk is verified by the writer, and a pull that fails leaves the writer closed with what it has: pull again,
    here or elsewhere, to resume. `on_progress(verified_bytes, total_bytes)` is called in this thread about ten times a
    second. Setting `cancel` ends the pull within a second.

    Raises `NotFound` (the source has no such shard), `DamagedData` (what it has is not what the manifest says),
    `NotPermitted` (it does not accept us), `PeerFault` and `Unavailable` (another source may do), `DeadlineExceeded`
    after `deadline_s` in all, `Cancelled`, and what the sink raises, such as `NoSpace`. Errors have `shard_id`, `chunk`
    and `peer` where these are known.
    """
    bounds = bounds or Bounds()
    if not 1 <= streams <= bounds.streams_max:
        raise UsageError(f"expected 1 to {bounds.streams_max} streams, got {streams}")
    if deadline_s <= 0:
        raise UsageError(f"expected a deadline above 0 s, got {deadline_s}")
    began = time.monotonic()
    with ClientSession.connect(
        source.node_id, source.host, source.control_port, credentials, bounds, streams, deadline_s, cancel
    ) as session:
        moved_bytes, chunks, retried = session.pull(ref, sink, began + deadline_s, qos, on_progress, cancel)
    return PullReport(bytes=moved_bytes, chunks=chunks, seconds=time.monotonic() - began, retried=retried)
