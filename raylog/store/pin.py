"""A shard held in its place while another process reads it."""

from typing import ClassVar

from raylog.codec.frame import Frame
from raylog.spec import TierKind


class Pin:
    """`length` bytes at `offset` of `descriptor` are the shard's file, unchanged until `close`.

    The descriptor is the store's own: it is handed on as a copy and never closed by the holder of the pin. Extents of
    the arena have a `generation` that is never given twice; files need none, since an open file never changes hands.
    """

    NO_GENERATION: ClassVar[int] = 0

    def __init__(
        self, *, frame: Frame, descriptor: int, offset: int, tier: TierKind, generation: int, holder: object
    ) -> None:
        self.frame = frame
        self.descriptor = descriptor
        self.offset = offset
        self.length = frame.stored_bytes
        self.tier = tier
        self.generation = generation
        self._holder: object = holder

    @property
    def is_held(self) -> bool:
        return self._holder is not None

    def close(self) -> None:
        """Lets go; a second call does nothing."""
        self._holder = None
