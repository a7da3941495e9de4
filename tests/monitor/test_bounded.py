"""Calls that hang, in real threads."""

import threading
import time

import pytest

from raylog.errors import DeadlineExceeded
from raylog.monitor.bounded import BoundedCalls


def test_results_and_errors_come_back_from_one_other_thread() -> None:
    calls = BoundedCalls("test-calls", timeout_s=5)
    first = calls.call(threading.current_thread)
    assert first is not threading.current_thread()
    assert calls.call(threading.current_thread) is first
    with pytest.raises(ZeroDivisionError):
        calls.call(lambda: 1 // 0)
    assert calls.call(lambda: 7) == 7
    calls.close()
    assert not first.is_alive()


def test_a_hanging_call_is_given_up_and_its_late_answer_dropped() -> None:
    calls = BoundedCalls("test-hang", timeout_s=0.1)
    release = threading.Event()
    with pytest.raises(DeadlineExceeded, match=r"test-hang: no answer within 0\.1 s"):
        calls.call(lambda: release.wait(20))
    started_s = time.monotonic()
    with pytest.raises(DeadlineExceeded, match="an earlier call still hangs"):
        calls.call(lambda: "new")
    assert time.monotonic() - started_s < 0.1
    release.set()
    assert _eventually(lambda: calls.call(lambda: "new")) == "new"
    calls.close()
    assert "test-hang" not in {thread.name for thread in threading.enumerate()}


def test_closing_does_not_wait_for_a_hanging_call_and_a_later_call_works() -> None:
    calls = BoundedCalls("test-close", timeout_s=0.1)
    release = threading.Event()
    with pytest.raises(DeadlineExceeded):
        calls.call(lambda: release.wait(20))
    calls.close()
    release.set()
    assert _eventually(lambda: calls.call(lambda: 1)) == 1
    calls.close()


def _eventually(attempt):  # type: ignore[no-untyped-def]
    deadline_s = time.monotonic() + 10
    while True:
        try:
            return attempt()
        except DeadlineExceeded:
            assert time.monotonic() < deadline_s
            time.sleep(0.005)
