"""The key actor: admits nodes and clients, grants data keys. Requests and answers are signed or sealed bytes, so Ray
carries no secret and proves nothing."""

import logging
import threading
import time
from dataclasses import dataclass

import ray

from raylog.actors.eventful import Eventful
from raylog.actors.key_copies import KeyCopies
from raylog.actors.slot import kept_id
from raylog.errors import Unavailable
from raylog.security.certs import Authority
from raylog.security.envelopes import EnvelopeStore
from raylog.security.grants import Granter
from raylog.security.providers.file import FileKeyring
from raylog.security.requests import Signer
from raylog.security.trust import trust_of
from raylog.settings import Settings

log = logging.getLogger("raylog.keys")


@dataclass(frozen=True, slots=True)
class _Keys:
    authority: Authority
    granter: Granter
    copies: KeyCopies


class KeysActor(Eventful):
    """Runs on the head, beside the keyring. A restart reads everything from disk again."""

    def __init__(self, settings: Settings) -> None:
        super().__init__("keys")
        self._settings = settings
        self._lock = threading.Lock()
        self._opened: _Keys | None = None

    def ready(self) -> None:
        """Answers once the keys are read; what keeps them from being read is raised to whoever asks."""
        self._open()

    def admit(self, request: bytes) -> bytes:
        """A join request in, a certificate out (security/join.py)."""
        keys = self._open()
        certificate = keys.authority.admit(request, time.time())
        keys.copies.acknowledge()
        return certificate

    def grant(self, request: bytes) -> bytes:
        """A signed grant request in, data keys sealed to the asker out (security/grants.py)."""
        keys = self._open()
        grant = keys.granter.handle(request, time.time())
        keys.copies.acknowledge()  # before anything is sealed under a fresh key
        return grant

    def _open(self) -> _Keys:
        """At the first call, not at the start: a keyring that may not be read is told to every caller until it is put
        right, while an actor that fails to start is gone for good and can tell nobody."""
        with self._lock:
            if self._opened is None:
                keyring = FileKeyring.load(self._settings.keyring_path)
                authority = Authority.load(self._settings.authority_path, keyring)
                envelopes = EnvelopeStore(self._settings.envelopes_path, keyring)
                try:
                    copies = KeyCopies(
                        authority,
                        envelopes,
                        Signer.of_cluster(trust_of(authority, time.time)),
                        machine=self.runs_on(),
                        state_id=kept_id(self._settings.state_id_path),
                        period_s=self._settings.reconcile_period_s,
                    )
                except Unavailable as error:
                    log.error("%s", error)
                    ray.actor.exit_actor()  # for good: its name is for the one whose keys are newer
                self._opened = _Keys(authority, Granter(envelopes, authority), copies)
            return self._opened
