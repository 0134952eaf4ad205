"""The backend numba touches no byte outside of its buffers, and what is sized too small is noticed."""

import signal
from pathlib import Path

import pytest
from guarded_numba import in_a_process

from dqt_core.backends import numba_cpu
from dqt_core.backends._processor import Amx

SCRIPT = Path(__file__).parent / "guarded_numba.py"
# ONEDNN_MAX_CPU_ISA that hides the wider instructions.
INSTRUCTIONS = {"Amx": "", "Vnni512": "AVX512_CORE_VNNI", "Vnni256": "AVX2_VNNI", "Plain": "AVX2"}

MUTANTS = {
    # name: (text of a file of numba_cpu, its replacement)
    "the last product is read where it is": (
        "block.pixels // machine.tile * machine.tile if step.direct else 0",
        "block.pixels if step.direct else 0",
    ),
    "no line beyond a value": ("MARGIN = layout.LINE ", "MARGIN = 0 "),
    "no line beyond the windows": ('"panel": windows + layout.LINE', '"panel": windows'),
    "a panel of one size": ("own.block_pixels * own.lines * machine.line for", "1 << 18 for"),
    "windows of one piece": ("own.block_pixels * own.pieces for", "own.block_pixels for"),
    "windows nowhere": ("for i in range(block.pixels, span)", "for i in range(span, span)"),
    "a block that ends within a product": (
        "max(1, products) * layout.PIXELS",
        "max(layout.PIXELS, min(buffers.MOST, PANEL // touched))",
    ),
    "sums of a product only": ("max(layout.PRODUCT, 4 * widest)", "layout.PRODUCT"),
    "sums of the channels only": ("max(layout.PRODUCT, 4 * widest)", "4 * widest"),
    "sums that end with the channels": ("values()) + 15", "values())"),
    "totals of 32 bits": ('"totals": 8 * widest', '"totals": 4 * widest'),
    "middles of 8 bits": ('"middles": 4 * MOST', '"middles": MOST'),
    "codes alone have a rest": ('"spare": 4 * 16 * layout.PIXELS', '"spare": 16 * layout.PIXELS'),
    "tables that end with the channels": ("beyond=15", "beyond=0"),
    "a product beyond the channels": (
        "parts = (outputs + CHANNELS - 1) // CHANNELS",
        "parts = (outputs + CHANNELS) // CHANNELS",
    ),
    "sums as long as codes": (
        "analysis.sizes(self.values, in_arena, self.capacity)",
        "{name: self.capacity * math.prod(self.values[name].shape) for name in in_arena}",
    ),
}


def guarded(side, workers, *mutation, machine=None):
    settings = {"ATEN_CPU_CAPABILITY": "", "NUMBA_NUM_THREADS": str(workers)}
    if machine is not None:
        settings["ONEDNN_MAX_CPU_ISA"] = INSTRUCTIONS[machine]
    return in_a_process(SCRIPT, side, workers, *mutation, **settings)


@pytest.mark.parametrize(
    ("machine", "side", "workers"),
    [*((machine, "end", 1) for machine in INSTRUCTIONS), (None, "start", 1), (None, "end", 2)],
)
def test_no_byte_outside_is_touched(machine, side, workers, monkeypatch):
    if machine is not None:
        with monkeypatch.context() as masked:  # as in the process to come
            masked.setenv("ATEN_CPU_CAPABILITY", "")
            masked.setenv("ONEDNN_MAX_CPU_ISA", INSTRUCTIONS[machine])
            there = type(numba_cpu.machine()).__name__
        if there != machine:
            pytest.skip(f"this processor has no {machine}: {there}")
    done = guarded(side, workers, machine=machine)
    found, *cases = done.stdout.split("\n")[:-1]
    assert machine in (None, found)
    assert done.returncode == 0, f"{found}: {cases[-1]}\n{done.stderr}"
    assert cases[-1] == "intact"


# a read and a write: that the guard sees them is tried every time, the other sizes by `make mutants`
ALWAYS = "no line beyond the windows", "totals of 32 bits"


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in ALWAYS else pytest.mark.mutants) for name in MUTANTS]
)
def test_every_mutant_is_killed(name, tmp_path):
    if name == "the last product is read where it is" and not isinstance(numba_cpu.machine(), Amx):
        pytest.skip("this processor has no tiles: it reads the windows that it is given, and none beyond")
    done = guarded("end", 1, *MUTANTS[name], tmp_path)
    assert "intact" not in done.stdout
    assert done.returncode == -signal.SIGSEGV or "OutsideError: " in done.stderr, done.stderr
