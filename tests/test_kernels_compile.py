"""Every kernel compiles to machine code for every generation of GPU, and needs there what the table says."""

import dataclasses
import itertools
import json
import shutil

import kernel_resources
import numpy as np
import pytest
from kernel_resources import COLUMNS, FOLDER, GENERATIONS, TABLE, CompilationError, rows, words

from dqt_core import kernels
from dqt_core.backends import gpu_launches, gpu_plan
from dqt_core.kernels import structs
from dqt_core.kernels.emulator import KERNEL

SIDES = ("TILE_M", "TILE_N")


def meetings(defines):
    """Which macros a variant has, and which values of two of them meet in it; a tile is one value."""
    values = [item for item in defines.items() if item[0] not in SIDES]
    values.append(tuple(defines.get(side) for side in SIDES))
    return {frozenset(pair) for pair in itertools.combinations(values, 2)} | {(*defines,)}


def quick(variants):
    """So few of them that every two values that meet, meet in one; `make slow` compiles the others."""
    chosen, left = [], set().union(*map(meetings, variants))
    while left:
        chosen.append(max(variants, key=lambda defines: len(meetings(defines) & left)))
        left -= meetings(chosen[-1])
    return chosen


VARIANTS = [
    pytest.param(
        source,
        defines,
        marks=() if defines in quick(variants) else pytest.mark.slow,
        id=f"{source} {words(defines)}",
    )
    for source, variants in kernels.VARIANTS.items()
    for defines in variants
]


def nvrtc():
    """The compiler as a library, which is what CuPy uses; None where it is not installed."""
    try:
        from cuda.bindings import nvrtc

        nvrtc.nvrtcVersion()
    except (ImportError, RuntimeError):
        return None
    return nvrtc


def needs_nvcc():
    if kernel_resources.nvcc_release() is None:
        pytest.skip("needs nvcc, of the CUDA toolkit: compiles the kernels for GPUs that need not be there")


def recorded():
    return json.loads(TABLE.read_text())


@pytest.mark.parametrize(("source", "defines"), VARIANTS)
def test_nvcc_compiles_it(source, defines):
    needs_nvcc()
    made = rows(source, defines)
    names = [name for name, _ in KERNEL.findall(kernels.source(f"{source}.cu"))]
    assert {(row[2], row[3]) for row in made} == set(itertools.product(names, GENERATIONS))
    if recorded()["compiler"] == f"nvcc {kernel_resources.nvcc_release()}":
        expected = [row for row in recorded()["rows"] if row[:2] == [source, words(defines)]]
        assert made == expected, "the table is old; run python tests/kernel_resources.py"


def test_nvcc_lays_out_structs_as_the_host_does(tmp_path):
    needs_nvcc()
    (tmp_path / "common.cuh").write_text(kernels.source("common.cuh"))
    includes = '#include "common.cuh"\n#include <cstddef>\n'
    offsets = "".join(
        f"static_assert(offsetof({struct}, {field}) == {at[1]});\n"
        for struct in structs.fields()
        for field, at in structs.layout(struct).fields.items()
    )
    assert offsets.count("\n") > 30
    (tmp_path / "sizes.cu").write_text(includes + structs.sizes_in_c() + offsets)
    assert kernel_resources.compiled(tmp_path / "sizes.cu", ("-std=c++17", "-ptx")) == []


def test_nvrtc_compiles_all():
    compiler = nvrtc()
    if compiler is None:
        pytest.skip("needs NVRTC, the compiler that CuPy calls: pip install cuda-bindings nvidia-cuda-nvrtc")
    for source, variants in kernels.VARIANTS.items():
        for defines, sm in itertools.product(variants, GENERATIONS):
            assert len(nvrtc_machine_code(compiler, source, defines, sm)) > 1000


def nvrtc_machine_code(compiler, source, defines, sm):
    def checked(error, *values):
        assert error == compiler.nvrtcResult.NVRTC_SUCCESS, f"{source} {words(defines)} sm_{sm}: {log()}"
        return values[0] if values else None

    def log():
        _, size = compiler.nvrtcGetProgramLogSize(program)
        text = b" " * size
        compiler.nvrtcGetProgramLog(program, text)
        return text.decode()

    texts = ((kernels.source(f"{source}.cu") + structs.sizes_in_c()).encode(), source.encode())
    header = kernels.source("common.cuh").encode()
    _, program = compiler.nvrtcCreateProgram(*texts, 1, [header], [b"common.cuh"])
    options = ["--std=c++17", f"--gpu-architecture=sm_{sm}", *(f"-D{k}={v}" for k, v in defines.items())]
    checked(*compiler.nvrtcCompileProgram(program, len(options), [option.encode() for option in options]))
    code = b" " * checked(*compiler.nvrtcGetCUBINSize(program))
    checked(*compiler.nvrtcGetCUBIN(program, code))
    return code


def test_every_two_values_of_macros_meet_in_a_variant_that_is_always_compiled():
    for source, variants in kernels.VARIANTS.items():
        kept = quick(variants)
        assert all(
            any(meeting in meetings(one) for one in kept) for v in variants for meeting in meetings(v)
        ), source
    # five tiles meet three lengths of vectors, each with both signs and both roundings
    assert 15 <= len(quick(kernels.VARIANTS["conv"])) < 20


def test_every_source_is_listed_with_its_variants():
    assert sorted(kernels.VARIANTS) == kernel_resources.sources()
    for source, variants in kernels.VARIANTS.items():
        assert 1 <= len({words(defines) for defines in variants}) == len(variants), source


class Asked:
    """An engine that notes what it is asked for, and runs nothing."""

    xp = np

    def __init__(self):
        self.variants = set()

    def kernel(self, source, name, **defines):
        self.variants.add((source, frozenset(defines.items())))
        return lambda grid, block, args: None


def test_every_variant_that_the_backend_asks_for_is_listed(shipped):
    engine = Asked()
    for name in ("embedded", "cifar10"):
        for rounding in ("half_up", "floor"):
            program = dataclasses.replace(shipped(name), rounding=rounding)
            launches = gpu_plan.Backend(program, engine)._launches
            for batch in (1, 4, 128, 512):
                gpu_plan.Plan(program, launches, batch, given=False, keep=False)
    listed = {
        (source, frozenset(defines.items()))
        for source, variants in kernels.VARIANTS.items()
        for defines in variants
    }
    assert len(engine.variants) > 10
    assert engine.variants <= listed
    assert {(height, width) for height, width in gpu_launches.TILES} == {
        (defines["TILE_M"], defines["TILE_N"]) for defines in kernels.VARIANTS["conv"]
    }


def test_the_table_has_every_variant_and_no_other():
    table = recorded()
    assert table["columns"] == COLUMNS
    listed = {
        (source, words(defines)) for source, variants in kernels.VARIANTS.items() for defines in variants
    }
    assert {(source, variant) for source, variant, *_ in table["rows"]} == listed
    assert {row[3] for row in table["rows"]} == set(GENERATIONS)


def test_registers_and_shared_memory_suffice():
    for row in recorded()["rows"]:
        named = dict(zip(COLUMNS, row, strict=True))
        allowed = (
            64 if named["sm"] == 75 else 0
        )  # the largest tiles of the convolution, for want of registers
        assert named["spilled_bytes"] <= allowed, named
        assert named["stack_bytes"] <= allowed, named
        assert named["shared_bytes"] <= 48 << 10, named


@pytest.mark.parametrize(
    ("text", "replacement", "message"),
    [
        ("int drop = 8 - width;", "int drop = 8 - width, unused;", "unused"),
        ("int drop = 8 - width;", "int drop = 8 - wide;", "wide"),
        ("int lane = threadIdx.x % 32,", "int lane = threadIdx.x % 32; lane; int", "no effect"),
    ],
)
def test_errors_and_warnings_are_caught(text, replacement, message, tmp_path):
    needs_nvcc()
    for name in ("common.cuh", "planes.cu"):
        original = (FOLDER / name).read_text()
        (tmp_path / name).write_text(original.replace(text, replacement))
    with pytest.raises(CompilationError, match=message):
        rows("planes", {}, tmp_path)


def test_a_change_of_the_resources_is_caught(tmp_path):
    needs_nvcc()
    for name in ("common.cuh", "planes.cu"):
        shutil.copy(FOLDER / name, tmp_path)
    changed = (
        (tmp_path / "planes.cu").read_text().replace("inputs[BATCH][4][2][32]", "inputs[BATCH][4][2][33]")
    )
    (tmp_path / "planes.cu").write_text(changed)
    defines = kernels.VARIANTS["planes"][0]
    assert rows("planes", defines, tmp_path) != rows("planes", defines)
