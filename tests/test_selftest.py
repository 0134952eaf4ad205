"""The self-test: exact where the package is, not where something is broken; what is missing is named."""

import sys
from dataclasses import replace

import numpy as np
import pytest

from dqt_core import integer, nested, selftest


def test_it_passes_here(capsys):
    assert selftest.main() == 0
    out = capsys.readouterr().out
    assert "numpy, the definition  exact: half_up 610dc86c30f8" in out
    assert "torch, on the CPU      exact" in out
    assert "numba, on the CPU      exact" in out
    assert "ONNX Runtime           exact" in out
    assert "FAILED" not in out


def test_the_network_says_different_things():
    """A digest of constants would see nothing."""
    program, images = selftest.network(), selftest.images()
    result = program.run(images, "controller", "numpy")
    assert len(np.unique(result.widths)) == 3
    assert all(len(set(column)) > 1 for column in result.logits.T.tolist())
    same = [program.run(images, width, "numpy").digest for width, _ in program.choices]
    assert len(set(same)) == len(program.choices)


# Errors it must see


def test_a_broken_switch_is_seen(monkeypatch, capsys):
    monkeypatch.setattr(nested, "switch", lambda q, width, signed=None, rounding="half_up": q >> (8 - width))
    passed, words = selftest.check("numpy, the definition")
    assert passed is False
    assert "half_up is" in words
    assert "expected 610dc86c30f8; pip install --upgrade" in words
    assert selftest.main() == 1
    assert "are not exact here" in capsys.readouterr().out


def test_a_rounding_that_goes_down_is_seen(monkeypatch):
    right = integer.requantize
    monkeypatch.setattr(
        integer,
        "requantize",
        lambda terms, offset, r, lo, hi: right(terms, offset + 1 - (1 << r - 1), r, lo, hi),
    )
    assert selftest.check("numpy, the definition")[0] is False


def test_a_logit_that_is_off_by_one_is_seen():
    def run(program, images, widths):
        result = program.run(images, "controller" if widths is None else widths, "numpy")
        logits = result.logits.copy()
        logits[-1, -1] += 1
        return replace(result, logits=logits)

    assert selftest.digest(run, "floor") != selftest.EXPECTED["floor"]


def test_a_crash_is_a_failure_with_a_remedy(monkeypatch):
    monkeypatch.setenv("CC", sys.executable)  # compiles no C
    passed, words = selftest.check("C, compiled here")
    assert passed is False
    assert "CalledProcessError" in words
    assert "try another compiler" in words


@pytest.mark.parametrize(
    ("name", "module", "words"),
    [
        ("torch, on the CPU", "torch", 'not here: pip install -e ".[train]" in a checkout'),
        ("numba, on the CPU", "numba", 'not here: pip install -e ".[fast]" in a checkout'),
        ("cupy, on a GPU", "cupy", "NVIDIA GPU"),
        ("ONNX Runtime", "onnxruntime", 'not here: pip install -e ".[export]" in a checkout'),
    ],
)
def test_what_is_missing_is_named(monkeypatch, name, module, words):
    found = selftest.importlib.util.find_spec
    monkeypatch.setattr(
        selftest.importlib.util,
        "find_spec",
        lambda name, *rest: None if name == module else found(name, *rest),
    )
    passed, said = selftest.check(name)
    assert passed is None
    assert words in said


def test_without_a_compiler_nothing_is_compiled(monkeypatch):
    monkeypatch.setattr(selftest.shutil, "which", lambda name: None)
    assert selftest.check("C, compiled here") == (None, "not here: install a C compiler, or set CC")
