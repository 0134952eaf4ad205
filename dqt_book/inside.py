"""What a running program holds inside: the codes and the sums of every operation, by name."""

from collections import deque

from dqt_core.backends.stepwise import walk
from dqt_core.program.operations import IMAGE
from dqt_core.program.program import step_by_step


def values(program, images, width):
    """Run images with all layers at one width, and return every array on the way by its name."""
    picks = program._choices_of(width, len(images))
    held = {IMAGE: images}
    executor = step_by_step(program, "numpy")
    deque(walk(executor, program.ops, held, picks, len(program.choices), keep=True), maxlen=0)
    return held
