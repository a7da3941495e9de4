"""Copy artifacts into a backup, and wait until they are there: ray job submit -- python jobs/backup.py URL NAME …

URL is such as s3://bucket/path or file:///mnt/backup. NAME is an artifact (all its versions) or name@number; --prefix
takes every artifact whose name begins so. With --keys FILE and --recovery-key FILE.pub, on the head, a sealed backup of
the keys is written to FILE as well: without it what lies in the backup opens for nobody. The last line is one JSON
object: versions, shards, stored bytes. Exit status 1 when it was not done within --timeout seconds; the others: see
'raylog --help'.
"""

import argparse
import time
from pathlib import Path

import raylog
from raylog.actors.bootstrap import key_paths
from raylog.errors import UsageError
from raylog.jobs import run
from raylog.security.key_backup import back_up_keys
from raylog.security.private_files import write_private


def main(arguments: argparse.Namespace) -> dict[str, object]:
    if bool(arguments.keys) != bool(arguments.recovery_key):
        raise UsageError("expected --keys and --recovery-key together")
    deadline = time.monotonic() + arguments.timeout
    with raylog.connect() as client:
        names = [*arguments.names, *(one.name for prefix in arguments.prefix for one in client.ls(prefix))]
        if not names:
            raise UsageError("expected names of artifacts, or a --prefix that some begin with")
        reports = [client.back_up(name, arguments.url, max(deadline - time.monotonic(), 1.0)) for name in names]
        if arguments.keys:
            data = back_up_keys(key_paths(client.settings), arguments.recovery_key, time.time())
            write_private(arguments.keys, data, replace=False)
    return {
        "backup": arguments.url,
        "versions": [version for report in reports for version in report.versions],
        "shards": sum(report.shards for report in reports),
        "stored_bytes": sum(report.stored_bytes for report in reports),
        "keys": str(arguments.keys) if arguments.keys else None,
    }


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("url", help="where to, such as s3://bucket/path")
parser.add_argument("names", nargs="*", metavar="NAME", help="artifact name, or name@number")
parser.add_argument("--prefix", action="append", default=[], help="every artifact whose name begins so; repeatable")
parser.add_argument("--keys", type=Path, metavar="FILE", help="write a backup of the cluster's keys here")
parser.add_argument("--recovery-key", type=Path, metavar="FILE.pub", help="public half of the key that opens it")
parser.add_argument("--timeout", type=float, default=86400.0, metavar="SECONDS")

if __name__ == "__main__":
    run(main, parser)
