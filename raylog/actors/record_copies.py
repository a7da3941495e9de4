"""Copies of the catalog's records on other machines, which its acknowledgements wait for."""

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from raylog.actors.cluster_nodes import Nodes, tolerated
from raylog.actors.node_info import NodeInfo
from raylog.actors.requests import RestartRecords
from raylog.actors.standbys import Standbys
from raylog.catalog.catalog import Catalog
from raylog.catalog.record import Tail
from raylog.errors import DeadlineExceeded, NotPermitted, RaylogError, Unavailable

log = logging.getLogger("raylog.upkeep")
STANDBY_TIMEOUT_S = 5.0  # that an acknowledgement waits for a standby, before it is struck off


class RecordCopies:
    """What nodes and standbys have of the records, and whether one has what this catalog lacks. Thread-safe."""

    def __init__(
        self, catalog: Catalog, nodes: Nodes, standbys: Standbys, timeout_s: float, *, overrules_below: int = 0
    ) -> None:
        """`timeout_s`: for what one node lacks. `overrules_below`: this catalog was made of all that was acknowledged
        in epochs below, so that what others have of them beyond it was not."""
        self._catalog, self._nodes, self._standbys = catalog, nodes, standbys
        self._timeout_s, self._overrules_below = timeout_s, overrules_below
        self._locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)  # one at a time copies to each
        self._outdated = ""  # why this catalog must not go on

    def copy_to_another_node(self) -> None:
        """Returns once another machine has on its disk all records that there are now: each standby in sync, where
        there are none another node; where there is no other, the one that there is, if it answers. Raises `Unavailable`
        when there is another one and none of them took them, or another catalog takes this one's place."""
        sequence = self._catalog.sequence
        if self._standbys.acknowledge(self._bring_to_standby):
            return
        own, others = self._own_and_others()
        if not own and not others:
            raise Unavailable("committed here, but no node has told yet that it is there: ask again")
        if not others:
            for info in own:
                with tolerated(f"copying records to node {info.node_id}"):
                    self._copy_to(info)
            return
        failures = []
        for info in others:
            try:
                if self._copy_to(info) >= sequence:
                    return
            except RaylogError as error:
                failures.append(f"{info.node_id[:12]}: {error}")
        raise Unavailable(
            f"committed here, but no other node has copied the record yet ({'; '.join(failures)}): ask again"
        )

    def copy_to_all(self, nodes: Sequence[NodeInfo]) -> None:
        """A round of `nodes` and standbys, those included that are to be admitted. Raises `Unavailable` as
        `check_not_outdated`."""
        for info in nodes:  # the catalog's own too: a node knows by its copy what clients may not have deleted
            with tolerated(f"copying records to node {info.node_id}"):
                self._copy_to(info)
        for standby in self._standbys.waiting():
            with suppress(RaylogError):  # it is gone, or is tried again
                self._standbys.admit(standby, self._bring_to_standby)
        self.check_not_outdated()
        self._standbys.acknowledge(self._bring_to_standby)  # one that is gone is struck off before a call waits for it

    def check_not_outdated(self) -> None:
        """Raises `Unavailable` once a node has shown records that this catalog lacks: nothing may be committed or
        removed on an older state than the cluster's."""
        if self._outdated:
            raise Unavailable(self._outdated)

    def _own_and_others(self) -> tuple[list[NodeInfo], list[NodeInfo]]:
        """The catalog's own node, if it lives, and the living others."""
        here, nodes = self._nodes.here(), self._nodes.living()
        own = [info for info in nodes if info.ray_node_id == here]
        return own, [info for info in nodes if info.ray_node_id != here]

    def _copy_to(self, info: NodeInfo) -> int:
        """Sends a node the records that it lacks; the sequence number that it has reached."""
        call, restart = partial(self._nodes.call, info), partial(self._nodes.ask, info)
        reached = self._bring(f"node {info.node_id}", call, restart, self._timeout_s)
        self._catalog.copied(info.node_id, reached)
        return reached

    def _bring_to_standby(self, standby: str) -> None:
        """All records that there are now. Raises what keeps the standby from having them."""
        call, restart = partial(self._nodes.call_standby, standby), partial(self._nodes.ask_standby, standby)
        try:
            self._bring(f"standby {standby}", call, restart, min(STANDBY_TIMEOUT_S, self._timeout_s))
        except NotPermitted as error:
            if error.__dict__.get("epoch", 0) > self._catalog.epoch:
                # It had begun to take over, and this catalog was quicker. A run of a later epoch is taken again.
                log.warning("standby %s asks for a later epoch: the catalog starts again", standby[:12])
                self._standbys.end_run()
            raise

    def _bring(self, who: str, call: Callable[..., Any], ask: Callable[..., Any], timeout_s: float) -> int:
        """Sends `who` the records that its copy lacks; the sequence number that it has reached."""
        deadline = time.monotonic() + timeout_s
        lock = self._locks[who]
        if not lock.acquire(timeout=timeout_s):
            raise DeadlineExceeded(f"records for {who}: another copy took more than {timeout_s:.0f} s")
        try:
            tail: Tail = call("records_tail", timeout_s=deadline - time.monotonic())
            if not self._catalog.contains(tail):
                if tail.epoch >= self._overrules_below:
                    self._outdated = (
                        f"{who} holds records up to {tail.sequence} that this catalog does not have: its journal is an "
                        "older or another one. Nothing is committed or removed until the newest is back; where it is "
                        "lost, move this one away and run 'raylog catalog rebuild'"
                    )
                    raise Unavailable(self._outdated)
                log.warning("%s has records of epoch %d that were never acknowledged", who, tail.epoch)
                ask(RestartRecords(epoch=self._catalog.epoch), deadline - time.monotonic())
                tail = Tail()
            while tail.sequence < self._catalog.sequence:
                entries = self._catalog.records(tail.sequence)
                tail = call("append_records", entries, timeout_s=deadline - time.monotonic())
            return tail.sequence
        finally:
            lock.release()
