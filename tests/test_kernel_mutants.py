"""The kernels' checks kill every mutant: a source with one small, plausible mistake, run on the emulator."""

import conv_mutants
import pytest
from conv_checks import CONV_CHECKS, DEPTHWISE_CHECKS
from grouped_checks import GROUPED_CHECKS, GROUPED_MUTANTS
from kernel_checks import PLANES_CHECKS, SWITCH_CHECKS
from pointwise_checks import POINTWISE_CHECKS

from dqt_core import kernels
from dqt_core.kernels.emulator import KERNEL, Emulator, EmulatorError, NoCompilerError

# file: checks that run its kernels, the quickest killers first
CHECKS = {
    # the first two: its rounding
    "common.cuh": (*POINTWISE_CHECKS[:2], *GROUPED_CHECKS, *DEPTHWISE_CHECKS, *PLANES_CHECKS, *SWITCH_CHECKS),
    "switch.cu": SWITCH_CHECKS,
    "planes.cu": PLANES_CHECKS,
    "conv.cu": CONV_CHECKS,
    "depthwise.cu": DEPTHWISE_CHECKS,
    "grouped.cu": GROUPED_CHECKS,
    "pointwise.cu": POINTWISE_CHECKS,
}

# file: (text that occurs once, its replacement, the kernel and what is wrong with it)
MUTANTS = {
    "common.cuh": [
        ("kept = (codes >> drop)", "kept = (codes >> (drop - 1))", "switch: shift by less"),
        ("(codes >> drop) & (0xFF >> drop) * EACH_BYTE", "(codes >> drop)", "switch: neighbour's bits stay"),
        ("kept += (codes >> (drop - 1))", "kept += (codes >> drop)", "switch: epsilon one bit up"),
        ("kept -= (kept >> width) & EACH_BYTE;", "", "switch: epsilon overflows"),
        ("(kept >> width) & EACH_BYTE;", "kept >> width;", "switch: clamp by the neighbour's bits"),
        ("if (!FLOOR) {", "{", "switch: epsilon in floor too"),
        ("if (is_signed) codes ^= 0x80 * EACH_BYTE;", "", "switch: signed as unsigned"),
        ("codes ^= 0x80 * EACH_BYTE;", "codes ^= 0x80;", "switch: one sign of four"),
        (
            "(kept + (0x80 - (1 << (width - 1))) * EACH_BYTE) ^ 0x80 * EACH_BYTE",
            "kept - (1 << (width - 1)) * EACH_BYTE",
            "switch: borrows from the neighbour",
        ),
        ("if (drop == 0) return codes;", "", "switch: width 8 shifted by -1"),
        ("((size_t)address & 15) == 0", "true", "vectors at any address"),
        ("? int((signed char)(b >> i))", "? int((unsigned char)(b >> i))", "dot4: b never signed"),
        (": int((unsigned char)(b >> i))", ": int((signed char)(b >> i))", "dot4: b always signed"),
    ],
    "switch.cu": [
        (
            "    if (first + PER_THREAD <= n && aligned16(codes) && aligned16(out)) {\n"
            "        uint4 four_words = *(const uint4*)(codes + first);\n"
            "        four_words.x",
            "    if (first < n && aligned16(codes) && aligned16(out)) {\n"
            "        uint4 four_words = *(const uint4*)(codes + first);\n"
            "        four_words.x",
            "switch_codes: the last thread takes 16 too",
        ),
        ("four_words.w = switch4(four_words.w, width, x_signed);", "", "switch_codes: a word left out"),
        (
            "four_words.z = switch4(four_words.z, width, x_signed);",
            "four_words.z = switch4(four_words.y, width, x_signed);",
            "switch_codes: a word twice",
        ),
        (
            "i < first + PER_THREAD; i++)\n        out[i] = Code(switch4(",
            "i < first + PER_THREAD - 1; i++)\n        out[i] = Code(switch4(",
            "switch_codes: a code left out at the end",
        ),
        ("float(Code(word >> 8 * byte))", "float((unsigned char)(word >> 8 * byte))", "dequantize: unsigned"),
        ("real(word, 3, step));", "real(word, 2, step));", "dequantize: a byte twice"),
        ("i < n && i < first + 4; i++) x[i]", "i < first + 4; i++) x[i]", "dequantize: writes past the end"),
        ("__fmul_rn(x, inverse_step), 0.5f)", "__fmul_rn(x, inverse_step), 0.0f)", "requantize_float: floor"),
        ("floorf(__fadd_rn(", "truncf(__fadd_rn(", "requantize_float: truncated"),
        ("fminf(fmaxf(code, float(lo)), float(hi))", "fmaxf(code, float(lo))", "requantize_float: no clamp"),
        ("(four.z, inverse_step, lo, hi) << 16", "(four.z, inverse_step, lo, hi)", "requantize_float: byte"),
        ("n && i < first + 4; i++) out[i]", "n && i < first + 3; i++) out[i]", "requantize_float: one fewer"),
        ("for (int w = 0; w < 4; w++)", "for (int w = 0; w < 3; w++)", "dequantize_requantize: 3 words"),
        (
            "switched |= nearest(real(words[w], byte, step), inverse_step, lo, hi) << 8 * byte;",
            "switched |= nearest(real(words[w], byte, step), inverse_step, lo, hi) << 8 * (3 - byte);",
            "dequantize_requantize: bytes in reverse",
        ),
    ],
    "planes.cu": [
        ("GATHER = 0x08040201u", "GATHER = 0x01020408u", "pack_planes: first code in the low bit"),
        ("int bit = 7 - plane;", "int bit = plane;", "pack_planes: planes in reverse"),
        ("gathered(eight.x, bit) << 4 |", "gathered(eight.x, bit) |", "pack_planes: upper half lost"),
        ("j < 8 && j < left; j++) words", "j < 8; j++) words", "pack_planes: reads past the row"),
        ("length % 8 == 0 && aligned16(codes);\n    uint2", "true;\n    uint2", "pack_planes: misaligned"),
        ("width : width + 1;", "width + 1 : width;", "unpack_planes: the wrong planes for a rounding"),
        ("scattered(byte >> 4) << (7 - plane)", "scattered(byte >> 4) << plane", "unpack_planes: in reverse"),
        ("j < 8 && j < left; j++) codes", "j < 8; j++) codes", "unpack_planes: writes past the row"),
        ("eight.y = switch4(eight.y, width, x_signed);", "", "unpack_planes: half the codes not switched"),
        (
            "        __syncthreads();\n#pragma unroll",
            "#pragma unroll",
            "gemv_planes: no barrier between writing and reading the inputs",
        ),
        (
            "__syncthreads();  // the next chunk overwrites the inputs",
            "",
            "gemv_planes: no barrier before the inputs are overwritten",
        ),
        ("(high_ab, high_cd, 0x7632)", "(high_ab, high_cd, 0x5410)", "gemv_planes: inputs out of order"),
        ("if (plane >= width) break;", "if (plane > width) break;", "gemv_planes: a plane too many"),
        ("if (plane >= width) break;", "if (plane >= width - 1) break;", "gemv_planes: a plane too few"),
        ("4 * half + s - (7 - plane)", "4 * half + s - (6 - plane)", "gemv_planes: bits beside their place"),
        ("chunk += CHUNK", "chunk += 2 * CHUNK", "gemv_planes: every other chunk"),
        ("/ 32, outputs - 1);", "/ 32, outputs);", "gemv_planes: a row that is not there"),
        ("if (lane == 0 && vector < batch)", "if (lane == 0)", "gemv_planes: writes absent vectors"),
        ("vector < batch ? length - code : 0", "length - code", "gemv_planes: reads absent vectors"),
        ("int apart = 16;", "int apart = 8;", "gemv_planes: half the lanes lost"),
        (">> (8 - width);", ";", "gemv_planes: not shifted back"),
        ("4 * word + i < left", "i < left", "gemv_planes: reads past the row"),
        ("length % 16 == 0 && aligned16(x);", "aligned16(x);", "gemv_planes: any row of inputs as a vector"),
    ],
}  # fmt: skip
MUTANTS |= conv_mutants.MUTANTS | {"grouped.cu": GROUPED_MUTANTS}
MUTANTS["common.cuh"] += conv_mutants.ROUNDING_MUTANTS


# What the checks are named by that kill a kernel's mutants, where not by the first word of its name. Each one
# that a mutant passes before it compiles up to four variants
NAMED = dict.fromkeys(("dequantize", "requantize_float", "dequantize_requantize"), "floats")
NAMED |= dict.fromkeys(("switch_codes", "vectors at any address"), "length_and_alignment") | {"dot4": "gemv"}


def fault(engine, file, kernel):
    """What the checks find wrong, or nothing; the checks that name the kernel go first."""
    word = NAMED.get(kernel, kernel.split("_")[0])
    try:
        for check in sorted(CHECKS[file], key=lambda check: word not in check.__name__):
            check(engine)
    except NoCompilerError:
        raise
    except (AssertionError, EmulatorError) as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("file", "mutant"),
    [pytest.param(file, mutant, id=f"{file}: {mutant[2]}") for file in MUTANTS for mutant in MUTANTS[file]],
)
def test_every_mutant_is_killed(file, mutant):
    text, replacement, name = mutant
    original = kernels.source(file)
    assert original.count(text) == 1, f"{text!r} occurs {original.count(text)} times in {file}, expected once"
    changed = {file: original.replace(text, replacement)}
    engines = (Emulator(checked=True, sources=changed, backwards=backwards) for backwards in (False, True))
    faults = next(filter(None, (fault(engine, file, name.split(": ")[0]) for engine in engines)), "")
    assert faults, f"nothing notices: {name}"
    assert "refuses the kernels" not in faults, f"not a mutant, it does not compile: {faults}"


@pytest.mark.parametrize("file", [file for file in MUTANTS if file.endswith(".cu")])
def test_every_kernel_has_two_mutants(file):
    names = [name.split(": ")[0] for _, _, name in MUTANTS[file]]
    for kernel, _ in KERNEL.findall(kernels.source(file)):
        assert names.count(kernel) >= 2, (
            f"{kernel} in {file}; a mutant's name is its kernel's, a colon, the mistake"
        )


def test_every_kernel_with_a_barrier_has_a_mutant_without_it():
    for file in MUTANTS:
        if "__syncthreads" in kernels.source(file):
            assert any(
                "__syncthreads" in text and "__syncthreads" not in new for text, new, _ in MUTANTS[file]
            ), file


def test_every_source_is_checked():
    assert set(CHECKS) == set(MUTANTS) == {"common.cuh"} | {f"{source}.cu" for source in kernels.VARIANTS}
