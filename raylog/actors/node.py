"""The node actor: holds a node's sealed shards, serves them to other nodes and to processes beside it, and pulls what it
is told to. It never sees a data key."""

import logging
import os
import shutil
import socket
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from raylog import __version__
from raylog.actors import calls
from raylog.actors.membership import Membership
from raylog.actors.pull import Outcome, Puller
from raylog.actors.slot import claim_slot
from raylog.catalog.copy import RecordCopy
from raylog.catalog.receipt import make_receipt
from raylog.errors import DamagedData, NotFound
from raylog.monitor.meter import TransferMeter
from raylog.monitor.sampler import NodeSampler
from raylog.monitor.samples import NodeSample, TierSample
from raylog.settings import Settings
from raylog.spec import Durability, QosClass, ShardRef
from raylog.store.disk import DiskTier
from raylog.store.memory import MemoryTier
from raylog.store.tiered import TieredStore
from raylog.units import GIB
from raylog.wire.local import LocalServer
from raylog.wire.server import WireServer

log = logging.getLogger("raylog.node")

ARENA_SHARE_OF_SHM = 4  # of what /dev/shm leaves, the part that an arena takes by default
ARENA_BYTES_DEFAULT_MAX = 4 * GIB


class NodeInfo(msgspec.Struct, frozen=True, kw_only=True):
    """How to reach a node and its store. `host` and `control_port` are the wire's; `socket_path` is for processes of the
    same machine; `labels` are Ray's, and name the failure domains `rack` and `zone` where they are given."""

    node_id: str
    ray_node_id: str
    hostname: str
    host: str
    control_port: int
    socket_path: str
    directory: str
    arena_path: str
    software: str
    pid: int
    labels: dict[str, str]
