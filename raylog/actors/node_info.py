"""How nodes are reached, and what one can have from the others."""

from collections.abc import Sequence

import msgspec

from raylog.actors.elsewhere import Elsewhere
from raylog.catalog.pieces import Whereabouts
from raylog.wire.fetcher import Source
from raylog.wire.sessions import PeerAddress


class NodeInfo(msgspec.Struct, frozen=True, kw_only=True):
    """How to reach a node and its store. `host` and `control_port` are the wire's, `more_hosts` its addresses in other
    networks; `socket_path` is for processes of the same machine, which `machine` names ("": its memory is not shared);
    `labels` are Ray's, and name the failure domains `rack` and `zone` where they are given."""

    node_id: str
    ray_node_id: str
    hostname: str
    host: str
    more_hosts: tuple[str, ...] = ()
    control_port: int
    machine: str = ""
    socket_path: str
    directory: str
    arena_path: str
    software: str
    pid: int
    labels: dict[str, str]


def address_of(info: NodeInfo) -> PeerAddress:
    """Where a node's wire is reached."""
    return PeerAddress(
        node_id=info.node_id,
        host=info.host,
        control_port=info.control_port,
        more_hosts=info.more_hosts,
        machine=info.machine,
        socket_path=info.socket_path,
    )


def sources_for(target: NodeInfo, holders: Sequence[NodeInfo]) -> tuple[Source, ...]:
    """Nodes that hold a shard, as sources for `target`, itself left out."""
    return tuple(Source(peer=address_of(info)) for info in holders if info.node_id != target.node_id)


def elsewhere_for(target: NodeInfo, found: Whereabouts, nodes: Sequence[NodeInfo]) -> Elsewhere:
    """Where `target` may have a shard from that no node gives whole; `nodes` are those that live."""
    by_id = {info.node_id: info for info in nodes}
    return Elsewhere(
        backups=found.backups,
        erasure=found.erasure,
        number=found.number,
        sources=tuple(sources_for(target, [by_id[one] for one in held if one in by_id]) for held in found.holders),
    )
