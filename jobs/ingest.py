"""Put a dataset into raylog: ray job submit -- python jobs/ingest.py NAME SOURCE [--replicas 2] [--follow]

SOURCE is a path or URL (Parquet, Arrow, CSV, JSONL, or any file or folder) as the head node sees it. With --follow it
is a folder, or a URL below which a listing is possible, and files are collected as they arrive: a version per batch,
each file exactly once, also when the job is stopped and started again; one line of JSON per batch. The last line is one
JSON object: the version, its sizes and the rate, or how many batches and files came. Exit status: see 'raylog --help'.
"""

import argparse
import sys
import time

import msgspec

import raylog
from raylog.jobs import run
from raylog.spec import parse_labels


def main(arguments: argparse.Namespace) -> dict[str, object]:
    labels = parse_labels(arguments.label)
    options = {"replicas": arguments.replicas, "codec": arguments.codec, "labels": labels, "backup": arguments.backup}
    started_s = time.monotonic()
    with raylog.connect() as client:
        if arguments.follow:
            return follow(client, arguments, options)
        version = client.put(arguments.name, arguments.source, **options)
    seconds = time.monotonic() - started_s
    return {"version": version, "seconds": seconds, "content_bytes_per_s": version.content_bytes / seconds}


def follow(client: raylog.Client, arguments: argparse.Namespace, options: dict[str, object]) -> dict[str, object]:
    """Until nothing has come for --idle seconds."""
    follower = client.follow(arguments.name, arguments.source, settle_s=arguments.settle, **options)
    batches = files = 0
    last_s = time.monotonic()
    while arguments.idle is None or time.monotonic() - last_s < arguments.idle:
        found = follower.step()
        if found is None:
            time.sleep(arguments.poll)
            continue
        batches, files, last_s = batches + 1, files + found.files, time.monotonic()
        sys.stdout.write(msgspec.json.encode({"batch": found.version, "files": found.files}).decode() + "\n")
        sys.stdout.flush()
    return {"batches": batches, "files": files}


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("name", help="artifact name, such as corpora/wiki")
parser.add_argument("source", help="path or URL of the data")
parser.add_argument("--replicas", type=int, default=1, help="copies on distinct nodes (default 1)")
parser.add_argument("--backup", metavar="URL", help="remote copies, such as s3://bucket/path")
parser.add_argument("--label", action="append", default=[], metavar="KEY=VALUE", help="of the versions; repeatable")
parser.add_argument("--follow", action="store_true", help="collect files as they arrive, a version per batch")
parser.add_argument("--settle", type=float, default=5.0, metavar="SECONDS", help="a file of constant length is whole")
parser.add_argument("--poll", type=float, default=1.0, metavar="SECONDS", help="between two looks")
parser.add_argument("--idle", type=float, metavar="SECONDS", help="end after so long without files; default: never")
parser.add_argument(
    "--codec", default="auto", choices=["auto", "none", "lz4", "zstd"], help="compression of the chunks"
)

if __name__ == "__main__":
    run(main, parser)
