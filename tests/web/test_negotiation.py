"""What a request asks for, by its words: ranges as RFC 9110 has them, types, gzip, targets that stay inside."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raylog.errors import UsageError
from raylog.spec import Reference
from raylog.web.answers import NotAcceptable, OutsideFile
from raylog.web.negotiation import Target, chosen_type, is_unchanged, parse_target, takes_gzip, wanted_range

ETAG = '"abc"'


@given(size=st.integers(1, 1000), first=st.integers(0, 1200), last=st.integers(0, 1200))
def test_a_range_is_pythons_slice(size: int, first: int, last: int) -> None:
    content = bytes(n % 251 for n in range(size))
    for text, expected in [
        (f"bytes={first}-{last}", content[first : last + 1]),
        (f"bytes={first}-", content[first:]),
        (f"bytes=-{last}", content[-last:] if last else b""),
    ]:
        if text == f"bytes={first}-{last}" and last < first:
            assert wanted_range(text, "", ETAG, size) is None, "no range at all, says the RFC"
        elif not expected:
            with pytest.raises(OutsideFile) as refused:
                wanted_range(text, "", ETAG, size)
            assert refused.value.headers == {"Content-Range": f"bytes */{size}"}
        else:
            found = wanted_range(text, "", ETAG, size)
            assert found is not None and content[found[0] : found[1]] == expected
            assert 0 <= found[0] < found[1] <= size


@pytest.mark.parametrize("text", ["", "bytes=-", "bytes=a-b", "bytes=0-1,3-4", "items=0-1", "bytes 0-1", "bytes=--1"])
def test_what_is_no_single_range_asks_for_all(text: str) -> None:
    assert wanted_range(text, "", ETAG, 10) is None


def test_a_range_of_an_empty_file_and_of_another_state() -> None:
    with pytest.raises(OutsideFile):
        wanted_range("bytes=0-", "", ETAG, 0)
    assert wanted_range("bytes=2-3", ETAG, ETAG, 10) == (2, 4)
    for other in ('"other"', f"W/{ETAG}", "Sat, 28 Nov 2026 07:00:00 GMT"):
        assert wanted_range("bytes=2-3", other, ETAG, 10) is None


def test_known_states() -> None:
    assert is_unchanged(f'"x", W/{ETAG}', ETAG) and is_unchanged("*", ETAG)
    assert not is_unchanged("", ETAG) and not is_unchanged('"x"', ETAG)


def test_gzip_and_types() -> None:
    assert takes_gzip("gzip") and takes_gzip("br;q=1, GZIP;q=0.1") and takes_gzip("*")
    assert (
        not takes_gzip("")
        and not takes_gzip("gzip;q=0, *")
        and not takes_gzip("identity")
        and not takes_gzip("gzip;q=x")
    )
    offered = ["a/one", "text/csv"]
    assert chosen_type("", offered) == chosen_type("*/*", offered) == "a/one"
    assert chosen_type("text/*, a/one;q=0.5", offered) == "text/csv"
    with pytest.raises(NotAcceptable, match="a/one, text/csv"):
        chosen_type("image/png, a/one;q=0", offered)


def test_targets() -> None:
    assert parse_target("a/b") == Target(Reference("a/b"))
    assert parse_target("a/files/b") == Target(Reference("a/files/b"))
    assert parse_target("a/b@3") == Target(Reference("a/b", 3))
    assert parse_target("a@3/files") == parse_target("a@3/files/") == Target(Reference("a", 3), "")
    assert parse_target("a@3/files/x/ä@1") == Target(Reference("a", 3), "x/ä@1")
    for bad in (
        "../a",
        "a/../b",
        "/a",
        "a@0",
        "a@x",
        "a@3/file",
        "a@3/files/../x",
        "a@3/files//x",
        "a@3/files/a\0b",
        "",
    ):
        with pytest.raises(UsageError):
            parse_target(bad)
