"""Time of a matrix in bit planes times a vector at each width, against 8 planes and products of bytes.

    OMP_NUM_THREADS=1 python -m benchmarks.planes --out reproductions/results

One thread. Every row walks through as many matrices as fill more than the last cache, of fewer planes through
more: weights come from memory, as those of a language model do for each word. Rows take turns; the ratios
count, the milliseconds do not. Sums are compared with those of NumPy before anything is timed.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from onnx import TensorProto, helper
from tqdm.auto import tqdm

from dqt_core import integer, nested, results
from dqt_core.backends import bit_planes, numba_cpu
from dqt_core.evaluation.consistency import signed, write_signed

SCHEMA = "dqt-planes-2"  # 1: every row met the same matrices, and fewer planes could lie in the last cache
WIDTHS = (8, 6, 4, 3, 2, 1)
BYTES = "ONNX Runtime int8"  # integers too: the peer whose sums are equal


def last_cache():
    """Bytes of this processor's last cache as Linux tells them; 512 MB, more than most have, elsewhere."""
    sizes = Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
    found = [int(size.read_text().strip().removesuffix("K")) << 10 for size in sizes]
    return max(found, default=512 << 20)


def byte_products(codes):
    """The same product by ONNX Runtime, from a matrix of bytes."""
    rows, count = codes.shape
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["x", "w"], ["sums"])],
        "matvec",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, [1, count])],
        [helper.make_tensor_value_info("sums", TensorProto.INT32, [1, rows])],
        [helper.make_tensor("w", TensorProto.INT8, [count, rows], codes.T.tobytes(), raw=True)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    return lambda x: session.run(None, {"x": x[None]})[0][0]


def float_products(codes):
    weights = torch.from_numpy(codes.astype(np.float32))
    return lambda x: weights @ torch.from_numpy(x.astype(np.float32))


def runners(size, count):
    """Of every row, a function that walks through memory once, and the number of matrices that it meets.

    There are `count` matrices of bytes. Their planes lie one after another, and each matrix of fewer planes
    takes the next ones: of these there are more in the same memory.
    """
    rng = np.random.default_rng(0)
    planes = rng.integers(0, 256, (8 * count, size, -(-size // 8)), np.uint8)
    x = rng.integers(0, 256, size).astype(np.uint8)

    def walk(product, parts):
        return lambda: [product(part) for part in parts]

    table = {}
    for width in WIDTHS:
        parts = [planes[first : first + width] for first in range(0, 8 * count - width + 1, width)]
        expected = integer.matmul(x[None], nested.from_planes(parts[0], width, length=size))[0]
        assert np.array_equal(bit_planes.matvec(parts[0], x, width), expected), f"{width} planes"
        table[f"{width} planes"] = (
            walk(lambda part, width=width: bit_planes.matvec(part, x, width), parts),
            len(parts),
        )
    matrices = [nested.from_planes(part, length=size) for part in np.split(planes, count)]
    peers = {
        BYTES: [byte_products(codes) for codes in matrices],
        "torch fp32": [float_products(codes) for codes in matrices[: max(1, count // 4)]],
    }
    assert np.array_equal(peers[BYTES][0](x), integer.matmul(x[None], matrices[0])[0]), BYTES
    for name, products in peers.items():
        table[name] = walk(lambda product: product(x), products), len(products)
    return table


def measure(size, count, rounds):
    table = runners(size, count)
    seconds = {name: [] for name in table}
    for turn in tqdm(range(rounds + 1)):
        for name, (run, matrices) in table.items():
            start = time.process_time()
            run()
            if turn:  # the first one warms up
                seconds[name].append((time.process_time() - start) / matrices)
    return [row(name, times, seconds) for name, times in seconds.items()]


def row(name, times, seconds):
    def against(other):
        ratios = np.divide(times, seconds[other])
        return [round(float(part), 3) for part in np.percentile(ratios, (50, 25, 75))]

    return {
        "row": name,
        "ms": round(1e3 * float(np.median(times)), 3),
        "of 8 planes": against("8 planes"),
        f"of {BYTES}": against(BYTES),
    }


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="file or folder for the record; printed without it")
    parser.add_argument("--size", type=int, default=4096, help="rows and columns (%(default)s)")
    parser.add_argument("--rounds", type=int, default=21, help="turns of every row (%(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    cache = last_cache()
    count = max(2, -(-5 * cache // (4 * options.size**2)))
    record = {
        "schema": SCHEMA,
        "provenance": results.provenance(),
        "size": options.size,
        "matrices": count,  # in 8 planes; others as many as fit the same bytes
        "last_cache_bytes": cache,
        "rounds": options.rounds,
        "clock": "of the process",
        "rows": measure(options.size, count, options.rounds),
    }
    if options.out:
        name = f"planes_{type(numba_cpu.machine()).__name__.lower()}.json"  # one for a kind of processor
        write_signed(record, options.out / name if options.out.is_dir() else options.out)
    print(json.dumps(signed(record), indent=1))


if __name__ == "__main__":
    main()
