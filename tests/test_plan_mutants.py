"""The checks of plans kill every mutant of analysis, gpu_plan and gpu_launches."""

import functools
import types

import pytest
from plan_checks import PLAN_CHECKS
from test_mutants import mutated

from dqt_core import ProgramError
from dqt_core.backends import analysis, emulated, gpu_launches, gpu_plan
from dqt_core.kernels.emulator import EmulatorError, NoCompilerError

ANALYSIS_MUTANTS = {
    # name: (text of analysis.py, its replacement)
    "fused though read twice": ("readers.count(op.out) == 1", "True"),
    "fused at another layer's widths": ("if conv.layer == term.layer]", "if True]"),
    "three terms fused": ("or len(op.terms) > 2", ""),
    "the skip forgotten": (
        "FusedConv(conv, term, rest[0] if rest else None, op)",
        "FusedConv(conv, term, None, op)",
    ),
    "a place is free when it is last read": (
        "if lives[other][0] <= lives[name][1] and lives[name][0] <= lives[other][1]",
        "if lives[other][0] < lives[name][1] and lives[name][0] < lives[other][1]",
    ),
    "the skip's place is free too early": (
        "return (step.conv.x, *(() if step.skip is None else (step.skip.x,)))",
        "return (step.conv.x,)",
    ),
    "gaps are not looked at": ("if start - offset >= size:", "if True:"),
    "the image's place is free at once": ("last.get(name, end))", "at)"),
}

PLAN_MUTANTS = {
    # of gpu_plan.py
    "grouped before the choice": ("made += grouping if isinstance(step, Choose) else []", ""),
    "given choices are not grouped": ("made = list(grouping) if self.given else []", "made = []"),
    "the controller runs though widths are given": ("if not (given and op.controller)]", "]"),
    "the first image for all": (
        "plan.values[IMAGE][: len(images)] = xp.asarray(images)",
        "plan.values[IMAGE][: len(images)] = xp.asarray(images[:1])",
    ),
    "choices are not written": ("plan.picks[: len(images)] = xp.asarray(choices)", "pass"),
    "a plan too small": (
        "batch = images if images >= largest else",
        "batch = images if images < largest else largest or images if False else",
    ),
    "the last images of a batch": (
        "_on_host(plan.logits[: len(images)])",
        "_on_host(plan.logits[-len(images) :])",
    ),
    "plans of both modes mixed up": (
        "self._idle.setdefault((batch, given), [])",
        "self._idle.setdefault((batch, given := True), [])",
    ),
}

LAUNCH_MUTANTS = {
    "one layer is grouped": (
        "kernel, batch.layers, 32, (batch",
        "kernel, 1, 32, (batch",
    ),
    "no tile for the other choices": ("(-(-rows // tile_m) + choices - 1)", "-(-rows // tile_m)"),
    "one column of tiles": (" * -(-outputs // tile_n)\n        return", "\n        return"),
    "layers mixed up": ("batch.order[op.layer], batch.starts[op.layer]", "batch.order[0], batch.starts[0]"),
    "fixed layers at the narrowest": (
        "return *batch.everyone, self._full_bits, 1",
        "return *batch.everyone, self._bits, 1",
    ),
    "signed codes read as unsigned": (
        'defines = {"X_SIGNED": int(x.dtype == np.int8), "FLOOR"',
        'defines = {"X_SIGNED": 0, "FLOOR"',
    ),
    "half_up for floor": ('"FLOOR": int(self._is_floor)}', '"FLOOR": 0}'),
    "wide loads of few channels": ('"VECTOR": _vector(x.shape[3]), **', '"VECTOR": 4, **'),
    "rows of the skip shared": (
        "*self._tables(step.skip, out.shape[3]), *self._choice_of",
        "*self._tables(step.skip, out.shape[3])[:2], np.int32(1), *self._choice_of",
    ),
    "the skip's shift forgotten": ("None if self._is_floor else self._bits", "None"),
    "floor sums shifted": ("None if self._is_floor else self._bits", "self._bits"),
    "the skip at the first layer's choice": ("batch.columns[term.layer], None", "batch.columns[0], None"),
    "codes of the skip with the wrong sign": (
        "skip = x, KINDS[x.dtype],",
        "skip = x, KINDS[x.dtype] if x.dtype == np.int32 else UNSIGNED_CODES,",
    ),
    "r and clamp mixed up": (
        "np.int32(op.r), np.int32(op.lo), np.int32(op.hi)\n        if",
        "np.int32(op.r), np.int32(op.lo), np.int32(127)\n        if",
    ),
    "uploaded tables mixed up": ("key = id(table), shape", "key = table.shape, shape"),
    "one row for all choices": ("rows = max(len(term.multiplier), len(term.offset))", "rows = 1"),
    "max-pool without padding": ("op.kernel, op.stride, op.padding, *out", "op.kernel, op.stride, 0, *out"),
    "half of the blocks": ("    return -(-values // THREADS)", "    return -(-values // THREADS) // 2"),
    "depthwise tiles of one image": ("tiles = len(x) * -", "tiles = -"),
    "sums of a few channels": ("images * -(-channels // SUMMED_CHANNELS)", "images"),
}  # fmt: skip


def with_launches(plan, launches):
    """A module of a backend from (mutated) plans and launches, on the emulator."""
    vars(plan).update({name: vars(launches)[name] for name in ("Batch", "Launch", "Launches")})
    return types.SimpleNamespace(Backend=functools.partial(plan.Backend, engine=emulated.engine()))


def with_analysis(changed):
    """Plans that see a program as a (mutated) analysis does."""
    plan = mutated(gpu_plan, "import Engine", "import Engine ")
    vars(changed)["FusedConv"] = analysis.FusedConv  # which the launches know
    vars(plan).update({name: vars(changed)[name] for name in ("fused", "lives", "places", "sizes")})
    return with_launches(plan, gpu_launches)


def plan_killer(module):
    """Name of the first check that fails, or whose legal call the engine or the bounds refuse."""
    for check in PLAN_CHECKS:
        try:
            check(module)
        except NoCompilerError:
            raise
        except (AssertionError, OverflowError, ProgramError, ValueError, KeyError, EmulatorError):
            return check.__name__
    return None


@pytest.mark.parametrize("name", ANALYSIS_MUTANTS)
def test_mutant_of_the_analysis_is_killed(name):
    assert plan_killer(with_analysis(mutated(analysis, *ANALYSIS_MUTANTS[name])))


@pytest.mark.parametrize("name", PLAN_MUTANTS)
def test_mutant_of_the_plan_is_killed(name):
    assert plan_killer(with_launches(mutated(gpu_plan, *PLAN_MUTANTS[name]), gpu_launches))


@pytest.mark.parametrize("name", LAUNCH_MUTANTS)
def test_mutant_of_the_launches_is_killed(name):
    plan = mutated(gpu_plan, "import Engine", "import Engine ")
    assert plan_killer(with_launches(plan, mutated(gpu_launches, *LAUNCH_MUTANTS[name])))


def test_unmutated_copies_survive():
    plan = mutated(gpu_plan, "import Engine", "import Engine ")
    launches = mutated(gpu_launches, "BUSY = 256", "BUSY = 256 ")
    assert plan_killer(with_launches(plan, launches)) is None
    assert plan_killer(with_analysis(mutated(analysis, "ALIGNMENT = 256", "ALIGNMENT = 256 "))) is None
