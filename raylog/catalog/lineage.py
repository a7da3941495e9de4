"""What versions were made from, and what was made from them. Pure: over a lookup of the links of one version."""

from collections import deque
from collections.abc import Callable

import msgspec

VERSIONS_MAX = 1_000  # in one answer


class Origin(msgspec.Struct, frozen=True, kw_only=True):
    """A version, as `name@number`, and what it was made from. `exists`: it has not been deleted since."""

    version: str
    parents: tuple[str, ...]
    exists: bool


class Lineage(msgspec.Struct, frozen=True, kw_only=True):
    """All that `version` was made from, over any number of steps, and all that was made from it; nearest first, itself
    in neither. `is_cut`: there is more than `VERSIONS_MAX` of one of them."""

    version: Origin
    ancestors: list[Origin]
    descendants: list[Origin]
    is_cut: bool


def trace(version: str, origin: Callable[[str], Origin], children: Callable[[str], list[str]]) -> Lineage:
    """Follows the links from `version` both ways. A version is made after its parents, so they lead in no circle; one
    that is reached twice is listed once."""
    ancestors, more_up = _reach(version, lambda one: list(origin(one).parents))
    descendants, more_down = _reach(version, children)
    return Lineage(
        version=origin(version),
        ancestors=[origin(one) for one in ancestors],
        descendants=[origin(one) for one in descendants],
        is_cut=more_up or more_down,
    )


def _reach(start: str, links: Callable[[str], list[str]]) -> tuple[list[str], bool]:
    found: dict[str, None] = {}
    waiting = deque([start])
    while waiting:
        for linked in links(waiting.popleft()):
            if linked in found:
                continue
            if len(found) == VERSIONS_MAX:
                return list(found), True
            found[linked] = None
            waiting.append(linked)
    return list(found), False
