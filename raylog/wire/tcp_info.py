"""What the kernel knows of a TCP connection (`TCP_INFO`, linux/tcp.h), and the congestion control that it uses."""

import socket
import struct
from dataclasses import dataclass

_TCP_INFO_BYTES_MAX = 512  # more than any kernel has; it writes what it knows
_CONGESTION_NAME_BYTES = 16  # TCP_CA_NAME_MAX


@dataclass(frozen=True, slots=True, kw_only=True)
class TcpInfo:
    """One connection, counted since it stands. None: this kernel is too old to say."""

    state: int  # 1: established
    snd_mss_bytes: int
    rtt_s: float
    congestion_window_segments: int
    retransmitted_segments: int
    min_rtt_s: float | None
    sent_segments: int | None  # with data in them, retransmitted ones too
    delivery_rate_bytes_per_s: int | None
    busy_s: float | None  # with something to send
    receiver_limited_s: float | None  # of these, waiting for the peer's window
    buffer_limited_s: float | None  # of these, waiting for room in our own buffer
    sent_bytes: int | None
    retransmitted_bytes: int | None


_FIELDS = {  # of struct tcp_info: name here, offset, format, unit in seconds or None
    "state": (0, "B", None),
    "snd_mss_bytes": (16, "I", None),
    "rtt_s": (68, "I", 1e-6),
    "congestion_window_segments": (80, "I", None),
    "retransmitted_segments": (100, "I", None),
    "min_rtt_s": (148, "I", 1e-6),
    "sent_segments": (156, "I", None),
    "delivery_rate_bytes_per_s": (160, "Q", None),
    "busy_s": (168, "Q", 1e-6),
    "receiver_limited_s": (176, "Q", 1e-6),
    "buffer_limited_s": (184, "Q", 1e-6),
    "sent_bytes": (200, "Q", None),
    "retransmitted_bytes": (208, "Q", None),
}
_NEEDED_BYTES = 104  # what every Linux since 2.4 writes


def parse_tcp_info(data: bytes) -> TcpInfo:
    """`data` may end anywhere from byte 104 on: older kernels know less."""
    assert len(data) >= _NEEDED_BYTES, f"tcp_info of {len(data)} bytes"
    found: dict[str, float | int | None] = {}
    for name, (offset, letter, unit_s) in _FIELDS.items():
        form = "=" + letter
        if offset + struct.calcsize(form) > len(data):
            found[name] = None
            continue
        (value,) = struct.unpack_from(form, data, offset)
        found[name] = value if unit_s is None else value * unit_s
    return TcpInfo(**found)  # type: ignore[arg-type]


def tcp_info(connection: socket.socket) -> TcpInfo:
    """Raises `OSError` when the connection is gone."""
    return parse_tcp_info(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES_MAX))


def congestion_control(connection: socket.socket) -> str:
    """The name of the congestion control in use, such as `cubic`."""
    name = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, _CONGESTION_NAME_BYTES)
    return name.partition(b"\0")[0].decode("ascii")


def set_congestion_control(connection: socket.socket, name: str) -> None:
    """Also while bytes flow. Raises `OSError` where the kernel lacks it or does not let this process use it."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, name.encode("ascii"))


def can_use(name: str) -> bool:
    """Whether the kernel lets this process use a congestion control. Only trying tells: lists leave out what would be
    loaded on demand, and do not know what a container's process may."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as trial:
        try:
            set_congestion_control(trial, name)
        except OSError:
            return False
    return True


def default_congestion_control() -> str:
    """What new connections of this process get."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as fresh:
        return congestion_control(fresh)
