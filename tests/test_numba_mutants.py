"""The checks of backends kill every mutant of numba_cpu: of what it tells the kernels.

A kernel that is told something wrong may write anywhere, so a mutant lives in a process of its own:

    python test_numba_mutants.py NAME
"""

import sys

import numpy as np
import pytest
from guarded_numba import in_a_process
from program_checks import BACKEND_CHECKS, CHOICES, mixed_choices, small_images, small_program
from test_mutants import killer, mutated

from dqt_core.backends import numba_cpu

MUTANTS = {
    # name: (text of numba_cpu.py, its replacement)
    "no correction": ("sums * np.int32(zero)", "sums * np.int32(0)"),
    "zero of 8 bits at every width": ("128 >> (MASTER_WIDTH - input_bits) if signed", "128 if signed"),
    "whole steps in floor": ("shift = 1 + drop if floor", "shift = drop if floor"),
    "no shift": ("else drop if conv.own is not None else 0", "else 0"),
    "depthwise shifted twice": ("shift, middle = 0 if floor else shift, 0", "middle = 0"),
    "no middle of the bin": (
        '<< input_drop if self.rounding == "floor" else 0',
        "<< input_drop if False else 0",
    ),
    "rounds down": ("half=1 << (step.r - 1) if i == 0 else 0", "half=0"),
    "rounds every term up": ("half=1 << (step.r - 1) if i == 0 else 0", "half=1 << (step.r - 1)"),
    "rounds down where it is fused": ("len(op.weight), 1 << (r - 1))", "len(op.weight), 0)"),
    "images in their own order": (
        "self.order[conv.entries : conv.entries + images] = order",
        "self.order[conv.entries : conv.entries + images] = np.arange(images)",
    ),
    "widths of the first batch kept": ('b"" if choices is None else choices.tobytes()', 'b""'),
    "first row for all": ("start = choice * row", "start = 0"),
}


def check_fused(module):
    """A backend that is used again, whose convolutions are joined with their requantize."""
    for rounding in ("half_up", "floor"):
        program, images = small_program(rounding), small_images()
        backend = module.Backend(program)
        for choices in (mixed_choices(), None, mixed_choices()[::-1].copy(), None):
            widths = "controller" if choices is None else np.array(CHOICES)[choices]
            expected = program.run(images, widths, "numpy")
            logits, picks = backend.run(images, choices)
            np.testing.assert_array_equal(picks, expected.choices)
            np.testing.assert_array_equal(logits, expected.logits)


CHECKS = [*BACKEND_CHECKS, check_fused]


SURVIVOR = {"none": ("LINE = kernels.LINE", "LINE = kernels.LINE ")}


def killer_of(name):
    done = in_a_process(__file__, name)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()[-1]


def test_the_backend_survives():
    assert killer_of("none") == "None"


@pytest.mark.parametrize("name", MUTANTS)
def test_every_mutant_is_killed(name):
    assert killer_of(name) in [check.__name__ for check in CHECKS]


if __name__ == "__main__":
    print(killer(mutated(numba_cpu, *(MUTANTS | SURVIVOR)[sys.argv[1]]), CHECKS))
