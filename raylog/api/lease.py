"""A put's lease: while it runs, the catalog keeps what it has sealed from being taken for leftovers."""

import logging
import threading
from types import TracebackType
from typing import Self

from raylog.api.session import Session
from raylog.errors import RaylogError

log = logging.getLogger("raylog.put")
RENEWALS = 4  # in the time that a lease lasts
RENEWAL_PERIOD_S_MAX = 60.0


class Lease:
    """Held from before the first shard is sealed until the commit has returned. A renewal that fails is tried again at
    the next; whether the put was silent for too long, its commit says."""

    def __init__(self, session: Session, version_id: str) -> None:
        self._session, self._version_id = session, version_id
        self._period_s = min(session.settings.orphan_grace_s / RENEWALS, RENEWAL_PERIOD_S_MAX)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="put-lease", daemon=True)

    def _run(self) -> None:
        while not self._ended.wait(self._period_s):
            try:
                self._session.call("catalog", "renew_lease", self._version_id)
            except RaylogError as error:
                log.warning("the lease of a put was not renewed, trying again: %s", error)

    def __enter__(self) -> Self:
        self._session.retried("catalog", "renew_lease", self._version_id)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
