"""raylog: the logistics layer of a Ray cluster that trains and serves large models.

Names are loaded when they are first used, so that `import raylog` is quick and does not need Ray.
"""

import importlib
from typing import TYPE_CHECKING, Any

from raylog.errors import (
    Conflict,
    DamagedData,
    DeadlineExceeded,
    NoSpace,
    NotFound,
    NotPermitted,
    PeerFault,
    RaylogError,
    SourceError,
    Unavailable,
    Unsatisfiable,
    UsageError,
)
from raylog.spec import Version

if TYPE_CHECKING:
    from raylog.api.checkpoint.dcp import RaylogStorageReader, RaylogStorageWriter
    from raylog.api.checkpoint.manager import CheckpointManager
    from raylog.api.client import Client, connect
    from raylog.api.file import seal, unseal
    from raylog.api.raydata import read
    from raylog.api.raydata_sink import RaylogDatasink
    from raylog.api.report import report
    from raylog.api.streaming.dataset import StreamingDataset
    from raylog.api.streaming.loader import StreamingDataLoader

__version__ = "0.1.0"

_LAZY = {
    "connect": "api.client",
    "Client": "api.client",
    "seal": "api.file",
    "unseal": "api.file",
    "CheckpointManager": "api.checkpoint.manager",
    "RaylogStorageReader": "api.checkpoint.dcp",
    "RaylogStorageWriter": "api.checkpoint.dcp",
    "RaylogDatasink": "api.raydata_sink",
    "read": "api.raydata",
    "report": "api.report",
    "StreamingDataset": "api.streaming.dataset",
    "StreamingDataLoader": "api.streaming.loader",
}

__all__ = [
    "CheckpointManager",
    "Client",
    "Conflict",
    "DamagedData",
    "DeadlineExceeded",
    "NoSpace",
    "NotFound",
    "NotPermitted",
    "PeerFault",
    "RaylogDatasink",
    "RaylogError",
    "RaylogStorageReader",
    "RaylogStorageWriter",
    "SourceError",
    "StreamingDataLoader",
    "StreamingDataset",
    "Unavailable",
    "Unsatisfiable",
    "UsageError",
    "Version",
    "connect",
    "read",
    "report",
    "seal",
    "unseal",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'raylog' has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(f"raylog.{_LAZY[name]}"), name)
    except ModuleNotFoundError as error:
        raise UsageError(
            f"raylog.{name} needs {error.name}, which is not installed here: pip install {error.name}"
        ) from error
