"""What kind of device a folder lies on, by the kernel's word and not by a name."""

import os
from pathlib import Path

from raylog.spec import TierKind

SYS_BLOCK = Path("/sys/dev/block")


def device_kind(folder: Path, sys_block: Path = SYS_BLOCK) -> TierKind:
    """HDD when the block device under `folder` is rotational; SSD otherwise, also where the kernel does not say
    (network and overlay file systems). A partition's flag stands at the device it is a part of."""
    device = folder.stat().st_dev
    block = sys_block / f"{os.major(device)}:{os.minor(device)}"
    for place in (block, block / ".."):
        flag = place / "queue" / "rotational"
        if flag.exists():
            return TierKind.HDD if flag.read_text().strip() == "1" else TierKind.SSD
    return TierKind.SSD
