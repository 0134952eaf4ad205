"""Run a program on a backend, with all its threads, and in forks of the process while another thread runs it.

    python in_forks.py BACKEND

Prints how many answers of the forks are right; each that waits for what did not come along is ended.
"""

import os
import signal
import sys
import threading

import numpy as np
import torch
from program_checks import small_images, small_program

FORKS, LIMIT = 4, 60  # children; seconds that each may take


def child(program, images, backend, expected):
    signal.alarm(LIMIT)
    os._exit(0 if program.run(images, "controller", backend).digest == expected else 1)


def statuses(program, images, backend, expected):
    children = []
    for _ in range(FORKS):
        if (number := os.fork()) == 0:
            child(program, images, backend, expected)
        children.append(number)
    return [os.waitstatus_to_exitcode(os.waitpid(number, 0)[1]) for number in children]


def main(backend):
    torch.set_num_threads(2)
    torch.ones(1 << 20).exp_()  # OpenMP has threads by now, as after training
    program, images = small_program(), np.tile(small_images(), (64 if backend != "emulator" else 1, 1, 1, 1))
    expected = program.run(images, "controller", backend).digest
    running, over = threading.Event(), threading.Event()

    def go_on():
        while not over.is_set():
            program.run(images, 8, backend)
            running.set()

    thread = threading.Thread(target=go_on)
    thread.start()
    running.wait(LIMIT)
    try:
        print(statuses(program, images, backend, expected))
    finally:
        over.set()
        thread.join()
    print(statuses(program, images, backend, expected))


if __name__ == "__main__":
    main(*sys.argv[1:])
