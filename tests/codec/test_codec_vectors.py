"""The golden shards of `tests/vectors/shards`: what each opens to, or by which check it is refused."""

import json
import runpy
from pathlib import Path
from typing import Any

import pytest
from codec_shards import open_shard

from raylog.codec.arrow import open_batches, open_schema
from raylog.codec.assemble import TensorAssembly, open_tensors
from raylog.codec.files import open_files
from raylog.codec.keys import GroupKey
from raylog.codec.open import ShardOpener
from raylog.codec.stream import ContentStream
from raylog.codec.tensors import TensorEntry, read_entries
from raylog.errors import DamagedData
from raylog.spec import Kind

VECTORS = Path(__file__).parents[1] / "vectors"
NAMES = sorted(path.stem for path in (VECTORS / "shards").glob("*.shard"))


def content_of(opener: ShardOpener) -> dict[str, Any]:
    for number in range(len(opener.frame.chunks)):
        opener.chunk(number)
    if opener.frame.header.kind == Kind.ARROW:
        rows = [row for batch in open_batches(opener) for row in batch.to_pylist()]
        assert open_schema(opener).names == ["id", "text", "tag"]
        return {"rows": rows}
    if opener.frame.header.kind == Kind.FILES:
        return {"files": {extent.path: b"".join(pieces).hex() for extent, pieces in open_files(opener)}}
    return {"tensors": {e.name: described(opener, e) for e in read_entries(opener)}}


def described(opener: ShardOpener, entry: TensorEntry) -> list[Any]:
    if entry.first_byte is None:
        return [entry.dtype, list(entry.shape), open_tensors(opener, [entry.name])[entry.name].tobytes().hex()]
    data = b"".join(ContentStream(opener).read(entry.offset, entry.offset + entry.length))
    return [entry.dtype, list(entry.shape), data.hex(), entry.first_byte]


@pytest.mark.parametrize("name", NAMES)
def test_golden_shard(name: str) -> None:
    described = json.loads((VECTORS / "shards" / f"{name}.json").read_text())
    keys = [GroupKey(key["dek_id"], bytes.fromhex(key["dek"])) for key in described["keys"]]
    data = (VECTORS / "shards" / f"{name}.shard").read_bytes()
    if "expected" in described:
        assert content_of(open_shard(data, keys)) == described["expected"]
    else:
        with pytest.raises(DamagedData) as caught:
            content_of(open_shard(data, keys))
        assert caught.value.check == described["error"], caught.value


def test_golden_parts_make_a_tensor() -> None:
    """`tensors-part-1` and `-2` are two shards of one version."""
    assembly = TensorAssembly()
    for name in ("tensors-part-1", "tensors-part-2"):
        (key,) = json.loads((VECTORS / "shards" / f"{name}.json").read_text())["keys"]
        data = (VECTORS / "shards" / f"{name}.shard").read_bytes()
        assembly.add(open_shard(data, [GroupKey(key["dek_id"], bytes.fromhex(key["dek"]))]))
    arrays = assembly.finish()
    assert {name: array.tolist() for name, array in arrays.items()} == {
        "table": [[float(6 * row + column) for column in range(6)] for row in range(8)],
        "bias": [0, 1, 2],
    }


def test_the_writer_still_makes_the_same_bytes(tmp_path: Path) -> None:
    """All but those whose bytes a library's version may change (lz4, zstd, Arrow's schema message)."""
    runpy.run_path(str(VECTORS / "make_shards.py"))["main"](tmp_path)
    assert sorted(path.stem for path in tmp_path.glob("*.shard")) == NAMES
    fixed = [name for name in NAMES if not any(word in name for word in ("lz4", "zstd", "arrow"))]
    changed = [
        n for n in fixed if (tmp_path / f"{n}.shard").read_bytes() != (VECTORS / f"shards/{n}.shard").read_bytes()
    ]
    assert len(fixed) > 30 and changed == []
