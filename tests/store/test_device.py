"""The kind of device by the kernel's flag, at the device itself or at the one a partition belongs to."""

import os
from pathlib import Path

import pytest

from raylog.spec import TierKind
from raylog.store.device import device_kind


@pytest.mark.parametrize(("flag", "kind"), [("1", TierKind.HDD), ("0", TierKind.SSD)])
@pytest.mark.parametrize("is_partition", [False, True])
def test_the_flag_decides(tmp_path: Path, flag: str, kind: TierKind, is_partition: bool) -> None:
    device = tmp_path.stat().st_dev
    disk = tmp_path / "disk"
    entry = disk / "part1" if is_partition else disk
    entry.mkdir(parents=True)
    (disk / "queue").mkdir()
    (disk / "queue" / "rotational").write_text(flag + "\n")
    sys_block = tmp_path / "sys"
    sys_block.mkdir()
    (sys_block / f"{os.major(device)}:{os.minor(device)}").symlink_to(entry)
    assert device_kind(tmp_path, sys_block) is kind


def test_no_flag_means_ssd(tmp_path: Path) -> None:
    assert device_kind(tmp_path, tmp_path / "none") is TierKind.SSD
