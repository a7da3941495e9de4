"""What the key actor's files have that its standbys must have before it is acknowledged: wrapped keys, join tokens, and
who is bound to which key. Other processes may change the files too; that follows within a round."""

import logging
import threading
import time
from contextlib import suppress

from raylog.actors import calls
from raylog.actors.gcs import GcsRegister
from raylog.actors.requests import KeepKeys, ask
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
        self, authority: Authority, envelopes: EnvelopeStore, signer: Signer, ray_node_id: str, period_s: float
    ) -> None:
        self._authority, self._envelopes, self._signer, self._period_s = authority, envelopes, signer, period_s
        register = GcsRegister(authority.cluster_id)
        self._standbys = Standbys("keys", register, ray_node_id, when_superseded=calls.end_process)
        self._lock = threading.Lock()
        self._reached: dict[str, tuple[int, int]] = {}  # standby -> up to which change of either file it has all
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
                        self._standbys.admit(standby, self._bring_all)
                self.acknowledge()
            except RaylogError as error:
                log.warning("standbys are told of keys in a moment: %s", error)
            except Exception:
                log.exception("telling standbys of keys failed, trying again")
            time.sleep(self._period_s)

    def _bring_all(self, standby: str) -> None:
        with self._lock:
            self._reached.pop(standby, None)
        self._bring(standby)

    def _bring(self, standby: str) -> None:
        with self._lock:
            while True:
                after = self._reached.get(standby, (0, 0))
                authority_at, authority = self._authority.rows.since(after[0])
                envelopes_at, envelopes = self._envelopes.rows.since(after[1])
                reached = (authority_at, envelopes_at)
                if reached == after:
                    return
                about = KeepKeys(
                    authority=tuple(authority),
                    envelopes=tuple(envelopes),
                    term=self._standbys.term,
                    after=after,
                    reached=reached,
                )
                name = calls.standby_name(standby)
                calls.wait(ask(calls.find(name), name, about, self._signer), STANDBY_TIMEOUT_S, f"keys to {name[:20]}")
                self._reached[standby] = reached
