"""Histories of a shard that goes to many nodes while things break: `python -m raylog.testing.sim --seeds 2000`.

Every history ends with the whole shard on every node that is up, no node ever sends what it does not have or more than
it was allowed to, and the same seed gives the same history. A seed that fails is printed, and replays exactly:
`python -m raylog.testing.sim --first SEED --seeds 1`.
"""

import argparse
import functools
import random
import sys
import time
from collections import Counter
from dataclasses import dataclass
from functools import partial

from raylog.testing.shards import SampleShard, sample_shard
from raylog.testing.simnet import Faults, Link, SimNode, World
from raylog.units import KIB, MIB
from raylog.wire.bounds import SEALED_CHUNK_BYTES_MAX, Bounds
from raylog.wire.fetch import SourceSpec
from raylog.wire.tree import Step, plan_broadcast

LIMIT_S = 600.0
BOUNDS = Bounds(window_bytes=SEALED_CHUNK_BYTES_MAX)
CHANCES = (0.0, 0.0, 0.0, 0.01, 0.05)


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """What one seed did. `seconds` are simulated."""

    seed: int
    nodes: int
    receivers: int
    chunks: int
    shard_bytes: int
    seconds: float
    events: int
    control_messages: int
    twice_bytes: int
    errors: tuple[str, ...]


@functools.cache
def _shard(kind: int) -> SampleShard:
    """Chunks so large that credit binds, and some small ones."""
    source = random.Random(kind)  # noqa: S311
    sizes = [source.choice([100, 300 * KIB, 1536 * KIB]) for _ in range(source.randint(1, 20))]
    return sample_shard(kind, tuple(sizes))


def play(seed: int, only: Faults | None = None) -> History:
    """One history: some holders, some receivers, faults on the way; with `only`, no others than these. Raises
    `AssertionError` when anything is wrong."""
    source = random.Random(seed)  # noqa: S311
    faults = only or Faults(**{name: source.choice(CHANCES) for name in Faults.__dataclass_fields__})
    world = World(seed, _shard(seed % 7), BOUNDS, faults, streams=source.randint(1, 3))
    links = [_link(source) for _ in range(source.randint(2, 7))]
    holders = [world.add(f"h{n}", link, is_holder=True) for n, link in enumerate(links[: source.randint(1, 2)])]
    receivers = [world.add(f"r{n}", link) for n, link in enumerate(links[len(holders) :])]
    receivers = receivers or [world.add("r0", _link(source))]
    plan = plan_broadcast([node.id for node in holders], [node.id for node in receivers])
    for node in receivers:
        sources = specs(plan[node.id])
        world.later(source.random() * 0.05, partial(node.want, sources))
    if only is None:
        _schedule_trouble(world, source, holders, receivers)
    done = world.run(lambda: all(node.is_whole and node.whole_at is not None for node in receivers), LIMIT_S)
    missing = {node.id[-4:]: len(world.shard.chunks) - len(node.here) for node in receivers if not node.is_whole}
    said = [str(error) for node in receivers for error in node.errors]
    assert done, f"seed {seed}: not whole after {world.now:.0f} s: {missing}; {said[-3:]}"
    return History(
        seed=seed,
        nodes=len(world.nodes),
        receivers=len(receivers),
        chunks=len(world.shard.chunks),
        shard_bytes=sum(map(len, world.shard.chunks)),
        seconds=world.now,
        events=world.events,
        control_messages=world.control_messages,
        twice_bytes=sum(node.twice_bytes for node in receivers),
        errors=tuple(said),
    )


def _link(source: random.Random) -> Link:
    return Link(
        rate_bytes_per_s=source.choice([4e6, 40e6, 125e6]),
        delay_s=source.choice([0.0001, 0.005, 0.05]),
        loss=source.choice([0.0, 0.01, 0.05]),
    )


def _schedule_trouble(world: World, source: random.Random, holders: list[SimNode], receivers: list[SimNode]) -> None:
    """Crashes (loud or silent, with or without what was received) and partitions, each mended a while later. The first
    holder never crashes: somebody has to have the shard."""
    for node in [*holders[1:], *receivers]:
        if source.random() < 0.25:
            at, down_s = source.random() * 0.5, source.random() * 3
            crash = partial(node.crash, keeps=source.choice([0.0, 0.7, 1.0]), is_silent=source.random() < 0.5)
            world.later(at, crash)
            world.later(at + down_s, node.restart)
    if source.random() < 0.3:
        pair = frozenset(node.id for node in source.sample([*holders, *receivers], 2))
        at = source.random() * 0.3
        world.later(at, partial(world.cuts.add, pair))
        world.later(at + source.random() * 20, partial(world.cuts.discard, pair))


def specs(steps: list[Step]) -> list[SourceSpec]:
    """The plan's words for one node as its fetch takes them."""
    return [
        SourceSpec(node_id=step.node_id, rank=step.rank, stripe=step.stripe, is_relay=step.is_relay) for step in steps
    ]


def broadcast(nodes: int, *, size: int, chunk_bytes: int, rate_bytes_per_s: float = 125e6) -> dict[str, float]:
    """One holder to `nodes` others without faults: seconds over (bytes over link rate), the pipeline's part of it, and
    control messages per node."""
    shard = sample_shard(1, (chunk_bytes,) * (size // chunk_bytes))
    world = World(1, shard, Bounds(), Faults())
    link = Link(rate_bytes_per_s=rate_bytes_per_s)
    holder = world.add("h", link, is_holder=True)
    receivers = [world.add(f"r{n}", link) for n in range(nodes)]
    plan = plan_broadcast([holder.id], [node.id for node in receivers])
    for node in receivers:
        node.want(specs(plan[node.id]))
    done = world.run(lambda: all(node.whole_at is not None for node in receivers), LIMIT_S)
    assert done, "the broadcast did not end"
    hop_s = size / rate_bytes_per_s
    return {
        "nodes": nodes,
        "seconds": world.now,
        "hop_ratio": world.now / hop_s,
        "pipeline_chunks": (world.now - hop_s) * rate_bytes_per_s / chunk_bytes,
        "control_messages_per_node": world.control_messages / nodes,
        "sent_by_holder_share": holder.sent_bytes / size,
        "twice_share": sum(node.twice_bytes for node in receivers) / size / nodes,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2000, help="how many histories (default 2000)")
    parser.add_argument("--first", type=int, default=0, help="the first seed (default 0)")
    parser.add_argument("--broadcast", type=int, metavar="NODES", help="instead, 256 MiB to so many nodes")
    arguments = parser.parse_args()
    if arguments.broadcast:
        for name, value in broadcast(arguments.broadcast, size=256 * MIB, chunk_bytes=2 * MIB).items():
            print(f"{name}: {value:.3f}")  # noqa: T201
        return 0
    started, failed, errors = time.monotonic(), [], Counter[str]()
    for seed in range(arguments.first, arguments.first + arguments.seeds):
        try:
            history = play(seed)
            errors.update(error.split(":")[0].split(" ")[0] for error in history.errors)
        except AssertionError as error:
            failed.append(seed)
            print(f"FAILED {error}", flush=True)  # noqa: T201
    seconds = time.monotonic() - started
    print(f"{arguments.seeds} histories in {seconds:.0f} s, {len(failed)} failed: {failed[:20]}")  # noqa: T201
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
