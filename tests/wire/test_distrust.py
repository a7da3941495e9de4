"""Who sent damaged bytes is asked last for a while."""

from raylog.errors import DamagedData
from raylog.wire import distrust
from raylog.wire.distrust import DISTRUST_S, LAST_RANK, Distrust
from raylog.wire.fetcher import Source
from raylog.wire.sessions import PeerAddress

GOOD, BAD = (Source(peer=PeerAddress(node_id=letter * 32, host="::1", control_port=1), rank=1) for letter in "ab")
DAMAGE = DamagedData("chunk 3 is not the one that was sealed")


def test_a_blamed_node_is_behind_all_others_until_it_is_forgiven() -> None:
    now = 100.0
    watched = Distrust(clock=lambda: now)
    assert watched.last([BAD, GOOD]) == [BAD, GOOD]
    watched.blame(BAD.peer.node_id, DAMAGE)
    assert watched.blamed() == [BAD.peer.node_id]
    assert [source.rank for source in watched.last([BAD, GOOD])] == [1 + LAST_RANK, 1]
    now += DISTRUST_S + 1
    assert watched.blamed() == [] and watched.last([BAD]) == [BAD]


def test_what_is_remembered_is_bounded() -> None:
    watched = Distrust(clock=lambda: 0.0)
    for number in range(distrust.NODES_MAX + 10):
        watched.blame(f"{number:032x}", DAMAGE)
    blamed = watched.blamed()
    assert len(blamed) == distrust.NODES_MAX and f"{0:032x}" not in blamed
