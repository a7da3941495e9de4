"""Which format a file has: by its first bytes where the format has a magic number, else by its suffix.

| format | first bytes | suffix |
| --- | --- | --- |
| Parquet | `PAR1` | `.parquet`, `.pq` |
| Arrow IPC file, Feather 2 | `ARROW1` | `.arrow`, `.feather`, `.ipc` |
| Arrow IPC stream | | `.arrow`, `.arrows`, `.ipc` whose first bytes are `FF FF FF FF` |
| CSV | | `.csv` |
| JSON lines | | `.jsonl`, `.ndjson` |

Everything else is opaque, and so is whatever starts as gzip does, whatever its suffix: it is stored as it is.
"""

import enum
from pathlib import PurePosixPath

from raylog.api.sources.content import SourceFile

HEAD_BYTES = 8


class Format(enum.StrEnum):
    """How the content of one file is read."""

    PARQUET = "Parquet"
    ARROW_FILE = "Arrow IPC file"
    ARROW_STREAM = "Arrow IPC stream"
    CSV = "CSV"
    JSONL = "JSON lines"
    OPAQUE = "opaque"


_MAGIC = {b"PAR1": Format.PARQUET, b"ARROW1": Format.ARROW_FILE}
_GZIP, _ARROW_CONTINUATION = b"\x1f\x8b", b"\xff\xff\xff\xff"
_SUFFIX = {
    ".parquet": Format.PARQUET,
    ".pq": Format.PARQUET,
    ".arrow": Format.ARROW_FILE,
    ".feather": Format.ARROW_FILE,
    ".ipc": Format.ARROW_FILE,
    ".arrows": Format.ARROW_STREAM,
    ".csv": Format.CSV,
    ".jsonl": Format.JSONL,
    ".ndjson": Format.JSONL,
}


def format_of(path: str, head: bytes) -> Format:
    """The format of a file from its name and its first `HEAD_BYTES` bytes; pure."""
    for magic, found in _MAGIC.items():
        if head.startswith(magic):
            return found
    if head.startswith(_GZIP):
        return Format.OPAQUE
    declared = _SUFFIX.get(PurePosixPath(path).suffix.lower(), Format.OPAQUE)
    if declared is Format.ARROW_FILE and head.startswith(_ARROW_CONTINUATION):
        return Format.ARROW_STREAM
    return declared


def sniff(file: SourceFile) -> Format:
    """The format of `file`, whose first bytes are read for it. Raises `SourceError` when it cannot be opened."""
    with file.open() as stream:
        return format_of(file.path, stream.read(HEAD_BYTES))
