"""Advice on streams, at both machines."""

from wire_parts import PULLER, SOURCE, parties

from raylog.errors import PeerFault
from raylog.spec import QosClass
from raylog.testing.shards import sample_shard
from raylog.wire import messages
from raylog.wire.bounds import Bounds
from raylog.wire.effects import Close, Effect, Send
from raylog.wire.messages import encode
from raylog.wire.puller import PullerSession
from raylog.wire.session import Session
from raylog.wire.source import SourceSession

BOUNDS = Bounds(streams_max=4)


def greeted(machine: Session, peer: str) -> None:
    machine.start(0.0)
    hello = messages.Hello(versions=[1], cluster_id="c" * 32, node_id=peer, software="test", secret=b"s" * 32)
    machine.receive(encode(hello), 0.0)


def sent(effects: list[Effect]) -> list[messages.Message]:
    return [effect.message for effect in effects if isinstance(effect, Send)]


def test_a_source_advises_once_and_the_puller_follows_within_its_bound() -> None:
    source = SourceSession(parties(SOURCE, PULLER, 1), BOUNDS, 4000)
    assert source.advise(8, 0.0) == []  # before the hellos nothing is said
    greeted(source, PULLER)
    (advice,) = sent(source.advise(8, 1.0))
    assert advice == messages.Advise(streams=4)
    assert source.advise(8, 1.1) == []

    puller = PullerSession(parties(PULLER, SOURCE, 1), BOUNDS, 1)
    greeted(puller, SOURCE)
    puller.open(sample_shard(1).frame.ref(), QosClass.SHIP, 100.0, 0.0)
    announced = sent(puller.receive(encode(messages.Advise(streams=1000)), 1.0))
    assert [type(message) for message in announced] == [messages.Stream] * 3
    assert puller.receive(encode(messages.Advise(streams=1)), 1.1) == []  # fewer would end what is on its way


def test_a_puller_does_not_advise() -> None:
    source = SourceSession(parties(SOURCE, PULLER, 1), BOUNDS, 4000)
    greeted(source, PULLER)
    effects = source.receive(encode(messages.Advise(streams=2)), 1.0)
    (close,) = [effect for effect in effects if isinstance(effect, Close)]
    assert isinstance(close.error, PeerFault)
