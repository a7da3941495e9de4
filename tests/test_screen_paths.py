"""`raylog status --paths`: what a person reads, and the JSON of the same."""

import json

import msgspec
import pytest

from raylog import screen
from raylog.api.paths import NodePaths
from raylog.wire.path import Decision, PathChoice, PathEstimate, Sent
from raylog.wire.paths import PathReport

SENT = Sent(segments=10_000, retransmitted_segments=100, rtt_s=0.0123, min_rtt_s=0.01, delivery_rate_bytes_per_s=10**8)
DECISION = Decision(time_s=1.0, peer_id="a" * 32, what="congestion control", before="cubic", after="bbr", reason="loss")
LOSSY = PathReport(
    peer_id="a" * 32, streams=2, estimate=PathEstimate().sent(SENT, 1.0).probed(0.0101), decision=DECISION,
    choice=PathChoice(congestion_control="bbr", since=1.0, reason="loss"),
)  # fmt: skip
FRESH = PathReport(
    peer_id="b" * 32, streams=0, estimate=PathEstimate(), choice=PathChoice(congestion_control="cubic"), decision=None
)
NODES = [
    NodePaths(node_id="c" * 32, hostname="one", paths=[LOSSY, FRESH], decisions=[DECISION]),
    NodePaths(node_id="d" * 32, hostname="two", problem="no answer within 10 s"),
]


def test_a_line_per_peer_with_the_last_decision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(screen.out, "width", 200)
    with screen.out.capture() as shown, screen.err.capture() as said:
        screen.show_paths(NODES)
    _, lossy, fresh, *_ = shown.get().splitlines()
    for words in ("one", "a" * 12, "12.30 ms", "10.10 ms", "bbr", "cubic -> bbr: loss"):
        assert words in lossy
    assert "cubic" in fresh and "no loss was seen" in fresh
    assert "two: no answer within 10 s" in said.get()


def test_the_json_has_everything() -> None:
    found = json.loads(msgspec.json.encode(NODES))
    assert found[0]["paths"][0]["decision"]["reason"] == "loss"
    assert found[0]["paths"][0]["estimate"]["min_rtt_s"] == 0.01
    assert found[1]["problem"]
