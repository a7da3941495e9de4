"""A whole cluster back from a backup, on the head of an empty one: ray job submit -- python jobs/restore.py URL

URL is the backup, such as s3://bucket/path. The keys come from their own backup (--keys FILE --recovery-key FILE),
unless 'raylog keys restore' has put them there. Then the catalog is made anew, raylog starts, and every shard is
brought back to as many nodes as it was promised. With --drill, to see that it works while the cluster still runs
elsewhere, the restored one never writes to a backup. The last line is one JSON object: records of the catalog and when
the last of them was made, versions, and shards that had no backup and are lost. Exit status 1 when not all came back
within --timeout seconds (it goes on by itself); the others: see 'raylog --help'.
"""

import argparse
import time
from pathlib import Path

import raylog
from raylog.actors.bootstrap import restore_keys
from raylog.api import operate
from raylog.errors import DeadlineExceeded, UsageError
from raylog.jobs import run
from raylog.security.key_backup import read_backup
from raylog.settings import load_settings

POLL_S = 1.0


def main(arguments: argparse.Namespace) -> dict[str, object]:
    if bool(arguments.keys) != bool(arguments.recovery_key):
        raise UsageError("expected --keys and --recovery-key together")
    settings = load_settings(arguments.config, state=arguments.state)
    if arguments.keys:
        restore_keys(settings, read_backup(arguments.keys), arguments.recovery_key)
    report = operate.restore_catalog(None, settings, arguments.url, is_drill=arguments.drill)
    deadline = time.monotonic() + arguments.timeout
    with raylog.connect(settings=settings) as client:
        while (standing := client.storage_standing()).short_shards > standing.lost_shards:
            if time.monotonic() > deadline:
                raise DeadlineExceeded(
                    f"{standing.short_shards} shards have not all their replicas after {arguments.timeout:.0f} s; it "
                    "goes on by itself, 'raylog status --events' says what keeps it",
                )
            time.sleep(POLL_S)
        versions = sum(len(client.versions(one.name)) for one in client.ls())
    return {"restored": report, "versions": versions, "shards_without_backup": standing.lost_shards}


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("url", help="the backup, such as s3://bucket/path")
parser.add_argument("--keys", type=Path, metavar="FILE", help="a backup of the cluster's keys")
parser.add_argument("--recovery-key", type=Path, metavar="FILE", help="private half of the key that opens it")
parser.add_argument("--config", type=Path, help="raylog.toml; default: ~/.raylog/raylog.toml")
parser.add_argument("--state", type=Path, help="state directory; default: ~/.raylog")
parser.add_argument("--drill", action="store_true", help="never write to a backup from here")
parser.add_argument("--timeout", type=float, default=86400.0, metavar="SECONDS")

if __name__ == "__main__":
    run(main, parser)
