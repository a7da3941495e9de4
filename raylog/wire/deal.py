"""Which of a source's chunks is asked for on which of its streams. Pure."""

from collections.abc import Callable, Iterable, Mapping


def deal(
    todo: Iterable[int],
    sealed_bytes: Callable[[int], int],
    in_flight_bytes: Mapping[bytes, int],
    room_bytes: int,
) -> list[tuple[bytes, int, int]]:
    """Deals the first chunks of `todo` that fit in `room_bytes` to streams as ranges (stream, first chunk, count), in
    the order of `todo`, so that all streams have about equally many bytes in flight: a stream that empties faster is
    given more. Ranges are as long as they can be: a source reads them from its disk in order."""
    fitting: list[tuple[int, int]] = []
    for chunk in todo:
        length = sealed_bytes(chunk)
        if length > room_bytes:
            break
        room_bytes -= length
        fitting.append((chunk, length))
    loads = sorted((load, stream) for stream, load in in_flight_bytes.items())
    share = (sum(load for load, _ in loads) + sum(length for _, length in fitting)) / max(1, len(loads))
    ranges: list[tuple[bytes, int, int]] = []
    load, stream = loads.pop(0)
    for chunk, length in fitting:
        while load >= share and loads:
            load, stream = loads.pop(0)
        load += length
        if ranges and ranges[-1][0] == stream and sum(ranges[-1][1:]) == chunk:
            ranges[-1] = (stream, ranges[-1][1], ranges[-1][2] + 1)
        else:
            ranges.append((stream, chunk, 1))
    return ranges
