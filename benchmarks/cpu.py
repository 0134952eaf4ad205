"""Time of the integer program on this CPU against its peers, in one run: ``make bench``.

    python -m benchmarks.cpu --threads 1 --out reproductions/results/cpu

In a folder the record is named after the processor's products and the threads, as amx-one-thread.json:
processors with other instructions have records of their own. Rows take turns, so that what else the machine
does falls on all of them; the ratios count, the milliseconds do not. With one thread the clock is that of the
process, which stands still while others run. The record is written after every row: a run that is cut keeps
what it has. Digests are compared before anything is timed.
"""

import argparse
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import torch

from benchmarks.gpu import networks
from dqt_core import cost, load, nested, results
from dqt_core.backends import numba_cpu
from dqt_core.evaluation.consistency import write_signed
from dqt_core.program import Conv

ROOT = Path(__file__).resolve().parents[1]
SCHEMA = "dqt-cpu-1"
FLAGS = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16")
MASK = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
INT8 = {"ONNX Runtime int8": 1.1, "torch PT2E int8": 1.0}
AIMS = {
    "resnet18 batch 1": {"torch fp32": 2, "torch bf16": 1, **INT8},
    "resnet18 batch 16": INT8,
    "resnet18 batch 128": {"torch fp32": 4, "torch bf16": 1.2, **INT8},
    "resnet50 batch 1": INT8,
    "resnet50 batch 16": {"torch fp32": 3, "torch bf16": 1, **INT8},
}


class Bench:
    """What every measurement needs: the clock, the record, the sizes."""

    def __init__(self, options):
        self.options, self.threads = options, options.threads
        if options.out.is_dir():
            threads = "one-thread" if options.threads == 1 else "all-threads"
            options.out = options.out / f"{machine()['instructions'].lower()}-{threads}.json"
        self.clock = time.process_time if options.threads == 1 else time.perf_counter
        self.data = {
            "schema": SCHEMA,
            "provenance": results.provenance(),
            "threads": options.threads,
            "clock": "of the process" if options.threads == 1 else "of the wall",
            "rounds": options.rounds,
            "machine": machine(),
            "rows": [],
            "growth": [],
            "facts": {},
            "finished": False,
        }
        if options.add and options.out.is_file():
            before = json.loads(options.out.read_text())
            if before["threads"] != options.threads or before["schema"] != SCHEMA:
                raise SystemExit(f"{options.out} is of {before['threads']} threads; choose another --out")
            self.data |= {name: before[name] for name in ("rows", "growth", "facts")}

    def turns(self, runners, rounds=None):
        """Seconds of every runner in every round; forwards and backwards in turn, after one to warm up."""
        seconds = {name: [] for name in runners}
        for run in runners.values():
            run()
        for turn in range(rounds or self.options.rounds):
            for name in list(runners)[:: -1 if turn % 2 else 1]:
                start = self.clock()
                runners[name]()
                seconds[name].append(self.clock() - start)
        return seconds

    def rows(self, group, seconds, ours="dqt_core", aims=None, **counted):
        """A row against every peer."""
        earlier = self.data["rows"]
        self.data["rows"] = [row for row in earlier if (row["group"], row["what"]) != (group, ours)]
        for peer, theirs in seconds.items():
            if peer == ours:
                continue
            ratios = [other / own for own, other in zip(seconds[ours], theirs, strict=True)]
            low, middle, high = statistics.quantiles(ratios, n=4)
            aim = (aims or {}).get(peer)
            row = {"group": group, "peer": peer, "ratio": middle, "low": low, "high": high, "aim": aim}
            row |= {"met": None if aim is None else middle >= aim, "what": ours}
            row |= {"ours_ms": 1e3 * statistics.median(seconds[ours])}
            row |= {"peer_ms": 1e3 * statistics.median(theirs)}
            self.data["rows"].append(row | counted)
            print(
                f"{group:22} {ours:14} against {peer:26} {middle:7.2f}  ({low:.2f} to {high:.2f})"
                + ("" if aim is None else f"  aim {aim}: {'reached' if middle >= aim else 'MISSED'}"),
                flush=True,
            )
        self.write()

    def write(self):
        write_signed(self.data, self.options.out)


def machine():
    try:
        flags = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        flags = set()
    return {
        "flags": [flag for flag in FLAGS if flag in flags],
        "instructions": type(numba_cpu.machine()).__name__,
        "masked": {name: os.environ[name] for name in MASK if name in os.environ},
        "wait_policy": os.environ.get("OMP_WAIT_POLICY", ""),
    }


def runner(program, images, widths):
    """Ours; the backend has its plan and its weights after the first call."""
    return lambda: program.run(images, widths, "numba", batch_size=len(images))


def require_digest(program, images, widths, exact):
    """The bits of NumPy on the first `exact` images, and of torch on all."""

    def of(part):
        return widths[part] if isinstance(widths, np.ndarray) else widths

    ours = program.run(images, widths, "numba", batch_size=len(images))
    assert ours.digest == program.run(images, widths, "torch").digest, "numba and torch differ"
    part = slice(0, exact)
    reference = program.run(images[part], of(part), "numpy")
    assert np.array_equal(ours.logits[part], reference.logits), "numba and NumPy differ"


def network(bench, name, program, batches, exact, compiled=False):
    """One network against torch and ONNX Runtime at some batch sizes."""
    rng = np.random.default_rng(0)
    every = rng.integers(0, 256, (max(batches), *program.image_shape), np.uint8)
    for width in (2, 4, 8):
        require_digest(program, every, width, exact)
    mixed = rng.integers(0, len(program.choices), (len(every), len(program.layers)))
    widths = np.array(program.choices)[mixed][..., 0]
    require_digest(program, every, widths, exact)
    macs = sum(size.macs for size in cost.layer_sizes(program))
    with tempfile.TemporaryDirectory() as folder:
        from benchmarks import cpu_peers as peers

        plain = peers.onnx_file(program, f"{folder}/float.onnx")
        quantized = peers.quantized_file(plain, f"{folder}/int8.onnx", every[:8])
        for batch in batches:
            images, group = every[:batch], f"{name} batch {batch}"
            runners = {"dqt_core": runner(program, images, 8)}
            runners["torch fp32"] = peers.torch_peer(program, images, torch.float32)
            runners["torch bf16"] = peers.torch_peer(program, images, torch.bfloat16)
            if bench.options.compile and shutil.which("g++"):
                if compiled:
                    runners["torch.compile fp32"] = peers.torch_peer(program, images, torch.float32, True)
                if platform.machine() in ("x86_64", "AMD64"):  # whose rules of quantization it takes
                    runners["torch PT2E int8"] = peers.pt2e_peer(program, images)
            runners["ONNX Runtime fp32"] = peers.onnx_peer(plain, images, bench.threads)
            runners["ONNX Runtime int8"] = peers.onnx_peer(quantized, images, bench.threads)
            counted = {"operations": 2 * macs * batch, "bytes": least_bytes(program, batch)}
            bench.rows(group, bench.turns(runners), aims=AIMS.get(group), **counted)
            own = {"dqt_core, each image its widths": runner(program, images, widths[:batch])}
            own["dqt_core at 8 bits"] = runners["dqt_core"]
            bench.rows(
                group, bench.turns(own), "dqt_core, each image its widths", {"dqt_core at 8 bits": 0.95}
            )


def least_bytes(program, batch):
    """Every weight once, every map of codes written once and read once."""
    sizes = cost.layer_sizes(program)
    return sum(size.weights for size in sizes) + batch * sum(2 * size.inputs for size in sizes)


def switch(bench, count=25_500_000):
    """Codes at another width, against a copy and against floats."""
    from dqt_core.backends.numba_cpu import _buffers, _kernels

    codes = _buffers.zeros(count // 64 * 64, np.int8)
    codes[:] = np.random.default_rng(0).integers(-128, 128, len(codes), np.int8)
    out = _buffers.zeros(len(codes), np.int8)

    def ours():
        _kernels.switch_weights(out.ctypes.data, codes.ctypes.data, len(codes), 4, 1)

    ours()
    assert np.array_equal(out, nested.switch(codes, 4))
    warnings.filterwarnings("ignore", message="torch.quantize_per_tensor")
    tensor = torch._make_per_tensor_quantized_tensor(torch.from_numpy(codes), 0.1, 0)
    runners = {
        "switch": ours,
        "copy": lambda: np.copyto(out, codes),
        "torch dequantize, quantize": lambda: torch.quantize_per_tensor(
            tensor.dequantize(), 1.6, 0, torch.qint8
        ),
    }
    aims = {"copy": 0.8, "torch dequantize, quantize": 20}
    bench.rows("switch of 25.5 M codes", bench.turns(runners), "switch", aims, bytes=2 * len(codes))


def controller(bench):
    """A trained network that chooses for every image, against itself at one width of as many BitOPs."""
    path = next((ROOT / "reproductions" / "checkpoints").glob("dynamic-4_*.safetensors"))
    program = load(path)
    images = np.random.default_rng(0).integers(0, 256, (128, *program.image_shape), np.uint8)
    require_digest(program, images, "controller", 4)
    spent = cost.bitops(program, program.run(images, "controller", "numba").widths).mean()
    even = {bits: cost.bitops(program, bits).mean() for bits, other in program.choices if bits == other}
    width = min(even, key=lambda bits: abs(even[bits] - spent))
    bench.data["facts"]["controller"] = {"bitops": spent, "width": width, "bitops_at_width": even[width]}
    runners = {
        "controller": runner(program, images, "controller"),
        f"{width} bits": runner(program, images, width),
    }
    bench.rows("controller batch 128", bench.turns(runners), "controller", {f"{width} bits": 0.9})


def shares(bench):
    """Where the time goes: whole runs, their steps, these without windows, and then without products."""
    for name, program, batch in (("resnet18", networks.resnet18(), 16), ("resnet50", networks.resnet50(), 2)):
        whole, steps, flat, rest = shares_of(bench, program, batch)
        bench.data["facts"][f"{name} shares"] = {
            "products": (flat - rest) / whole,
            "windows": (steps - flat) / whole,
            "requantize and what else the steps do": rest / whole,
            "Python": (whole - steps) / whole,
        }
        bench.write()


def shares_of(bench, program, batch):
    from dqt_core.backends.numba_cpu import _kernels, _layout

    images = np.random.default_rng(0).integers(0, 256, (batch, *program.image_shape), np.uint8)
    backend = numba_cpu.Backend(program)
    choices = np.full((batch, len(program.layers)), len(program.choices) - 1)
    backend.run(images, choices)
    (workspace,) = backend.idle
    plan = workspace.plans[True]
    memory = plan.memory(workspace.arena, workspace.scratch)
    steps, flat, rest = (plan.records.copy() for _ in range(3))
    for records in (flat, rest):
        records["kernel_height"][records["kind"] == _layout.CONV] = 0  # no row of a window is copied
    rest["lines"] = 0

    def of(records):
        given = numba_cpu.machine(), memory, plan.blocks[0], plan.terms, records
        if bench.threads == 1:
            return lambda: _kernels.run_alone(*given)
        return lambda: _kernels.run(*given, bench.threads)

    runners = {"whole": lambda: backend.run(images, choices)}
    runners |= {"steps": of(steps), "flat": of(flat), "rest": of(rest)}
    return (min(seconds) for seconds in bench.turns(runners, 15).values())


def min_seconds(bench, run, rounds=9):
    return min(bench.turns({"": run}, rounds)[""])


def roofline(bench):
    """What this machine can do at most: products of codes that stay in the nearest cache, and copies."""
    from dqt_core.backends.numba_cpu import _buffers

    count, row = 2000, 9 * 64
    make = kernel_of_products()
    machine = numba_cpu.machine()
    x, weights, sums = (_buffers.zeros(32 * row, np.uint8) for _ in range(3))
    scratch = _buffers.Scratch(networks.resnet18(4, 8, 4, 2), {}, machine, 1)
    windows = x.ctypes.data + row * np.arange(32)
    lines = row // machine.line
    places = windows.ctypes.data, (0, row), weights.ctypes.data, (1, lines), 32, sums.ctypes.data
    seconds = min_seconds(bench, lambda: make(machine, scratch.memory["config"][0], *places, count), 20)
    source = np.zeros(1 << 28, np.uint8)
    target = np.empty_like(source)
    copying = min_seconds(bench, lambda: np.copyto(target, source))
    operations = 2 * 32 * 32 * row * count
    bench.data["facts"]["roofline"] = {
        # the copy is one thread's too
        "operations_per_second": bench.threads * operations / seconds,
        "bytes_per_second": 2 * len(source) / copying,
    }
    bench.write()


def kernel_of_products():
    """The package's product, again and again on the same codes."""
    import numba

    from dqt_core.backends.numba_cpu._products import configure, product

    @numba.njit
    def repeated(machine, tiles, windows, steps, weights, window, pixels, sums, count):
        configure(machine, tiles)
        for _ in range(count):
            product(machine, windows, steps, weights, window, pixels, sums)
        configure(machine, 0)

    return repeated


def busy(bench):
    """ResNet-50 while another process keeps one core busy: a laptop is seldom idle."""
    if bench.threads == 1:  # whose clock stands still while others run
        return
    from benchmarks import cpu_peers as peers

    program = networks.resnet50()
    every = np.random.default_rng(0).integers(0, 256, (16, *program.image_shape), np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        plain = peers.onnx_file(program, f"{folder}/float.onnx")
        quantized = peers.quantized_file(plain, f"{folder}/int8.onnx", every[:8])
        for batch in (1, 16):
            images = every[:batch]
            runners = {"dqt_core": runner(program, images, 8)}
            runners["torch fp32"] = peers.torch_peer(program, images, torch.float32)
            runners["ONNX Runtime int8"] = peers.onnx_peer(quantized, images, bench.threads)
            with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as other:
                try:
                    seconds = bench.turns(runners)
                finally:
                    other.kill()
            bench.rows(f"resnet50 batch {batch}, one core busy", seconds, aims={"ONNX Runtime int8": 0.9})


def growth(bench):
    """Time and memory against batch size, width multiplier and image size."""
    bench.data["growth"] = []
    for axis, values in {
        "batch": (1, 2, 4, 8, 16, 32, 64, 128),
        "channels": (8, 16, 32, 64, 128),
        "size": (16, 32, 64, 96),
    }.items():
        for value in values:
            sizes = {"batch": 16, "channels": 32, "size": 32} | {axis: value}
            program = networks.resnet18(channels=sizes["channels"], size=sizes["size"])
            images = np.random.default_rng(0).integers(
                0, 256, (sizes["batch"], *program.image_shape), np.uint8
            )
            backend = numba_cpu.Backend(program)
            choices = np.full((len(images), len(program.layers)), 2)
            seconds = min_seconds(bench, lambda b=backend, i=images, c=choices: b.run(i, c))
            weights = sum(op.weight.nbytes for op in program.ops if isinstance(op, Conv))
            macs = sum(size.macs for size in cost.layer_sizes(program)) * len(images)
            point = {
                "axis": axis,
                "value": value,
                "ms": 1e3 * seconds,
                "arena_bytes": len(backend.idle[0].arena),
            }
            bench.data["growth"].append(point | {"weight_bytes": weights, "macs": macs})
            bench.write()


def peak_memory(bench):
    """Of a process that evaluates ResNet-50 at every width."""
    code = (
        "from benchmarks.gpu import networks\nimport numpy as np\n"
        "p = networks.resnet50()\nx = np.zeros((64, *p.image_shape), np.uint8)\n"
        "for width in (2, 3, 4, 6, 8): p.run(x[:16], width, 'numba')\n"
        "p.run(x, 8, 'numba')\n"
        # not getrusage, which begins with the memory of the process that started this one
        "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    bench.data["facts"]["peak memory of ResNet-50, five widths, bytes"] = 1024 * int(done.stdout)
    bench.write()


def masked(bench):
    """The same on a machine without 8-bit dot products, which torch and this package can imitate."""
    with tempfile.TemporaryDirectory() as folder:
        out = f"{folder}/masked.json"
        line = [
            sys.executable,
            "-m",
            "benchmarks.cpu",
            "--threads",
            str(bench.threads),
            "--only",
            "masked-network",
            "--out",
            out,
        ]
        subprocess.run(line, cwd=ROOT, env=os.environ | MASK, check=True)
        rows = json.loads(Path(out).read_text())["rows"]
    for row in rows:
        row["group"] += ", without VNNI"
    kept = [row for row in bench.data["rows"] if row["group"] not in {own["group"] for own in rows}]
    bench.data["rows"] = kept + rows
    bench.write()


def masked_network(bench):
    from benchmarks import cpu_peers as peers

    program = networks.resnet18()
    images = np.random.default_rng(0).integers(0, 256, (16, *program.image_shape), np.uint8)
    require_digest(program, images, 8, 2)
    runners = {"dqt_core": runner(program, images, 8)}
    runners["torch fp32"] = peers.torch_peer(program, images, torch.float32)
    bench.rows("resnet18 batch 16", bench.turns(runners), aims={"torch fp32": 1})


GROUPS = {
    "roofline": roofline,
    "switch": switch,
    "resnet18": lambda bench: network(bench, "resnet18", networks.resnet18(), (1, 16, 128), 2, compiled=True),
    "controller": controller,
    "shares": shares,
    "masked": masked,
    "resnet50": lambda bench: network(bench, "resnet50", networks.resnet50(), (1, 16), 1),
    "busy": busy,
    "growth": growth,
    "memory": peak_memory,
}
ALL = GROUPS | {"masked-network": masked_network}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", nargs="+", choices=ALL, default=list(GROUPS))
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="leave torch.compile out")
    parser.add_argument("--add", action="store_true", help="go on in the record that --out names")
    parser.add_argument("--out", type=Path, default=ROOT / "_build" / "bench" / "cpu.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    bench = Bench(options)
    for name in options.only:
        ALL[name](bench)
        done = bench.data["facts"].setdefault("done", [])
        done += [name] if name not in done else []
    bench.data["finished"] = set(GROUPS) <= set(bench.data["facts"]["done"])
    bench.data["facts"]["peak memory of this run, bytes"] = (
        1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    )
    bench.write()
    print(f"record: {options.out}")


if __name__ == "__main__":
    main()
