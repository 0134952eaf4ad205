"""What a running program, and a twin, holds inside: codes and sums by the name of their operation."""

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


def twin_codes(twin, x, width):
    """Run normalised images with all layers at one width, and return codes by the program's names."""
    import torch

    held, hooks = {}, []
    for name, module in twin.graph.named_modules():
        if type(module).__name__ == "Quantizer":
            hooks.append(
                module.register_forward_hook(lambda m, i, out, name=name: held.update({name: out.codes}))
            )
    with torch.no_grad():
        twin(x, width)
    for hook in hooks:
        hook.remove()
    last = {name: codes.movedim(1, -1).numpy().astype(int) for name, codes in held.items()}
    return {name: c.reshape(len(c), *([1] * (4 - c.ndim)), *c.shape[1:]) for name, c in last.items()}
