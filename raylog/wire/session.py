"""What both ends of a session have in common: greeting, silence, expiry, farewell. Pure: events in, effects out.

Times are seconds of one monotonic clock, given with each event. An event returns the effects it has, in order; a peer
that breaks the protocol never raises here, it ends the session with an error that says what it did.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from raylog.errors import NotPermitted, PeerFault, RaylogError, Unavailable
from raylog.security.identity import Identity
from raylog.wire import messages
from raylog.wire.bounds import Bounds
from raylog.wire.effects import Close, Effect, Send
from raylog.wire.messages import ByeReason, Message, MessageBuffer, shorten
from raylog.wire.states import SESSION, SessionState, step


@dataclass(frozen=True, slots=True, kw_only=True)
class Parties:
    """Who talks, as TLS proved it, and until when: `expires` (seconds of the session's clock) is the earlier expiry
    of both certificates. `random_bytes(n)` gives n secret fresh bytes."""

    me: Identity
    peer: Identity
    expires: float
    software: str
    random_bytes: Callable[[int], bytes]


class Session(ABC):
    """One end. See `PullerSession` and `SourceSession`, which add what they move."""

    def __init__(self, parties: Parties, bounds: Bounds, probe_port: int = 0) -> None:
        self.parties, self.bounds = parties, bounds
        self.state = SessionState.NEW
        self.secret = parties.random_bytes(messages.SECRET_BYTES)
        self.peer_secret = b""
        self.probe_port, self.peer_probe_port = probe_port, 0
        self.peer_software = ""
        self._buffer = MessageBuffer()
        self._greeting_deadline = self._heard = self._sent = 0.0

    # Events.

    def start(self, now: float) -> list[Effect]:
        """TLS stands."""
        self._greeting_deadline, self._heard = now + self.bounds.greeting_timeout_s, now
        self._step("'start'")
        hello = messages.Hello(
            versions=list(messages.PROTOCOL_VERSIONS),
            cluster_id=self.parties.me.cluster_id,
            node_id=self.parties.me.id,
            software=self.parties.software,
            secret=self.secret,
            probe_port=self.probe_port,
        )
        return self._noted([Send(hello)], now)

    def receive(self, data: bytes, now: float) -> list[Effect]:
        """Bytes of the control connection, cut anyhow."""
        effects: list[Effect] = []
        self._buffer.feed(data)
        try:
            while self.state is not SessionState.CLOSED and (message := self._buffer.next_message()) is not None:
                self._heard = now
                effects += self._on_message(message, now)
        except PeerFault as fault:
            effects += self._end(ByeReason.PROTOCOL, self._named(fault))
        return self._noted(effects, now)

    def connection_lost(self, error: RaylogError | None, now: float) -> list[Effect]:
        """The control connection ended without `Bye`; `error` says more where more is known."""
        if self.state is SessionState.CLOSED:
            return []
        cut = Unavailable(f"{self._peer}: the control connection was cut; ask again, here or at another source")
        return self._end(None, error or cut)

    def close(self, reason: ByeReason, now: float) -> list[Effect]:
        """We leave."""
        if self.state is SessionState.CLOSED:
            return []
        error = None if reason is ByeReason.DONE else Unavailable(f"{self._peer}: we left the session ({reason})")
        return self._noted(self._end(reason, error), now)

    def fault(self, error: PeerFault, now: float) -> list[Effect]:
        """The shell saw the peer break the protocol."""
        if self.state is SessionState.CLOSED:
            return []
        return self._noted(self._end(ByeReason.PROTOCOL, self._named(error)), now)

    def on_tick(self, now: float) -> list[Effect]:
        """To be called when `next_deadline` has passed; earlier does nothing."""
        if self.state in (SessionState.NEW, SessionState.CLOSED):
            return []
        if now >= self.parties.expires:
            message = f"{self._peer}: a certificate of this session has expired; connect again"
            return self._noted(self._end(ByeReason.EXPIRED, Unavailable(message)), now)
        if self.state is SessionState.GREETING and now >= self._greeting_deadline:
            message = f"{self._peer}: no hello within {self.bounds.greeting_timeout_s:g} s"
            return self._noted(self._end(ByeReason.PROTOCOL, PeerFault(message)), now)
        if now >= self._heard + self.bounds.silence_timeout_s:
            message = f"{self._peer}: silent for {self.bounds.silence_timeout_s:g} s; ask another source"
            return self._noted(self._end(ByeReason.SHUTDOWN, Unavailable(message)), now)
        effects = self._tick(now)
        if self.state is SessionState.OPEN and now >= self._sent + self.bounds.ping_after_s:
            effects.append(Send(messages.Ping(stamp=int(now * 1e6))))
        return self._noted(effects, now)

    def next_deadline(self) -> float:
        """When `on_tick` has something to do at the latest."""
        deadlines = [self.parties.expires, self._heard + self.bounds.silence_timeout_s, *self._deadlines()]
        if self.state is SessionState.GREETING:
            deadlines.append(self._greeting_deadline)
        if self.state is SessionState.OPEN:
            deadlines.append(self._sent + self.bounds.ping_after_s)
        return min(deadlines)

    # What the two kinds of session add.

    @abstractmethod
    def _greeted(self, now: float) -> list[Effect]:
        """Both hellos are here."""

    @abstractmethod
    def _on_business(self, message: Message, now: float) -> list[Effect]:
        """A message of this kind of session; raises `PeerFault` for one of the other kind."""

    @abstractmethod
    def _tick(self, now: float) -> list[Effect]: ...

    @abstractmethod
    def _deadlines(self) -> list[float]: ...

    @abstractmethod
    def _let_go(self, error: RaylogError | None) -> list[Effect]:
        """The session is over: everything of it ends."""

    # Common.

    @property
    def is_closed(self) -> bool:
        return self.state is SessionState.CLOSED

    @property
    def _peer(self) -> str:
        return f"{self.parties.peer.role} {self.parties.peer.id}"

    def _named(self, fault: PeerFault) -> PeerFault:
        return PeerFault(f"{self._peer}: {fault}", peer=self.parties.peer.id)

    def _step(self, event: str) -> None:
        self.state = step(SESSION, self.state, event, "the session")

    def _on_message(self, message: Message, now: float) -> list[Effect]:
        self._step(type(message).__name__)
        match message:
            case messages.Hello():
                return self._on_hello(message, now)
            case messages.Bye():
                return [*self._let_go(self._farewell(message)), Close(self._farewell(message))]
            case messages.Ping():
                return [Send(messages.Pong(stamp=message.stamp))]
            case messages.Pong():
                return []
            case _:
                return self._on_business(message, now)

    def _on_hello(self, hello: messages.Hello, now: float) -> list[Effect]:
        if not set(hello.versions) & set(messages.PROTOCOL_VERSIONS):
            message = (
                f"{self._peer} ({hello.software}) speaks wire protocol {hello.versions}, this end "
                f"{list(messages.PROTOCOL_VERSIONS)}; install one version of raylog on both"
            )
            return self._end(ByeReason.VERSION, PeerFault(message))
        peer = self.parties.peer
        if (hello.cluster_id, hello.node_id) != (peer.cluster_id, peer.id):
            message = f"expected the hello of {peer}, as its certificate says, got one of {hello.node_id}"
            return self._end(ByeReason.IDENTITY, PeerFault(message))
        self.peer_secret, self.peer_software = hello.secret, hello.software
        self.peer_probe_port = hello.probe_port
        return self._greeted(now)

    def _farewell(self, bye: messages.Bye) -> RaylogError | None:
        said = f"{self._peer} ended the session ({bye.reason}): {bye.message}"
        match bye.reason:
            case ByeReason.DONE:
                return None
            case ByeReason.IDENTITY | ByeReason.RECORDS:
                return NotPermitted(said)
            case ByeReason.PROTOCOL | ByeReason.VERSION:
                return PeerFault(said, peer=self.parties.peer.id)
            case ByeReason.EXPIRED | ByeReason.SHUTDOWN:
                return Unavailable(said)

    def _end(self, reason: ByeReason | None, error: RaylogError | None) -> list[Effect]:
        """Leaves, with `Bye` if there is still somebody to say it to."""
        effects: list[Effect] = []
        if reason is not None and self.state is not SessionState.NEW:
            effects.append(Send(messages.Bye(reason=reason, message=shorten(str(error or "done")))))
        self._step("'close'")
        return [*effects, *self._let_go(error), Close(error)]

    def _noted(self, effects: list[Effect], now: float) -> list[Effect]:
        if any(isinstance(effect, Send) for effect in effects):
            self._sent = now
        return effects
