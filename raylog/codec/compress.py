"""Which codec a chunk gets, measured on the chunk itself, and both directions of it.

The choice weighs size against speed. lz4 opens at 4 GB/s on one core and zstd at 2, so lz4 is taken where it helps,
and zstd where it halves lz4's size (token ids: six of eight bytes zero) or alone helps (weights: no repeats to find,
yet exponents that an entropy coder shortens). Of tensors it also tries zstd over byte planes (planes.py), and takes it
where it saves a tenth of what would be stored. Samples are 16 KiB of a chunk: 1 to 2 % of the time to seal it.

Where the links are known and slower than the codecs, a codec that makes less of the chunk is taken, even by little, if
what its bytes take less on one link is more than what it takes longer on one core.
"""

from collections.abc import Mapping

import zstandard

from raylog.codec.lz4_block import compress_into, decompress_into
from raylog.codec.planes import PLANE_COUNTS, join_into, split_into
from raylog.spec import CHUNK_CONTENT_BYTES_MAX, Codec

ZSTD_LEVEL = 1
_SAMPLE_SLICES = 8
_SAMPLE_SLICE_BYTES = 2048
_PLANES_GAIN_MIN = 0.1  # of what would be stored without planes
_GAIN_MIN = 0.125  # of the content's size; less is not worth opening
_SECONDS_PER_BYTE = {  # of content, both directions on one core (AMD EPYC): of text, planes of normal numbers
    Codec.NONE: 0.0, Codec.LZ4: 2.4e-9, Codec.ZSTD: 3.7e-9,
    Codec.ZSTD_PLANES_2: 3.7e-9, Codec.ZSTD_PLANES_4: 2.6e-9, Codec.ZSTD_PLANES_8: 2.8e-9,
}  # fmt: skip
_ZSTD_WINDOW_BYTES_MAX = 2 * CHUNK_CONTENT_BYTES_MAX
_BY_PLANES = {codec.planes: codec for codec in Codec if codec.planes > 1}
_COMPRESSED_FORMATS = (
    b"\x1f\x8b\x08",  # gzip
    b"\x28\xb5\x2f\xfd",  # zstd
    b"\xfd7zXZ\x00",  # xz
    b"BZh",  # bzip2
)


def is_compressed_format(start: bytes | memoryview) -> bool:
    """Whether a file that begins so is compressed already (gzip, zstd, xz, bzip2) and is stored as it is."""
    return bytes(start[:8]).startswith(_COMPRESSED_FORMATS)


class Compressor:
    """Compresses chunks with a forced codec, or with the one that pays (`codec=None`), be it stored or sent over links
    of `link_bytes_per_s`. For one thread."""

    def __init__(self, codec: Codec | None, chunk_bytes: int, link_bytes_per_s: float | None = None) -> None:
        self._codec, self._link_bytes_per_s = codec, link_bytes_per_s
        self._zstd = zstandard.ZstdCompressor(level=ZSTD_LEVEL)
        self._out = memoryview(bytearray(chunk_bytes))
        self._planes: memoryview | None = None  # tensors alone need it

    def compress(self, content: memoryview, item_bytes: int = 1) -> tuple[Codec, bytes | memoryview]:
        """The codec used and the body, which is good until the next call: `content` itself, uncopied, where
        compressing it does not make it smaller. `item_bytes` is the width of the numbers in it, 1 for other bytes."""
        codec = self.choose(content, item_bytes) if self._codec is None else self._codec
        if codec == Codec.LZ4 and content.nbytes:
            body_bytes = compress_into(content, self._out[: content.nbytes - 1])
            return (codec, self._out[:body_bytes]) if body_bytes else (Codec.NONE, content)
        if codec >= Codec.ZSTD:
            body = self._zstd.compress(content) if codec.planes == 1 else self._compress_planes(content, codec.planes)
            return (codec, body) if len(body) < content.nbytes else (Codec.NONE, content)
        return Codec.NONE, content

    def choose(self, content: memoryview, item_bytes: int = 1) -> Codec:
        """By what each codec makes of slices from all over `content`."""
        sample = _sample(content, item_bytes)
        sizes = {
            Codec.NONE: len(sample),
            Codec.LZ4: compress_into(sample, self._out) or len(sample),
            Codec.ZSTD: len(self._zstd.compress(sample)),
        }
        if item_bytes in PLANE_COUNTS:  # of slices that begin at whole items
            sizes[_BY_PLANES[item_bytes]] = len(self._compress_planes(sample, item_bytes))
        codec = _for_storing(sizes)
        return codec if self._link_bytes_per_s is None else _for_sending(sizes, codec, self._link_bytes_per_s)

    def _compress_planes(self, content: bytes | memoryview, planes: int) -> bytes:
        """A frame for each plane: its entropy coder's tables fit that plane alone, however short it is."""
        if self._planes is None:
            self._planes = memoryview(bytearray(self._out.nbytes))
        split = self._planes[: memoryview(content).nbytes]
        split_into(content, planes, split)
        starts = [plane * (split.nbytes // planes) for plane in range(planes)]
        ends = [*starts[1:], split.nbytes]
        return b"".join(self._zstd.compress(split[start:end]) for start, end in zip(starts, ends, strict=True))


class Decompressor:
    """Decompresses chunks whose content length is known. For one thread."""

    def __init__(self) -> None:
        self._zstd = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_BYTES_MAX)
        self._planes = memoryview(b"")  # as large as what came yet; tensors alone need it

    def decompress_into(self, codec: Codec, body: memoryview, out: memoryview) -> str:
        """Fills `out`. Returns what is wrong with `body`: nothing, or why it does not hold exactly these bytes."""
        if codec == Codec.LZ4:
            got_bytes = decompress_into(body, out)
            if got_bytes is None:
                return f"it is no lz4 block of {out.nbytes} bytes"
            return "" if got_bytes == out.nbytes else f"expected {out.nbytes} content bytes, got {got_bytes}"
        if codec.planes == 1:
            return self._decompress_zstd(body, out)
        if self._planes.nbytes < out.nbytes:
            self._planes = memoryview(bytearray(out.nbytes))
        planes = self._planes[: out.nbytes]
        fault = self._decompress_zstd(body, planes)
        if not fault:
            join_into(planes, codec.planes, out)
        return fault

    def _decompress_zstd(self, body: memoryview, out: memoryview) -> str:
        try:
            with self._zstd.stream_reader(body, read_across_frames=True) as reader:
                got_bytes = reader.readinto(out)
                extra_bytes = len(reader.read(1))
        except zstandard.ZstdError as error:
            return f"it is no zstd frame: {error}"
        fits = got_bytes == out.nbytes and not extra_bytes
        return "" if fits else f"expected {out.nbytes} content bytes, got {got_bytes}{' and more' * extra_bytes}"


def _for_storing(sizes: Mapping[Codec, int]) -> Codec:
    """By what each codec makes of a sample."""
    worthwhile_bytes = sizes[Codec.NONE] * (1 - _GAIN_MIN)
    codec = Codec.NONE
    if sizes[Codec.LZ4] <= worthwhile_bytes:
        codec = Codec.ZSTD if 2 * sizes[Codec.ZSTD] <= sizes[Codec.LZ4] else Codec.LZ4
    elif sizes[Codec.ZSTD] <= worthwhile_bytes:
        codec = Codec.ZSTD
    for planes in sizes.keys() & set(_BY_PLANES.values()):
        if sizes[planes] <= min(worthwhile_bytes, sizes[codec] * (1 - _PLANES_GAIN_MIN)):
            codec = planes
    return codec


def _for_sending(sizes: Mapping[Codec, int], stored: Codec, link_bytes_per_s: float) -> Codec:
    """The codec for storing, or one that makes less of the sample and so is sooner at the other end of the link."""

    def seconds(codec: Codec) -> float:
        return sizes[Codec.NONE] * _SECONDS_PER_BYTE[codec] + sizes[codec] / link_bytes_per_s

    smaller = [codec for codec in sizes if sizes[codec] < sizes[stored]]
    return min([stored, *smaller], key=seconds)


def _sample(content: memoryview, item_bytes: int) -> bytes | memoryview:
    """Slices from all over, at whole items; longer ones of wide items, whose planes are short."""
    slice_bytes = _SAMPLE_SLICE_BYTES * max(1, min(item_bytes, max(PLANE_COUNTS)) // 2)
    if content.nbytes <= _SAMPLE_SLICES * slice_bytes:
        return content
    step = (content.nbytes - slice_bytes) // (_SAMPLE_SLICES - 1) // item_bytes * item_bytes
    starts = range(0, _SAMPLE_SLICES * step, step)
    return b"".join(content[start : start + slice_bytes] for start in starts)
