"""Any number of threads may run one program, and forks of the process; what is interrupted spoils nothing."""

import contextlib
import os
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from guarded_numba import in_a_process
from numba.core.compiler_lock import global_compiler_lock
from program_checks import CHOICES, mixed_choices, small_images, small_program

from dqt_core.program import program

BACKENDS = "numpy", "torch", "numba", "emulator"
SCRIPT = Path(__file__).with_name("in_forks.py")


def asked(count):
    """Images, widths and batch sizes that differ, with the digest of their logits."""
    own, rng = small_program(), np.random.default_rng(0)
    for i in range(count):
        images = rng.permutation(small_images(12))[: 12 - i % 3]
        widths = (8, 2, "controller", np.array(CHOICES)[mixed_choices(len(images))])[i % 4]
        yield images, widths, own.run(images, widths, "numpy").digest


@pytest.mark.parametrize("backend", BACKENDS)
def test_threads_run_one_program(backend):
    """All begin at once, with a program that no backend has seen."""
    questions, fresh = list(asked(4)), replace(small_program())
    barrier, interval = threading.Barrier(len(questions)), sys.getswitchinterval()

    def answers(i):
        images, widths, _ = questions[i]
        barrier.wait(60)
        rounds = 4 if backend == "emulator" else 8
        return [fresh.run(images, widths, backend, batch_size=5 + i).digest for _ in range(rounds)]

    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(len(questions)) as pool:
            found = list(pool.map(answers, range(len(questions))))
    finally:
        sys.setswitchinterval(interval)
    assert [set(digests) for digests in found] == [{digest} for _, _, digest in questions]


def at_line(number, interrupt, run):
    """Whether `run` came to its so many-th line within the package, where `interrupt` is called."""
    left = number

    def trace(frame, event, argument):
        nonlocal left
        if "dqt_core" not in frame.f_code.co_filename:
            return None
        if event == "line":
            left -= 1
            if left == 0:
                sys.settrace(None)
                interrupt()
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        run()
    finally:
        sys.settrace(before)
    return left <= 0


def interrupted():
    raise KeyboardInterrupt


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_interrupted_run_leaves_the_next_one_right(backend):
    """Ctrl-C wherever Python sees it: while weights are laid out, plans made, buffers filled."""
    (first, other), line = asked(2), 1
    while True:
        fresh, ended = replace(small_program()), False
        fresh.run(first[0], 2, backend)  # what follows is of a width that is new
        with contextlib.suppress(KeyboardInterrupt):
            ended = not at_line(line, interrupted, lambda p=fresh: p.run(first[0], first[1], backend))
        for images, widths, digest in (first, other):
            assert fresh.run(images, widths, backend).digest == digest
        if ended:
            break
        line += 1 + line // 4
    assert line > 50


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_run_within_a_run(backend):
    """A signal's handler may run the program that it interrupts."""
    (outer, inner), fresh, found = asked(2), replace(small_program()), []

    def handler(*_):
        found.append(fresh.run(inner[0], inner[1], backend).digest)

    small_program().run(inner[0], 8, backend)  # Python cannot import within an import of the same
    before = signal.signal(signal.SIGUSR1, handler)
    try:
        for line in (30, 120, 250):
            done = []
            at_line(
                line,
                lambda: signal.raise_signal(signal.SIGUSR1),
                lambda done=done: done.append(fresh.run(outer[0], outer[1], backend).digest),
            )
            assert done == [outer[2]]
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert set(found) == {inner[2]}


@pytest.mark.parametrize("backend", BACKENDS)
def test_forks_run_on_one_thread(backend):
    """After OpenMP had threads, and while a thread runs the program."""
    done = in_a_process(SCRIPT, backend, OMP_NUM_THREADS="2", NUMBA_NUM_THREADS="2")
    assert (done.returncode, done.stdout) == (0, "[0, 0, 0, 0]\n" * 2), done.stderr


def test_a_fork_waits_for_what_is_being_compiled():
    """Its child could not finish that, and would wait for ever to compile something itself."""
    held, over = threading.Event(), threading.Event()

    def compiling():
        with global_compiler_lock:
            held.set()
            over.wait(60)

    thread = threading.Thread(target=compiling)
    thread.start()
    held.wait(60)
    threading.Timer(0.2, over.set).start()
    if (child := os.fork()) == 0:
        signal.alarm(20)
        with global_compiler_lock:
            os._exit(0)
    over.set()
    thread.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_fork_does_not_wait_for_a_program_that_is_being_checked(monkeypatch):
    held, over, check = threading.Event(), threading.Event(), program.require_program

    def halting(*fields):
        if threading.current_thread() is thread:
            held.set()
            over.wait(60)
        return check(*fields)

    monkeypatch.setattr(program, "require_program", halting)
    thread = threading.Thread(target=small_program)
    thread.start()
    held.wait(60)
    if (child := os.fork()) == 0:
        signal.alarm(20)
        os._exit(0 if small_program().digest else 1)
    status = os.waitpid(child, 0)[1]
    over.set()
    thread.join()
    assert os.waitstatus_to_exitcode(status) == 0
