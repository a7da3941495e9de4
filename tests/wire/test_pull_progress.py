"""A node's puller, asked how far it is while it waits for a slow source."""

import threading
from pathlib import Path

from wire_parts import Cluster, MemorySource, wait_until

from raylog.actors.backup_copies import BackupCopies
from raylog.actors.pull import Puller, PullProgress
from raylog.monitor.meter import TransferMeter
from raylog.spec import QosClass, new_id
from raylog.store.disk import DiskTier
from raylog.store.tiered import TieredStore
from raylog.testing.shards import sample_shard
from raylog.units import MIB
from raylog.wire.fetcher import Source
from raylog.wire.relay import Relay
from raylog.wire.server import WireServer
from raylog.wire.sessions import PeerAddress, Sessions

SHARD = sample_shard(8, (MIB,) * 12)
HELD_BACK = 8


def test_a_running_pull_shows_the_bytes_that_are_verified_here(tmp_path: Path) -> None:
    cluster, may_go_on = Cluster(), threading.Event()
    theirs, ours = cluster.credentials(), cluster.credentials()

    def slow(number: int) -> memoryview:
        if number >= HELD_BACK:
            assert may_go_on.wait(20)
        return SHARD.sealed(number)

    disk = DiskTier(tmp_path / "tier", cluster_id=cluster.id)
    store, ref = TieredStore(None, disk), SHARD.frame.ref()
    puller = Puller(
        store, Sessions(lambda: ours), TransferMeter(), Relay(store.open), BackupCopies(store, cluster.id, new_id(), ())
    )
    with WireServer(lambda: theirs, MemorySource(SHARD, slow), bind_host="127.0.0.1") as server:
        source = Source(
            peer=PeerAddress(node_id=theirs.identity.id, host=server.host, control_port=server.control_port)
        )
        pulling = threading.Thread(target=puller.pull, args=(ref, [source], None, QosClass.SHIP, 30.0))
        assert puller.running() == {}
        pulling.start()
        halfway = PullProgress(done_bytes=HELD_BACK * MIB, total_bytes=12 * MIB)
        wait_until(lambda: puller.running() == {ref.shard_id: halfway}, "what is here is shown")
        may_go_on.set()
        pulling.join(20)
    assert not pulling.is_alive()
    assert puller.running() == {}
    assert store.disk.holds(ref.shard_id)
    puller.close()
    store.close()
