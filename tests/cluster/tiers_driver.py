"""A node with a second disk, on one machine: `tiers_driver.py FOLDER`. Says "tiers are right" last."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import ray

import raylog
from raylog.settings import load_settings
from raylog.units import MIB

RAYLOG = Path(sys.executable).with_name("raylog")


def expect(condition: bool, what: object) -> None:
    if not condition:
        raise SystemExit(str(what))


def main(folder: Path) -> None:
    (folder / "second").mkdir()
    config = folder / "raylog.toml"
    config.write_text(
        f'state = "{folder / "state"}"\ndisks = "{folder / "second"}, {folder / "not-there"}"\narena_bytes = "16MiB"\n'
        "disk_reserve_bytes = 0\n"
    )
    noise = np.random.default_rng(1).bytes(3 * MIB)
    with raylog.connect("local", settings=load_settings(config)) as client:
        client.put("tiers/set", noise)
        client.put("tiers/old", noise, labels={"use": "archive"})
        (sample,) = client.measure_disks()
        kinds = [tier.kind.value for tier in sample.tiers]
        expect(kinds[0] == "memory" and len(kinds) == 3, kinds)
        devices = [tier.device for tier in sample.tiers if tier.device]
        expect(all(one.measured_read_bytes_per_s for one in devices), devices)
        expect(sum(one.writes for one in devices) == 2, devices)
        expect(sum(tier.shards for tier in sample.tiers[1:]) == 2, sample.tiers)
        for name in ("tiers/set", "tiers/old"):
            expect(client.get(name) == noise, name)
        address = ray.get_runtime_context().gcs_address
        command = [RAYLOG, "--address", address, "--config", config, "status", "--tiers"]
        shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        print(shown.stdout)
        expect(shown.returncode == 0 and "fsync" in shown.stdout, shown.stderr)
        as_json = subprocess.run(
            [*command, "--json"], capture_output=True, text=True, timeout=120,
            check=False,
        )  # fmt: skip
        expect(len(next(iter(json.loads(as_json.stdout).values()))) == 3, as_json.stdout + as_json.stderr)
    print("tiers are right")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
