"""What a check of `raylog doctor` says."""

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Check:
    """One finding. `fix` is empty where nothing is to be done."""

    name: str
    status: Status
    found: str
    fix: str = ""
