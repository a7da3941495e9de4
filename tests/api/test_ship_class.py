"""`ship` by class: what is refused before anything moves."""

import inspect

import pytest

from raylog.api.client import Client
from raylog.errors import UsageError


def test_an_unknown_class_is_refused_before_the_session_is_asked() -> None:
    client = Client.__new__(Client)  # no session: nothing may be asked of one
    client._session = None  # type: ignore[assignment]
    with pytest.raises(UsageError, match="class of read, checkpoint, ship, repair, got 'urgent'"):
        client.ship("corpora/wiki", qos="urgent")
    assert inspect.signature(Client.ship).parameters["qos"].default == "ship"
