"""What changes or moves something on a node is done for members of the cluster who sign for it, and for nobody else."""

import time
from collections.abc import Iterator

import pyarrow as pa
import pytest
from three_nodes import Machine, ask_node, signer_of, wait_until, wait_until_settled

import raylog
from raylog.actors import bootstrap, calls
from raylog.actors.node_info import NodeInfo, sources_for
from raylog.actors.requests import (
    LAUNCH,
    CancelPull,
    CloseNode,
    DeleteShards,
    EvictShard,
    PinShards,
    PullShard,
    ReadFrame,
    RepairShard,
    StopRaylog,
    ask,
)
from raylog.catalog.requests import CATALOG, DeleteVersions
from raylog.errors import NotPermitted, RaylogError
from raylog.security.certs import Authority
from raylog.security.join import request_with_token
from raylog.security.providers.file import FileKeyring
from raylog.security.requests import Request, Signer, sign_request
from raylog.security.trust import trust_of
from raylog.spec import QosClass, Reference, ShardRef, new_id

NAME = "tests/signed"


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Authority]:
    """The authority of a cluster of somebody's own."""
    folder = tmp_path_factory.mktemp("foreign") / "keys"
    keyring = FileKeyring.create(folder / "keyring.json", new_id())
    with Authority.create(folder / "authority.sealed", keyring) as authority:
        yield authority


@pytest.fixture(scope="module")
def cluster(machine: Machine, client: raylog.Client) -> Signer:
    """The cluster's own key, as its head has it."""
    return bootstrap.cluster_signer(machine.settings)


@pytest.fixture(scope="module")
def table() -> pa.Table:
    return pa.table({"n": range(50_000)})


@pytest.fixture(scope="module")
def shard(client: raylog.Client, table: pa.Table) -> ShardRef:
    """The one shard of a version with one replica, on this process's node."""
    client.put(NAME, table)
    (ref,) = client._session.manifest(Reference(NAME)).distinct_shards().values()
    return ref


@pytest.fixture
def holder(client: raylog.Client, shard: ShardRef) -> NodeInfo:
    (node_ids,) = client.replicas(NAME).values()
    return client._session.node(node_ids[0])


@pytest.fixture
def empty(client: raylog.Client, holder: NodeInfo) -> NodeInfo:
    """A node without the shard."""
    return next(info for info in client.nodes() if info.node_id != holder.node_id)


def member(authority: Authority, role: str) -> Signer:
    """Somebody with a certificate of `authority`."""
    pending = request_with_token(authority.make_join_token(), role, new_id(), time.time())
    return Signer.of(pending.accept(authority.admit(pending.request, time.time()), time.time()))


def claiming(signer: Signer, cluster_id: str) -> Signer:
    """Who says to be of another cluster."""
    return Signer(cluster_id=cluster_id, certificate=signer.certificate, sign=signer.sign)


def requests(shard: ShardRef, holder: NodeInfo, empty: NodeInfo) -> list[tuple[NodeInfo, Request]]:
    """One of each kind, that would do something where it is sent."""
    sources = sources_for(empty, [holder])
    return [
        (
            empty,
            PullShard(
                pull_id=new_id(), shard=shard, sources=sources, durability=None, qos=QosClass.SHIP, deadline_s=20
            ),
        ),
        (empty, ReadFrame(shard=shard, sources=sources, deadline_s=20)),
        (empty, CancelPull(pull_id=new_id())),
        (holder, RepairShard(shard=shard, numbers=(0,), sources=(), deadline_s=20)),
        (holder, EvictShard(shard_id=shard.shard_id)),
        (holder, PinShards(shard_ids=(shard.shard_id,), is_pinned=True)),
        (holder, DeleteShards(shard_ids=(shard.shard_id,))),
        (holder, CloseNode()),
    ]


def holding(client: raylog.Client) -> dict[str, tuple[int, set[str], list[tuple[str, int]]]]:
    """Of each node: its process, its shards, and how many lie on each tier. A node that was closed answers no more."""
    found = {}
    for info in client.nodes():
        node = calls.node(info.ray_node_id)
        shards = {ref.shard_id for ref in calls.wait(node.inventory.remote(), 10, "inventory")}
        tiers = [(tier.kind, tier.shards) for tier in calls.wait(node.sample.remote(), 10, "sample").tiers]
        found[info.node_id] = (info.pid, shards, tiers)
    return found


def test_unsigned_and_foreign_calls_change_nothing(
    client: raylog.Client, foreign: Authority, table: pa.Table, shard: ShardRef, holder: NodeInfo, empty: NodeInfo
) -> None:
    mine = signer_of(client)
    stranger = member(foreign, "client")
    their_cluster = Signer.of_cluster(trust_of(foreign, time.time))
    strangers = [stranger, their_cluster, *(claiming(one, mine.cluster_id) for one in (stranger, their_cluster))]
    impostor = Signer(cluster_id=mine.cluster_id, certificate=mine.certificate, sign=stranger.sign)
    wait_until_settled(client, 60)
    before = holding(client)
    for info, about in requests(shard, holder, empty):
        node, method = calls.node(info.ray_node_id), about.action.removeprefix("node.")
        for unsigned in (b"", shard.shard_id, [shard.shard_id], None):
            with pytest.raises(NotPermitted):
                calls.wait(getattr(node, method).remote(unsigned), 30, method)
        for signer in (*strangers, impostor):
            with pytest.raises(NotPermitted):
                ask_node(info, about, signer)
        elsewhere = sign_request(about, new_id(), mine, time.time())
        with pytest.raises(NotPermitted):
            calls.wait(getattr(node, method).remote(elsewhere), 30, method)
    assert holding(client) == before
    assert client.get(NAME) == table


def test_a_member_may_only_ask_for_what_its_role_may(
    machine: Machine, client: raylog.Client, shard: ShardRef, holder: NodeInfo, empty: NodeInfo
) -> None:
    settings = machine.settings
    with Authority.load(settings.authority_path, FileKeyring.load(settings.keyring_path)) as authority:
        node = member(authority, "node")
    wait_until_settled(client, 60)
    before = holding(client)
    for info, about in requests(shard, holder, empty):
        with pytest.raises(NotPermitted, match="may not ask"):
            ask_node(info, about, node)
    with pytest.raises(NotPermitted, match="may not ask"):
        ask_node(holder, CloseNode(), signer_of(client))
    with pytest.raises(NotPermitted, match="may not ask"):
        calls.wait(ask(calls.find(LAUNCH), LAUNCH, StopRaylog(), signer_of(client)), 30, "stop")
    with pytest.raises(NotPermitted):
        calls.call(LAUNCH, "stop", b"")
    with pytest.raises(NotPermitted, match="may not ask"):
        calls.wait(ask(calls.find(CATALOG), CATALOG, DeleteVersions(reference=NAME, latest=1), node), 30, "delete")
    assert holding(client) == before


def test_what_a_version_names_is_the_catalogs_to_delete(
    client: raylog.Client, cluster: Signer, table: pa.Table, shard: ShardRef, holder: NodeInfo, empty: NodeInfo
) -> None:
    client.ship(NAME, to="all").result(60)
    delete = DeleteShards(shard_ids=(shard.shard_id,))
    for info in client.nodes():  # the catalog's own node among them
        wait_until(lambda info=info: knows_all_records(client, info), 20, "the records were copied")
        with pytest.raises(NotPermitted, match="since a version names it: delete the version"):
            ask_node(info, delete, signer_of(client))
    assert client.get(NAME) == table
    assert ask_node(empty, delete, cluster) == 1
    assert ask_node(empty, delete, cluster) == 0
    assert client.get(NAME) == table


def knows_all_records(client: raylog.Client, info: NodeInfo) -> bool:
    """Whether a node's copy reaches as far as the farthest one."""
    tails = [calls.wait(calls.node(one.ray_node_id).records_tail.remote(), 10, "tail") for one in client.nodes()]
    mine = calls.wait(calls.node(info.ray_node_id).records_tail.remote(), 10, "tail")
    return mine.sequence == max(tail.sequence for tail in tails) > 0


def test_a_client_takes_back_what_no_version_names(client: raylog.Client) -> None:
    wait_until_settled(client, 60)
    before = holding(client)

    def broken() -> Iterator[pa.RecordBatch]:
        yield pa.record_batch({"n": list(range(1000))})
        raise OSError("the source went away")

    schema = pa.schema([("n", pa.int64())])
    with pytest.raises(RaylogError, match="went away"):
        client.put("tests/signed-broken", pa.RecordBatchReader.from_batches(schema, broken()), replicas=2)
    assert holding(client) == before


def test_a_request_is_answered_once(client: raylog.Client, shard: ShardRef, holder: NodeInfo) -> None:
    node = calls.node(holder.ray_node_id)
    signed = sign_request(EvictShard(shard_id=shard.shard_id), holder.node_id, signer_of(client), time.time())
    calls.wait(node.evict.remote(signed), 30, "evict")
    with pytest.raises(NotPermitted, match="replayed"):
        calls.wait(node.evict.remote(signed), 30, "evict")
    deletion = sign_request(DeleteVersions(reference=NAME, latest=1), CATALOG, signer_of(client), time.time())
    with pytest.raises(NotPermitted, match=r"expected a request for node\.delete"):
        calls.wait(node.delete.remote(deletion), 30, "delete")
