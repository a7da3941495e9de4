"""`ShardOpener`: sealed chunks in, content out, in any order, for whoever holds the keys."""

import hmac
from collections.abc import Callable, Sequence

import pyarrow as pa
from blake3 import blake3

from raylog.codec.chunk import TAG_BYTES, ChunkPlace, open_chunk
from raylog.codec.compress import Decompressor
from raylog.codec.damage import Check, damaged
from raylog.codec.frame import ChunkEntry, Frame, Unit
from raylog.codec.keys import GroupKey, ShardKeys, derive_shard_keys, schema_hash
from raylog.errors import DamagedData, NotPermitted, UsageError
from raylog.spec import Codec


class ShardOpener:
    """Opens chunks of one shard. For one thread; several openers may share a frame.

    `keys` may lack some groups: their chunks do not open then, the rest does. `read_chunk(number)` returns a chunk's
    sealed bytes; whether they were verified does not matter here, the tag proves them. `mend(number)` is called when
    they are damaged or `read_chunk` says so; then the chunk is read and opened once more. `ranges`: the chunks that
    belong to the version that is read, None for all. Before anything is opened
    the key commitments and the index tags are checked: raises `DamagedData` (`check="commitment"` for a wrong key,
    `"index-tag"`), and `UsageError` for a key that no group of the shard has.
    """

    def __init__(
        self,
        frame: Frame,
        keys: Sequence[GroupKey],
        read_chunk: Callable[[int], memoryview],
        mend: Callable[[int], None] | None = None,
        ranges: Sequence[range] | None = None,
    ) -> None:
        self.frame = frame
        self.ranges = ranges
        self._read_chunk, self._mend = read_chunk, mend
        self._decompressor = Decompressor()
        self._keys = _prove_keys(frame, keys)
        self._schema_key = next((key for key in keys if key.dek_id == frame.header.dek_ids[0]), None)

    @property
    def units(self) -> tuple[Unit, ...]:
        """All units but the preamble. A shard of files or tensors has one for every chunk of its byte stream."""
        return self.frame.units[1:]

    @property
    def groups(self) -> frozenset[int]:
        """The key groups that this opener has keys for."""
        return frozenset(self._keys)

    def preamble(self) -> bytes:
        """What the shard says about its content; needs the key of group 0."""
        content = self.unit(self.frame.units[0]).tobytes()
        assert self._schema_key is not None  # unit() has refused a missing key
        if schema_hash(self._schema_key, content) != self.frame.header.schema_hash:
            raise self.damaged("the preamble is not the one that the header's schema hash names", "schema-hash")
        return content

    def chunk(self, number: int, out: memoryview | None = None) -> memoryview:
        """The content of one chunk: in `out`, which must have its content length, or in memory of its own.

        Without compression it is decrypted straight into `out`. Raises `DamagedData`, and then `out` holds zeros;
        `NotPermitted` where the group's key is missing.
        """
        entry = self.frame.chunks[number]
        content = _new_memory(entry.content_bytes) if out is None else out
        assert content.nbytes == entry.content_bytes
        if entry.codec == Codec.NONE:
            self._decrypt(entry, content)
            return content
        body = _new_memory(entry.sealed_bytes - TAG_BYTES)
        self._decrypt(entry, body)
        fault = self._decompressor.decompress_into(entry.codec, body, content)
        if fault:
            content[:] = bytes(content.nbytes)
            shard_id = self.frame.header.shard_id
            raise damaged("decompress", f"{entry.codec.name}: {fault}", shard_id=shard_id, chunk=number)
        return content

    def unit(self, unit: Unit, prefix: bytes = b"") -> memoryview:
        """The content of a unit in one piece, after `prefix`."""
        if unit.chunks == 1 and not prefix:
            return self.chunk(unit.first)
        whole = _new_memory(len(prefix) + unit.content_bytes)
        whole[: len(prefix)] = prefix
        end = len(prefix)
        for number in range(unit.first, unit.first + unit.chunks):
            start, end = end, end + self.frame.chunks[number].content_bytes
            self.chunk(number, whole[start:end])
        return whole

    def damaged(self, message: str, check: Check = "content") -> DamagedData:
        """The error for content that opened well but is not what this kind of shard holds."""
        return damaged(check, message, shard_id=self.frame.header.shard_id)

    def _decrypt(self, entry: ChunkEntry, out: memoryview) -> None:
        keys, number = self._keys.get(entry.group), entry.number
        if keys is None:
            dek_id = self.frame.header.dek_ids[entry.group]
            raise NotPermitted(f"chunk {number} needs data key {dek_id} of key group {entry.group}: ask for its grant")
        try:
            self._decrypt_as_read(entry, keys, out)
        except DamagedData:
            if self._mend is None:
                raise
            self._mend(number)
            self._decrypt_as_read(entry, keys, out)

    def _decrypt_as_read(self, entry: ChunkEntry, keys: ShardKeys, out: memoryview) -> None:
        number = entry.number
        sealed = self._read_chunk(number)
        if sealed.nbytes != entry.sealed_bytes:
            self.frame.verify_chunk(number, sealed)
        final = number == len(self.frame.chunks) - 1
        place = ChunkPlace(number, entry.content_bytes, entry.codec, entry.group, entry.continues, final)
        try:
            open_chunk(keys.chunk, place, sealed, out, self.frame.header.shard_id)
        except DamagedData:
            self.frame.verify_chunk(number, sealed)  # names the cause if these are not the sealed bytes at all
            raise


def _prove_keys(frame: Frame, keys: Sequence[GroupKey]) -> dict[int, ShardKeys]:
    """The keys of every group that `keys` has, each checked against its commitment and the index tag."""
    header, prefix = frame.header, frame.header.prefix()
    by_id = {key.dek_id: key for key in keys}
    strangers = set(by_id) - set(header.dek_ids)
    if strangers or not by_id:
        raise UsageError(
            f"expected data keys among {', '.join(header.dek_ids)} for shard {header.shard_id}, "
            f"got {', '.join(sorted(strangers)) or 'none'}"
        )
    proved = {}
    for group, dek_id in enumerate(header.dek_ids):
        if dek_id not in by_id:
            continue
        derived = derive_shard_keys(by_id[dek_id], group, header.salt, prefix)
        if not hmac.compare_digest(derived.commitment, header.commitments[group]):
            message = f"the key given is not data key {dek_id} that group {group} was sealed with"
            raise damaged("commitment", message, shard_id=header.shard_id)
        if not hmac.compare_digest(blake3(frame.untagged, key=derived.index).digest(), frame.tags[group]):
            raise damaged("index-tag", f"the index was not made with key group {group}", shard_id=header.shard_id)
        proved[group] = derived
    return proved


def _new_memory(size_bytes: int) -> memoryview:
    """Memory from Arrow's pool, which keeps its pages warm; a fresh page costs more than AES does."""
    return memoryview(pa.allocate_buffer(size_bytes)).cast("B")
