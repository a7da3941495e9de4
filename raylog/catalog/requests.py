"""What a client asks the catalog to change, signed: whoever can call an actor proves nothing by it."""

import msgspec

from raylog.catalog.encoding import FORMAT_VERSION, check_cluster, check_range, decode, encode, signing_input
from raylog.catalog.trust import Identify, Sign
from raylog.errors import NotPermitted
from raylog.spec import parse_id, parse_reference

FRESH_S = 300.0
_LABEL = "raylog/1 delete"
_NUMBER_MAX = 10**12


class DeleteRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """That `reference` (`name` or `name@3`) is to be deleted. `latest` is the newest number that the asker saw: sent
    again later, the request deletes nothing that came after."""

    format_version: int = FORMAT_VERSION
    cluster_id: str
    reference: str
    latest: int
    time_us: int

    def __post_init__(self) -> None:
        parse_id(self.cluster_id, "cluster id")
        parse_reference(self.reference)
        check_range(self.latest, 1, _NUMBER_MAX, "latest number")
        check_range(self.time_us, 0, 1 << 62, "time_us")


class SignedRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    request: bytes
    certificate: bytes
    signature: bytes


def sign_delete(request: DeleteRequest, certificate: bytes, sign: Sign) -> bytes:
    """The request as it is sent, signed by the asker's key."""
    data = encode(request)
    return encode(SignedRequest(request=data, certificate=certificate, signature=sign(signing_input(_LABEL, data))))


def verify_delete(signed: bytes, cluster_id: str, identify: Identify, now_s: float) -> tuple[DeleteRequest, str]:
    """The request and the identity that signed it. Raises `DamagedData`, `NotPermitted` for a forged, stale or another
    cluster's request."""
    outer = decode(SignedRequest, signed, "a signed request")
    request = decode(DeleteRequest, outer.request, "a request to delete")
    check_cluster(cluster_id, request.cluster_id, "a request to delete")
    by = identify(outer.certificate, signing_input(_LABEL, outer.request), outer.signature)
    age_s = now_s - request.time_us / 1e6
    if abs(age_s) > FRESH_S:
        raise NotPermitted(
            f"the request to delete {request.reference} was signed {age_s:.0f} s ago by its own clock, at most "
            f"{FRESH_S:.0f} s are accepted: set the clocks of both machines and ask again"
        )
    return request, by
