"""Sessions with sources, kept for a while: a shard after the first needs no handshake, and finds its streams warm."""

import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

from raylog.errors import Cancelled, DeadlineExceeded, Unavailable
from raylog.security.credentials import Credentials
from raylog.spec import CargoRecords, QosClass
from raylog.wire.bounds import Bounds
from raylog.wire.client_session import ClientSession

IDLE_S = 20.0  # after its last pull a session is ended
LOOK_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerAddress:
    """Where a node's `WireServer` listens; `host` is a name or an address of either family. A node with several network
    interfaces has an address on each: cargo streams take turns over `host` and `more_hosts`. `machine` is its
    `machine_id` and `socket_path` its local socket, for pullers that share the machine's memory."""

    node_id: str
    host: str
    control_port: int
    more_hosts: tuple[str, ...] = ()
    machine: str = ""
    socket_path: str = ""


_Key = tuple[PeerAddress, QosClass]


@dataclass(slots=True, eq=False)
class _Place:
    """One session, or the connecting of it: one thread connects, the others wait for it."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    session: ClientSession | None = None
    used: float = 0.0
    is_gone: bool = False  # no longer in the pool: whoever waited for it looks again


class Sessions:
    """At most one session per source and class, made when it is asked for. Thread-safe; `close` ends them all.

    `machine` is this process's `machine_id`, if chunks of nodes on the same machine are to be copied from memory;
    `on_shared_memory` is told of each such node.
    """

    def __init__(
        self,
        credentials: Callable[[], Credentials],
        bounds: Bounds | None = None,
        streams: int = 2,
        records: CargoRecords = CargoRecords.ENCRYPTED,
        machine: str = "",
        on_shared_memory: Callable[[str], None] | None = None,
    ) -> None:
        self.bounds = bounds or Bounds()
        self._machine, self._on_shared_memory = machine, on_shared_memory
        self._credentials, self._streams, self._records = credentials, streams, records
        self._places: dict[_Key, _Place] = {}
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._reaper: threading.Thread | None = None

    def shares_memory_with(self, peer: PeerAddress) -> bool:
        """Whether chunks of that node can be had without a network."""
        is_same = bool(self._machine) and peer.machine == self._machine and Path(peer.socket_path).is_socket()
        if is_same and self._on_shared_memory is not None:
            self._on_shared_memory(peer.node_id)
        return is_same

    def get(self, peer: PeerAddress, qos: QosClass, deadline: float, cancel: threading.Event) -> ClientSession:
        """A session that is up. Raises what `ClientSession.connect` does."""
        while True:
            place = self._place(peer, qos)
            self._wait_for(place, peer, deadline, cancel)
            try:
                if place.is_gone:
                    continue
                if place.session is None or not place.session.is_usable:
                    place.session = self._connect(peer, deadline, cancel)
                place.used = time.monotonic()
                return place.session
            finally:
                place.lock.release()

    def _place(self, peer: PeerAddress, qos: QosClass) -> _Place:
        with self._lock:
            if self._closed.is_set():
                raise Unavailable(f"node {peer.node_id}: this node goes down")
            self._watch()
            return self._places.setdefault((peer, qos), _Place())

    @staticmethod
    def _wait_for(place: _Place, peer: PeerAddress, deadline: float, cancel: threading.Event) -> None:
        while not place.lock.acquire(timeout=0.05):
            if cancel.is_set():
                raise Cancelled(f"node {peer.node_id}: cancelled")
            if time.monotonic() >= deadline:
                raise DeadlineExceeded(f"node {peer.node_id}: another connection to it was still being made")

    def _connect(self, peer: PeerAddress, deadline: float, cancel: threading.Event) -> ClientSession:
        left_s = max(deadline - time.monotonic(), 0.001)
        hosts = (peer.host, *peer.more_hosts)
        streams = self._streams * len(hosts)
        return ClientSession.connect(
            peer.node_id,
            hosts,
            peer.control_port,
            self._credentials(),
            self.bounds,
            streams,
            left_s,
            cancel,
            records=self._records,
        )

    def close(self) -> None:
        """Ends every session; pulls that run over them fail."""
        with self._lock:
            self._closed.set()
            places, self._places = list(self._places.values()), {}
        with ExitStack() as stack:  # one that does not end in time keeps none of the others
            for place in places:
                with place.lock:
                    place.is_gone = True
                    if place.session is not None:
                        stack.callback(place.session.close)
        if self._reaper is not None:
            self._reaper.join()

    # Ending what is idle.

    def _watch(self) -> None:
        if self._reaper is None:
            self._reaper = threading.Thread(target=self._reap, name="raylog-wire-sessions", daemon=True)
            self._reaper.start()

    def _reap(self) -> None:
        while not self._closed.wait(LOOK_S):
            for session in self._idle(time.monotonic()):
                with suppress(AssertionError):  # its threads hang in the kernel: it is out of reach all the same
                    session.close()

    def _idle(self, now: float) -> list[ClientSession]:
        """Takes sessions out that nobody used for a while, and those that have ended."""
        found = []
        with self._lock:
            for key, place in list(self._places.items()):
                if not place.lock.acquire(blocking=False):
                    continue
                session = place.session
                if session is not None and not session.is_idle:
                    place.used = now
                if session is None or not session.is_usable or now - place.used > IDLE_S:
                    found += [session] if session is not None else []
                    place.is_gone = True
                    del self._places[key]
                place.lock.release()
        return found
