"""The key actor: admits nodes and clients, grants data keys. Requests and answers are signed or sealed bytes, so Ray
carries no secret and proves nothing."""

import time

from raylog.security.certs import Authority
from raylog.security.envelopes import EnvelopeStore
from raylog.security.grants import Granter
from raylog.security.providers.file import FileKeyring
from raylog.settings import Settings


class KeysActor:
    """Runs on the head, beside the keyring. A restart reads everything from disk again."""

    def __init__(self, settings: Settings) -> None:
        keyring = FileKeyring.load(settings.keyring_path)
        self._authority = Authority.load(settings.authority_path, keyring)
        self._granter = Granter(EnvelopeStore(settings.envelopes_path, keyring), self._authority)

    def ready(self) -> None:
        """Answers once the actor is up; what kept it from starting is raised to whoever asks."""

    def admit(self, request: bytes) -> bytes:
        """A join request in, a certificate out (security/join.py)."""
        return self._authority.admit(request, time.time())

    def grant(self, request: bytes) -> bytes:
        """A signed grant request in, data keys sealed to the asker out (security/grants.py)."""
        return self._granter.handle(request, time.time())
