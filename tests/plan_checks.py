"""What a backend that plans whole programs must do besides what every backend must."""

import itertools
from dataclasses import replace

import numpy as np
from program_checks import CHOICES, R, late_program, mixed_choices, small_images, small_program

from dqt_core.program import Conv, Lookup, MaxPool, Program, Requantize, Scale, SumPool, Term

ROUNDINGS = ("half_up", "floor")


def changed(program, before=None, **ops):
    """The program with other operations at the values of these names, and more before some."""
    names = {name.replace("_", ":"): op for name, op in ops.items()}
    made = {getattr(op, "out", None): op for op in program.ops}
    parts = [[*(before or {}).get(key, ()), names.get(key, op)] for key, op in made.items()]
    return replace(program, ops=tuple(itertools.chain.from_iterable(parts)))


def grouped_program(rounding):
    """The small program with a second grouped convolution, one of those that join a skip."""
    program = small_program(rounding)
    plain = by_name(program)["plain:sum"]
    return changed(program, plain_sum=replace(plain, weight=plain.weight[..., :2].copy(), groups=3))


def tangled_program(rounding):
    """The small program, and what its plan must not overlook.

    A term at another layer's widths; a skip that nothing else reads any more; a sum that is read twice; three
    terms; more outputs than a tile has.
    """
    program = small_program(rounding)
    ops = by_name(program)
    grouped, shortcut = ops["a"].terms
    codes, plain = ops["b"].terms
    fresh = Conv("fresh", ops["plain:sum"].weight[:, :1, :1].copy(), 1, 0, 1, None, "c", "fresh:sum")
    first = replace(
        plain, x="fresh:sum", multiplier=plain.multiplier[:1], offset=plain.offset[:1], layer=None
    )
    three = Requantize((first, plain, replace(codes, x="b")), R, 0, 255, "d")
    before = {"depthwise:sum": [MaxPool(3, 1, 1, "b", "pooled again")], "sums": [fresh, three]}
    classifier, logits = ops["classifier:sum"], ops["logits"]
    wide = replace(
        logits.term, multiplier=np.tile(logits.term.multiplier, 8), offset=np.tile(logits.term.offset, 8)
    )
    return changed(
        program,
        before,
        a=replace(ops["a"], terms=(replace(shortcut, layer=3), grouped)),
        c=replace(ops["c"], terms=(ops["c"].terms[0], codes)),
        depthwise_sum=replace(ops["depthwise:sum"], x="pooled again"),
        sums=replace(ops["sums"], x="d"),
        classifier_sum=replace(classifier, weight=np.repeat(classifier.weight, 8, axis=0)),
        logits=replace(logits, term=wide),
    )


def wide_program(rounding):
    """More channels than one block of a kernel has."""
    rng = np.random.default_rng(0)
    weights = [rng.integers(-128, 128, shape).astype(np.int8) for shape in ((70, 1, 1, 3), (40, 1, 1, 70))]
    one = np.ones((1, 1), np.int32), np.zeros((1, 1), np.int64)
    ops = (
        Lookup(rng.integers(-128, 128, (3, 256)).astype(np.int8), "input"),
        Conv("stem", weights[0], 1, 0, 1, None, "input", "stem:sum"),
        Requantize((Term("stem:sum", *one, None),), 7, 0, 255, "codes"),
        SumPool("codes", "sums"),
        Requantize((Term("sums", *one, None),), 5, 0, 255, "features"),
        Conv("last", weights[1], 1, 0, 1, 0, "features", "last:sum"),
        Scale(Term("last:sum", *one, None), 1, "logits"),
    )
    return Program("wide", ops, CHOICES, ("last",), (5, 4, 3), rounding)


def by_name(program):
    return {getattr(op, "out", None): op for op in program.ops}


def check_fused_programs(module):
    """Convolutions joined with requantizes: of codes, of sums with a choice of their own, of nothing."""
    for make in (small_program, late_program, grouped_program, tangled_program, wide_program):
        for rounding in ROUNDINGS:
            program, images = make(rounding), small_images(7)
            picks = mixed_choices(7)[:, : len(program.layers)]
            assert_runs(module, program, images, picks)
            if program.has_controller:
                assert_runs(module, program, images, None)


def assert_runs(module, program, images, picks):
    widths = "controller" if picks is None else np.array(CHOICES)[picks]
    expected = program.run(images, widths, "numpy")
    logits, chosen = module.Backend(program).run(images, picks)
    np.testing.assert_array_equal(logits, expected.logits)
    np.testing.assert_array_equal(chosen, expected.choices)


def check_batches_of_every_size(module):
    """One backend, sizes up and down, the controller, other images and choices in between."""
    for program in (*map(small_program, ROUNDINGS), late_program()):
        images, picks = small_images(9), mixed_choices(9)
        given = program.run(images, np.array(CHOICES)[picks], "numpy").logits
        chosen = program.run(images, "controller", "numpy").logits
        backend = module.Backend(program)
        for n in (2, 9, 7, 3, 9, 1, 5):
            np.testing.assert_array_equal(backend.run(images[:n], picks[:n])[0], given[:n])
            np.testing.assert_array_equal(backend.run(images[:n], None)[0], chosen[:n])
            backend.run(255 - images, (picks + 1) % len(CHOICES))


PLAN_CHECKS = (check_fused_programs, check_batches_of_every_size)
