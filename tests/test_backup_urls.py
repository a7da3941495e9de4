"""URLs of backups: which are taken, and which never."""

import pytest

from raylog.errors import UsageError
from raylog.spec import parse_backup


def test_places_are_taken() -> None:
    assert parse_backup("s3://bucket/path/") == "s3://bucket/path"
    assert parse_backup("file:///mnt/backup") == "file:///mnt/backup"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("s3://key:secret@bucket", "without credentials"),
        ("s3://bucket/../other", "without credentials"),
        ("/mnt/backup", "expected a URL"),
        ("file://mnt", "an absolute path"),
        ("raylog://backup", "outside of raylog"),
    ],
)
def test_others_are_refused(url: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_backup(url)
