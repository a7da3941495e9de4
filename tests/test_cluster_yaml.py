"""cluster.yaml is loaded, completed and validated by Ray's own code, and says what raylog needs."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

FILE = Path(__file__).parents[1] / "cluster.yaml"


@pytest.fixture
def config() -> dict[str, Any]:
    return yaml.safe_load(FILE.read_text())


def test_ray_accepts_it(config: dict[str, Any]) -> None:
    prepared = prepare_config(config)
    validate_config(prepared)
    assert prepared["provider"]["type"] == "local"
    assert prepared["provider"]["head_ip"] != prepared["provider"]["worker_ips"][0]


def test_every_ray_process_asks_for_the_token_and_raylog_comes_after_ray(config: dict[str, Any]) -> None:
    head, worker = config["head_start_ray_commands"], config["worker_start_ray_commands"]
    assert all("RAY_AUTH_MODE=token" in command for command in (*head, *worker))
    starts = next(index for index, command in enumerate(head) if "ray start --head" in command)
    assert "raylog up" in head[starts + 1]
    assert any("raylog up --prepare" in command for command in config["head_setup_commands"])
    assert "~/.raylog/join/token.json" in config["cluster_synced_files"]


def test_ray_refuses_a_broken_one(config: dict[str, Any]) -> None:
    del config["provider"]
    with pytest.raises(Exception, match="provider"):
        validate_config(prepare_config(config))
