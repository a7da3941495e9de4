"""A sealed shard cut into the pieces that an erasure-coded version keeps of it (FORMAT.md, "Pieces"), in this
process."""

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack

from raylog.api.seal_content import Sealed
from raylog.codec.header import header_length
from raylog.codec.pieces import Erasure, digests_of, encode_stripe
from raylog.spec import Durability
from raylog.wire.local_client import LocalStaging


def cut_into_pieces(
    sealed: Sealed[LocalStaging], data: int, parity: int, stage: Callable[[int], LocalStaging]
) -> Erasure:
    """Reads the sealed shard stripe by stripe and has the local node take every piece, in memory as far as there is
    room, until the nodes that shall keep them have theirs. `stage(bytes)` begins one. Raises `NoSpace`,
    `Unavailable`."""
    with ExitStack() as stack:
        places: list[LocalStaging] = []

        def write(blank: Erasure) -> bytes:
            piece_bytes = sum(blank.piece_bytes(stripe) for stripe in range(blank.stripes))
            places.extend(stack.enter_context(stage(piece_bytes)) for _ in range(blank.pieces))
            return _write_stripes(sealed.place.descriptor, blank, places)

        erasure = Erasure.plan(sealed.frame.ref(), sealed.frame.header, data, parity, write)
        for place, frame in zip(places, erasure.frames(), strict=True):
            place.write_at(0, frame.header_bytes)
            place.write_at(frame.index_offset, frame.tail_bytes)
            place.adopt(frame.digest, Durability.MEMORY)
    return erasure


def _write_stripes(source: int, blank: Erasure, places: Sequence[LocalStaging]) -> bytes:
    """Every piece of every stripe into its place; their digests, stripe after stripe."""
    largest = blank.piece_bytes(0)
    data = memoryview(bytearray(largest * blank.parity.data_pieces))
    parity = memoryview(bytearray(largest * blank.parity.parity_pieces))
    digests, offset = bytearray(), header_length(1)
    for stripe in range(blank.stripes):
        size, start = blank.piece_bytes(stripe), stripe * blank.parity.stripe_bytes
        length = min(blank.parity.stripe_bytes, blank.shard.stored_bytes - start)
        _read(source, data[:length], start)
        data[length:] = bytes(len(data) - length)
        pieces = encode_stripe(blank, stripe, data, parity)
        for place, piece in zip(places, pieces, strict=True):
            place.write_at(offset, piece)
        digests += digests_of(pieces)
        offset += size
    return bytes(digests)


def _read(source: int, into: memoryview, offset: int) -> None:
    done = 0
    while done < len(into):
        count = os.preadv(source, [into[done:]], offset + done)
        assert count, "a staged shard is as long as its frame says"
        done += count
