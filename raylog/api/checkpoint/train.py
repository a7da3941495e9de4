"""Checkpoints of Ray Train that only say which checkpoint in raylog they are: Ray Train keeps, finds and hands on a few
bytes, the tensors never pass through it."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
from ray.train import Checkpoint

from raylog.errors import UsageError
from raylog.spec import Reference, parse_reference

FILE_NAME = "raylog.json"


class _Pointer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    version: str


@contextmanager
def pointing_to(version: Reference) -> Iterator[Checkpoint]:
    """A checkpoint for `ray.train.report`, good while the context lasts."""
    with tempfile.TemporaryDirectory(prefix="raylog-") as folder:
        Path(folder, FILE_NAME).write_bytes(msgspec.json.encode(_Pointer(str(version))))
        yield Checkpoint.from_directory(folder)


def pointed_to(checkpoint: Checkpoint) -> Reference:
    """The version that it points to. Raises `UsageError` for a checkpoint of another kind."""
    with checkpoint.as_directory() as folder:
        path = Path(folder, FILE_NAME)
        if not path.exists():
            raise UsageError(
                f"expected a checkpoint of CheckpointManager.train_checkpoint, {checkpoint} has no {FILE_NAME}"
            )
        try:
            return parse_reference(msgspec.json.decode(path.read_bytes(), type=_Pointer).version)
        except msgspec.DecodeError as error:
            raise UsageError(f"{path} is no pointer to a checkpoint in raylog: {error}") from None
