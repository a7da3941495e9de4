"""What every node knows of the ways to its peers, as `client.paths()` and `raylog status --paths` give it."""

from collections.abc import Sequence

import msgspec

from raylog.actors import calls
from raylog.actors.node_info import NodeInfo
from raylog.errors import RaylogError
from raylog.wire.path import Decision
from raylog.wire.paths import PathReport

ASK_TIMEOUT_S = 10.0


class NodePaths(msgspec.Struct, frozen=True, kw_only=True):
    """One node: the peers that it has sent to since it started, and its last decisions, oldest first. `problem` says
    why a node did not answer."""

    node_id: str
    hostname: str
    paths: list[PathReport] = []
    decisions: list[Decision] = []
    problem: str = ""


def ask_paths(nodes: Sequence[NodeInfo]) -> list[NodePaths]:
    """Asks all nodes at once."""
    asked, found = [], []
    for info in nodes:
        try:
            asked.append((info, calls.node(info.ray_node_id).paths.remote()))
        except RaylogError as error:
            found.append(NodePaths(node_id=info.node_id, hostname=info.hostname, problem=str(error)))
    answers = calls.wait_all([reference for _, reference in asked], ASK_TIMEOUT_S, "paths of a node")
    for (info, _), answer in zip(asked, answers, strict=True):
        if isinstance(answer, RaylogError):
            found.append(NodePaths(node_id=info.node_id, hostname=info.hostname, problem=str(answer)))
        else:
            paths, decisions = answer
            found.append(NodePaths(node_id=info.node_id, hostname=info.hostname, paths=paths, decisions=decisions))
    return found
