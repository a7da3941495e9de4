"""The catalog alone, with 100,000 versions of 1,000 names and 1,000,000 shards: how fast it commits, answers, opens and
is made anew.

Every commit is the real one: the writer's certificate and signature and each shard's receipt verified, the record and
the manifest signed, one transaction, fsynced. Signing by writers and nodes is not timed. Opening is timed in a process
of its own, whose peak memory is given beside what it had before. Rebuilding is from the chain as nodes keep it.

    python bench/catalog.py [--json] [--quick]
"""

import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from common import parser, report

from raylog.catalog.catalog import ENTRIES_MAX, Catalog
from raylog.catalog.journal import Entry, Journal
from raylog.catalog.rebuild import rebuild
from raylog.spec import Reference
from raylog.testing.catalog_cluster import TENANT, Cluster

VERSIONS, NAMES, SHARDS = 100_000, 1_000, 10  # SHARDS: of each version
ASKED = 20_000
SEED = 1


def name_of(number: int) -> str:
    return f"bench/{number % 10}/{number:04d}"


def commit_all(cluster: Cluster, catalog: Catalog, versions: int, names: int) -> list[float]:
    """Seconds that each commit took."""
    taken = []
    for number in range(versions):
        pending = catalog.begin(name_of(number % names), TENANT)
        shards = tuple(cluster.entry() for _ in range(SHARDS))
        manifest = cluster.manifest(pending.name, pending.artifact_id, replicas=1, shards=shards)
        signed, receipts = cluster.sign(manifest), cluster.receipts(manifest)
        began_s = time.perf_counter()
        catalog.commit(signed, receipts, pending.base)
        taken.append(time.perf_counter() - began_s)
    return taken


def timed(action: Callable[[], object]) -> float:
    began_s = time.perf_counter()
    action()
    return time.perf_counter() - began_s


def p99(values: list[float]) -> float:
    return statistics.quantiles(values, n=100)[98]


def entries(catalog: Catalog) -> Iterator[Entry]:
    since = 0
    while page := catalog.records(since):
        yield from page
        since += len(page)
        if len(page) < ENTRIES_MAX:
            return


def opening(directory: Path) -> dict[str, float]:
    """In a process of its own: `catalog.py --open DIRECTORY`."""
    done = subprocess.run(
        [sys.executable, __file__, "--open", str(directory)], capture_output=True, text=True, check=True
    )
    found: dict[str, float] = json.loads(done.stdout)
    return found


def peak_bytes() -> int:
    """The most memory this process has had; what `getrusage` says begins with its parent's."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:")]
    return 1024 * int(line.split()[1])


def open_here(directory: Path) -> dict[str, float]:
    cluster = Cluster(SEED)
    before_bytes = peak_bytes()
    began_s = time.perf_counter()
    catalog = Catalog(Journal(directory, cluster.trust, time.time, create=False))
    catalog.stat(Reference(name_of(0)))
    seconds = time.perf_counter() - began_s
    peak = peak_bytes()
    catalog.close()
    return {"open_s": seconds, "open_peak_bytes": peak, "open_peak_over_idle_bytes": peak - before_bytes}


def run(versions: int, names: int) -> dict[str, Any]:
    cluster, source = Cluster(SEED), random.Random(2)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        catalog = cluster.open(folder / "catalog")
        commits = commit_all(cluster, catalog, versions, names)
        last = commits[-versions // 10 :]
        asked = [name_of(source.randrange(names)) for _ in range(min(ASKED, versions))]
        stats = [timed(lambda name=name: catalog.stat(Reference(name))) for name in asked]  # type: ignore[misc]
        result: dict[str, Any] = {
            "versions": versions,
            "shards": versions * SHARDS,
            "commits_per_s": 1 / statistics.mean(commits),
            "commits_per_s_at_the_end": 1 / statistics.mean(last),
            "commit_p99_s": p99(commits),
            "stat_p50_s": statistics.median(stats),
            "stat_p99_s": p99(stats),
            "ls_100_names_s": statistics.median(timed(lambda: catalog.ls("bench/3/")) for _ in range(5)),
            "ls_all_s": statistics.median(timed(catalog.ls) for _ in range(5)),
            "versions_of_a_name_s": statistics.median(timed(lambda: catalog.versions(asked[0])) for _ in range(5)),
        }
        began_s = time.perf_counter()
        rebuild(folder / "anew", cluster.trust, entries(catalog), {})
        result["rebuild_s"] = time.perf_counter() - began_s
        catalog.close()
        result["journal_bytes"] = sum(path.stat().st_size for path in (folder / "catalog").iterdir())
        return result | opening(folder / "catalog")


if __name__ == "__main__":
    found = parser(__doc__.splitlines()[0])
    found.add_argument("--open", type=Path, help=opening.__doc__)
    arguments = found.parse_args()
    if arguments.open:
        report(open_here(arguments.open), True)
    else:
        report(run(300, 20) if arguments.quick else run(VERSIONS, NAMES), arguments.json)
