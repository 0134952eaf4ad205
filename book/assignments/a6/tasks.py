"""The tasks of assignment A6: a student's own network, checked against the program that it became."""

import itertools
import re
import tempfile
from pathlib import Path

import numpy as np
from grading import checkers, judging

import dqt_core
from dqt_core import cost, data
from dqt_core.evaluation.allocate import fixed_bitops, layer_bitops
from dqt_core.export import to_c, to_onnx

WIDTHS = (2, 4, 8)
LAYERS = range(3, 9)  # all choices of widths are tried: of eight layers there are 6,561
BYTES, MACS = 2**21, 10**7  # the most of a program, as the checks run it too
NEEDED = 0.92  # of unseen digits at 8 bits; a plain solution has 0.96 right
TRAINED, UNSEEN, IMAGES = 1200, 400, 40
BACKEND = "torch"  # the time of a task goes on while its check runs: nothing is compiled
Verdict = judging.Verdict


def digits(seed):
    """Grey digits, with the classes and the split in an order of this seed.

    Returns images (1200, 32, 32, 1), bytes, and labels to train on, and 400 of each to test on.
    """
    rng, embedded = np.random.default_rng(seed), data.embedded(channels=1)
    images = np.concatenate([embedded.train_images, embedded.test_images])
    labels = rng.permutation(10)[np.concatenate([embedded.train_labels, embedded.test_labels])]
    order = rng.permutation(len(images))
    train, test = order[:TRAINED], order[TRAINED : TRAINED + UNSEEN]
    return images[train], labels[train], images[test], labels[test]


def to_file(program):
    """The bytes of a program's file, a uint8 array."""
    with tempfile.TemporaryDirectory() as folder:
        return np.fromfile(program.save(folder), np.uint8)


def from_file(file):
    """The program of a file's bytes."""
    if getattr(file, "dtype", None) != np.uint8 or file.ndim != 1:
        raise ValueError("expected the bytes of the program's file first, as `tasks.to_file` gives them")
    if file.size > BYTES:
        raise ValueError(f"the program's file has {file.size:,} bytes, {BYTES:,} are allowed")
    digest = re.search(rb'"digest\\*": *\\*"([0-9a-f]{12})', file.tobytes())  # a file is known by its name
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"own-{digest[1].decode() if digest else ''}.safetensors"
        path.write_bytes(file.tobytes())
        return dqt_core.load(path)


def _fitting(program):
    """The program; a ValueError says what about it does not fit the assignment."""
    if program.image_shape != (32, 32, 1):
        raise ValueError(f"expected a program of grey images, (32, 32, 1), got {program.image_shape}")
    if set(program.choices) != {(width, width) for width in WIDTHS}:
        raise ValueError(f"expected a program of the widths {WIDTHS}, got {program.choices}")
    if len(program.layers) not in LAYERS:
        between = f"{LAYERS[0]} to {LAYERS[-1]} switchable layers"
        raise ValueError(f"expected {between}, got {len(program.layers)}: {', '.join(program.layers)}")
    if (macs := sum(size.macs for size in cost.layer_sizes(program))) > MACS:
        raise ValueError(f"an image takes {macs:,} multiplications, {MACS:,} are allowed")
    return program


def _judged(function, arguments, compare, more):
    """What `compare` says of the program whose file a function returns first, and of what follows."""
    name = function.__name__
    try:
        found = function(*[a.copy() if isinstance(a, np.ndarray) else a for a in arguments])
    except Exception as error:
        return Verdict(False, f"{name}(...) raised {type(error).__name__}: {error}")
    if found is None or found is Ellipsis:
        return Verdict(False, f"Not solved yet: {name} returned {found}.")
    file, *rest = found if isinstance(found, tuple | list) else (found,)
    if len(rest) != len(more):
        expected = ", ".join(("the file", *more))
        return Verdict(False, f"{name}(...): expected {expected}; got {len(rest) + 1} of them")
    try:
        return compare(_fitting(from_file(file)), *rest)
    except (TypeError, ValueError, dqt_core.ProgramError) as error:
        return Verdict(False, f"{name}(...): {error}")


def _integers(values, shape, what):
    values = np.asarray(values)
    if values.dtype.kind not in "iu" or values.shape != shape:
        raise TypeError(f"expected {what}, integers of shape {shape}, got {values.dtype} of {values.shape}")
    return values


def _require_equal(got, expected, what, element, slips):
    """A ValueError names the first wrong number, and the slip it comes of; slips(i) are {slip: number}."""
    got = _integers(got, expected.shape, what)
    for i in np.flatnonzero(got != expected)[:1]:
        came = [f", as comes out {slip}" for slip, value in slips(i).items() if value == got.flat[i]]
        raise ValueError(f"{element(i)}: expected {expected.flat[i]}, got {got.flat[i]}{''.join(came[:1])}")


def _some(rng):
    return rng.permutation(data.embedded(channels=1).test_images)[:IMAGES]


def a6_1(own_program, rng):
    images, labels, unseen, answers = digits(rng.integers(2**32))

    def compare(program):
        right = {b: (program.run(unseen, b, BACKEND).classes == answers).mean() for b in WIDTHS}
        said = ", ".join(f"{share:.1%} at {b} bits" for b, share in right.items())
        if right[8] < NEEDED:
            raise ValueError(f"of {UNSEEN} unseen digits are right {said}; needed: {NEEDED:.0%} at 8 bits")
        return Verdict(True, f"Right: {said}, of {UNSEEN} unseen digits.")

    return _judged(own_program, (images, labels), compare, ())


def _logits(program, images, layer, width):
    """Of one layer at a width, the others at 8 bits."""
    widths = [width if k == layer else 8 for k in range(len(program.layers))]
    return program.run(images, widths, BACKEND).logits


def _damages(program, images):
    """(L, 3): how far all logits are from those at 8 bits, in sum, with one layer at a width."""
    layers, whole = range(len(program.layers)), program.run(images, 8, BACKEND).logits
    narrow = [[_logits(program, images, layer, b) for b in WIDTHS] for layer in layers]
    return np.abs(np.array(narrow) - whole).sum(axis=(2, 3))


def a6_2(damage, rng):
    images = _some(rng)

    def compare(program, table):
        expected = _damages(program, images)

        def slips(i):
            width = WIDTHS[i % 3]
            whole, narrow = (program.run(images, b, BACKEND).logits for b in (8, width))
            own = _logits(program, images, i // 3, width)
            return {
                "if the other layers are narrow too": np.abs(narrow - whole).sum(),
                "if differences keep their signs": (own - whole).sum(),
                "if 8 bits minus the others keeps its sign": (whole - own).sum(),
                "if images are counted whose class is another": (own.argmax(1) != whole.argmax(1)).sum(),
            }

        def element(i):
            return f"layer {i // 3} ({program.layers[i // 3]}) at {WIDTHS[i % 3]} bits"

        _require_equal(table, expected, "a row for each layer, a column for each width", element, slips)
        return Verdict(True, f"Right: {expected.size} damages of {len(expected)} layers.")

    return _judged(damage, (images,), compare, ("the table",))


class _Ways:
    """All choices of widths of a program: what each of them costs and damages."""

    def __init__(self, program, images):
        self.table = _damages(program, images)
        self.costs = layer_bitops(program)[:, [program.choices.index((b, b)) for b in WIDTHS]]
        self.most, self.fixed = int(self.costs[:, -1].sum()), fixed_bitops(program)
        self.picks = np.array([*itertools.product(range(3), repeat=len(self.table))])
        self.spent, self.damage = self.of(self.costs), self.of(self.table)

    def of(self, table):
        return table[range(len(table)), self.picks].sum(axis=1)

    def best(self, budget):
        """(damage, cost) of the least damage, and of those the cheapest."""
        fits = self.spent <= budget
        return min(zip(self.damage[fits].tolist(), self.spent[fits].tolist(), strict=True))

    def greedy(self, budget):
        """The damage of widening, again and again, the layer that gains most for its cost."""
        picks, left = [0] * len(self.table), budget - self.costs[:, 0].sum()
        while True:
            gains = {}
            for layer, k in enumerate(picks):
                for wider in range(k + 1, 3):
                    more = self.costs[layer, wider] - self.costs[layer, k]
                    if more <= left:
                        gains[layer, wider] = (self.table[layer, k] - self.table[layer, wider]) / more
            if not gains:
                return self.table[range(len(picks)), picks].sum()
            layer, wider = max(gains, key=gains.get)
            left -= self.costs[layer, wider] - self.costs[layer, picks[layer]]
            picks[layer] = wider

    def tells(self, share):
        """Whether greed is not enough, and a budget that counts the first and the last layer is too large."""
        budget, whole = int(share * self.most), int(share * (self.most + self.fixed))
        return self.greedy(budget) > self.best(budget)[0] and self.best(whole)[1] > budget

    def require_best(self, widths, share):
        """A ValueError says how widths miss a budget, or the least damage within it."""
        widths = _integers(widths, (len(self.table),), "a width for each layer")
        if not set(widths.tolist()) <= set(WIDTHS):
            raise ValueError(f"expected widths of {WIDTHS}, got {widths.tolist()}")
        (own,) = np.flatnonzero((np.array(WIDTHS)[self.picks] == widths).all(axis=1))
        budget, said = int(share * self.most), f"share {share}: {widths.tolist()}"
        if self.spent[own] > budget:
            raise ValueError(f"{said} cost {self.spent[own]} BitOPs, the budget is {budget}")
        best, damage = self.best(budget)[0], self.damage[own]
        if damage > best:
            came = ", as comes out if layers are widened greedily" * (damage == self.greedy(budget))
            raise ValueError(f"{said} have a damage of {damage}{came}; {best} is possible")


def a6_3(widths_for, rng):
    images, drawn, known = _some(rng), rng.uniform(0.07, 0.7, 200).tolist(), []

    def at(share):
        def compare(program, widths):
            known[:] = [_Ways(program, images)]
            known[0].require_best(widths, share)
            return Verdict(True, f"Right: the best of {len(known[0].picks)} ways, for 4 budgets.")

        return _judged(widths_for, (images, share), compare, ("the widths",))

    verdict = at(drawn[0])  # only an answer says which program it is, and which shares tell
    telling = filter(known[0].tells, drawn) if verdict else ()
    for share in itertools.islice(itertools.chain(telling, drawn), 3):
        verdict = verdict and at(share)
    return verdict


def a6_4(exports, rng):
    images, widths = _some(rng), rng.permutation(np.resize(WIDTHS, IMAGES))

    def compare(program, onnx_file, c_text, logits):
        with tempfile.TemporaryDirectory() as folder:
            onnx_bytes = to_onnx(program, Path(folder) / "own.onnx").read_bytes()
            c_file = to_c(program, Path(folder) / "own.c").read_text(encoding="utf-8")
        if np.asarray(onnx_file).tobytes() != onnx_bytes:
            raise ValueError("the ONNX file is not that of the program with all its widths")
        if c_text != c_file:
            raise ValueError("the C file is not that of the program")
        alone = {b: program.run(images, b, BACKEND).logits for b in WIDTHS}
        expected = np.stack([alone[b][n] for n, b in enumerate(widths)])

        def element(i):
            return f"image {i // 10}, at {widths[i // 10]} bits, class {i % 10}"

        def slips(i):
            return {f"if the image has {b} bits": logits.flat[i] for b, logits in alone.items()}

        _require_equal(logits, expected, "logits", element, slips)
        return Verdict(True, f"Right: {len(onnx_bytes)} bytes of ONNX, {len(c_file)} of C, {IMAGES} images.")

    return _judged(exports, (images, widths), compare, ("the ONNX file", "the C file", "the logits"))


def a6_5(why, rng):
    images = _some(rng)

    def compare(program, *answer):
        worst, sizes = int(_damages(program, images)[:, 0].argmax()), cost.layer_sizes(program)
        inner = sorted((size for size in sizes if size.layer is not None), key=lambda size: size.layer)

        def parts(among):
            weights, macs = (sum(getattr(size, what) for size in among) for what in ("weights", "macs"))
            return 1000 * inner[worst].weights // weights, 1000 * inner[worst].macs // macs

        def slips(i):
            return {"if the first and the last layer do not count": (worst, *parts(inner))[i]}

        names = "the layer that hurts most", "its part of the weights", "its part of the multiplications"
        expected = np.array([worst, *parts(sizes)])
        _require_equal(answer, expected, "three numbers after the file", names.__getitem__, slips)
        said = f"{expected[1]} of 1000 weights, {expected[2]} of 1000 multiplications"
        return Verdict(True, f"Right: {program.layers[worst]} hurts most, with {said}.")

    return _judged(why, (images,), compare, ("the layer", "its weights", "its multiplications"))


TASKS = {"a6_1": a6_1, "a6_2": a6_2, "a6_3": a6_3, "a6_4": a6_4, "a6_5": a6_5}
check, grade = checkers(TASKS)
