"""Put a dataset into raylog: ray job submit -- python jobs/ingest.py NAME SOURCE [--replicas 2]

SOURCE is a path or URL (Parquet, Arrow, CSV, JSONL, or any file or folder) as the head node sees it.
The last line is one JSON object: the version, its sizes and the rate. Exit status: see 'raylog --help'.
"""

import argparse
import time

import raylog
from raylog.jobs import run


def main(arguments: argparse.Namespace) -> dict[str, object]:
    started_s = time.monotonic()
    with raylog.connect() as client:
        version = client.put(arguments.name, arguments.source, replicas=arguments.replicas, codec=arguments.codec)
    seconds = time.monotonic() - started_s
    return {"version": version, "seconds": seconds, "content_bytes_per_s": version.content_bytes / seconds}


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("name", help="artifact name, such as corpora/wiki")
parser.add_argument("source", help="path or URL of the data")
parser.add_argument("--replicas", type=int, default=1, help="copies on distinct nodes (default 1)")
parser.add_argument(
    "--codec", default="auto", choices=["auto", "none", "lz4", "zstd"], help="compression of the chunks"
)

if __name__ == "__main__":
    run(main, parser)
