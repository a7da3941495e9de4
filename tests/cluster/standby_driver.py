"""A client on a network host: `standby_driver.py CONFIG put NAME REPLICAS FILE` puts version after version until FILE
is there, and prints the number of each that was acknowledged; `standby_driver.py CONFIG check` prints what there is,
having read all of it; `standby_driver.py CONFIG standby | up | down` is what `raylog` does."""

import hashlib
import json
import sys
import time
from pathlib import Path

import raylog
from raylog.actors import bootstrap
from raylog.actors.standby import start_standby
from raylog.errors import RaylogError
from raylog.settings import load_settings
from raylog.testing.ray_hosts import joined


def content(name: str, number: int) -> bytes:
    return hashlib.blake2b(f"{name}@{number}".encode()).digest() * 5000


def put(client: raylog.Client, name: str, replicas: int, stop: Path) -> None:
    number = 0
    while not stop.exists():
        began_s = time.monotonic()
        try:
            version = client.put(name, content(name, number + 1), replicas=replicas)
        except RaylogError as error:
            print(json.dumps({"failed": str(error), "seconds": time.monotonic() - began_s}), flush=True)
            number = known(client, name, number)
            continue
        number = version.number
        print(json.dumps({"acknowledged": number, "seconds": time.monotonic() - began_s}), flush=True)


def known(client: raylog.Client, name: str, number: int) -> int:
    """A put that failed may have been committed: the number of the newest version."""
    try:
        return max(number, client.versions(name)[-1].number)
    except RaylogError:
        return number


def check(client: raylog.Client) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for latest in client.ls():
        for version in client.versions(latest.name):
            assert client.get(str(version)) == content(version.name, version.number), f"{version} has other bytes"
            found.setdefault(version.name, []).append(version.number)
    return found


STEPS = {
    "up": bootstrap.start,
    "down": lambda _: bootstrap.stop(),
    "standby": start_standby,
}


def main(config: str, step: str, *arguments: str) -> None:
    if step in STEPS:
        with joined():
            STEPS[step](load_settings(config))
        return
    with joined() as address, raylog.connect(address, settings=load_settings(config)) as client:
        if step == "put":
            put(client, arguments[0], int(arguments[1]), Path(arguments[2]))
        else:
            print(json.dumps(check(client)))


if __name__ == "__main__":
    main(*sys.argv[1:])
