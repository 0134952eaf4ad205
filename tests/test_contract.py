"""What no program may be: each is refused where it is made, by name, and again where it is loaded."""

import copy
import json
import multiprocessing
import os
import pickle
import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from plan_checks import tangled_program
from program_checks import K, recorded, saturated, small_images, small_program
from safetensors.numpy import save_file
from strategies import runs
from test_program import unchecked

from dqt_core import Program, ProgramError, load, selftest
from dqt_core.backends import numpy_ref
from dqt_core.program.operations import (
    Choose,
    Concat,
    Conv,
    Lookup,
    MaxPool,
    Product,
    Requantize,
    Scale,
    SumPool,
    Term,
)
from dqt_core.program.refusal import LARGEST_VALUE, NAME_BYTES
from dqt_core.program.storage import FORMAT, METADATA, digest_of, encode

PROGRAM = small_program()
NUMBERS = {getattr(op, "out", "choose"): number for number, op in enumerate(PROGRAM.ops)}


def made(changes, program=PROGRAM):
    """The program with other fields, {"value.field": new} or {"field": new}; nothing is checked."""
    fields = {}
    ops = list(program.ops)
    for name, new in changes.items():
        out, _, field = name.rpartition(".")
        if not out:
            fields[name] = new
            continue
        out, _, term = out.partition("/")
        number = NUMBERS[out]
        if term:
            terms = list(getattr(ops[number], "terms", ()) or (ops[number].term,))
            terms[int(term)] = replace(terms[int(term)], **{field: new})
            part = {"terms": tuple(terms)} if isinstance(ops[number], Requantize) else {"term": terms[0]}
        else:
            part = {field: new}
        ops[number] = replace(ops[number], **part)
    return replace(unchecked(program), **({"ops": tuple(ops)} | fields))


def without(*outs):
    return tuple(op for op in PROGRAM.ops if getattr(op, "out", "choose") not in outs)


def moved(out, before):
    ops = list(without(out))
    at = next(i for i, op in enumerate(ops) if getattr(op, "out", "choose") == before)
    return (*ops[:at], PROGRAM.ops[NUMBERS[out]], *ops[at:])


def op(out):
    return PROGRAM.ops[NUMBERS[out]]


def int8(*shape):
    return np.ones(shape, np.int8)


def before_last(*ops):
    return *PROGRAM.ops[:-1], *ops, PROGRAM.ops[-1]


ONE, ZERO = np.ones((1, 1), np.int32), np.zeros((1, 1), np.int64)
PLAIN = Term("a", ONE, ZERO, None)

REFUSED = {
    # name: (changes, words of the sentence)
    "weights that do not fit the input": ({"plain:sum.weight": int8(6, 3, 3, 5)}, "6 input channels"),
    "weights of three axes": ({"plain:sum.weight": int8(6, 3, 3)}, "expected an array int8"),
    "no weights": ({"plain:sum.weight": int8(6, 0, 3, 6)}, "1 to 268435456 codes"),
    "unsigned weights": ({"plain:sum.weight": np.ones((6, 3, 3, 6), np.uint8)}, "array int8"),
    "a list of weights": ({"plain:sum.weight": [[[[1]]]]}, "expected an array int8"),
    "a kernel of 30 rows": ({"plain:sum.weight": int8(6, 30, 1, 6), "plain:sum.padding": 15}, "at most 16"),
    "a kernel larger than the image": ({"plain:sum.padding": 0}, "holds a window of 3x3"),
    "no stride": ({"plain:sum.stride": 0}, "stride is 0, expected an int in 1..4096"),
    "a negative stride": ({"plain:sum.stride": -1}, "stride is -1"),
    "a negative padding": ({"plain:sum.padding": -1}, "padding is -1"),
    "a padding without end": ({"plain:sum.padding": 2**31}, "padding is 2147483648"),
    "a padding that fills the memory": ({"plain:sum.padding": 2**12}, f"at most {LARGEST_VALUE} numbers"),
    "no groups": ({"grouped:sum.groups": 0}, "groups is 0"),
    "groups that share no channels": ({"grouped:sum.groups": 4}, "in 4 groups"),
    "groups that share no outputs": ({"depthwise:sum.weight": int8(7, 3, 3, 1)}, "in 6 groups"),
    "a layer beyond the last": ({"plain:sum.layer": 4}, "layer is 4, expected an int in 0..3"),
    "a layer before the first": ({"plain:sum.layer": -1}, "layer is -1"),
    "a layer twice": ({"plain:sum.layer": 1}, "one convolution for every layer"),
    "a layer of another name": ({"plain:sum.name": "plane"}, "'plain', as layer 2 is called"),
    "two convolutions of one name": ({"classifier:sum.name": "plain"}, "another name"),
    "more names than layers": ({"layers": (*PROGRAM.layers, "more")}, "is (4, 20), expected (5, 25)"),
    "fewer names than layers": ({"layers": PROGRAM.layers[:3]}, "expected"),
    "layers of one name": ({"layers": ("grouped",) * 4}, "different names"),
    "a clamp beyond a code": ({"b.hi": 256}, "a limit of the clamp is 256"),
    "a clamp beyond a signed code": ({"a.hi": 128}, "the clamp is (-128, 128)"),
    "lo above hi": ({"b.lo": 201}, "the clamp is (201, 200)"),
    "r of nothing": ({"b.r": 0}, "r is 0, expected an int in 1..61"),
    "r beyond 61": ({"b.r": 62}, "r is 62"),
    "r of a float": ({"b.r": 20.0}, "r is 20.0"),
    "r of the logits": ({"logits.r": -1}, "r is -1"),
    "no terms": ({"b.terms": ()}, "1 to 3 terms"),
    "four terms": ({"b.terms": (PLAIN,) * 4}, "add in two steps"),
    "a term that is none": ({"b.terms": (op("a"),)}, "a Term"),
    "multipliers of 64 bits": ({"b/0.multiplier": op("b").terms[0].multiplier.astype(np.int64)}, "int32"),
    "a multiplier of -2**31": ({"b/0.multiplier": np.full((1, 6), -(2**31), np.int32)}, "-2147483648"),
    "float offsets": ({"b/0.offset": op("b").terms[0].offset.astype(float)}, "expected an array int64"),
    "an offset of 2**62": ({"b/0.offset": np.full((1, 1), 2**62)}, "4611686018427387904"),
    "an offset of -2**63": ({"b/0.offset": np.full((1, 1), -(2**63))}, "-9223372036854775808"),
    "a sum beyond 62 bits": ({"b/1.multiplier": np.full((1, 6), 2**31 - 1, np.int32), "b/1.offset":
        np.full((1, 6), 2**62 - 1)}, "its largest sum"),
    "too few rows": ({"b/1.multiplier": op("b").terms[1].multiplier[:3]}, "a shape among"),
    "too few channels": ({"b/1.offset": op("b").terms[1].offset[:, :5]}, "a shape among"),
    "rows that nothing picks": ({"b/1.layer": None}, "a shape among [(1, 1), (1, 6)]"),
    "terms of two shapes": ({"b/0.x": "pooled"}, "the shapes of its terms"),
    "a sum of one pixel and codes": ({"features.terms": (Term("sums", ONE, ZERO, None), Term("c", ONE, ZERO,
        None))}, "the shapes of its terms"),
    "a row for a term at a layer beyond": ({"b/1.layer": 7}, "layer is 7"),
    "a look-up table of 64 bits": ({"input.table": np.zeros((3, 256), np.int64)}, "int8 (1, 256) or"),
    "a short look-up table": ({"input.table": np.zeros((3, 255), np.uint8)}, "uint8 (1, 256) or (3, 256)"),
    "a look-up table of two channels": ({"input.table": int8(2, 256)}, "int8 (1, 256) or (3, 256)"),
    "a look-up of sums": ({"ops": before_last(Lookup(int8(1, 256), "y", "sums"))}, "and these are sums"),
    "a concatenation of one": ({"ops": before_last(Concat(("c",), "y"))}, "a tuple of 2 names or more"),
    "a concatenation of a name": ({"ops": before_last(Concat("cc", "y"))}, "parts is 'cc'"),
    "a concatenation of two types": ({"ops": before_last(Concat(("a", "b"), "y"))}, "requantize the parts"),
    "a concatenation of two sizes": ({"ops": before_last(Concat(("c", "stem:codes"), "y"))},
        "(height, width, type) of its parts"),
    "a concatenation of sums": ({"ops": before_last(Concat(("sums", "sums"), "y"))}, "and these are sums"),
    "a product of other channels": ({"ops": before_last(Product("c", "stem:codes", "y"))}, "the shape of y"),
    "a product by the larger": ({"ops": before_last(Product("features", "c", "y"))}, "the shape of y"),
    "a product of sums": ({"ops": before_last(Product("features", "sums", "y"))}, "and these are sums"),
    "two look-ups": ({"ops": (PROGRAM.ops[0], replace(PROGRAM.ops[0], out="again"), *PROGRAM.ops[1:])},
        "a Lookup of the image first, and no other"),
    "a first look-up of codes": ({"input.x": "stem:codes"}, "a Lookup of the image first"),
    "a pool of no size": ({"pooled.kernel": 0}, "kernel is 0"),
    "a pool of padding alone": ({"pooled.padding": 2}, "padding is 2, expected an int in 0..1"),
    "a pool of a ceiling": ({"pooled.ceil": 1}, "ceil is 1, expected a bool"),
    "a pool larger than the image": ({"pooled.kernel": 9}, "holds a window of 9x9"),
    "a pool of sums": ({"pooled.x": "stem:sum"}, "expected codes, and these are sums"),
    "a sum-pool of sums": ({"sums.x": "depthwise:sum"}, "expected codes, and these are sums"),
    "a convolution of sums": ({"plain:sum.x": "grouped:sum"}, "expected codes, and these are sums"),
    "a convolution of the image": ({"stem:sum.x": "image"}, "expected codes, and these are image"),
    "logits of codes": ({"logits/0.x": "features"}, "expected sums, and these are codes"),
    "logits at a layer's choice": ({"logits/0.layer": 0}, "None: logits have one scale"),
    "logits of many pixels": ({"sums.x": "c", "ops": tuple(replace(o, x="c") if getattr(o, "out", "") ==
        "classifier:sum" else o for o in without("sums", "features"))}, "the sums of one pixel"),
    "a value that nobody made": ({"plain:sum.x": "nothing"}, "a name it reads is 'nothing'"),
    "a value read before it is made": ({"ops": moved("a", "grouped:sum")}, "a value made before"),
    "a value made twice": ({"c.out": "b"}, "a name of its own"),
    "a value that nobody reads": ({"plain:sum.x": "pooled"}, "expected"),
    "no reader": ({"ops": (*PROGRAM.ops[:-1], MaxPool(1, 1, 0, "c", "unread"), PROGRAM.ops[-1])}, "'unread'"),
    "a value called as the image": ({"a.out": "image"}, "a name of its own"),
    "a value called as an exported file's input": ({"a.out": "images"}, "a name of its own"),
    "a value called as a backend calls its own": ({"a.out": "depthwise:sum/switched"}, "without slashes"),
    "a name of two lines": ({"plain:sum.name": "a\nb"}, "printable text"),
    "a name that ends a comment": ({"stem:sum.name": "*/ int main(void) { /*"}, "without slashes"),
    "a name that goes on on the next line": ({"stem:sum.name": "stem\\"}, "without slashes"),
    "a name that turns the reader round": ({"stem:sum.name": "a\u202eb"}, "printable text"),
    "no name": ({"stem:sum.name": ""}, "printable text"),
    "a number for a name": ({"stem:sum.name": 5}, "name is 5"),
    "a program's name of another folder": ({"name": "../../x"}, "without slashes"),
    "a program's name of another drive": ({"name": "c:x"}, "one without :"),
    "a program's name without end": ({"name": "x" * (NAME_BYTES + 1)}, "1 to 180 bytes"),
    "no operations": ({"ops": ()}, "a tuple of operations"),
    "a list of operations": ({"ops": list(PROGRAM.ops)}, "a tuple of operations"),
    "something else for an operation": ({"ops": (*PROGRAM.ops[:-1], "Scale")}, "one of Lookup, Conv"),
    "a last operation that is no Scale": ({"ops": PROGRAM.ops[:-1]}, "the Scale of the logits"),
    "the controller's Scale as the last": ({"logits.controller": True}, "not the controller's"),
    "a flag of another type": ({"a.controller": 0}, "controller is 0, expected a bool"),
    "equal choices": ({"choices": ((2, 2), *PROGRAM.choices[:4])}, "from narrow to wide"),
    "choices from wide to narrow": ({"choices": PROGRAM.choices[::-1]}, "from narrow to wide"),
    "a choice of 0 bits": ({"choices": ((0, 2), *PROGRAM.choices[1:])}, "a width of choices is 0"),
    "a choice of 9 bits": ({"choices": (*PROGRAM.choices[:4], (9, 8))}, "a width of choices is 9"),
    "a choice of one width": ({"choices": (*PROGRAM.choices[:4], (8,))}, "(weight bits, input bits)"),
    "no choices": ({"choices": ()}, "a tuple of (weight bits"),
    "choices that tables do not have": ({"choices": PROGRAM.choices[:4]}, "expected"),
    "an unknown rounding": ({"rounding": "half_even"}, "'half_up' or 'floor'"),
    "a grey image without its channel": ({"image_shape": (5, 4)}, "a tuple (H, W, C)"),
    "an image of no size": ({"image_shape": (0, 4, 3)}, "a size of image_shape is 0"),
    "an image that fills the memory": ({"image_shape": (2**13, 2**13, 3)}, "at most 16777216 numbers"),
    "an image of floats": ({"image_shape": (5.0, 4, 3)}, "a size of image_shape is 5.0"),
    "a choice after its use": ({"ops": moved("choose", "b")}, "before the controller has chosen"),
    "no choice": ({"ops": without("choose")}, "'choice:logits', which is never read"),
    "two choices": ({"ops": (*PROGRAM.ops[:10], Choose(4, "choice:logits"), *PROGRAM.ops[10:])},
        "one Choose"),
    "a choice for other layers": ({"choose.layers": 3}, "(layers, scores) is (3, 20), expected (4, 20)"),
    "a choice before, of a layer it decides": ({"choose.before": (0,)}, "is (4, 20), expected (3, 15)"),
    "choices before, in a list": ({"choose.before": [0]}, "before is [0], expected a tuple of ints"),
    "a choice before that there is not": ({"choose.before": (5,)}, "one of before is 5"),
    "a controller at a width": ({"choose.before": (0,), "hidden:sum.layer": 0}, "move the controller up"),
    "a choice of codes": ({"choose.x": "means"}, "expected logits, and these are codes"),
    "a choice that is not the controller's": ({"choose.controller": False}, "with controller=True"),
    "a body that reads the controller": ({"grouped:sum.x": "means"}, "no value of the controller's"),
    "a controller that is the body": ({"means.controller": False}, "no value of the controller's"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused_where_it_is_made(name):
    changes, words = REFUSED[name]
    with pytest.raises(ProgramError, match=re.escape(words)) as error:
        checked(made(changes))
    assert re.match(r"(the program|operation \d+ \(\w+.*\)): ", str(error.value)), "it says where"
    assert "\n" not in str(error.value)


def checked(program):
    return Program(*(getattr(program, name) for name in Program.__dataclass_fields__))


def of_plain_values(changes):
    return all(isinstance(new, np.ndarray | int | str | tuple) for new in changes.values())


def edited(program, folder, name="x"):
    """A file of anything, whose digest and name are those of its contents."""
    header, tensors = encode(program)
    tensors = {key: np.ascontiguousarray(tensor) for key, tensor in tensors.items()}
    digest = digest_of(header, tensors)
    metadata = {"format": FORMAT, "digest": digest, "program": header}
    path = folder / f"{name}-{digest[:12]}.safetensors"
    save_file(tensors, path, {METADATA: json.dumps(metadata)})
    return path


STORABLE = [name for name, (changes, _) in REFUSED.items() if of_plain_values(changes)]


@pytest.mark.parametrize("name", STORABLE)
def test_refused_where_it_is_loaded(tmp_path, name):
    changes, _ = REFUSED[name]
    path = edited(made(changes), tmp_path)
    with pytest.raises(ProgramError, match=re.escape(str(path))) as error:
        load(path)
    assert "\n" not in str(error.value)


def test_what_is_accepted_stays_accepted(tmp_path):
    """The same helper makes files that load: a refusal above is the change's doing."""
    for program in (PROGRAM, tangled_program("half_up"), selftest.network("floor"), saturated(65_793)):
        assert load(edited(program, tmp_path)).digest == checked(unchecked(program)).digest == program.digest
    assert (
        checked(made({"a.out": "größe", "b/0.x": "größe", "plain:sum.x": "größe"})).values["größe"].layer
        is None
    )


@pytest.mark.parametrize(("rounding", "terms"), [("half_up", 65_794), ("floor", 32_897)])
def test_a_longer_sum_is_refused(rounding, terms):
    with pytest.raises(ProgramError, match=rf"sum of {terms} products .* sum at most {terms - 1} of them"):
        saturated(terms, rounding)


def test_a_sum_pool_that_overflows_is_refused():
    """More codes of 255 than 32 bits hold; at most 8,421,504 of them."""
    ops = (
        Lookup(np.zeros((3, 256), np.int8), "input"),
        Conv("stem", int8(1, 1, 1, 3), 2, 0, 1, None, "input", "stem:sum"),
        Requantize((Term("stem:sum", ONE, ZERO, None),), 1, 0, 255, "codes"),
        Conv("wide", int8(1, 1, 1, 1), 1, 1452, 1, None, "codes", "wide:sum"),
        Requantize((Term("wide:sum", ONE, ZERO, None),), 1, 0, 255, "wide"),
        SumPool("wide", "sums"),
        Scale(Term("sums", ONE, ZERO, None), 1, "logits"),
    )
    with pytest.raises(ProgramError, match=r"operation 5 \(SumPool 'sums'\): a sum of .* at most 8421504"):
        Program("pool", ops, ((8, 8),), (), (1, 1, 3))


def test_a_term_that_reads_another_layers_sums_stays_within_32_bits():
    """Backends shift sums in int32; those of a layer at 8 bits have no room for the shift of another."""
    program = tangled_program("half_up")
    long = {"weight": int8(6, 3, 3, 6), "padding": 1}
    ops = [replace(op, **long) if getattr(op, "name", "") == "fresh" else op for op in program.ops]
    replace(program, ops=tuple(ops))
    at = next(i for i, op in enumerate(ops) if getattr(op, "out", "") == "d")
    ops[at] = replace(ops[at], terms=(replace(ops[at].terms[0], layer=0), *ops[at].terms[1:]))
    with pytest.raises(ProgramError, match=r"with its dropped bits .* less than 2"):
        Program("tangled", tuple(ops), program.choices, program.layers, program.image_shape)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(run=runs(max_size=5))
def test_what_is_known_of_values_is_what_a_run_makes(run):
    """Shapes, types, and bounds that no number passes."""
    values, _ = recorded(numpy_ref, run.program, run.images, run.choices)
    for name, value in values.items():
        known = run.program.values[name]
        assert (value.shape[1:], value.dtype) == (known.shape, known.dtype), name
        assert np.abs(value.astype(object)).max() <= max(known.largest), name


@pytest.mark.parametrize(("rounding", "unit"), [("half_up", 128), ("floor", 256)])
def test_the_bounds_are_reached(rounding, unit):
    """Codes of 255 against weights of -128."""
    program = saturated(100, rounding)
    assert program.values["last:sum"].largest == (100 * 255 * unit,)
    values, _ = recorded(numpy_ref, program, np.zeros((1, 1, 1, 3), np.uint8), np.zeros((1, 1), np.int64))
    assert values["last:sum"].min() == -100 * 255 * unit


# What a program keeps


def arrays_of(program):
    return list(encode(program)[1].values())


def test_arrays_cannot_change():
    weight = np.ones((5, 1, 1, 6), np.int8)
    program = checked(made({"classifier:sum.weight": weight}))
    before = program.run(small_images(), 8, "numpy").digest
    weight[:] = 7
    assert program.run(small_images(), 8, "numpy").digest == before
    for array in arrays_of(program):
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0


def test_copies_are_as_safe():
    program = small_program()
    for twin in (pickle.loads(pickle.dumps(program)), copy.deepcopy(program), copy.copy(program)):
        assert twin.digest == program.digest
        assert not any(array.flags.writeable for array in arrays_of(twin))


def test_a_pickle_is_checked():
    broken = made({"plain:sum.stride": 0})
    fields = tuple(getattr(broken, name) for name in Program.__dataclass_fields__)
    with pytest.raises(ProgramError, match="stride is 0"):
        pickle.loads(pickle.dumps(program_maker(fields)))


class program_maker:
    def __init__(self, fields):
        self.fields = fields

    def __reduce__(self):
        return Program, self.fields


@pytest.mark.parametrize("memory", ["columns", "big-endian", "fortran", "reversed"])
def test_arrays_in_any_memory_are_saved_right(tmp_path, memory):
    """As `table[:, :16]`, `multiplier[:, :1]`, or numbers from a machine of the other endianness."""
    change = {
        "columns": lambda array: np.repeat(array, 2, axis=-1)[..., ::2],
        "big-endian": lambda array: array.astype(array.dtype.newbyteorder(">")),
        "fortran": np.asfortranarray,
        "reversed": lambda array: array[::-1].copy()[::-1],
    }[memory]
    changes = {
        "input.table": change(op("input").table),
        "plain:sum.weight": change(op("plain:sum").weight),
        "b/1.multiplier": change(op("b").terms[1].multiplier),
        "b/1.offset": change(op("b").terms[1].offset),
    }
    program = checked(made(changes))
    assert load(program.save(tmp_path)).digest == program.digest == PROGRAM.digest
    assert all(array.flags.c_contiguous for array in arrays_of(program))
    assert (
        program.run(small_images(), "controller").digest == PROGRAM.run(small_images(), "controller").digest
    )


def test_nothing_is_copied_twice():
    program = small_program()
    again = replace(program, name="again")
    assert all(one is other for one, other in zip(arrays_of(program), arrays_of(again), strict=True))


# Files


def test_a_header_nested_without_end(tmp_path):
    for header in ("[" * 100_000 + "]" * 100_000, '{"ops":' + "[" * 3000 + "]" * 3000 + "}"):
        digest = digest_of(header, {})
        path = tmp_path / f"deep-{digest[:12]}.safetensors"
        metadata = {"format": FORMAT, "digest": digest, "program": header}
        save_file({}, path, {METADATA: json.dumps(metadata)})
        with pytest.raises(ProgramError, match="get the file again"):
            load(path)


def test_a_file_that_holds_more(tmp_path):
    header, tensors = encode(PROGRAM)
    tensors = {**tensors, "more": np.zeros(3, np.int8)}
    digest = digest_of(header, tensors)
    path = tmp_path / f"small-{digest[:12]}.safetensors"
    save_file(tensors, path, {METADATA: json.dumps({"format": FORMAT, "digest": digest, "program": header})})
    with pytest.raises(ProgramError, match="it holds more than a program"):
        load(path)


def test_no_link_is_written_through(tmp_path):
    """Neither the unfinished file, whose name nobody can know, nor the finished one."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(b"mine")
    folder = tmp_path / "folder"
    folder.mkdir()
    path = folder / f"small-{PROGRAM.digest[:12]}.safetensors"
    path.symlink_to(elsewhere)
    path.with_suffix(".unfinished").symlink_to(elsewhere)
    assert load(PROGRAM.save(folder)).digest == PROGRAM.digest
    assert elsewhere.read_bytes() == b"mine"
    assert not path.is_symlink()


def save_often(folder):
    for _ in range(20):
        load(small_program().save(folder))


def test_several_processes_save_one_program(tmp_path):
    spawn = multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=save_often, args=(tmp_path,)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert [path.name for path in tmp_path.iterdir()] == [f"small-{PROGRAM.digest[:12]}.safetensors"]


def test_the_file_has_the_rights_of_any_other(tmp_path):
    before = os.umask(0o027)
    try:
        assert PROGRAM.save(tmp_path).stat().st_mode & 0o777 == 0o640
    finally:
        os.umask(before)


def test_tables_have_a_row_for_every_choice():
    """The tests above lean on it."""
    assert [len(term.multiplier) for term in op("a").terms] == [K, K]
