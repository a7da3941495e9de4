"""A writer process is killed again and again: nothing acknowledged is lost, nothing half-written is visible."""

import json
import os
import random
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from raylog.catalog.catalog import Catalog
from raylog.catalog.copy import RecordCopy
from raylog.catalog.manifest import open_manifest
from raylog.catalog.record import Record, RecordKind
from raylog.catalog.replay import Listing
from raylog.spec import Reference
from raylog.testing.catalog_cluster import Cluster

KILLS = 60
DEADLINE_S = 30.0


class Nursery:
    """Writers that can be started quickly, and what they said."""

    def __init__(self) -> None:
        script = Path(__file__).with_name("catalog_nursery.py")
        self._process = subprocess.Popen([sys.executable, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdin and self._process.stdout
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._stdout, selectors.EVENT_READ)
        self._rest = b""

    def start(self, directory: Path, seed: int, kill_at: int) -> None:
        self._stdin.write(json.dumps([str(directory), seed, kill_at]).encode() + b"\n")
        self._stdin.flush()

    def events(self) -> Generator[dict[str, Any]]:
        """What the writer says, until it is gone."""
        deadline = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline:
            while b"\n" in self._rest:
                line, self._rest = self._rest.split(b"\n", 1)
                if not line.endswith(b"}"):
                    continue  # empty, or cut short: what it announced was not begun
                event = json.loads(line)
                if event["event"] == "gone":
                    return
                yield event
            if self._selector.select(0.5):
                self._rest += os.read(self._stdout.fileno(), 1 << 16)
        raise AssertionError(f"no end of the writer within {DEADLINE_S} s")

    def close(self) -> None:
        self._stdin.close()
        self._process.wait(10)
        self._stdout.close()
        self._selector.close()


@pytest.fixture
def nursery() -> Generator[Nursery]:
    nursery = Nursery()
    yield nursery
    nursery.close()


def test_killed_writers_lose_nothing(cluster: Cluster, tmp_path: Path, nursery: Nursery) -> None:
    directory = tmp_path / "catalog"
    source = random.Random(5)
    model = Listing()
    acknowledged = cut_off = finished_unheard = 0
    for round_number in range(KILLS):
        kill = Kill.draw(source, round_number)
        nursery.start(directory, round_number, kill.at_statement)
        attempt: dict[str, Any] | None = None
        for event in nursery.events():
            kill.look(event)
            if event["event"] == "try":
                attempt = event
            elif event["event"] == "done":
                assert attempt is not None
                apply(model, attempt, event["number"])
                attempt = None
                acknowledged += 1
        catalog = cluster.open(directory, create=not model.names)
        if attempt is not None:
            cut_off += 1
            finished_unheard += settle(catalog, model, attempt)
        assert shown(catalog) == expected(model)
        catalog.verify()
        assert catalog.short_shards() == []
        catalog.close()
    assert acknowledged > KILLS and cut_off > KILLS / 3
    print(f"{KILLS} kills, {acknowledged} acknowledged, {cut_off} cut off, {finished_unheard} of them had finished")
    check_copy(cluster, directory, tmp_path / "copy", model)


@dataclass
class Kill:
    """When a writer is to die: at its own n-th SQL statement, while it opens the catalog, or in the middle of work."""

    at_statement: int = 0
    after_attempts: int = 0
    delay_s: float = 0.0
    _pid: int = 0

    @classmethod
    def draw(cls, source: random.Random, round_number: int) -> "Kill":
        if round_number % 2:
            return cls(at_statement=source.randrange(1, 150))
        if round_number % 4:
            return cls(delay_s=source.random() * 0.02)
        return cls(after_attempts=source.randrange(1, 15), delay_s=source.random() * 0.004)

    def look(self, event: dict[str, Any]) -> None:
        """Kills the writer when the time has come."""
        if event["event"] == "born":
            self._pid = event["pid"]
        elif event["event"] == "try":
            self.after_attempts -= 1
        if self._pid and not self.at_statement and self.after_attempts <= 0:
            time.sleep(self.delay_s)
            os.kill(self._pid, signal.SIGKILL)
            self._pid = 0


def settle(catalog: Catalog, model: Listing, attempt: dict[str, Any]) -> bool:
    """An attempt that was cut off happened or did not; a commit is made again as its client would. Whether it had."""
    before = shown(catalog)
    name = attempt["name"]
    if attempt["kind"] == RecordKind.COMMIT:
        happened = attempt["digest"] in {digest for _, digest in before.get(name, (0, []))[1]}
        assert before == expected(model) or happened
        receipts = [bytes.fromhex(one) for one in attempt["receipts"]]
        version = catalog.commit(bytes.fromhex(attempt["signed"]), receipts, attempt["base"])
        apply(model, attempt, version.number)
        return happened
    if before == expected(model):
        return False
    apply(model, attempt, attempt["number"])
    return True


def apply(model: Listing, attempt: dict[str, Any], number: int) -> None:
    """Takes into the plain model what the writer said it did."""
    versions = model.names.get(attempt["name"])
    if attempt["kind"] == RecordKind.COMMIT:
        assert number == (versions.last_number + 1 if versions else 1)
    kept = bool(versions and versions.existing)
    model.apply(
        Record(
            cluster_id="0" * 32,
            sequence=1,
            epoch=1,
            kind=attempt["kind"],
            artifact_id=versions.artifact_id if versions and kept else "1" * 32,
            name=attempt["name"],
            number=number,
            manifest_digest=bytes.fromhex(attempt.get("digest", "")),
            previous=bytes(32),
            time_us=0,
            by="",
        )
    )


def shown(catalog: Catalog) -> dict[str, tuple[int, list[tuple[int, str]]]]:
    """Name -> latest, [(number, digest)], as readers see it; each manifest is there, whole, with its replicas."""
    listing = {}
    for latest in catalog.ls():
        versions = catalog.versions(latest.name)
        for version in versions:
            reference = Reference(version.name, version.number)
            journal = catalog._journal
            manifest, statement = open_manifest(
                catalog.manifest(reference), journal.trust.cluster_id, journal.trust.verify
            )
            assert statement.digest.hex() == version.digest
            shard_ids = list(manifest.distinct_shards())
            assert {len(nodes) for nodes in catalog.replicas(shard_ids).values()} == {2}
        listing[latest.name] = (latest.number, [(one.number, one.digest) for one in versions])
    return listing


def expected(model: Listing) -> dict[str, tuple[int, list[tuple[int, str]]]]:
    return {
        name: (one.latest, [(number, digest.hex()) for number, digest in sorted(one.existing.items())])
        for name, one in model.names.items()
        if one.latest
    }


def check_copy(cluster: Cluster, directory: Path, copy_directory: Path, model: Listing) -> None:
    """A node's copy of the chain adds up to the same listing, and holds every manifest of it."""
    catalog = cluster.open(directory)
    copy = RecordCopy(copy_directory, cluster.cluster_id, cluster.trust.verify)
    while copy.tail.sequence < catalog.sequence:
        copy.append(catalog.records(copy.tail.sequence))
    listing, held = Listing(), set()
    for record, manifest in copy.entries():
        listing.apply(record)
        held.update([(record.name, record.number)] if manifest else [])
    assert expected(listing) == expected(model) == shown(catalog)
    assert {(name, number) for name, one in listing.names.items() for number in one.existing} == held
    copy.close()
    catalog.close()
