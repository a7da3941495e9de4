"""The command as a person types it: exit statuses, messages, JSON alone on standard output. No cluster needed here."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from raylog.errors import UsageError
from raylog.spec import parse_labels

RAYLOG = Path(sys.executable).with_name("raylog")
COMMANDS = ["put", "get", "ls", "rm", "ship", "verify", "up", "down", "status", "place", "doctor", "demo"]
SEED = """
nodes: [{id: a, cpu: 4}, {id: b, cpu: 6}, {id: c, cpu: 8}]
jobs: [{id: train, workers: WORKERS, each: {cpu: 1}}]
"""


def raylog(*words: str, home: Path) -> subprocess.CompletedProcess[str]:
    environment = {"HOME": str(home), "PATH": os.environ["PATH"], "COLUMNS": "200", "TMPDIR": str(home)}
    return subprocess.run(
        [str(RAYLOG), *words], env=environment, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(tmp_path: Path, command: str) -> None:
    done = raylog(command, "--help", home=tmp_path)
    assert done.returncode == 0
    assert f"raylog {command}" in done.stdout


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["putt"], 2, "Did you mean 'put'?"),
        (["put", "only-a-name"], 2, "Missing argument"),
        (["get", "name@0", "out"], 2, "version number from 1"),
        (["ship", "x", "--deadline", "soon"], 2, "'30s'"),
        (["place", "nowhere.yaml"], 2, "nowhere.yaml"),
        (["--config", "nowhere.toml", "ls"], 2, "nowhere.toml"),
        (["status"], 1, "raylog up"),
        (["--address", "127.0.0.1:1", "ls"], 1, "no Ray cluster answers at 127.0.0.1:1"),
        (["--address", "nonsense", "ls"], 2, "Ray address"),
    ],
)
def test_mistakes_are_named_on_standard_error(tmp_path: Path, words: list[str], status: int, said: str) -> None:
    done = raylog(*words, home=tmp_path)
    assert done.returncode == status, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(("workers", "missing"), [(20, 2), (12, 0)])
def test_place_answers_the_seed_example(tmp_path: Path, workers: int, missing: int) -> None:
    file = tmp_path / "seed.yaml"
    file.write_text(SEED.replace("WORKERS", str(workers)))
    done = raylog("place", str(file), "--json", home=tmp_path)
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert len(plan["placements"]) == workers - missing
    assert sum(short["workers"] for short in plan["shortfall"]) == missing
    text = raylog("place", str(file), home=tmp_path).stdout
    assert ("short by 2: capacity 18, demand 20" in text) == bool(missing)
    assert "waste + fragmentation + moves" in text


def test_a_placement_file_without_nodes_is_checked_before_anything_is_started(tmp_path: Path) -> None:
    file = tmp_path / "jobs.yaml"
    file.write_text("jobs: [{id: train, workers: 0}]")
    done = raylog("place", str(file), home=tmp_path)
    assert done.returncode == 2
    assert f"{file}: jobs[0].workers" in done.stderr
    file.write_text("jobs: [{id: train, workers: 1, each: {cpu: 1}}]")
    done = raylog("--address", "127.0.0.1:1", "place", str(file), home=tmp_path)
    assert done.returncode == 1
    assert "no Ray cluster answers" in done.stderr


def test_doctor_says_what_it_found_and_how_to_fix_it(tmp_path: Path) -> None:
    done = raylog("doctor", "--json", home=tmp_path)
    checks = {check["name"]: check for check in json.loads(done.stdout)}
    assert checks["python"]["status"] == "ok"
    assert {"ray token", "ports", "shared memory", "keyring", "clock", "gpus"} <= set(checks)
    assert all(check["fix"] for check in checks.values() if check["status"] != "ok")
    assert done.returncode == (1 if any(check["status"] == "fail" for check in checks.values()) else 0)
    shown = raylog("doctor", home=tmp_path)
    assert shown.returncode == done.returncode, shown.stderr
    assert all(name in shown.stdout for name in checks)


def test_a_configuration_with_an_unknown_setting(tmp_path: Path) -> None:
    config = tmp_path / "raylog.toml"
    config.write_text('[node]\narena_bytes = "1GiB"\nstream = 3\n')
    done = raylog("--config", str(config), "doctor", home=tmp_path)
    assert done.returncode == 2
    assert "unknown setting 'stream'" in done.stderr


def test_up_prepare_makes_the_keys_once_and_privately(tmp_path: Path) -> None:
    state = tmp_path / "state"
    assert raylog("--state", str(state), "up", "--prepare", home=tmp_path).returncode == 0
    keyring = (state / "keyring" / "keyring.json").read_bytes()
    assert raylog("--state", str(state), "up", "--prepare", home=tmp_path).returncode == 0
    assert (state / "keyring" / "keyring.json").read_bytes() == keyring
    assert {path.stat().st_mode & 0o077 for path in state.rglob("*")} == {0}
    (state / "keyring" / "keyring.json").chmod(0o644)
    done = raylog("--state", str(state), "up", "--prepare", home=tmp_path)
    assert done.returncode == 4
    assert "chmod" in done.stderr


@pytest.mark.parametrize("word", ["team", "=nlp", ""])
def test_a_label_is_a_key_and_a_value(word: str) -> None:
    assert parse_labels(["team=nlp", "of=a=b", "empty="]) == {"team": "nlp", "of": "a=b", "empty": ""}
    with pytest.raises(UsageError, match="KEY=VALUE"):
        parse_labels([word])
