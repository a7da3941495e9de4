"""The token: made once, for its owner's eyes, and compared whole."""

import stat
from pathlib import Path

import pytest

from raylog.errors import NotFound, NotPermitted, UsageError
from raylog.web.access import is_permitted, open_token


def test_the_token_is_made_once_and_is_private(tmp_path: Path) -> None:
    path = tmp_path / "token"
    token = open_token(path)
    assert open_token(path) == token and len(token) == 43
    assert open_token(tmp_path / "other") != token
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_text() == f"Authorization: Bearer {token}\n", "as curl -H @PATH reads it"
    assert [one.name for one in tmp_path.iterdir() if one.name.startswith(".")] == []


def test_a_token_that_others_may_read_or_that_is_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "token"
    open_token(path)
    path.chmod(0o644)
    with pytest.raises(NotPermitted, match="chmod"):
        open_token(path)
    for text in ("secret", "Authorization: Bearer short", "", "x" * 4000):
        path.unlink(missing_ok=True)
        path.touch(mode=0o600)
        path.write_text(text)
        with pytest.raises(UsageError, match="remove the file") as refused:
            open_token(path)
        assert "short" not in str(refused.value) and "secret" not in str(refused.value)
    with pytest.raises(NotFound, match="no folder"):
        open_token(tmp_path / "none" / "token")


def test_who_is_let_in() -> None:
    assert is_permitted("Bearer abc", "abc") and is_permitted("bearer  abc ", "abc")
    for given in ("", "abc", "Bearer", "Bearer ab", "Bearer abcd", "Basic abc", "Bearer \udc80", "Bearer abc abc"):
        assert not is_permitted(given, "abc")
