"""The checks of backends and of lowering kill every mutant: the module with one small, plausible mistake."""

import lowering_checks
import program_checks
import pytest
from lowering_checks import LOWERING_CHECKS
from program_checks import BACKEND_CHECKS
from test_mutants import killer, mutated

from dqt_core import backends
from dqt_core.backends import numpy_ref, torch_cpu
from dqt_core.training import lowering

TORCH_MUTANTS = {
    # name: (text of torch_cpu.py, its replacement)
    "offset correction dropped": (".add_(kernel_sums * offset)", ""),
    "offset correction of half": ("kernel_sums * offset", "kernel_sums * (offset // 2)"),
    "no offset": ("offset = 128 if", "offset = 0 if"),
    "padding is not code 0": ("fill=-offset", "fill=0"),
    "epsilon of the second dropped bit": ("codes >> (drop - 1)", "codes >> drop"),
    "no epsilon": ("floor.add_((codes >> (drop - 1)) & 1)", "floor"),
    "epsilon overflows": (".clamp_(max=highest)", ""),
    "signed highest for unsigned": ("else (1 << width) - 1", "else (1 << (width - 1)) - 1"),
    "epsilon in floor too": ('    if rounding == "floor":\n        return floor\n', ""),
    "weights at the width of the input": ("self._kernels(op, weight_bits)", "self._kernels(op, input_bits)"),
    "input at the width of the weights": ("switch(x, input_bits,", "switch(x, weight_bits,"),
    "weights of the first width kept": ("key = op.out, weight_bits", "key = op.out, 0"),
    "no middle of the bin": (
        '        if self.program.rounding == "half_up":\n            return',
        "        if True:\n            return",
    ),
    "middle without the offset": (".add_(rows.shape[2] * offset)", ""),
    "middle of half a bin": (
        "((1 << weight_drop) - 1) * window_sums",
        "((1 << weight_drop) - 1) // 2 * window_sums",
    ),
    "middle without the input's drop": ("* window_sums << input_drop", "* window_sums"),
    "whole steps": ("sums << (1 + weight_drop", "sums << (weight_drop"),
    "middles of the other group": (
        "window_sums.repeat_interleave(",
        "window_sums.flip(1).repeat_interleave(",
    ),
    "shift of floor sums": ('term.layer if self.program.rounding == "half_up" else None', "term.layer"),
    "no shift": ('term.layer if self.program.rounding == "half_up" else None', "None"),
    "first image's widths for all": ("if images is None:", "if True:"),
    "rounds down": ("(1 << (op.r - 1))", "0"),
    "r off by one": ("__irshift__(op.r)", "__irshift__(op.r - 1)"),
    "no lower clamp": ("clamp_(op.lo, op.hi)", "clamp_(max=op.hi)"),
    "no upper clamp": ("clamp_(op.lo, op.hi)", "clamp_(min=op.lo)"),
    "shift of the first term for all": ("self._drop(term, choices)", "self._drop(op.terms[0], choices)"),
    "rows of the first term for all": (
        "self._rows(term.multiplier, term, choices)",
        "self._rows(term.multiplier, op.terms[0], choices)",
    ),
    "offset of the first term alone": (
        "sum(self._rows(t.offset, t, choices) for t in op.terms)",
        "self._rows(op.terms[0].offset, op.terms[0], choices)",
    ),
    "d added instead of shifted": ("addend <<= drop", "addend += drop"),
    "last of equal logits": (
        "logits.reshape(len(logits), op.layers, choices).argmax(-1)",
        "(choices - 1 - logits.reshape(len(logits), op.layers, choices).flip(-1).argmax(-1))",
    ),
    "least logit": (".argmax(-1)", ".argmin(-1)"),
    "layers and choices mixed up": (
        "logits.reshape(len(logits), op.layers, choices).argmax(-1)",
        "logits.reshape(len(logits), choices, op.layers).argmax(1)",
    ),
    "logits without B": (" * multiplier + offset", " * multiplier"),
    "channels of the look-up mixed up": ("[torch.arange(3), ", "[torch.arange(2, -1, -1), "),
    "kernel transposed": ("permute(5, 0, 1, 2, 3, 4, 6)", "permute(5, 0, 1, 2, 4, 3, 6)"),
    "stride of rows alone": ("op.stride * channels)", "channels)"),
    "max-pool without padding": (
        "op.stride, op.padding)\n        return pooled",
        "op.stride, 0)\n        return pooled",
    ),
    "sums in 8 bits": (
        "sum((1, 2), keepdim=True, dtype=torch.int32)",
        "sum((1, 2), keepdim=True, dtype=torch.uint8)",
    ),
    "products in 16 bits": (
        "return sums.permute(1, 0, 2).reshape(rows.shape[1], -1)",
        "return sums.permute(1, 0, 2).reshape(rows.shape[1], -1).to(torch.int16)",
    ),
}

NUMPY_MUTANTS = {
    "shift of floor sums": ('term.layer if self.program.rounding == "half_up" else None', "term.layer"),
    "shift of the first term for all": ("self._drop(t, choices)", "self._drop(op.terms[0], choices)"),
    "offset of the first term alone": (
        "sum(self._rows(t.offset, t, choices) for t in op.terms)",
        "self._rows(op.terms[0].offset, op.terms[0], choices)",
    ),
    "weights at the width of the input": ("switch(op.weight, weight_bits", "switch(op.weight, input_bits"),
    "drops mixed up": ("drops = 8 - weight_bits, 8 - input_bits", "drops = 8 - input_bits, 8 - weight_bits"),
    "no middle of the bin": ('if rounding == "half_up":', "if True:"),
    "least logit": ("argmax(axis=-1)", "argmin(axis=-1)"),
}

HELPER_MUTANTS = {
    # of backends/__init__.py, run by the backend of torch
    "row of layer 0": (
        "    column = choices[:, layer]\n    return",
        "    column = choices[:, 0]\n    return",
    ),
    "row of the first image": ("column[:1] if (column == column[0]).all() else column", "column[:1]"),
    "row 0 for all": ("rows == 1 or choices is None", "True"),
    "drops of the weights alone": ("16 - weight - x for", "8 - weight for"),
    "drops of the weights twice": ("16 - weight - x for", "16 - 2 * weight for"),
    "drops of layer 0": (
        "for weight, x in table])[choices[:, layer]]",
        "for weight, x in table])[choices[:, 0]]",
    ),
    "drops of the first image": ("drops[:1] if (drops == drops[0]).all() else drops", "drops[:1]"),
    "widths of layer 0": (
        "    column = choices[:, layer]\n    used",
        "    column = choices[:, 0]\n    used",
    ),
    "images of the other widths": ("np.flatnonzero(column == choice)", "np.flatnonzero(column != choice)"),
    "fixed layers at the narrowest": ("yield (8, 8), None", "yield table[0], None"),
    "pairs the wrong way round": ("yield table[choice], None if", "yield table[choice][::-1], None if"),
}

LOWERING_MUTANTS = {
    "r one less than M has": ("return r, tuple(lowered)", "return r - 1, tuple(lowered)"),
    "r one less than possible": ("(ratios, largest_offset)", "(ratios, largest_offset) - 1"),
    "M one bit short": ("integer.fixed_point(ratio, r)", "integer.fixed_point(ratio, r - 1)"),
    "B truncated": (
        "np.floor(np.ldexp(term.bias / step, r) + 0.5)",
        "np.floor(np.ldexp(term.bias / step, r))",
    ),
    "B in real units": ("np.ldexp(term.bias / step, r)", "np.ldexp(term.bias, r)"),
    "gains of another width": ("np.stack(gains), ", "np.stack(gains[::-1]), "),
    "biases of another width": (", np.stack(biases)", ", np.stack(biases[::-1])"),
    "all widths have the first's batch norm": ("layer.norm_of(choice)", "layer.norm_of(0)"),
    "no epsilon in the variance": ("np.sqrt(variance + norm.eps)", "np.sqrt(variance)"),
    "variance instead of its root": ("np.sqrt(variance + norm.eps)", "(variance + norm.eps)"),
    "mean with the wrong sign": ("(own - mean) * gain", "(own + mean) * gain"),
    "bias of the layer forgotten": ("(own - mean) * gain", "-mean * gain"),
    "step of the input forgotten": (".reshape(1, -1) * x.step", ".reshape(1, -1)"),
    "one step for all channels": (
        "gain * _step(layer.log_step).reshape(1, -1)",
        "gain * _step(layer.log_step).mean()",
    ),
    "floor in whole steps": ("/ (2 if is_floor else 1)", "/ 1"),
    "floor bounded like half_up": ("largest_weight = 256 if is_floor else 128", "largest_weight = 128"),
    "no layer, so no shift": (
        "terms * largest_weight * x.largest, layer.index)",
        "terms * largest_weight * x.largest, None)",
    ),
    "sum instead of mean": ("x.step / pixels)", "x.step)"),
    "kernel transposed": ("transpose(0, 2, 3, 1)", "transpose(0, 3, 2, 1)"),
    "padding forgotten": (
        "layer.stride, layer.padding, layer.groups",
        "layer.stride, 0, layer.groups",
    ),
    "no clamp": ("lo, hi = module.range", "lo, hi = (-128, 127) if module.signed else (0, 255)"),
    "signs of activations mixed up": (
        "_CodedValue(name, step, module.signed, self._shape_of",
        "_CodedValue(name, step, not module.signed, self._shape_of",
    ),
    "r bounded by one term": (
        "largest_shift(ratios, largest_offset)",
        "largest_shift(ratios[:1], largest_offset)",
    ),
    "shortcut forgotten": ("_terms(arguments[0]) + _terms(arguments[1])", "_terms(arguments[0])"),
    "channels of the image mixed up": (
        "Lookup(codes, name, IMAGE)",
        "Lookup(codes[::-1].copy(), name, IMAGE)",
    ),
    "mean and std mixed up": ("(self.net.mean, self.net.std)", "(self.net.std, self.net.mean)"),
    "bias of fixed layers forgotten": (
        "own = np.zeros(len(layer.weight)) if layer.bias is None",
        "own = np.zeros(len(layer.weight)) if layer.bias is None or layer.index is None",
    ),
}

MUTANTS = [
    pytest.param(module, checks, *texts, id=f"{module.__name__.rpartition('.')[2]}: {name}")
    for module, checks, mutants in (
        (torch_cpu, BACKEND_CHECKS, TORCH_MUTANTS),
        (numpy_ref, BACKEND_CHECKS, NUMPY_MUTANTS),
        (lowering, LOWERING_CHECKS, LOWERING_MUTANTS),
    )
    for name, texts in mutants.items()
]


@pytest.mark.parametrize(("module", "checks", "text", "replacement"), MUTANTS)
def test_mutant_is_killed(module, checks, text, replacement):
    assert killer(mutated(module, text, replacement), checks)


@pytest.mark.parametrize("name", HELPER_MUTANTS)
def test_mutant_of_the_helpers_is_killed(name):
    assert killer(with_helpers(mutated(backends, *HELPER_MUTANTS[name])), BACKEND_CHECKS)


@pytest.mark.parametrize(
    ("module", "checks"),
    [(torch_cpu, BACKEND_CHECKS), (numpy_ref, BACKEND_CHECKS), (lowering, LOWERING_CHECKS)],
)
def test_unmutated_copy_survives(module, checks):
    assert killer(unchanged(module), checks) is None


def test_unmutated_helpers_survive():
    assert killer(with_helpers(unchanged(backends)), BACKEND_CHECKS) is None


def unchanged(module):
    return mutated(module, "import numpy as np\n", "import numpy as np  # the same\n")


def with_helpers(helpers):
    """The backend of torch with the helpers of another module."""
    backend = unchanged(torch_cpu)
    for name in ("by_choice", "rows_of", "drops_of"):
        setattr(backend, name, getattr(helpers, name))
    return backend


@pytest.mark.parametrize(
    ("module", "checks"), [(program_checks, BACKEND_CHECKS), (lowering_checks, LOWERING_CHECKS)]
)
def test_every_check_is_listed(module, checks):
    listed = {check.__name__ for check in checks}
    assert {name for name in vars(module) if name.startswith("check_")} == listed
