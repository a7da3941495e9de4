"""What Ctrl-C finds of an action that must not be cut in two: done, or never begun."""

import threading
import time

import pytest

from raylog.api.pulls import whole


def test_results_and_errors_come_through():
    assert whole(lambda: 5) == 5
    with pytest.raises(ZeroDivisionError):
        whole(lambda: 1 / 0)


@pytest.mark.parametrize("is_started", [False, True])
def test_ctrl_c_while_the_thread_starts(is_started, monkeypatch):
    done, real = [], threading.Thread.start

    def struck(thread):
        if is_started:
            real(thread)
            time.sleep(0.05)
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", struck)
    with pytest.raises(KeyboardInterrupt):
        whole(lambda: time.sleep(0.2) or done.append(1))
    assert done == [1] * is_started
    time.sleep(0.3)
    assert done == [1] * is_started


def test_ctrl_c_before_a_started_thread_has_got_to_it(monkeypatch):
    done, late, real = [], [], threading.Thread.run

    def slow(thread):
        time.sleep(0.2)
        late.append(1)
        real(thread)

    def struck(thread):
        start(thread)
        raise KeyboardInterrupt

    start = threading.Thread.start
    monkeypatch.setattr(threading.Thread, "run", slow)
    monkeypatch.setattr(threading.Thread, "start", struck)
    with pytest.raises(KeyboardInterrupt):
        whole(lambda: done.append(1))
    time.sleep(0.5)
    assert late == [1]
    assert done == []
