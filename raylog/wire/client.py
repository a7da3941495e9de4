from dataclasses import dataclass
from raylog.errors import Unavailable


@dataclass(frozen=True)
class PeerAddress:
    node_id: str
    host: str
    control_port: int


def pull(*a, **k):
    raise Unavailable("stub")
