"""What raylog keeps in Ray's GCS, which grants names to actors and lives as long as they: epochs, standbys, and on
which machine's state an actor ran last."""

from collections.abc import Callable, Collection
from typing import Any

import msgspec
from ray.experimental import internal_kv

from raylog.actors import calls
from raylog.errors import DamagedData, Unavailable

CLAIMS_MAX = 10_000
_NAMESPACE = calls.NAMESPACE.encode()


class GcsRegister:
    """One cluster's part of the GCS's key-value store. The register of its standbys (standbys.py), among others."""

    def __init__(self, cluster_id: str) -> None:
        self._prefix = f"raylog/{cluster_id}"

    def enlist(self, standby: str) -> None:
        self._put(f"standby/{standby}", b"enlisted")

    def standbys(self) -> list[str]:
        return self._list("standby/")

    def in_sync(self, what: str, term: int) -> frozenset[str]:
        for begun in range(term, -1, -1):
            found = self._get(f"in-sync/{what}/{begun}")
            if found:
                return frozenset(msgspec.json.decode(found, type=list[str]))
        return frozenset()

    def set_in_sync(self, what: str, term: int, standbys: Collection[str]) -> None:
        self._put(f"in-sync/{what}/{term}", msgspec.json.encode(sorted(standbys)))

    def term(self, what: str) -> int:
        return max(map(int, self._list(f"term/{what}/")), default=0)

    def claim_term(self, what: str, term: int) -> bool:
        return self._put(f"term/{what}/{term}", b"claimed", overwrite=False)

    def holder(self, what: str) -> str:
        return (self._get(f"holder/{what}") or b"").decode()

    def set_holder(self, what: str, state_id: str) -> None:
        self._put(f"holder/{what}", state_id.encode())

    def claim_epoch(self, seen: int) -> int:
        """An epoch above `seen` that nobody else has."""
        for epoch in range(seen + 1, seen + CLAIMS_MAX):
            if self._put(f"epoch/{epoch}", b"claimed", overwrite=False):
                return epoch
        raise Unavailable(f"{CLAIMS_MAX} epochs above {seen} are claimed in Ray's GCS: restart Ray")

    def _put(self, key: str, value: bytes, *, overwrite: bool = True) -> bool:
        """Whether it was written: it was not there, or was to be replaced."""
        was_there = _told(internal_kv._internal_kv_put, self._key(key), value, overwrite, namespace=_NAMESPACE)
        return overwrite or not was_there

    def _get(self, key: str) -> bytes | None:
        found = _told(internal_kv._internal_kv_get, self._key(key), namespace=_NAMESPACE)
        if found is not None and not isinstance(found, bytes):
            raise DamagedData(f"expected bytes at {key} in Ray's GCS, got {type(found).__name__}")
        return found

    def _list(self, prefix: str) -> list[str]:
        """What comes after `prefix` in the keys that begin so."""
        found = _told(internal_kv._internal_kv_list, self._key(prefix), namespace=_NAMESPACE)
        return sorted(bytes(key).decode().removeprefix(f"{self._prefix}/{prefix}") for key in found)

    def _key(self, key: str) -> bytes:
        return f"{self._prefix}/{key}".encode()


def _told(call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    try:
        return call(*arguments, **options)
    except Exception as error:  # Ray's own kinds differ from version to version
        raise Unavailable(f"Ray's GCS does not answer: {error}") from error
