"""Makes `shards/`: golden shards of format version 1, each with a JSON file that says what opening it gives.

Fixed salt, keys and ids, so that the files without compression come out the same bytes every time. Run it only to add
a vector; a vector that changes means that the format changed.

    python tests/vectors/make_shards.py
"""

import json
import sys
from collections.abc import Iterator
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
from blake3 import blake3

sys.path.insert(0, str(Path(__file__).parents[1] / "codec"))

from codec_shards import Sealed, entry_offset, forge, plan_arrays, reseal, seal_shard, with_metadata

from raylog.codec.arrow import add_batch, arrow_preamble
from raylog.codec.compress import Compressor
from raylog.codec.files import FileExtent, add_extent, files_preamble
from raylog.codec.header import ShardIds
from raylog.codec.keys import GroupKey
from raylog.codec.tensors import add_tensors, tensors_preamble
from raylog.spec import Codec, Kind

FOLDER = Path(__file__).parent / "shards"
KEYS = [GroupKey(f"{n:032x}", bytes((7 * i + 31 * n) % 256 for i in range(32))) for n in (1, 2)]
SALT = bytes(range(100, 132))
FILES = {"a/notes.txt": b"to be sealed " * 12, "b/notes.txt": b"", "c/raw.bin": bytes(range(150))}


def options(shard: int, **more: Any) -> dict[str, Any]:
    ids = ShardIds(tenant="1" * 32, artifact="2" * 32, version="3" * 32, shard=f"{shard:032x}")
    return {"ids": ids, "salt": SALT, "keys": KEYS[:1], **more}


def files_shard(shard: int, **more: Any) -> Sealed:
    extents = [FileExtent(path=path, offset=0, length=len(data), size=len(data)) for path, data in FILES.items()]

    def add(sealer: Any) -> None:
        for extent in extents:
            add_extent(sealer, extent, BytesIO(FILES[extent.path]))

    arguments = {"chunk_bytes": 64, "codec": Codec.NONE, **more}
    return seal_shard(Kind.FILES, files_preamble(extents), add, **options(shard, **arguments))


def raw_shard(kind: Kind, preamble: object, content: bytes, shard: int, **more: Any) -> Sealed:
    """A shard with a preamble that the public functions would not write."""
    encoded = preamble if isinstance(preamble, bytes) else msgspec.msgpack.encode(preamble)
    return seal_shard(kind, encoded, lambda sealer: sealer.add_bytes(content), **options(shard, **more))


def well_formed() -> Iterator[tuple[str, bytes, dict[str, Any]]]:
    files = {"files": {path: data.hex() for path, data in FILES.items()}}
    for codec in Codec:
        shard = (0x10 if codec.planes == 1 else 0x60) + codec
        yield f"files-{codec.name.lower()}", files_shard(shard, codec=codec, chunk_bytes=1024).data, files
    yield "files-chunks", files_shard(0x14).data, files

    arrays = {
        "weight": np.arange(24, dtype="<f4").reshape(4, 6),
        "half": np.arange(5, dtype="<u2"),
        "scale": np.array(0.5),
        "none": np.zeros((0, 3), "<i8"),
    }
    (entries,) = plan_arrays(arrays, {"half": "bfloat16"})
    arguments = options(0x20, chunk_bytes=64, codec=Codec.NONE)
    tensors = seal_shard(
        Kind.TENSORS, tensors_preamble(entries), lambda s: add_tensors(s, entries, arrays), **arguments
    )
    described = {e.name: [e.dtype, list(e.shape), arrays[e.name].tobytes().hex()] for e in entries}
    yield "tensors", tensors.data, {"tensors": described}
    yield from _parts()

    rows = [{"id": n, "text": f"row {n}", "tag": "even" if n % 2 == 0 else None} for n in range(40)]
    table = pa.Table.from_pylist(rows, pa.schema([("id", pa.int64()), ("text", pa.string()), ("tag", pa.string())]))
    for number, groups in enumerate(({}, {"text": 1})):
        arguments = options(0x30 + number, chunk_bytes=1024, keys=KEYS[: 1 + number], codec=Codec.LZ4)
        arrow = seal_shard(
            Kind.ARROW, arrow_preamble(table.schema, groups), lambda s: _add_table(s, table), **arguments
        )
        yield f"arrow-{number + 1}-groups", arrow.data, {"rows": rows}
    empty = table.slice(0, 0)
    arrow = seal_shard(Kind.ARROW, arrow_preamble(empty.schema), lambda s: _add_table(s, empty), **options(0x32))
    yield "arrow-empty", arrow.data, {"rows": []}


def _parts() -> Iterator[tuple[str, bytes, dict[str, Any]]]:
    """A tensor in two shards, the second of which holds another one too."""
    arrays = {"table": np.arange(48, dtype="<f4").reshape(8, 6), "bias": np.arange(3, dtype="<i8")}
    for number, entries in enumerate(plan_arrays(arrays, shard_bytes=128), 1):
        here = {e.name: arrays[e.name].reshape(-1)[e.begin // e.item_bytes : e.end // e.item_bytes] for e in entries}
        add, preamble = partial(add_tensors, entries=entries, arrays=here), tensors_preamble(entries)
        shard = seal_shard(Kind.TENSORS, preamble, add, **options(0x20 + number, chunk_bytes=64, codec=Codec.NONE))
        described = {
            e.name: [e.dtype, list(e.shape), here[e.name].tobytes().hex()]
            + ([] if e.first_byte is None else [e.first_byte])
            for e in entries
        }
        yield f"tensors-part-{number}", shard.data, {"tensors": described}


def malformed() -> Iterator[tuple[str, bytes, str]]:
    """(name, file, the check that refuses it)."""
    shard = files_shard(0x14)
    data, entry, index = shard.data, entry_offset(shard, 2), len(shard.frame.header_bytes)
    huge = (1 << 60).to_bytes(8, "little")
    yield from (
        ("magic", _set(data, 0, b"\x88"), "magic"),
        ("text-mode", data.replace(b"\r\n", b"\n"), "magic"),
        ("version-2", _set(data, 8, b"\x02"), "version"),
        ("suite-9", _set(data, 10, b"\x09"), "suite"),
        ("flag-3", _set(data, 12, b"\x08"), "flags"),
        ("header-length", _set(data, 16, (1 << 31).to_bytes(4, "little")), "lengths"),
        ("chunk-size", with_metadata(shard, lambda m: _put(m, 20, (1 << 30).to_bytes(4, "little"))), "lengths"),
        ("header-zero", with_metadata(shard, lambda m: _put(m, 155, b"\x01")), "zero"),
        ("empty", b"", "truncated"),
        ("cut-in-header", data[:100], "truncated"),
        ("cut-in-chunks", data[:500], "truncated"),
        ("cut-by-one", data[:-1], "truncated"),
        ("extended", data + b"more", "extended"),
        ("continued", data + data[208:400] + data[-64:], "extended"),
        ("trailer-zero", _set(data, len(data) - 50, b"\x01"), "zero"),
        ("trailer-2-60", _set(data, len(data) - 64, huge), "truncated"),
        ("trailer-digest", _set(data, len(data) - 30, b"\xff\xff"), "frame-digest"),
        ("index-bit", _set(data, shard.frame.index_offset + 40, b"\xff"), "frame-digest"),
        ("offset-2-60", with_metadata(shard, lambda m: _put(m, entry, huge)), "index"),
        ("sealed-length-2-32", with_metadata(shard, lambda m: _put(m, entry + 8, b"\xff" * 4)), "index"),
        ("chunk-count-2-32", with_metadata(shard, lambda m: _put(m, index + 8, b"\xff" * 4)), "lengths"),
        ("other-artifact", with_metadata(shard, lambda m: _put(m, 40, b"\x99" * 16)), "commitment"),
        ("index-forged", with_metadata(shard, lambda m: _put(m, entry + 24, bytes(32))), "index-tag"),
        ("chunk-bit", _set(data, shard.frame.chunks[3].offset + 5, b"\xff\xff"), "digest"),
        ("chunks-swapped", _swap(shard, 4, 5), "swapped"),
        ("last-chunk-dropped", forge(shard, lambda entries: entries.pop()), "truncated"),
        ("final-flag-doubled", reseal(shard, 4, bytes(64), final=True), "extended"),
        ("tag-forged", _unfit_tag(shard, 3), "tag"),
        ("lz4-short", _short_body(Codec.LZ4), "decompress"),
        ("zstd-short", _short_body(Codec.ZSTD), "decompress"),
        ("path-outside", raw_shard(Kind.FILES, _extent("../x", 3), b"abc", 0x40).data, "content"),
        ("path-nul", raw_shard(Kind.FILES, _extent("a\0b", 3), b"abc", 0x41).data, "content"),
        ("extent-2-60", raw_shard(Kind.FILES, _extent("x", 1 << 60), b"abc", 0x42).data, "content"),
        ("tensor-2-60", raw_shard(Kind.TENSORS, _tensor([1 << 60], 1 << 60), b"abc", 0x43).data, "content"),
        ("tensor-length", raw_shard(Kind.TENSORS, _tensor([9], 3), b"abc", 0x44).data, "content"),
        ("tensor-part-outside", _tensors_shard(0x47, _tensor([9], 3, first_byte=7)), "content"),
        ("tensor-part-whole", _tensors_shard(0x48, _tensor([3], 3, first_byte=0)), "content"),
        ("tensor-part-empty", _tensors_shard(0x49, _tensor([3], 0, first_byte=1), b""), "content"),
        ("tensor-part-half-item", _tensors_shard(0x4A, _tensor([4], 3, first_byte=1, dtype="uint16")), "content"),
        ("tensor-part-twice", _tensors_shard(0x4B, _part_twice(), b"abc" + bytes(64)), "content"),
        ("tensor-tags-short", _tensors_shard(0x4C, {**_tensor([3], 3), "tags": bytes(31)}), "content"),
        ("preamble-garbage", raw_shard(Kind.TENSORS, b"garbage", b"abc", 0x45).data, "content"),
    )  # fmt: skip


def main(folder: Path = FOLDER) -> None:
    folder.mkdir(exist_ok=True)
    keys = [{"dek_id": key.dek_id, "dek": key.dek.hex()} for key in KEYS]
    for name, data, expected in well_formed():
        (folder / f"{name}.shard").write_bytes(data)
        used = keys if name == "arrow-2-groups" else keys[:1]
        (folder / f"{name}.json").write_text(json.dumps({"keys": used, "expected": expected}, indent=1) + "\n")
    for name, data, check in malformed():
        (folder / f"bad-{name}.shard").write_bytes(data)
        (folder / f"bad-{name}.json").write_text(json.dumps({"keys": keys[:1], "error": check}, indent=1) + "\n")


def _add_table(sealer: Any, table: pa.Table) -> None:
    for batch in table.to_batches():
        add_batch(sealer, batch)


def _set(data: bytes, offset: int, value: bytes) -> bytes:
    return data[:offset] + value + data[offset + len(value) :]


def _put(metadata: bytearray, offset: int, value: bytes) -> None:
    metadata[offset : offset + len(value)] = value


def _swap(shard: Sealed, one: int, other: int) -> bytes:
    first, second = shard.frame.chunks[one], shard.frame.chunks[other]
    assert first.sealed_bytes == second.sealed_bytes
    return _set(_set(shard.data, first.offset, shard.chunk(other)), second.offset, shard.chunk(one))


def _unfit_tag(shard: Sealed, number: int) -> bytes:
    """A chunk that is not what was sealed, with a digest that says it is."""
    entry = shard.frame.chunks[number]
    changed = Sealed(_set(shard.data, entry.offset, b"\xff\xff"), shard.keys, shard.frame)
    digest = blake3(changed.chunk(number)).digest()
    return forge(changed, lambda entries: entries.__setitem__(number, entry._replace(digest=digest)))


def _short_body(codec: Codec) -> bytes:
    """A chunk whose body gives one byte less than its index entry says."""
    shard = files_shard(0x46, codec=codec, chunk_bytes=1024)
    compressor, entry = Compressor(codec, 1024), shard.frame.chunks[1]
    _, body = compressor.compress(shard.opener().chunk(1))
    return reseal(shard, 1, bytes(body), content_bytes=entry.content_bytes + 1)


def _extent(path: str, length: int) -> dict[str, object]:
    return {"files": [{"path": path, "offset": 0, "length": length, "size": length}]}


def _tensor(shape: list[int], length: int, **more: object) -> dict[str, Any]:
    return {"tensors": [{"name": "w", "dtype": "uint8", "shape": shape, "offset": 0, "length": length, **more}]}


def _tensors_shard(shard: int, preamble: object, content: bytes = b"abc") -> bytes:
    return raw_shard(Kind.TENSORS, preamble, content, shard).data


def _part_twice() -> dict[str, Any]:
    """The first three bytes of five, and once more."""
    (entry,) = _tensor([5], 3, first_byte=0)["tensors"]
    return {"tensors": [entry, {**entry, "offset": 64}]}


if __name__ == "__main__":
    main()
