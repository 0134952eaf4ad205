"""That the kernels are compiled takes a while: it is said, once, and what was compiled is kept."""

import numpy as np
from guarded_numba import in_a_process
from numba.core.event import Event, EventStatus
from program_checks import saturated

from dqt_core.backends import _numba_cache, _numba_kernels, numba_cpu

CODE = """
import numpy as np
from dqt_core.backends import numba_cpu
numba_cpu.threads = lambda: 1
from program_checks import saturated
for _ in range(2):
    print(saturated(7).run(np.zeros((2, 1, 1, 3), np.uint8), 8, "numba").digest)
"""
SAID = "dqt_core: compiling the kernels for this processor, once; kept on disk\n"


def test_it_is_said_once_and_kept(tmp_path):
    script = tmp_path / "first_run.py"
    script.write_text(CODE, encoding="utf-8")
    first, second = (in_a_process(script, NUMBA_CACHE_DIR=str(tmp_path / "kept")) for _ in range(2))
    assert (first.returncode, first.stderr) == (0, SAID)
    assert (second.returncode, second.stderr) == (0, "")
    assert first.stdout == second.stdout != ""


def test_where_nothing_can_be_kept(monkeypatch, capsys):
    def refuse(function):
        raise RuntimeError("cannot cache function 'doubled': no locator available for file 'x.py'")

    monkeypatch.setattr(_numba_cache, "_Cache", refuse)

    @_numba_cache.kept()
    def doubled(x):
        return 2 * x

    assert doubled(4) == 8
    assert not doubled.is_kept
    monkeypatch.setattr(_numba_kernels, "run", doubled)
    notice = numba_cpu._Notice()
    for _ in range(2):
        notice.on_start(Event("numba:compile", EventStatus.START, {"dispatcher": doubled}))
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "not kept, as no folder of Numba's cache can be written to: set NUMBA_CACHE_DIR to one" in said


def test_what_is_prepared_is_what_runs():
    numba_cpu.prepare()
    before = [len(run.signatures) for run in (_numba_kernels.run, _numba_kernels.run_alone)]
    saturated(7).run(np.zeros((2, 1, 1, 3), np.uint8), 8, "numba")
    assert [len(run.signatures) for run in (_numba_kernels.run, _numba_kernels.run_alone)] == before
