"""Runs one session: a machine, its control connection, and one lock between them and the cargo threads."""

import logging
import threading
import time
from collections.abc import Callable
from functools import partial

from raylog.errors import RaylogError
from raylog.wire.effects import Close, Effect, Send
from raylog.wire.messages import encode
from raylog.wire.session import Session
from raylog.wire.tls import TlsChannel

log = logging.getLogger(__name__)

TICK_S_MAX = 0.5  # deadlines that another thread has brought nearer are seen this late at most


class SessionRunner:
    """Gives events to `session` from any thread, one at a time, and has its effects carried out.

    Messages leave in the order in which the machine gave them. `carry_out` gets every other effect under the lock, in
    order and before any later message leaves: it must be quick and must not call back.
    """

    def __init__(self, session: Session, channel: TlsChannel, carry_out: Callable[[Effect], None]) -> None:
        self.session, self._channel, self._carry_out = session, channel, carry_out
        self.lock = threading.Lock()
        self._flushing = threading.Lock()
        self._outbox = bytearray()
        self._is_cut = False

    def apply(self, event: Callable[[float], list[Effect]]) -> list[Effect]:
        """Gives the machine one event, with the time; returns the effects, which are carried out."""
        effects, has_mail = self._step(event)
        if has_mail:
            self._flush()
        if any(isinstance(effect, Close) for effect in effects):
            self._channel.wake()
        return effects

    def note(self, event: Callable[[float], list[Effect]]) -> None:
        """As `apply`, for whoever must not wait for the connection: the control thread sends what is to be sent."""
        effects, has_mail = self._step(event)
        if has_mail or any(isinstance(effect, Close) for effect in effects):
            self.nudge()

    def _step(self, event: Callable[[float], list[Effect]]) -> tuple[list[Effect], bool]:
        with self.lock:
            effects = event(time.monotonic())
            for effect in effects:
                if isinstance(effect, Send):
                    self._outbox += encode(effect.message)
                else:
                    self._carry_out(effect)
            return effects, bool(self._outbox)

    def run(self, deferred: Callable[[], None] = lambda: None) -> None:
        """The control loop: returns when the session is over. `deferred` is called after each round, for effects that
        take long and belong to this thread."""
        self.apply(self.session.start)
        while not self.session.is_closed:
            self._receive(min(TICK_S_MAX, self.session.next_deadline() - time.monotonic()))
            if time.monotonic() >= self.session.next_deadline():
                self.apply(self.session.on_tick)
            deferred()
            self._flush()
        self._flush()  # another thread may have ended the session, and not yet sent its farewell

    def nudge(self) -> None:
        """Has the control loop go round once more, for what is deferred; from any thread."""
        self._channel.nudge()

    def _receive(self, timeout_s: float) -> None:
        try:
            data = self._channel.receive(timeout_s)
        except RaylogError as error:
            self.apply(partial(self.session.connection_lost, error))
            return
        except OSError:
            data = b""
        if data:
            self.apply(partial(self.session.receive, data))
        elif data is not None or self._is_cut:
            self.apply(partial(self.session.connection_lost, None))

    def _flush(self) -> None:
        with self._flushing:
            with self.lock:
                data, self._outbox = bytes(self._outbox), bytearray()
            if not data or self._is_cut:
                return
            try:
                self._channel.send(data)
            except OSError as error:
                log.debug("control connection: %s", error)
                self._is_cut = True
                self._channel.wake()  # the control loop tells the machine
