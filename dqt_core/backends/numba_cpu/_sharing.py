"""How threads share the items of a step: two counters in memory, of items taken and of items done."""

import platform
import sys
from typing import Any

from dqt_core.backends._llvm import INT, LONG, VOID, call, compiled, instructions, pointer

_LOOKS = 2000  # before a thread that waits lies down: about as long as a short step
# Of the system, in its own unit: 50 microseconds, or where there is nothing finer a millisecond
_NAP = ("Sleep", 1) if sys.platform == "win32" else ("usleep", 50)


@instructions
def add_one(builder: Any, address: Any) -> int:
    """Add one to an int64 that other threads add to; what it was."""
    return builder.atomic_rmw("add", pointer(builder, address, of=LONG), LONG(1), "seq_cst")


@instructions
def _look(builder: Any, address: Any) -> int:
    """An int64 that other threads add to, after what they wrote before."""
    return builder.load_atomic(pointer(builder, address, of=LONG), "acquire", 8)


@instructions
def _breathe(builder: Any) -> None:
    """Leave the core to its other thread for a moment, where a processor has a word for that."""
    if platform.machine() in ("x86_64", "AMD64"):
        call(builder, "llvm.x86.sse2.pause", VOID)


@instructions
def _nap(builder: Any) -> None:
    """Leave the core to others: to the late thread itself, where it waits for one."""
    name, time = _NAP
    call(builder, name, INT, INT(time))


@compiled
def wait_for(address: int, count: int) -> None:
    """Until so much is counted there."""
    looks = 0
    while _look(address) < count:
        looks += 1
        if looks < _LOOKS:
            _breathe()
        else:
            _nap()
