"""How threads share the items of a step: two counters in memory, of items taken and of items done."""

import platform
import sys
from typing import Any

from dqt_core._extras import needed

with needed('backend "numba"', "fast"):
    from numba import types
    from numba.extending import intrinsic

from dqt_core.backends.numba_cpu._lines import compiled
from dqt_core.backends.numba_cpu._llvm import INT, LONG, VOID, call, pointer

_LOOKS = 2000  # before a thread that waits lies down: about as long as a short step
# Of the system, in its own unit: 50 microseconds, or where there is nothing finer a millisecond
_NAP = ("Sleep", 1) if sys.platform == "win32" else ("usleep", 50)


@intrinsic
def add_one(typingctx: Any, address: Any) -> Any:
    """Add one to an int64 that other threads add to; what it was."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.atomic_rmw("add", pointer(builder, arguments[0], of=LONG), LONG(1), "seq_cst")

    return types.int64(types.int64), codegen


@intrinsic
def _look(typingctx: Any, address: Any) -> Any:
    """An int64 that other threads add to, after what they wrote before."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load_atomic(pointer(builder, arguments[0], of=LONG), "acquire", 8)

    return types.int64(types.int64), codegen


@intrinsic
def _breathe(typingctx: Any) -> Any:
    """Leave the core to its other thread for a moment, where a processor has a word for that."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if platform.machine() in ("x86_64", "AMD64"):
            call(builder, "llvm.x86.sse2.pause", VOID)
        return context.get_dummy_value()

    return types.none(), codegen


@intrinsic
def _nap(typingctx: Any) -> Any:
    """Leave the core to others: to the late thread itself, where it waits for one."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        name, time = _NAP
        call(builder, name, INT, INT(time))
        return context.get_dummy_value()

    return types.none(), codegen


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
