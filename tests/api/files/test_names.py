"""Paths of files as names of artifacts: legal parts stay as they are, all others come back as they were."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raylog.api.files.names import FilePath, name_of, parse_path, parts_of, strip
from raylog.errors import UsageError
from raylog.spec import parse_name

PART = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=5).filter(
    lambda part: part not in (".", "..") and parse_path(part) == FilePath((part,))
)


@pytest.mark.parametrize("path", ["corpora/wiki", "year=2024/part-0.parquet", "c++/a_b.tar.gz", "0/1"])
def test_names_stay_as_they_are(path: str) -> None:
    assert name_of(parse_path(path).parts) == path


@pytest.mark.parametrize(
    ("part", "name"),
    [
        (".metadata", "0+.metadata"),
        ("__0_0.distcp", "0+__0_0.distcp"),
        ("my file.txt", "0+my+20file.txt"),
        ("ü", "0++c3+bc"),
        ("a@b", "0+a+40b"),
        ("0+x", "0+0+2bx"),
    ],
)
def test_others_are_written_so(part: str, name: str) -> None:
    assert name_of((part,)) == name
    assert parts_of(name) == (part,)


@pytest.mark.parametrize("part", ["0+a+403", "0+a+2fb", "0++00", "0++2f", "0+.", "0+..", "0+", "0++ff", "0+a"])
def test_names_that_belong_to_no_path(part: str) -> None:
    """What they say would be a version, another path or none: nobody reaches an artifact by a path of another's."""
    assert parse_name(part) == part
    assert parts_of(part) is None and parts_of(f"x/{part}") is None and parts_of(f"{part}/x") is None


def test_a_scheme_is_no_part() -> None:
    assert parts_of("0+raylog+3a+3ax") is None and parts_of("x/0+raylog+3a+3ax") == ("x", "raylog::x")


@given(st.lists(PART, min_size=1, max_size=3).map(tuple))
def test_every_path_comes_back(parts: tuple[str, ...]) -> None:
    name = name_of(parts)
    assert parse_name(name) == name and parts_of(name) == parts


@given(st.from_regex(r"(0\+)?[A-Za-z0-9][A-Za-z0-9._+=-]{0,12}", fullmatch=True))
def test_no_two_names_have_one_path(name: str) -> None:
    parts = parts_of(name)
    assert parts is None or name_of(parts) == name


def test_versions() -> None:
    assert parse_path("raylog://corpora/wiki@3/part/0.txt") == FilePath(("corpora", "wiki"), 3, ("part", "0.txt"))
    assert str(parse_path("/corpora//wiki@3/")) == "corpora/wiki@3"
    assert parse_path("a@b/c@0").parts == ("a@b", "c@0")
    assert parse_path("") == parse_path("raylog://") == FilePath(())


@pytest.mark.parametrize("path", ["../a", "a/../b", "a/.", "raylog://..", "a\0b"])
def test_bad_paths(path: str) -> None:
    with pytest.raises(UsageError, match="expected a path without"):
        strip(path)


def test_paths_that_are_too_long_or_no_text() -> None:
    with pytest.raises(UsageError, match="at most 200 characters, got 302"):
        name_of((" " * 100,))
    with pytest.raises(UsageError, match="in Unicode"):
        name_of(("\udc80",))
