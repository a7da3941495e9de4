"""A process's membership of the cluster: a certificate from the key actor, renewed for as long as the process lives."""

import logging
import threading
import time
from pathlib import Path

from raylog.actors import calls
from raylog.errors import RaylogError
from raylog.security.credentials import Credentials, CurrentCredentials
from raylog.security.identity import verify_ed25519
from raylog.security.join import JoinToken, request_renewal, request_with_token
from raylog.security.requests import Receiver
from raylog.security.trust import identify_by
from raylog.settings import Settings
from raylog.spec import new_id

log = logging.getLogger("raylog.membership")
JOIN_TIMEOUT_S = 30.0
RENEWAL_PERIOD_S = 60.0


class Membership:
    """Holds the current credentials; `credentials()` gives them to whoever opens a connection or signs."""

    def __init__(self, settings: Settings, credentials: Credentials, kept_in: Path | None) -> None:
        self._settings = settings
        self.credentials = CurrentCredentials(credentials)
        self._kept_in = kept_in
        self._closed = threading.Event()
        threading.Thread(target=self._renew_in_time, name="certificate", daemon=True).start()

    @classmethod
    def of_node(cls, settings: Settings, node_id: str, kept_in: Path) -> "Membership":
        """A node keeps its key in `kept_in`: its id stays bound to it, through restarts and expired certificates."""
        if kept_in.exists():
            credentials = Credentials.load(kept_in)
        else:
            credentials = _join(settings, "node", node_id, None)
            credentials.save(kept_in)
        if credentials.needs_renewal(time.time()):
            credentials = _join(settings, "node", node_id, credentials)
            credentials.save(kept_in)
        return cls(settings, credentials, kept_in)

    @classmethod
    def of_client(cls, settings: Settings) -> "Membership":
        """A client is a new identity each time, and its key dies with the process."""
        return cls(settings, _join(settings, "client", new_id(), None), None)

    @property
    def cluster_id(self) -> str:
        return self.credentials().identity.cluster_id

    def verify_cluster(self, data: bytes, signature: bytes) -> None:
        """Raises `NotPermitted` unless the cluster's long-lived key made `signature` over `data`."""
        verify_ed25519(self.credentials().cluster_public_key, data, signature, "the cluster's key")

    def receiver(self, name: str) -> Receiver:
        """Of signed requests to `name`, by members of this cluster or by the cluster itself."""
        identify = identify_by(self.credentials().ca_der, time.time)
        return Receiver(name, self.cluster_id, self.verify_cluster, identify, time.time)

    def close(self) -> None:
        self._closed.set()

    def _renew_in_time(self) -> None:
        while not self._closed.wait(RENEWAL_PERIOD_S):
            credentials = self.credentials()
            if not credentials.needs_renewal(time.time()):
                continue
            try:
                self._renew(credentials)
            except (RaylogError, OSError) as error:
                log.warning("the certificate of %s was not renewed, trying again: %s", credentials.identity, error)

    def _renew(self, credentials: Credentials) -> None:
        """By the certificate that still holds; by the join token, under the same key, once it has expired."""
        now_s = time.time()
        if now_s > credentials.not_after_s:
            renewed = _join(self._settings, credentials.identity.role, credentials.identity.id, credentials)
        else:
            pending = request_renewal(credentials, now_s)
            renewed = pending.accept(calls.call("keys", "admit", pending.request, timeout_s=JOIN_TIMEOUT_S), now_s)
        self.credentials.replace(renewed)
        if self._kept_in:
            renewed.save(self._kept_in)


def _join(settings: Settings, role: str, holder_id: str, earlier: Credentials | None) -> Credentials:
    """Credentials by this machine's join token; under the same key as `earlier` ones, which may have expired."""
    token = JoinToken.load(settings.join_token_path)
    key = earlier.private_key if earlier else None

    def attempt(left_s: float) -> Credentials:
        pending = request_with_token(token, role, holder_id, time.time(), key)
        return pending.accept(calls.call("keys", "admit", pending.request, timeout_s=left_s), time.time())

    return calls.retried(attempt, JOIN_TIMEOUT_S)
