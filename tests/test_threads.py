"""Threads for kernels: every share is done once, and no failure is lost."""

import os
import threading

import pytest

from quantarray import QuantArrayError
from quantarray.kernels import threads

pytestmark = pytest.mark.backend_independent


@pytest.mark.parametrize("n", [1, 2, 9])
def test_every_share_is_done_once(n):
    done = []
    threads.run(
        lambda *share: done.append((share, threading.get_ident())), [(i, -i) for i in range(n)]
    )
    assert sorted(share for share, _ in done) == [(i, -i) for i in range(n)]
    assert dict(done)[0, 0] == threading.get_ident()


@pytest.mark.parametrize("failing", [{0}, {1}, {2, 3}, {0, 3}])
def test_the_first_failure_is_raised_when_all_are_done(failing):
    done = []

    def work(i):
        if i in failing:
            raise KeyError(i)
        done.append(i)

    with pytest.raises(KeyError, match=str(min(failing))):
        threads.run(work, [(i,) for i in range(4)])
    assert set(done) == set(range(4)) - failing


def test_an_interrupt_waits_for_the_other_shares():
    done, started = [], threading.Event()

    def work(i):
        if i == 0:
            started.set()
            raise KeyboardInterrupt
        started.wait(10)
        done.append(i)

    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        threads.run(work, [(i,) for i in range(3)])
    assert sorted(done) == [1, 2]
    assert threading.active_count() == before


def test_an_interrupt_of_another_share_is_not_lost():
    def work(i):
        if i == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        threads.run(work, [(0,), (1,)])


def test_calls_within_calls():
    done = []

    def outer(i):
        threads.run(lambda j: done.append((i, j)), [(j,) for j in range(3)])

    threads.run(outer, [(i,) for i in range(3)])
    assert sorted(done) == [(i, j) for i in range(3) for j in range(3)]


def test_eight_callers_at_once():
    found = [[] for _ in range(8)]
    callers = [
        threading.Thread(target=threads.run, args=(mine.append, [(i,) for i in range(20)]))
        for mine in found
    ]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert all(sorted(mine) == list(range(20)) for mine in found)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*fork.*:RuntimeWarning")
def test_after_a_fork():
    threads.run(lambda i: None, [(0,), (1,)])
    child = os.fork()
    if child == 0:
        done = []
        threads.run(done.append, [(0,), (1,), (2,)])
        os._exit(0 if sorted(done) == [0, 1, 2] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_count(monkeypatch):
    monkeypatch.delenv("QUANTARRAY_THREADS", raising=False)
    assert 1 <= threads.count() <= os.cpu_count()
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert threads.count() == os.cpu_count()
    monkeypatch.setenv("QUANTARRAY_THREADS", "3")
    assert threads.count() == 3


@pytest.mark.parametrize("wanted", ["0", "-1", "two", "", "1.5", "٣", "9" * 5000, " 2"])
def test_count_refuses(wanted, monkeypatch):
    monkeypatch.setenv("QUANTARRAY_THREADS", wanted)
    with pytest.raises(QuantArrayError, match=r"QUANTARRAY_THREADS=.*: expected 1 to 99999"):
        threads.count()
