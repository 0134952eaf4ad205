"""That the kernels are compiled takes a while: it is said, once, and what was compiled is kept."""

import hashlib
import importlib.util
import os
import re
import resource
import sys

import numba
import numpy as np
import pytest
from guarded_numba import in_a_process
from numba.core.event import Event, EventStatus
from program_checks import saturated

from dqt_core.backends import _numba_cache, numba_cpu
from dqt_core.backends.numba_cpu import _kernels

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
    def refuse(function, parts):
        raise RuntimeError("cannot cache function 'doubled': no locator available for file 'x.py'")

    monkeypatch.setattr(_numba_cache, "_Cache", refuse)

    @_numba_cache.kept()
    def doubled(x):
        return 2 * x

    assert doubled(4) == 8
    assert not doubled.is_kept
    monkeypatch.setattr(_kernels, "run", doubled)
    notice = numba_cpu._Notice()
    for _ in range(2):
        notice.on_start(Event("numba:compile", EventStatus.START, {"dispatcher": doubled}))
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "not kept, as no folder of Numba's cache can be written to: set NUMBA_CACHE_DIR to one" in said


def test_what_is_prepared_is_what_runs():
    numba_cpu.prepare()
    before = [len(run.signatures) for run in (_kernels.run, _kernels.run_alone)]
    saturated(7).run(np.zeros((2, 1, 1, 3), np.uint8), 8, "numba")
    assert [len(run.signatures) for run in (_kernels.run, _kernels.run_alone)] == before


FORKS = """
import os, signal
import torch
from dqt_core.backends.numba_cpu import _kernels as kernels
from program_checks import small_images, small_program

def loaded():
    return [len(f.signatures) for f in (kernels.run, kernels.run_alone, kernels.switch_weights)]

torch.set_num_threads(2)
program, images = small_program(), small_images()
program.run(images, 8, "numba")
assert loaded()[:2] == [1, 0], "on two threads the parent does not need the function of one"
if (child := os.fork()) == 0:
    signal.alarm(60)
    before = loaded()
    digest = program.run(images, "controller", "numba").digest
    os._exit((loaded() != before) + 2 * (digest != program.run(images, "controller", "numpy").digest))
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_fork_loads_nothing(tmp_path):
    """It might wait for ever: see `numba_cpu._before_fork`."""
    script = tmp_path / "forks.py"
    script.write_text(FORKS, encoding="utf-8")
    done = in_a_process(script, OMP_NUM_THREADS="2", NUMBA_NUM_THREADS="2")
    assert (done.returncode, done.stdout) == (0, "0\n"), done.stderr


SOURCE = """
from dqt_core.backends._numba_cache import kept

@kept()
def tripled(x):
    return 3 * x
"""
DAMAGES = {
    "nothing": lambda whole: whole,
    "emptied": lambda whole: b"",
    "cut short": lambda whole: whole[:-9],
    "a bit": lambda whole: whole[:-40] + bytes([whole[-40] ^ 1]) + whole[-39:],
    "another file": lambda whole: b"no such thing" * 99,
}


@pytest.fixture
def tripled(tmp_path, monkeypatch):
    """A kept function, as a new process finds it; and what it then printed."""
    (tmp_path / "tripling.py").write_text(SOURCE, encoding="utf-8")
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "cache"))

    def run(capsys):
        spec = importlib.util.spec_from_file_location("tripling", tmp_path / "tripling.py")
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, "tripling", module)
        spec.loader.exec_module(module)
        assert module.tripled(14) == 42
        hits = sum(module.tripled.stats.cache_hits.values())
        return hits, capsys.readouterr().err

    run.files = lambda suffix: list((tmp_path / "cache").rglob(f"*.{suffix}"))
    return run


@pytest.mark.parametrize("suffix", ["nbi", "nbc"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_cache_is_made_anew(damage, suffix, tripled, capsys):
    """LLVM ends the process where the object code that it is given is damaged."""
    assert tripled(capsys) == (0, "")
    (file,) = tripled.files(suffix)
    file.write_bytes(DAMAGES[damage](file.read_bytes()))
    hits, said = tripled(capsys)
    if damage == "nothing":
        assert (hits, said) == (1, "")
    else:
        assert (hits, said.count("\n")) == (
            0,
            said.count(f"{file} is damaged, the kernels are compiled anew"),
        )
        assert "set NUMBA_CACHE_DIR to another folder" in said
    assert tripled(capsys) == (1, "")


def test_an_edit_that_no_clock_sees_is_compiled_anew(tripled, tmp_path, capsys):
    assert tripled(capsys) == (0, "")
    source = tmp_path / "tripling.py"
    then = source.stat()
    source.write_text(SOURCE.replace("3 * x", "x * 3"), encoding="utf-8")
    os.utime(source, ns=(then.st_atime_ns, then.st_mtime_ns))
    assert tripled(capsys) == (0, "")
    assert tripled(capsys) == (1, "")


def test_an_edit_of_a_part_is_compiled_anew(tripled, tmp_path, monkeypatch, capsys):
    part = tmp_path / "part_of_tripling.py"
    part.write_text("FACTOR = 3\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    source = SOURCE.replace("@kept()", "import part_of_tripling\n\n@kept(part_of_tripling)")
    (tmp_path / "tripling.py").write_text(source, encoding="utf-8")
    assert tripled(capsys) == (0, "")
    assert tripled(capsys) == (1, "")
    part.write_text("FACTOR = 4\n", encoding="utf-8")
    assert tripled(capsys) == (0, "")


def test_another_numba_has_a_cache_of_its_own(tripled, capsys, monkeypatch):
    """In a checkout that two environments share: what one keeps is pickled by its own modules."""
    with monkeypatch.context() as patch:
        patch.setattr(numba, "__version__", "0.0.1")
        assert tripled(capsys) == (0, "")
        for file in tripled.files("nbi"):
            content = b"cnumba.core.types.no_longer_there\nInteger\n."
            file.write_bytes(hashlib.sha256(content).digest() + content)
    assert tripled(capsys) == (0, "")
    assert tripled(capsys) == (1, "")


def test_a_full_disk_keeps_nothing_and_ends_nothing(tripled, capsys):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        hits, said = tripled(capsys)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert hits == 0
    assert re.search(
        r"could not keep the compiled kernels \(.*File too large.*\): make room there, or set", said
    )
    assert tripled(capsys) == (0, "")
    assert tripled(capsys) == (1, "")


def test_without_numbas_compiler(tmp_path):
    script = tmp_path / "uncompiled.py"
    script.write_text(
        CODE.replace("numba_cpu.threads = lambda: 1", "")
        .replace("from dqt_core.backends import numba_cpu", "")
        .replace('"numba").digest', '"auto").backend')
    )
    done = in_a_process(script, NUMBA_DISABLE_JIT="1")
    assert (done.returncode, done.stdout) == (0, "torch\ntorch\n"), done.stderr
    script.write_text(CODE)
    done = in_a_process(script, NUMBA_DISABLE_JIT="1")
    assert (
        'ImportError: backend "numba" needs Numba\'s compiler, which NUMBA_DISABLE_JIT turns off'
        in done.stderr
    )


LATE = """
import os, numba, numpy as np, dqt_core
from dqt_core.backends import numba_cpu
program = dqt_core.load("digits")
os.environ["NUMBA_DISABLE_JIT"] = "1"
images = np.zeros((1, *program.image_shape), np.uint8)
print(program.run(images, 4).backend)
program.run(images, 4, "numba")
"""


def test_a_compiler_that_is_turned_off_after_numba_was_imported(tmp_path):
    script = tmp_path / "late.py"
    script.write_text(LATE)
    done = in_a_process(script, NUMBA_CACHE_DIR=str(tmp_path / "empty"))
    assert done.stdout == "torch\n", done.stderr
    assert "which NUMBA_DISABLE_JIT turns off: unset it" in done.stderr.splitlines()[-1]
