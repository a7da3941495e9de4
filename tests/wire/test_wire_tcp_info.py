"""The kernel's word on a connection: parsed however short it is, and true of a real one."""

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raylog.wire.tcp_info import (
    TcpInfo,
    can_use,
    congestion_control,
    default_congestion_control,
    parse_tcp_info,
    set_congestion_control,
    tcp_info,
)


@pytest.fixture
def pair():
    """Both ends of a connection over loopback."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        left = socket.create_connection(listener.getsockname())
        right, _ = listener.accept()
    with left, right:
        yield left, right


@given(st.binary(min_size=104, max_size=300))
def test_any_length_from_the_oldest_kernels_on_is_read(data: bytes) -> None:
    info = parse_tcp_info(data)
    assert info.retransmitted_segments == int.from_bytes(data[100:104], "little")
    assert (info.min_rtt_s is None) == (len(data) < 152)
    assert (info.delivery_rate_bytes_per_s is None) == (len(data) < 168)
    assert (info.retransmitted_bytes is None) == (len(data) < 216)
    if info.sent_bytes is not None:
        assert info.sent_bytes == int.from_bytes(data[200:208], "little")


def test_a_real_connection_counts_what_it_sends(pair) -> None:
    left, right = pair
    left.sendall(bytes(100_000))
    received = 0
    while received < 100_000:
        received += len(right.recv(1 << 16))
    info = tcp_info(left)
    assert isinstance(info, TcpInfo)
    assert info.state == 1
    assert info.sent_bytes == 100_000
    assert info.sent_segments is not None and info.sent_segments >= 1
    assert 0 < info.rtt_s < 1
    assert info.retransmitted_segments == 0


def test_the_congestion_control_changes_on_a_live_connection(pair) -> None:
    left, right = pair
    assert congestion_control(left) == default_congestion_control()
    set_congestion_control(left, "reno")  # every kernel has it, and every process may use it
    assert congestion_control(left) == "reno"
    left.sendall(b"still there")
    assert right.recv(64) == b"still there"


def test_what_the_kernel_lacks_is_known_by_trying() -> None:
    assert can_use(default_congestion_control())
    assert not can_use("no-such-control")
