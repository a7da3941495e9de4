"""The key actor: admits nodes and clients, grants data keys. Requests and answers are signed or sealed bytes, so Ray
carries no secret and proves nothing."""

import threading
import time

from raylog.actors.eventful import Eventful
from raylog.security.certs import Authority
from raylog.security.envelopes import EnvelopeStore
from raylog.security.grants import Granter
from raylog.security.providers.file import FileKeyring
from raylog.settings import Settings


class KeysActor(Eventful):
    """Runs on the head, beside the keyring. A restart reads everything from disk again."""

    def __init__(self, settings: Settings) -> None:
        super().__init__("keys")
        self._settings = settings
        self._lock = threading.Lock()
        self._opened: tuple[Authority, Granter] | None = None

    def ready(self) -> None:
        """Answers once the keys are read; what keeps them from being read is raised to whoever asks."""
        self._open()

    def admit(self, request: bytes) -> bytes:
        """A join request in, a certificate out (security/join.py)."""
        authority, _ = self._open()
        return authority.admit(request, time.time())

    def grant(self, request: bytes) -> bytes:
        """A signed grant request in, data keys sealed to the asker out (security/grants.py)."""
        _, granter = self._open()
        return granter.handle(request, time.time())

    def _open(self) -> tuple[Authority, Granter]:
        """At the first call, not at the start: a keyring that may not be read is told to every caller until it is put
        right, while an actor that fails to start is gone for good and can tell nobody."""
        with self._lock:
            if self._opened is None:
                keyring = FileKeyring.load(self._settings.keyring_path)
                authority = Authority.load(self._settings.authority_path, keyring)
                self._opened = authority, Granter(EnvelopeStore(self._settings.envelopes_path, keyring), authority)
            return self._opened
