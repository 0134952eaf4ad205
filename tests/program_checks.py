"""A program made by hand, and checks of a backend module against the interpreter in Python integers.

A check takes the module it judges as its argument: any backend.
"""

import itertools
from dataclasses import replace

import numpy as np
from interpreter import run as run_in_python

from dqt_core.program import (
    IMAGE,
    Choose,
    Concat,
    Conv,
    Lookup,
    MaxPool,
    Product,
    Program,
    Requantize,
    Scale,
    SumPool,
    Term,
    execute,
)

CHOICES = ((2, 2), (4, 3), (3, 6), (5, 8), (8, 8))
K, LAYERS = len(CHOICES), 4
R = 20


def small_program(rounding="half_up", controller=True, seed=0):
    """Four switchable layers: grouped, 1x1 as a shortcut, plain with a shortcut of codes, depthwise.

    Activations of both signs, a max-pool, tables with a row for every choice and with one row.
    """
    rng = np.random.default_rng(seed)
    stem = [
        Lookup(rng.integers(-128, 128, (3, 256)).astype(np.int8), "input", IMAGE),
        conv(rng, "stem", "input", (4, 3, 3, 3), padding=1),
        requantize(rng, "stem:codes", [("stem:sum", 27, 4, None)], 0, 255),
    ]
    body = [
        MaxPool(3, 1, 1, "stem:codes", "pooled"),
        conv(rng, "grouped", "pooled", (6, 3, 3, 2), stride=2, padding=1, groups=2, layer=0),
        conv(rng, "shortcut", "pooled", (6, 1, 1, 4), stride=2, layer=1),
        requantize(rng, "a", [("grouped:sum", 18, 6, 0), ("shortcut:sum", 4, 6, 1)], -128, 127),
        conv(rng, "plain", "a", (6, 3, 3, 6), padding=1, layer=2),
        requantize(rng, "b", [("a", None, 6, None), ("plain:sum", 54, 6, 2)], 0, 200),
        conv(rng, "depthwise", "b", (6, 3, 3, 1), padding=1, groups=6, layer=3),
        requantize(rng, "c", [("depthwise:sum", 9, 6, 3)], 0, 255, rows=1),
        SumPool("c", "sums"),
        requantize(rng, "features", [("sums", None, 6, None)], 0, 255),
        conv(rng, "classifier", "features", (5, 1, 1, 6)),
        Scale(_term(rng, "classifier:sum", 6, 5, None), R, "logits"),
    ]
    chooser = _controller(rng) if controller else []
    names = ("grouped", "shortcut", "plain", "depthwise")
    return Program("small", (*stem, *chooser, *body), CHOICES, names, (5, 4, 3), rounding)


def late_program(rounding="half_up"):
    """`small_program` with a controller that reads what two layers made, and decides for the other two."""
    program = small_program(rounding, controller=False)
    at = 1 + next(i for i, op in enumerate(program.ops) if op.out == "a")
    chooser = _controller(np.random.default_rng(4), "a", 6, LAYERS - 2, before=(3, 1))
    return replace(program, ops=(*program.ops[:at], *chooser, *program.ops[at:]))


def joined_program(rounding="half_up"):
    """Tables of both types, for all channels and for each; concatenations; products with all and with one."""
    rng = np.random.default_rng(3)
    ops = [
        Lookup(_table(rng, 3, np.uint8), "input"),
        conv(rng, "stem", "input", (5, 3, 3, 3), padding=1),
        requantize(rng, "signed", [("stem:sum", 27, 5, None)], -128, 127),
        Lookup(_table(rng, 1, np.int8), "activation", "signed"),
        Lookup(_table(rng, 5, np.uint8), "gates", "activation"),
        SumPool("gates", "sums"),
        requantize(rng, "gate", [("sums", None, 5, None)], 0, 255),
        Product("activation", "gate", "scaled:sum"),
        requantize(rng, "scaled", [("scaled:sum", 2, 5, None), ("signed", None, 5, None)], -128, 127),
        conv(rng, "branch", "scaled", (70, 3, 3, 5), padding=1, layer=0),
        requantize(rng, "branch:codes", [("branch:sum", 45, 70, 0)], -128, 127),
        Concat(("scaled", "branch:codes", "activation"), "joined"),
        conv(rng, "mixed", "joined", (5, 1, 1, 80), layer=1),
        Product("signed", "gates", "product"),
        requantize(rng, "c", [("mixed:sum", 80, 5, 1), ("product", 2, 5, None)], 0, 255),
        Product("gate", "gate", "square"),
        Concat(("c", "gates"), "all"),
        SumPool("all", "all:sum"),
        requantize(rng, "all:codes", [("all:sum", None, 10, None)], 0, 255),
        requantize(rng, "square:codes", [("square", 2, 5, None)], 0, 255),
        Concat(("all:codes", "square:codes"), "features"),
        conv(rng, "classifier", "features", (5, 1, 1, 15)),
        Scale(_term(rng, "classifier:sum", 15, 5, None), R, "logits"),
    ]
    return Program("joined", tuple(ops), CHOICES, ("branch", "mixed"), (5, 4, 3), rounding)


def _table(rng, rows, dtype):
    return rng.integers(0, 256, (rows, 256)).astype(np.uint8).view(dtype)


def small_images(n=6):
    """Noise on a colour of each image's own, so that the controller's means differ."""
    rng = np.random.default_rng(1)
    colour = rng.integers(0, 256, (n, 1, 1, 3))
    noise = rng.integers(0, 256, (n, 5, 4, 3))
    return np.where(rng.random((n, 5, 4, 1)) < 0.4, noise, colour).astype(np.uint8)


def mixed_choices(n=6):
    return np.random.default_rng(2).integers(0, K, (n, LAYERS))


def conv(rng, name, x, shape, stride=1, padding=0, groups=1, layer=None):
    weight = rng.integers(-128, 128, shape).astype(np.int8)
    weight.flat[:2] = -128, 127
    return Conv(name, weight, stride, padding, groups, layer, x, f"{name}:sum")


def _term(rng, x, products, channels, layer, rows=K):
    """Gains that spread random products over about 100 codes; codes and their sums keep their size."""
    rows = 1 if layer is None else rows
    if products is None:
        gains = np.full((1, 1), 0.08 if x.endswith("sums") or x == "all:sum" else 0.6)
    else:
        gains = rng.uniform(0.5, 1.5, (rows, channels)) * rng.choice([-1, 1], channels)
        gains *= 100 / (products**0.5 * 74 * 100)
    offsets = rng.uniform(-20, 20, gains.shape)
    return Term(x, np.rint(gains * 2**R).astype(np.int32), np.rint(offsets * 2**R).astype(np.int64), layer)


def requantize(rng, out, terms, lo, hi, rows=K):
    return Requantize(tuple(_term(rng, *term, rows=rows) for term in terms), R, lo, hi, out)


def _controller(rng, x="stem:codes", channels=4, layers=LAYERS, before=()):
    ops = [
        SumPool(x, "means:sum"),
        requantize(rng, "means", [("means:sum", None, channels, None)], 0, 255),
        conv(rng, "hidden", "means", (8, 1, 1, channels)),
        requantize(rng, "hidden:codes", [("hidden:sum", channels, 8, None)], 0, 255),
        conv(rng, "choice", "hidden:codes", (layers * K, 1, 1, 8)),
        Scale(_term(rng, "choice:sum", 8, layers * K, None), R, "choice:logits"),
        Choose(layers, "choice:logits", before=before),
    ]
    return [replace(op, controller=True) for op in ops]


class _Recorder:
    """A backend that keeps a copy of every value."""

    def __init__(self, backend):
        self.backend, self.values = backend, {}

    def __getattr__(self, name):
        method = getattr(self.backend, name)
        if name in ("upload", "download", "choose"):
            return method

        def recorded_method(op, values, choices):
            out = method(op, values, choices)
            self.values[op.out] = np.array(self.backend.download(out))
            return out

        return recorded_method


def recorded(module, program, images, choices):
    """Every value by name, and the choices, of a run; None: the controller chooses."""
    backend = module.Backend(program)
    if hasattr(backend, "every_value"):
        return backend.every_value(images, choices)
    recorder = _Recorder(backend)
    _, choices = execute(program, recorder, images, choices)
    return recorder.values, choices


def assert_equals_python(module, program, images, choices):
    values, chosen = recorded(module, program, images, choices)
    for i, image in enumerate(images):
        expected, choice = run_in_python(program, image, None if choices is None else choices[i].tolist())
        assert chosen[i].tolist() == choice, "choices"
        for name, value in values.items():
            assert value[i].tolist() == expected[name], name


def check_every_choice(module):
    for rounding, choice in itertools.product(("half_up", "floor"), range(K)):
        program = small_program(rounding)
        assert_equals_python(module, program, small_images(2), np.full((2, LAYERS), choice))


def check_every_layer_on_its_own(module):
    """One layer at a time is narrow, for all images."""
    for rounding, layer in itertools.product(("half_up", "floor"), range(LAYERS)):
        choices = np.full((1, LAYERS), K - 1)
        choices[:, layer] = 1
        assert_equals_python(module, small_program(rounding), small_images(1), choices)


def check_mixed_choices(module):
    for rounding in ("half_up", "floor"):
        assert_equals_python(module, small_program(rounding), small_images(), mixed_choices())


def check_joined_values(module):
    for rounding in ("half_up", "floor"):
        assert_equals_python(module, joined_program(rounding), small_images(), mixed_choices()[:, :2])


def check_controller(module):
    for rounding in ("half_up", "floor"):
        assert_equals_python(module, small_program(rounding), small_images(), None)


def check_late_controller(module):
    """Layers in front of the decision have choices of their own, which no given widths need."""
    for rounding in ("half_up", "floor"):
        assert_equals_python(module, late_program(rounding), small_images(), None)
        assert_equals_python(module, late_program(rounding), small_images(), mixed_choices())


def check_ties_of_the_controller(module):
    """Equal logits everywhere: the narrowest choice."""
    _, choices = recorded(module, tied(small_program()), small_images(2), None)
    assert choices.tolist() == [[0] * LAYERS] * 2


def tied(program):
    """The program with a controller whose scores are all equal."""
    ops = [
        replace(op, term=replace(op.term, multiplier=op.term.multiplier * 0, offset=op.term.offset * 0))
        if op.controller and isinstance(op, Scale)
        else op
        for op in program.ops
    ]
    return replace(program, ops=tuple(ops))


def check_saturated_sums(module):
    """Codes 255 against weights -128, in one group."""
    for terms, rounding in itertools.product((1, 2, 64, 600), ("half_up", "floor")):
        program = saturated(terms, rounding)
        assert_equals_python(module, program, np.zeros((1, 1, 1, 3), np.uint8), np.zeros((1, 1), np.int64))


def saturated(terms, rounding="half_up"):
    """A program whose last sums have `terms` products of 255 and -128, and of 255 and -127."""
    one, offset = np.ones((1, 1), np.int32), np.full((1, 1), 1000)
    last = np.full((2, 1, 1, terms), -128, np.int8)
    last[1] = -127
    ops = (
        Lookup(np.zeros((3, 256), np.int8), "input"),
        Conv("stem", np.zeros((terms, 1, 1, 3), np.int8), 1, 0, 1, None, "input", "stem:sum"),
        Requantize((Term("stem:sum", one, offset, None),), 1, 0, 255, "features"),
        Conv("last", last, 1, 0, 1, 0, "features", "last:sum"),
        Scale(Term("last:sum", one, offset * 0, None), 1, "logits"),
    )
    return Program("saturated", ops, ((8, 8),), ("last",), (1, 1, 3), rounding)


BACKEND_CHECKS = [
    check_every_choice,
    check_every_layer_on_its_own,
    check_mixed_choices,
    check_joined_values,
    check_controller,
    check_late_controller,
    check_ties_of_the_controller,
    check_saturated_sums,
]
