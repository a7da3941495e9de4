"""The node actor: holds a node's sealed shards, serves them to other nodes and to local processes, pulls what it is told
to. It never sees a data key."""

import logging
import os
import socket
import threading
import time
from pathlib import Path

import msgspec

from raylog import __version__
from raylog.actors import calls
from raylog.actors.slot import claim_slot
from raylog.errors import DamagedData, NotFound, RaylogError, Unavailable
from raylog.settings import Settings
from raylog.spec import Durability, QosClass, ShardRef

log = logging.getLogger("raylog.node")

PULLS_MAX = 4


class NodeInfo(msgspec.Struct, frozen=True, kw_only=True):
    """How to reach a node and its store. `host` and `control_port` are the wire's, `socket_path` is for processes of the
    same machine."""

    node_id: str
    ray_node_id: str
    hostname: str
    host: str
    control_port: int
    socket_path: str
    directory: str
    software: str
    pid: int
    labels: dict[str, str]
