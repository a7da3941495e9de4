"""The launch actor: one node actor on every Ray node, pinned there, made without anybody asking, for as long as the
cluster runs; and the one list of who is here now, which everybody else asks for.
"""

import logging
import threading
import time
from dataclasses import dataclass, field
from typing import Any, cast

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raylog.actors import calls
from raylog.actors.eventful import Eventful
from raylog.actors.node import CONTROL, CONTROL_THREADS, NodeActor
from raylog.actors.node_info import NodeInfo
from raylog.actors.requests import LAUNCH, CloseNode, StopRaylog, ask
from raylog.errors import DeadlineExceeded, RaylogError
from raylog.security.certs import Authority
from raylog.security.providers.file import FileKeyring
from raylog.security.requests import Receiver, Signer
from raylog.security.trust import trust_of
from raylog.settings import Settings

log = logging.getLogger("raylog.launch")

DESCRIBE_TIMEOUT_S = 3.0
START_TIMEOUT_S = 30.0
CLOSE_TIMEOUT_S = 10.0
BACKOFF_FIRST_S, BACKOFF_MOST_S = 2.0, 60.0


@dataclass(slots=True)
class Member:
    """What the reconciler knows of one Ray node."""

    handle: Any = None
    info: NodeInfo | None = None
    failures: int = 0
    problem: str = ""
    retry_at_s: float = 0.0
    started_s: float = field(default_factory=time.monotonic)


def backoff_s(failures: int) -> float:
    """Seconds until the next attempt to start a node actor: doubling, bounded."""
    return float(min(BACKOFF_FIRST_S * 2 ** max(failures - 1, 0), BACKOFF_MOST_S))


class LaunchActor(Eventful):
    """Runs on the head. A restart finds the living node actors again by their names."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(LAUNCH)
        self._settings = settings
        trust = trust_of(Authority.load(settings.authority_path, FileKeyring.load(settings.keyring_path)), time.time)
        self._requests = Receiver(LAUNCH, trust.cluster_id, trust.verify, trust.identify, time.time)
        self._signer = Signer.of_cluster(trust)
        self._members: dict[str, Member] = {}
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reconciler", daemon=True)
        self._thread.start()

    def ready(self) -> None:
        """Answers once the actor is up; what kept it from starting is raised to whoever asks."""

    def settings(self) -> Settings:
        return self._settings

    def cluster_id(self) -> str:
        return self._signer.cluster_id

    def nodes(self) -> list[NodeInfo]:
        """The nodes whose actor answers, by node id."""
        with self._lock:
            infos = [member.info for member in self._members.values() if member.info]
        return sorted(infos, key=lambda info: info.node_id)

    def problems(self) -> dict[str, str]:
        """Ray node id -> why no node actor answers there."""
        with self._lock:
            return {key: member.problem for key, member in self._members.items() if not member.info}

    def stop(self, signed_request: bytes) -> None:
        """Ends all node actors in order: they release what they hold on their machine. `signed_request` is for
        `StopRaylog`; raises `NotPermitted` for any other."""
        self._requests.open(signed_request, StopRaylog)
        self._stopping.set()
        self._thread.join(self._settings.reconcile_period_s + DESCRIBE_TIMEOUT_S * 2)
        with self._lock:
            handles = [member.handle for member in self._members.values() if member.handle]
        infos = calls.wait_all([handle.describe.remote() for handle in handles], CLOSE_TIMEOUT_S, "node.describe")
        answering = [(handle, info) for handle, info in zip(handles, infos, strict=True) if isinstance(info, NodeInfo)]
        asked = [ask(handle, info.node_id, CloseNode(), self._signer) for handle, info in answering]
        for answer in calls.wait_all(asked, CLOSE_TIMEOUT_S, "node.close"):
            if isinstance(answer, RaylogError):
                log.warning("a node did not let go of its machine in order: %s", answer)
        for handle in handles:
            ray.kill(handle)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._reconcile()
            except Exception:
                log.exception("reconciling failed, trying again")
            self._stopping.wait(self._settings.reconcile_period_s)

    def _reconcile(self) -> None:
        alive = {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}
        with self._lock:
            for key in self._members.keys() - alive.keys():
                log.info("node %s left the cluster", key)
                del self._members[key]
            for key in alive.keys() - self._members.keys():
                self._members[key] = Member()
            members = dict(self._members)
        for key, member in members.items():
            if member.handle is None and time.monotonic() >= member.retry_at_s:
                self._start(key, alive[key], member)
        self._describe({key: member for key, member in members.items() if member.handle})

    def _start(self, ray_node_id: str, node: dict[str, Any], member: Member) -> None:
        host = node["NodeManagerAddress"]
        log.info("starting the node actor of %s at %s", ray_node_id, host)
        member.started_s = time.monotonic()
        member.handle = (
            cast(Any, ray.remote)(concurrency_groups={CONTROL: CONTROL_THREADS})(NodeActor)
            .options(**detached(calls.node_actor_name(ray_node_id), ray_node_id))
            .remote(ray_node_id, host, dict(node.get("Labels") or {}), self._settings)
        )

    def _describe(self, members: dict[str, Member]) -> None:
        references = [member.handle.describe.remote() for member in members.values()]
        answers = calls.wait_all(references, DESCRIBE_TIMEOUT_S, "node.describe")
        with self._lock:
            for member, answer in zip(members.values(), answers, strict=True):
                self._note(member, answer)

    def _note(self, member: Member, answer: NodeInfo | RaylogError) -> None:
        if isinstance(answer, NodeInfo):
            member.info, member.failures, member.problem = answer, 0, ""
            return
        is_starting = member.info is None and isinstance(answer, DeadlineExceeded)
        if is_starting and time.monotonic() - member.started_s < START_TIMEOUT_S:
            member.problem = "starting"
            return
        member.failures += 1
        member.problem = str(answer)
        member.info = None
        member.handle = None
        member.retry_at_s = time.monotonic() + backoff_s(member.failures)


def detached(name: str, ray_node_id: str, threads: int = 32) -> dict[str, Any]:
    """Options of every actor of raylog: named, outliving its creator, pinned hard to one node, restarted there."""
    return {
        "name": name,
        "namespace": calls.NAMESPACE,
        "lifetime": "detached",
        "get_if_exists": True,
        "num_cpus": 0,
        "max_restarts": -1,
        "max_concurrency": threads,
        "scheduling_strategy": NodeAffinitySchedulingStrategy(ray_node_id, soft=False),
    }
