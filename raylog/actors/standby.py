"""The standby actor: on a machine that was given the cluster's keys, it keeps all that the head has acknowledged, and
takes the place of the head's actors when Ray says that they are gone for good (standbys.py says when it may)."""

import logging
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import ray

from raylog.actors import bootstrap, calls
from raylog.actors.eventful import Eventful
from raylog.actors.gcs import GcsRegister
from raylog.actors.launch import detached
from raylog.actors.requests import KeepKeys, RestartRecords
from raylog.actors.standbys import claim
from raylog.catalog.catalog import ENTRIES_MAX
from raylog.catalog.copy import RecordCopy
from raylog.catalog.journal import FILE_NAME, Entry, Journal
from raylog.catalog.rebuild import rebuild
from raylog.catalog.record import Tail
from raylog.errors import Conflict, NotPermitted, RaylogError, Unavailable
from raylog.security.certs import Authority
from raylog.security.envelopes import EnvelopeStore
from raylog.security.providers.file import FileKeyring
from raylog.security.requests import Receiver
from raylog.security.trust import trust_of
from raylog.settings import Settings

log = logging.getLogger("raylog.standby")
IN_SYNC_TIMEOUT_S = 60.0


class StandbyActor(Eventful):
    """One per machine with a standby, pinned there; made by `raylog standby`."""

    def __init__(self, settings: Settings) -> None:
        super().__init__("standby")
        self._settings = settings
        self._ray_node_id = self.runs_on()
        keyring = FileKeyring.load(settings.keyring_path)
        self._authority = Authority.load(settings.authority_path, keyring)
        self._envelopes = EnvelopeStore(settings.envelopes_path, keyring)
        self._trust = trust_of(self._authority, time.time)
        name = calls.standby_name(self._ray_node_id)
        self._requests = Receiver(name, self._trust.cluster_id, self._trust.verify, self._trust.identify, time.time)
        self._records = RecordCopy(settings.standby_path, self._trust.cluster_id, self._trust.verify)
        self._register = GcsRegister(self._trust.cluster_id)
        self._lock = threading.Lock()  # nothing is taken in while this standby looks at what it has
        self._taking_over: Collection[str] = ()
        self._lacked: list[str] = []
        self._keys_term = self._register.term("keys")
        self._keys_reached = (0, 0)  # not kept: after a restart the key actor sends all again
        self._register.enlist(self._ray_node_id)
        threading.Thread(target=self._run, name="standby", daemon=True).start()

    def cluster_id(self) -> str:
        """Whose keys are here; what kept the actor from starting is raised to whoever asks."""
        return self._trust.cluster_id

    def records_tail(self) -> Tail:
        """Where the copy of the catalog's records ends."""
        return self._records.tail

    def append_records(self, entries: Sequence[Entry]) -> Tail:
        """As a node's."""
        with self._lock:
            self._check_still("catalog")
            return self._records.append(entries)

    def restart_records(self, signed_request: bytes) -> None:
        """As a node's."""
        request, _ = self._requests.open(signed_request, RestartRecords)
        with self._lock:
            self._check_still("catalog")
            self._records.restart(request.epoch)

    def keep_keys(self, signed_request: bytes) -> None:
        """`signed_request` is for `KeepKeys`; on the disk when this returns."""
        request, _ = self._requests.open(signed_request, KeepKeys)
        with self._lock:
            self._check_still("keys")
            if request.term < self._keys_term:
                raise NotPermitted("this key actor was superseded: another machine has taken its place")
            if request.after not in (self._keys_reached, (0, 0)):
                raise Unavailable(f"expected what comes after changes {self._keys_reached} of the keys, or all of it")
            self._authority.rows.take(request.authority)
            self._envelopes.take(request.envelopes)
            self._keys_reached = request.reached

    def _check_still(self, what: str) -> None:
        if what in self._taking_over:
            raise Unavailable(f"this standby takes the place of {what}")

    def _run(self) -> None:
        while True:
            time.sleep(self._settings.reconcile_period_s)
            try:
                self._look()
            except RaylogError as error:
                log.warning("%s", error)
            except Exception:
                log.exception("looking after the head's actors failed, trying again")

    def _look(self) -> None:
        """Actors that are gone at two looks are not just being replaced by somebody else."""
        lacking = [name for name in bootstrap.HEAD_ACTORS if not calls.exists(name)]
        lacked, self._lacked = self._lacked, lacking
        if lacking and lacking == lacked:
            self._take_over(lacking)

    def _take_over(self, names: Sequence[str]) -> None:
        log.warning("Taking the place of %s, which Ray says are gone", ", ".join(names))
        with self._lock:
            self._taking_over = names
        try:
            if "keys" in names:
                self._keys_term = claim("keys", self._register, self._ray_node_id)
            if "catalog" in names:
                claim("catalog", self._register, self._ray_node_id)
                self._make_journal()
            bootstrap.start_actors(self._settings, names, is_takeover=True)
        finally:
            with self._lock:
                self._taking_over = ()
        log.warning("This machine is the head of raylog now: %s run here", ", ".join(names))

    def _make_journal(self) -> None:
        """From this standby's copy, which from here on takes nothing from the catalog that was; a journal here that
        lacks what is in it is moved aside. What nodes have beyond it was never acknowledged."""
        self._records.observe(self._register.claim_epoch(self._records.highest_epoch()))
        directory = self._settings.catalog_path
        if (directory / FILE_NAME).exists():
            journal = Journal(directory, self._trust, time.time, create=False)
            try:
                if journal.contains(self._records.tail):
                    return
            finally:
                journal.close()
            aside = directory.with_name(f"{directory.name}.superseded-{time.time_ns()}")
            directory.rename(aside)
            log.warning("the journal of an earlier catalog on this machine was moved to %s", aside)
        rebuild(directory, self._trust, self._entries(), {})

    def _entries(self) -> Iterator[Entry]:
        since = 0
        while page := self._records.page(since, ENTRIES_MAX):
            yield from page
            since += len(page)


def start_standby(settings: Settings) -> None:
    """Makes this machine of the Ray cluster a standby, and waits until it has all that the head has; keys of the
    cluster have to be here, as of any backup. `settings` are the running cluster's.

    Raises `NotPermitted` without them or with another cluster's, `Unavailable` when the head does not bring it all in
    time, `Conflict` on the machine that the actors run on.
    """
    if not settings.keyring_path.exists():
        raise NotPermitted(
            f"a standby has the cluster's keys, and there are none at {settings.keyring_path}: bring a backup here "
            "('raylog keys backup' on the head) and run 'raylog keys restore'"
        )
    here = str(ray.get_runtime_context().get_node_id())
    if here in (calls.node_of("catalog"), calls.node_of("keys")):
        raise Conflict("this machine is the head: a standby is another one, which takes its place when it is lost")
    handle: Any = ray.remote(StandbyActor).options(**detached(calls.standby_name(here), here)).remote(settings)
    cluster_id: str = calls.wait(handle.cluster_id.remote(), bootstrap.START_TIMEOUT_S, "starting the standby")
    deadline = time.monotonic() + IN_SYNC_TIMEOUT_S
    while not standbys(cluster_id).get(here):
        if time.monotonic() > deadline:
            raise Unavailable(
                f"the standby runs, and was not in sync after {IN_SYNC_TIMEOUT_S:.0f} s: 'raylog status --events' says "
                "why; keys of another cluster, or older than a change of the KEK, would be a reason"
            )
        time.sleep(0.1)


def standbys(cluster_id: str) -> dict[str, bool]:
    """Ray node ids of the living standbys, without the one that is the head now -> whether they have all that it
    has."""
    heads = {calls.node_of(what) for what in bootstrap.STATEFUL}
    register = GcsRegister(cluster_id)
    in_sync = frozenset.intersection(*(register.in_sync(one, register.term(one)) for one in bootstrap.STATEFUL))
    living = [one for one in register.standbys() if one not in heads and calls.exists(calls.standby_name(one))]
    return {one: one in in_sync for one in living}
