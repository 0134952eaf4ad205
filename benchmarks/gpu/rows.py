"""The measurements: each checks its output against the CPU, then times itself and its peers in turns.

A row says what was run, against what, the median milliseconds of both, the ratio that matters and the ratio
aimed at, the bytes and operations that were counted (not measured), and the share of a copy's bandwidth.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from benchmarks.gpu.clock import medians
from benchmarks.gpu.networks import CHOICES, Fp16Twin, resnet18, resnet50
from dqt_core import cost, integer, nested
from dqt_core.backends import gpu_calls, gpu_plan
from dqt_core.backends.analysis import FusedConv, fused
from dqt_core.backends.gpu_launches import THREADS, Batch, Launch, Launches, blocks
from dqt_core.program.operations import out_shape


@dataclass(frozen=True)
class Sizes:
    """How much is measured; `TINY` is for the emulator."""

    switch: tuple[int, ...] = (25_500_000, 400_000_000)
    batch: int = 128
    nets: tuple[Callable, ...] = (resnet18, resnet50)
    gemv: int = 4096
    matrices: int = 16  # more than the last-level cache holds, read in turns
    checked: int = 2  # images


TINY = Sizes(
    (1000,),
    3,
    (functools.partial(resnet18, 8, 8, 10, 2), functools.partial(resnet50, 8, 32, 10, (1, 1))),
    64,
    2,
)


class Bench:
    """An engine with its clock, its torch device, and the copy that everything is compared with."""

    def __init__(self, engine, clock, sizes):
        self.engine, self.clock, self.sizes, self.xp = engine, clock, sizes, engine.xp
        self.device = "cpu" if engine.xp is np else "cuda"
        torch.manual_seed(0)
        self.medians = functools.partial(medians, clock)

    def codes(self, shape, dtype=np.uint8):
        """Random master codes on the device."""
        info, shape = np.iinfo(dtype), shape if isinstance(shape, tuple) else (shape,)
        kind = getattr(torch, np.dtype(dtype).name)
        random = torch.randint(info.min, info.max + 1, shape, dtype=kind, device=self.device)
        return self.xp.from_dlpack(random)

    def tensor(self, array):
        """The same memory as a torch tensor."""
        return torch.from_dlpack(array)

    def host(self, array):
        """A copy in the host's memory."""
        return np.array(array) if self.xp is np else array.get()

    def copy(self, source, target):
        """Copy device memory, as fast as the driver does it."""
        if self.xp is np:
            return lambda: np.copyto(target, source)
        return lambda: target.data.copy_from_device_async(source.data, source.nbytes)

    @property
    def float_peer(self):
        """What a float layer is computed with."""
        return "cuDNN fp16, channels last" if self.device == "cuda" else "fp32 on the CPU, channels last"

    @functools.cached_property
    def copy_bytes_per_ms(self):
        """Bytes read and written by a large copy, in a millisecond."""
        source = self.codes(1 << 28 if self.clock.meaningful else 1 << 10)
        return (
            2 * source.nbytes / self.medians({"copy": self.copy(source, self.xp.empty_like(source))})["copy"]
        )

    def row(self, group, peer, ours, theirs, aim, what, times, **counted):
        """A row; the ratio is how many times as long the peer takes."""
        ratio = times[theirs] / times[ours]
        moved = counted["bytes"]
        return {
            "group": group,
            "what": what,
            "peer": peer,
            "ours_ms": times[ours],
            "peer_ms": times[theirs],
            "ratio": ratio,
            "aim": aim,
            "met": None if aim is None else ratio >= aim,
            "copy_share": None if moved is None else moved / times[ours] / self.copy_bytes_per_ms,
            **counted,
        }


def switch_rows(bench: Bench) -> Iterator[dict]:
    """The switch against a copy, and against the way through floats."""
    for count in bench.sizes.switch:
        codes = bench.codes(count, np.int8)
        out, reals = bench.xp.empty_like(codes), bench.xp.empty(count, np.float32)
        check_switch(bench, codes)
        runs = {"copy": bench.copy(codes, out), **switch_kernels(bench, codes, out, reals)}
        runs |= torch_switches(bench, bench.tensor(codes))
        times = bench.medians(runs)
        row = functools.partial(bench.row, "switch", times=times, bytes=2 * count, operations=None)
        for peer, (name, aim) in PEERS.items():
            if peer in times:
                yield row(name, "switch", peer, aim, what=f"{count / 1e6:g} M codes, 8 to 4 bits")


PEERS = {
    "copy": ("device copy of the same bytes", 0.9),
    "torch eager": ("dequantize and requantize in torch, eager", 8),
    "torch.compile": ("dequantize and requantize in torch, torch.compile", 1.5),
    "float kernels": ("own float kernels, two passes", None),
    "float kernel, fused": ("own float kernel, one pass", None),
}


def switch_kernels(bench, codes, out, reals):
    """The switch and its opponents through floats, as launches."""
    step, lo, hi = np.float32(1), np.int32(-8), np.int32(7)
    inverse, count, width = np.float32(1 / 16), np.int64(codes.size), np.int32(4)
    kernel = functools.partial(bench.engine.kernel, "switch", X_SIGNED=1)
    wide, narrow = blocks(-(-codes.size // 16)), blocks(-(-codes.size // 4))
    to_real = Launch(kernel("dequantize"), narrow, THREADS, (codes, reals, step, count))
    to_code = Launch(kernel("requantize_float"), narrow, THREADS, (reals, out, inverse, lo, hi, count))
    fused = (codes, out, step, inverse, lo, hi, count)

    def both():
        to_real()
        to_code()

    return {
        "switch": Launch(kernel("switch_codes"), wide, THREADS, (codes, out, count, width)),
        "float kernels": both,
        "float kernel, fused": Launch(kernel("dequantize_requantize"), wide, THREADS, fused),
    }


def torch_switches(bench, codes):
    """The same through floats in torch; step 1, so that every product is exact."""

    def through_floats(q, step, inverse):
        x = q.to(torch.float32) * step
        return torch.clamp(torch.floor(x * inverse + 0.5), -8, 7).to(torch.int8)

    expected = nested.switch(codes[:4096].cpu().numpy(), 4)
    assert np.array_equal(through_floats(codes[:4096], 1.0, 1 / 16).cpu().numpy(), expected)
    runs = {"torch eager": lambda: through_floats(codes, 1.0, 1 / 16)}
    if bench.clock.meaningful:
        compiled = torch.compile(through_floats)
        assert np.array_equal(compiled(codes, 1.0, 1 / 16)[:4096].cpu().numpy(), expected)
        runs["torch.compile"] = lambda: compiled(codes, 1.0, 1 / 16)
    return runs


def check_switch(bench, codes):
    """The first and the last codes at every width, against `nested`."""
    for part in (codes[:65536], codes[-65536:]):
        for width in range(1, 9):
            found = bench.host(gpu_calls.switch(part, width, engine=bench.engine))
            assert np.array_equal(found, nested.switch(bench.host(part), width)), f"switch to {width} bits"


def conv_rows(bench: Bench) -> Iterator[dict]:
    """Every shape of convolution: the switch in it, and the same layer in fp16 by cuDNN."""
    for make in bench.sizes.nets:
        program = make()
        for step, shape, layers in conv_shapes(program):
            yield from one_conv(bench, program.name, step, shape, layers)


def conv_shapes(program):
    """The different convolutions of a program, with their input's shape and how often they occur."""
    shapes = {name: value.shape for name, value in program.values.items()}
    found = {}
    for step in fused(program.ops):
        if isinstance(step, FusedConv) and step.conv.layer is not None:
            key = step.conv.weight.shape, step.conv.stride, shapes[step.conv.x]
            first, _, count = found.get(key, (step, None, 0))
            found[key] = first, shapes[step.conv.x], count + 1
    return list(found.values())


def one_conv(bench, network, step, shape, layers):
    """One layer, without its skip: a plain convolution with its requantize."""
    conv, batch = step.conv, bench.sizes.batch
    made = out_shape(conv, shape)
    x, out = bench.codes((batch, *shape)), bench.xp.empty((batch, *made), np.uint8)
    step = replace(step, conv=conv, skip=None)
    values = {conv.x: x, step.out: out}
    group = Batch(bench.xp, batch, conv.layer + 1, len(CHOICES))
    group.picks[:] = CHOICES.index((4, 4))
    launches = Launches(bench.engine, CHOICES, "half_up")
    launches.group_images(group)()
    switched = launches.of(step, values, group)
    plain = Launches(bench.engine, CHOICES, "half_up", SWITCH=0).of(step, values, group)
    switched()
    check_conv(bench, step, x, out)
    runs = {"ours": switched, "without switch": plain, "fp16": fp16_conv(bench, conv, shape)}
    runs |= int_mm(bench, launches, conv, shape, group)
    times = bench.medians(runs)
    macs = batch * made[0] * made[1] * conv.weight.size
    counted = {"bytes": x.nbytes + out.nbytes + conv.weight.nbytes, "operations": 2 * macs, "layers": layers}
    o, kh, kw, i = conv.weight.shape
    what = f"{network} {i}->{o} {kh}x{kw}/{conv.stride} on {shape[0]}x{shape[1]}, batch {batch}"
    row = functools.partial(bench.row, what=what, times=times, **counted)
    yield row(
        "switch in a convolution", "the same kernel without the switch", "ours", "without switch", 1 / 1.03
    )
    yield row("convolution", bench.float_peer, "ours", "fp16", None)
    if "_int_mm" in times:
        yield row("1x1 as a product", "torch._int_mm", "sums", "_int_mm", 0.7)


def check_conv(bench, step, x, out):
    """The first image against `integer`."""
    first, conv = bench.host(x[:1]), step.conv
    row = CHOICES.index((4, 4))
    sums = integer.conv2d(nested.switch(first, 4), nested.switch(conv.weight, 4), conv.stride, conv.padding)
    term = step.term
    expected = integer.requantize(
        [(sums, 8, term.multiplier[row])],
        term.offset[row],
        step.requantize.r,
        step.requantize.lo,
        step.requantize.hi,
    )
    assert np.array_equal(bench.host(out[:1]), expected), f"{conv.name} is not exact"


def fp16_conv(bench, conv, shape):
    """Convolution, bias and ReLU, as cuDNN likes them best."""
    kind = torch.float16 if bench.device == "cuda" else torch.float32
    options = {"device": bench.device, "dtype": kind}
    x = torch.randn(bench.sizes.batch, shape[2], *shape[:2], **options).to(memory_format=torch.channels_last)
    o, kh, kw, i = conv.weight.shape
    weight = torch.randn(o, i, kh, kw, **options).to(memory_format=torch.channels_last)
    bias = torch.zeros(o, **options)

    def run():
        with torch.inference_mode():
            return torch.relu_(torch.nn.functional.conv2d(x, weight, bias, conv.stride, conv.padding))

    return run


def int_mm(bench, launches, conv, shape, group):
    """For a 1x1 layer: sums of 8-bit products, ours and torch's, on the same signed codes."""
    o, kh, kw, i = conv.weight.shape
    if kh * kw > 1 or conv.stride > 1 or i % 8 or o % 8:
        return {}
    x = bench.codes((bench.sizes.batch, *shape), np.int8)
    sums = bench.xp.empty((*x.shape[:3], o), np.int32)
    ours = launches.of(replace(conv, layer=None), {conv.x: x, conv.out: sums}, group)
    rows, columns = (
        bench.tensor(x).reshape(-1, i),
        torch.tensor(conv.weight.reshape(o, i)).to(bench.device).t(),
    )
    ours()
    assert torch.equal(bench.tensor(sums).reshape(-1, o), torch._int_mm(rows, columns)), "1x1 is not exact"
    return {"sums": ours, "_int_mm": lambda: torch._int_mm(rows, columns)}


def network_rows(bench: Bench) -> Iterator[dict]:
    """Whole networks: against fp16, and random widths against one width."""
    for make in bench.sizes.nets:
        program, batch = make(), bench.sizes.batch
        backend = type_of_backend(bench)(program)
        images = bench.codes((batch, *program.image_shape))
        rng = np.random.default_rng(1)
        random = rng.integers(0, len(CHOICES), (batch, len(program.layers)))
        uniform = np.full_like(random, CHOICES.index((4, 4)))
        check_network(bench, program, backend, images, random)
        random, uniform = bench.xp.asarray(random), bench.xp.asarray(uniform)
        runs = {
            "uniform": lambda b=backend, i=images, u=uniform: b.logits(i, u),
            "random": lambda b=backend, i=images, r=random: b.logits(i, r),
            **fp16_network(bench, program),
        }
        times = bench.medians(runs, burst_ms=20)
        operations = 2 * batch * sum(layer.macs for layer in cost.layer_sizes(program))
        row = functools.partial(bench.row, times=times, bytes=None, operations=operations)
        what = f"{program.name}, batch {batch}"
        fastest = min((name for name in times if name.startswith("fp16")), key=times.get)
        peer = f"{bench.float_peer}, {fastest.removeprefix('fp16 ')}"
        yield row("network", peer, "uniform", fastest, 1.0, what=f"{what}, 4 bits")
        peer, what = "the same batch at 4 bits", f"{what}, each image its own widths"
        yield row("random widths", peer, "random", "uniform", 1 / 1.05, what=what)


def type_of_backend(bench):
    """The backend of the bench's engine."""
    return functools.partial(gpu_plan.Backend, engine=bench.engine)


def check_network(bench, program, backend, images, choices):
    """A few images of random widths against torch on the CPU."""
    n = bench.sizes.checked
    widths = np.array(program.choices)[choices[:n]]
    expected = program.run(bench.host(images[:n]), widths, "torch")
    found = bench.host(gpu_calls.logits(backend, images, np.array(program.choices)[choices]))[:n]
    assert np.array_equal(found, expected.logits), f"{program.name} is not exact"


def fp16_network(bench, program):
    """The twin, called layer by layer and as a CUDA graph."""
    twin = Fp16Twin(program, bench.device)
    size = bench.sizes.batch, 3, *program.image_shape[:2]
    images = torch.randn(size, device=bench.device, dtype=twin.kind).to(memory_format=torch.channels_last)

    def eager():
        with torch.inference_mode():
            return twin(images)

    runs = {"fp16 eager": eager}
    if bench.device == "cuda":
        with torch.cuda.stream(torch.cuda.Stream()):
            for _ in range(3):
                eager()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            eager()
        runs["fp16 CUDA graph"] = graph.replay
    return runs


def gemv_rows(bench: Bench) -> Iterator[dict]:
    """The matrix-vector product from b planes against the one from all eight."""
    size = bench.sizes.gemv
    x = bench.codes((1, size), np.int8)
    weights = [bench.codes((size, size), np.int8) for _ in range(bench.sizes.matrices)]
    planes = [gpu_calls.to_planes(matrix, engine=bench.engine) for matrix in weights]
    host_weights, host_x = bench.host(weights[0]), bench.host(x)
    y = bench.xp.empty((1, size), np.int32)
    kernel = bench.engine.kernel("planes", "gemv_planes", X_SIGNED=1, BATCH=1)

    def reader(width):
        sizes = tuple(map(np.int32, (size, size, 1, width)))
        launches = [Launch(kernel, -(-size // 8), 256, (matrix, x, y, *sizes)) for matrix in planes]
        return lambda: [launch() for launch in launches]

    for width in range(1, 9):
        expected = integer.matmul(host_x, nested.switch(host_weights, width, rounding="floor"))
        found = bench.host(gpu_calls.gemv(planes[0], x, width, bench.engine))
        assert np.array_equal(found, expected), f"gemv from {width} planes"
    times = bench.medians({width: reader(width) for width in range(1, 9)})
    for width, aim in ((4, 1 / 0.6), (2, 1 / 0.4), (1, None), (3, None), (6, None)):
        what = f"{size} x {size} from {width} planes, {len(planes)} matrices in turn"
        counted = {
            "bytes": size * size // 8 * width * len(planes),
            "operations": 2 * size * size * len(planes),
        }
        peer = "the same from 8 planes"
        yield bench.row("matrix-vector product", peer, width, 8, aim, what=what, times=times, **counted)


GROUPS = {"switch": switch_rows, "network": network_rows, "gemv": gemv_rows, "conv": conv_rows}


def measure(bench: Bench, record, until: Callable[[], bool]) -> None:
    """All rows into the record; a group that fails is recorded as failed, and the next one goes on."""
    for name, rows in GROUPS.items():
        with failures_recorded(record, name):
            for row in rows(bench):
                record.row(row)
                if until():
                    record.check(f"benchmark {name}", None, 0, "cut: no time left")
                    return


@contextlib.contextmanager
def failures_recorded(record, name):
    """Record what went wrong in a group; its rows so far stay."""
    try:
        yield
    except Exception as error:
        record.check(f"benchmark {name}", False, 0, f"{type(error).__name__}: {error}"[:500])
