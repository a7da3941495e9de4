"""A catalog that loses its journal, on one machine: `rebuild_driver.py FOLDER`. Says "rebuilt" last."""

import subprocess
import sys
from pathlib import Path

import numpy as np

import raylog
from raylog.errors import NotFound, Unavailable
from raylog.settings import Settings
from raylog.units import MIB

RAYLOG = Path(sys.executable).with_name("raylog")


def listing(client: raylog.Client) -> object:
    return [(one, client.versions(one.name)) for one in client.ls()]


def expect(condition: bool, what: str) -> None:
    if not condition:
        raise SystemExit(what)


def main(folder: str) -> None:
    settings = Settings(state=Path(folder) / "state", arena_bytes=16 * MIB, disk_reserve_bytes=0)
    noise = np.random.default_rng(1).bytes(MIB)
    with raylog.connect("local", settings=settings) as client:
        for content in (b"first", b"second", noise):
            client.put("rebuild/kept", content)
        client.put("rebuild/gone", b"all of it")
        client.delete("rebuild/kept@2")
        client.delete("rebuild/gone")
        before = listing(client)
    (journal,) = settings.catalog_path.glob("journal.sqlite")
    for path in settings.catalog_path.iterdir():
        path.unlink()
    try:
        raylog.connect("local", settings=settings)
        raise SystemExit("an empty catalog was begun where data lies")
    except Unavailable as error:
        expect("raylog catalog rebuild" in str(error), str(error))
    command = [str(RAYLOG), "--address", "local", "--state", str(settings.state), "catalog", "rebuild"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    expect(done.returncode == 0 and "the catalog is there again" in done.stdout, done.stdout + done.stderr)
    expect(journal.exists(), "no journal was made")
    again = subprocess.run(command, capture_output=True, text=True, timeout=120)
    expect(again.returncode == 1 and "nothing to rebuild" in again.stderr, again.stdout + again.stderr)
    with raylog.connect("local", settings=settings) as client:
        expect(listing(client) == before, f"{listing(client)} is not {before}")
        expect(client.get("rebuild/kept") == noise, "other bytes")
        expect(client.get("rebuild/kept@1") == b"first", "other bytes of the first version")
        for reference in ("rebuild/kept@2", "rebuild/gone"):
            try:
                client.get(reference)
                raise SystemExit(f"{reference} came back")
            except NotFound:
                pass
        expect(client.put("rebuild/gone", b"new").number == 2, "a number was given twice")
    print("rebuilt")


if __name__ == "__main__":
    main(sys.argv[1])
