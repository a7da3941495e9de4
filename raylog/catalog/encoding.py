"""The one encoding of manifests, receipts and records (MANIFEST.md), and the labels under which they are signed."""

from typing import TypeVar

import msgspec
from blake3 import blake3

from raylog.errors import DamagedData, NotPermitted, UsageError

FORMAT_VERSION = 1
DIGEST_BYTES = 32
SMALL_DOCUMENT_BYTES_MAX = 64 * 1024
CERTIFICATE_BYTES_MAX = 16 * 1024

S = TypeVar("S", bound=msgspec.Struct)

_ENCODER = msgspec.msgpack.Encoder(order="deterministic")


class _Head(msgspec.Struct):
    """What is looked at before anything else of a document."""

    format_version: int


def encode(document: msgspec.Struct) -> bytes:
    """The document's only encoding."""
    return _ENCODER.encode(document)


def decode(kind: type[S], data: bytes, what: str, bytes_max: int = SMALL_DOCUMENT_BYTES_MAX) -> S:
    """A document from untrusted bytes; `what` names it in errors.

    Raises `DamagedData` when it is too long, malformed, of an unknown format version, out of bounds, or not encoded in
    the one way.
    """
    if len(data) > bytes_max:
        raise DamagedData(f"{what}: expected at most {bytes_max} bytes, got {len(data)}")
    try:
        if "format_version" in kind.__struct_fields__:
            _check_format_version(msgspec.msgpack.decode(data, type=_Head).format_version, what)
        document = msgspec.msgpack.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, UsageError) as error:
        raise DamagedData(f"{what} is malformed: {error}") from error
    if encode(document) != data:
        raise DamagedData(f"{what} is not in the one encoding that MANIFEST.md allows")
    return document


def digest_of(data: bytes) -> bytes:
    """BLAKE3, 32 bytes."""
    return blake3(data).digest()


def signing_input(label: str, data: bytes) -> bytes:
    """The bytes that are signed: a signature made under one label stands under no other."""
    return label.encode() + b"\x00" + data


def check_cluster(expected: str, got: str, what: str) -> None:
    """Raises `NotPermitted` for a document of another cluster."""
    if got != expected:
        raise NotPermitted(f"{what}: expected cluster {expected}, got one of cluster {got}")


def check_bytes(value: bytes, length: int, what: str) -> None:
    """Raises `UsageError` unless `value` has exactly `length` bytes."""
    if len(value) != length:
        raise UsageError(f"expected {what} of {length} bytes, got {len(value)}")


def check_range(value: int, low: int, high: int, what: str) -> None:
    """Raises `UsageError` unless `low <= value <= high`."""
    if not low <= value <= high:
        raise UsageError(f"expected {what} of {low} to {high}, got {value}")


def _check_format_version(version: int, what: str) -> None:
    if version != FORMAT_VERSION:
        raise DamagedData(
            f"{what}: format version {version} is not known here, only {FORMAT_VERSION} is; install a raylog that does"
        )
