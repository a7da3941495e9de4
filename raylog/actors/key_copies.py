"""What the key actor's files have that its standbys must have before it is acknowledged: wrapped keys, join tokens, and
who is bound to which key. Other processes may change the files too; that follows within a round."""

import itertools
import logging
import threading
import time
from collections import defaultdict
from contextlib import suppress

import msgspec

from raylog.actors import calls
from raylog.actors.gcs import GcsRegister
from raylog.actors.requests import KeepKeys, Position, ask
from raylog.actors.standbys import Standbys
from raylog.errors import RaylogError
from raylog.security.certs import Authority
from raylog.security.envelopes import EnvelopeStore
from raylog.security.requests import Signer

log = logging.getLogger("raylog.keys")
STANDBY_TIMEOUT_S = 5.0  # that an answer waits for a standby, before it is struck off


class KeyCopies:
    """A thread of the key actor, and what its answers wait for."""

    def __init__(
        self,
        authority: Authority,
        envelopes: EnvelopeStore,
        signer: Signer,
        *,
        machine: str,
        state_id: str,
        period_s: float,
    ) -> None:
        """As `Standbys`."""
        self._authority, self._envelopes, self._signer, self._period_s = authority, envelopes, signer, period_s
        self._standbys = Standbys(
            "keys",
            GcsRegister(authority.cluster_id),
            machine=machine,
            state_id=state_id,
            when_superseded=calls.end_process,
        )
        self._locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)  # one at a time tells each
        self._reached: dict[str, Position] = {}
        self._streams = itertools.count()
        threading.Thread(target=self._run, name="key copies", daemon=True).start()

    def acknowledge(self) -> None:
        """Returns once every standby in sync has what the files have. Raises `Unavailable` when this key actor's place
        is taken."""
        self._standbys.acknowledge(self._bring)

    def _run(self) -> None:
        while True:
            try:
                for standby in self._standbys.waiting():
                    with suppress(RaylogError):  # it is gone, or is tried again
                        self._reached[standby] = Position(term=self._standbys.term, stream=next(self._streams))
                        self._standbys.admit(standby, self._bring)
                self.acknowledge()
            except RaylogError as error:
                log.warning("standbys are told of keys in a moment: %s", error)
            except Exception:
                log.exception("telling standbys of keys failed, trying again")
            time.sleep(self._period_s)

    def _bring(self, standby: str) -> None:
        with self._locks[standby]:
            while True:
                after = self._reached.get(standby) or Position(term=self._standbys.term, stream=next(self._streams))
                authority_at, authority = self._authority.rows.since(after.authority)
                envelopes_at, envelopes = self._envelopes.rows.since(after.envelopes)
                reached = msgspec.structs.replace(after, authority=authority_at, envelopes=envelopes_at)
                if reached == after:
                    return
                about = KeepKeys(authority=tuple(authority), envelopes=tuple(envelopes), after=after, reached=reached)
                name = calls.standby_name(standby)
                calls.wait(ask(calls.find(name), name, about, self._signer), STANDBY_TIMEOUT_S, f"keys to {name[:20]}")
                self._reached[standby] = reached
