"""`drain`: a node is taken out of use, and what only it keeps is brought to others before it goes."""

import time

import msgspec
import ray
from ray._raylet import GcsClient  # type: ignore[attr-defined]  # compiled
from ray.core.generated import autoscaler_pb2

from raylog.actors import bootstrap
from raylog.api.progress import OnProgress, Reporter
from raylog.api.session import Session
from raylog.errors import DeadlineExceeded, Unavailable, UsageError

POLL_PERIOD_S = 0.5


class DrainReport(msgspec.Struct, frozen=True, kw_only=True):
    """`shards`: how many had to be brought to other nodes. The node may be switched off now."""

    node_id: str
    shards: int
    seconds: float


def drain_node(session: Session, node_id: str, timeout_s: float, on_progress: OnProgress | None = None) -> DrainReport:
    """Has Ray drain a node (it places nothing new there, nor does raylog) and waits until every shard on it has the
    replicas it was promised on other nodes. Ray cannot take a drain back: end the node and start it anew.

    Raises `NotFound`, `UsageError` for the head, `Unavailable` when Ray refuses, `DeadlineExceeded` after `timeout_s`,
    saying how many shards are left; upkeep goes on meanwhile, so asking again goes on from there.
    """
    info = session.node(node_id)
    if bootstrap.is_head(info.ray_node_id):
        raise UsageError(f"node {info.node_id} is the head, which Ray and the catalog run on: it cannot be drained")
    began_s = time.monotonic()
    left: int = session.retried("catalog", "short_without", info.node_id)
    total, reporter = left, Reporter(on_progress, left)
    _ask_ray(info.ray_node_id)
    while left:
        if time.monotonic() - began_s > timeout_s:
            raise DeadlineExceeded(
                f"{left} of {total} shards on node {info.node_id} have too few replicas elsewhere after "
                f"{timeout_s:.0f} s: 'raylog status --events' says why; make room or add a node, then drain again"
            )
        time.sleep(POLL_PERIOD_S)
        left = session.retried("catalog", "short_without", info.node_id)
        reporter.reach(max(0, total - left))
    reporter.finish(total)
    return DrainReport(node_id=info.node_id, shards=total, seconds=time.monotonic() - began_s)


def _ask_ray(ray_node_id: str) -> None:
    reason = autoscaler_pb2.DRAIN_NODE_REASON_PREEMPTION  # type: ignore[attr-defined]  # generated; never refused
    gcs = GcsClient(address=ray.get_runtime_context().gcs_address)
    is_accepted, why = gcs.drain_node(ray_node_id, reason, "raylog: drained by an operator", 0)
    if not is_accepted:
        raise Unavailable(f"Ray does not drain node {ray_node_id}: {why}")
