"""The standby actor: on a machine that was given the cluster's keys, it keeps all that the head has acknowledged, and
takes the place of the head's actors when Ray says that they are gone for good (standbys.py says when it may)."""

import logging
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from typing import Any

import ray

from raylog.actors import bootstrap, calls
from raylog.actors.eventful import Eventful
from raylog.actors.gcs import GcsRegister
from raylog.actors.launch import detached
from raylog.actors.requests import KeepKeys, Position, RestartRecords
from raylog.actors.slot import kept_id
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


def check_follows(at: Position, after: Position) -> None:
    """Raises `NotPermitted` for rows of a run or a stream that another one has followed, `Unavailable` for rows that do
    not come next."""
    begun, asked = (at.term, at.stream), (after.term, after.stream)
    if asked < begun:
        raise NotPermitted("these rows of the keys were superseded: a later run of the key actor has begun")
    if after != at and not (asked > begun and after.is_start):
        raise Unavailable("these rows of the keys do not follow those that are here: begin with the first")


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
        self._lock = threading.Lock()  # nothing is taken in while this standby takes over
        self._taking_over: Collection[str] = ()
        self._lacked: list[str] = []
        self._keys_at = Position(term=self._register.term("keys"), stream=-1)
        self._register.enlist(self._ray_node_id)
        threading.Thread(target=self._run, name="standby", daemon=True).start()

    def ready(self) -> None:
        """Answers once the actor is up; what kept it from starting is raised to whoever asks."""

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
            check_follows(self._keys_at, request.after)
            self._envelopes.take(request.envelopes)
            self._authority.take(request.authority)
            self._keys_at = request.reached

    def _check_still(self, what: str) -> None:
        if what in self._taking_over:
            raise Unavailable(f"this standby takes the place of {what}")

    def _run(self) -> None:
        told = ""
        while True:
            time.sleep(self._settings.reconcile_period_s)
            try:
                self._look()
                told = ""
            except RaylogError as error:
                if str(error) != told:  # and not again every second
                    log.warning("%s", error)
                told = str(error)
            except Exception:
                log.exception("looking after the head's actors failed, trying again")

    def _look(self) -> None:
        """Actors that are gone at two looks are not just being replaced by somebody else."""
        lacked, self._lacked = self._lacked, []
        lacking = [name for name in bootstrap.HEAD_ACTORS if not calls.exists(name)]
        if lacking and lacking == lacked:
            self._take_over(lacking)
        self._lacked = lacking

    def _take_over(self, names: Sequence[str]) -> None:
        behind = [what for what in bootstrap.STATEFUL if what in names and not self._has_all_of(what)]
        if behind:
            raise Unavailable(
                f"{', '.join(names)} are gone, and this standby may lack what {' and '.join(behind)} acknowledged "
                "last: bring the head back, or run 'raylog catalog rebuild' on a machine that has the keys"
            )
        log.warning("Taking the place of %s, which Ray says are gone", ", ".join(names))
        with self._lock:
            self._taking_over = names
        try:
            if "catalog" in names and not self._is_own("catalog"):  # the last one's own journal is the newest there is
                self._make_journal()
            bootstrap.start_actors(self._settings, names)
            self._keys_at = Position(term=self._register.term("keys"), stream=-1)  # nothing more from the one before
        finally:
            with self._lock:
                self._taking_over = ()
        for name in names:
            log.warning("%s runs on node %s now", name, calls.node_of(name)[:12])

    def _has_all_of(self, what: str) -> bool:
        """Whether the actor's last run was here, or has brought everything here. It looks again itself
        (standbys.py)."""
        return self._is_own(what) or self._ray_node_id in self._register.in_sync(what, self._register.term(what))

    def _is_own(self, what: str) -> bool:
        """Whether the actor's last run was on this machine's state."""
        return self._register.holder(what) == kept_id(self._settings.state_id_path)

    def _make_journal(self) -> None:
        """From this standby's copy, which takes nothing from the catalog that was from here on. A journal here that
        lacks what is in it is moved aside; what nodes have beyond it was never acknowledged."""
        fence = self._register.claim_epoch(self._records.highest_epoch())
        self._records.observe(fence)
        directory = self._settings.catalog_path
        if (directory / FILE_NAME).exists():
            journal = Journal(directory, self._trust, time.time, create=False)
            try:
                is_newest = journal.contains(self._records.tail)
            finally:
                journal.close()
            if not is_newest:
                aside = directory.with_name(f"{directory.name}.superseded-{time.time_ns()}")
                directory.rename(aside)
                log.warning("the journal of an earlier catalog on this machine was moved to %s", aside)
        if not (directory / FILE_NAME).exists():
            rebuild(directory, self._trust, self._entries(), {})
        self._settings.overrules_path.write_text(str(fence))

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
    keys_of, cluster_id = FileKeyring.load(settings.keyring_path).cluster_id, str(calls.call("launch", "cluster_id"))
    if keys_of != cluster_id:
        raise NotPermitted(
            f"the keys at {settings.keyring_path} are of cluster {keys_of}, and this is {cluster_id}: bring a backup "
            "of its keys here ('raylog keys backup' on the head) and run 'raylog keys restore'"
        )
    register, here = GcsRegister(cluster_id), str(ray.get_runtime_context().get_node_id())
    if kept_id(settings.state_id_path) in {register.holder(what) for what in bootstrap.STATEFUL}:
        raise Conflict(
            f"the head's actors run on the state in {settings.state}: a standby is another machine with one of its own"
        )
    with suppress(Unavailable):  # an earlier one, perhaps with other keys
        ray.kill(calls.find(calls.standby_name(here)))
    handle: Any = ray.remote(StandbyActor).options(**detached(calls.standby_name(here), here)).remote(settings)
    calls.wait(handle.ready.remote(), bootstrap.START_TIMEOUT_S, "starting the standby")
    deadline = time.monotonic() + IN_SYNC_TIMEOUT_S
    while not standbys(cluster_id).get(here):
        if time.monotonic() > deadline:
            raise Unavailable(
                f"the standby runs, and was not in sync after {IN_SYNC_TIMEOUT_S:.0f} s: 'raylog status --events' says "
                "why; keys older than a change of the KEK would be a reason"
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
