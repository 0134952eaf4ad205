"""Run one network in every form there is, over the same images, and record the digests of its logits.

    python -m reproductions.exports.record [--qonnx] [embedded] [cifar10]

writes results/export/embedded.json and cifar10.json; without a name both, CIFAR-10 where DQT_DATA is set. It
needs ONNX Runtime, qonnx, a C compiler and Chromium. With --qonnx, which needs no other, the digests of that way
alone are made anew in records that stand. The book shows the records on its page of exports; tests run
parts of them again.
"""

import argparse
import base64
import contextlib
import json
import os
import subprocess
import tempfile
from importlib import metadata
from pathlib import Path

import numpy as np

import dqt_core
from dqt_book.places import network
from dqt_core import data, results
from dqt_core.export import to_onnx, to_qonnx
from dqt_core.export.c import sizes, to_c
from dqt_core.program import Result
from reproductions.exports import c_program, qonnx_file

ROOT = Path(__file__).resolve().parents[2]

FOLDER = ROOT / "reproductions" / "results" / "export"
SCRIPT = ROOT / "book" / "_static" / "program-runner.js"
IMAGES = {"embedded": 359, "cifar10": 100}
# Settings that the fast ways also run over every test image.
WHOLE = {"cifar10": ("4", "mixed", "controller")}
FAST = ("torch", "numba", "onnx")
WITHOUT = {"qonnx": ("controller",)}  # settings that a way does not have: no QONNX file holds a controller


def shipped(name):
    record = results.read(ROOT / "reproductions" / "results" / "resnet18_cifar" / f"{name}.json")
    return dqt_core.load(network(record, "trained"))


def mixed(program, n):
    """Widths of each image's and layer's own, by a formula; the number of images changes none."""
    image, layer = np.arange(n)[:, None], np.arange(len(program.layers))
    k = (image * 7 + layer * 3 + image // 5) % len(program.choices)
    return np.array(program.choices)[k][..., 0]


def settings(program, n):
    """Every setting of the table: its name, and the widths."""
    return {str(w): w for w, _ in program.choices} | {"mixed": mixed(program, n), "controller": "controller"}


def bits(program, n, widths):
    """Widths as exported files take them, (N, L); 0 leaves a layer to the controller."""
    if isinstance(widths, str):
        return np.zeros((n, len(program.layers)), np.int64)
    return np.array(program.choices)[program._choices_of(widths, n)][..., 0]


# One function for each way: (program, images, widths) -> logits, made once for a program


def by_package(program, backend):
    return lambda images, widths: program.run(images, widths, backend).logits


def by_onnx(program, folder):
    import onnxruntime

    session = onnxruntime.InferenceSession(to_onnx(program, folder / "program.onnx"))

    def run(images, widths):
        given = {"images": images, "widths": bits(program, len(images), widths)}
        return session.run(["logits"], given)[0]

    return run


def by_qonnx(program, folder):
    """By the package qonnx, a file for each choice of widths that images have."""

    def run(images, widths):
        asked, file_of = np.unique(bits(program, len(images), widths), axis=0, return_inverse=True)
        logits = np.empty((len(images), program.values["logits"].shape[-1]), np.int64)
        for k, row in enumerate(asked):
            path = to_qonnx(program, folder / "qonnx.onnx", row)
            logits[file_of == k] = qonnx_file.execute(path, images[file_of == k])
        return logits

    return run


def by_c(program, folder):
    executable = c_program.build(c_program.written(program, folder), folder, *c_program.FAST)
    return lambda images, widths: c_program.run(executable, program, images, widths).logits


JAVASCRIPT = """(given) => {
  const library = typeof module === 'undefined' ? window.programRunner : given.library;
  const read = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const images = read(given.images), size = images.length / given.widths.length;
  globalThis.kept ??= new library.Runner(given.program);
  return given.widths.map((widths, i) => {
    const result = globalThis.kept.run(images.subarray(i * size, (i + 1) * size), widths);
    return [result.logits.map(String), result.widths];
  });
}"""


def javascript_input(program, images, widths):
    """What `JAVASCRIPT` reads: program, images, and a list of widths for each image."""
    from dqt_book.widgets import live_demo

    encoded = base64.b64encode(images.tobytes()).decode()
    plain = widths if isinstance(widths, list) else bits(program, len(images), widths).tolist()
    return {"program": live_demo.program_data(program), "images": encoded, "widths": plain}


def by_browser(program, page):
    page.goto("about:blank")
    page.add_script_tag(path=SCRIPT)

    def run(images, widths):
        answers = page.evaluate(JAVASCRIPT, javascript_input(program, images, widths))
        return np.array([[int(logit) for logit in logits] for logits, _ in answers])

    return run


def by_node(program, script=SCRIPT):
    """Logits and widths (N, L, 2) by the same script in Node; widths may be lists of pairs."""

    def run(images, widths):
        given = json.dumps(javascript_input(program, images, widths))
        text = f"const given = {given}; given.library = require({json.dumps(str(script))});"
        text += f"process.stdout.write(JSON.stringify(({JAVASCRIPT})(given)))"
        done = subprocess.run(["node", "-"], input=text, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(done.stderr)
        answers = json.loads(done.stdout)
        return (
            np.array([[int(logit) for logit in logits] for logits, _ in answers]),
            np.array([widths for _, widths in answers]),
        )

    return run


# The record


def digest(logits):
    return Result(logits, logits, logits, "").digest


def record(name, dataset, page):
    program, images = shipped(name), dataset.test_images[: IMAGES[name]]
    page.set_default_timeout(0)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        ways = {backend: by_package(program, backend) for backend in ("numpy", "torch", "numba")}
        ways |= {"onnx": by_onnx(program, folder), "qonnx": by_qonnx(program, folder)}
        ways["c"] = by_c(program, folder)
        ways["browser"] = by_browser(program, page)
        rows = []
        for setting, widths in settings(program, len(images)).items():
            able = {way: run for way, run in ways.items() if setting not in WITHOUT.get(way, ())}
            rows.append({"widths": setting} | {way: digest(run(images, widths)) for way, run in able.items()})
            print(name, setting, *(rows[-1][way][:12] for way in able), flush=True)
        found = files(program, folder, page)
        every = dataset.test_images
        whole = [
            {"widths": setting}
            | {way: digest(ways[way](every, settings(program, len(every))[setting])) for way in FAST}
            for setting in WHOLE.get(name, ())
        ]
    return {
        "name": "export",
        "dataset": {"name": name, "images": len(images), "checksum": dataset.checksums["test_images"]},
        "programs": {"trained": program.digest},
        "rows": rows,
        "whole": {"images": len(every), "rows": whole},
        "files": found,
        "provenance": results.provenance() | {"tools": tools(page)},
    }


def with_qonnx(name, dataset):
    """The record that stands, the digests of QONNX made anew, and where they were made."""
    found = results.read(FOLDER / f"{name}.json")
    program, images = shipped(name), dataset.test_images[: found["dataset"]["images"]]
    with tempfile.TemporaryDirectory() as folder:
        run, asked = by_qonnx(program, Path(folder)), settings(program, len(images))
        for row in found["rows"]:
            if row["widths"] not in WITHOUT["qonnx"]:
                row["qonnx"] = digest(run(images, asked[row["widths"]]))
                print(name, row["widths"], row["qonnx"][:12], row["numpy"][:12], flush=True)
    made = results.provenance() | {"tools": {"qonnx": metadata.version("qonnx")}}
    return found | {"later": {"qonnx": made}}


def files(program, folder, page):
    """Bytes of the files, and of what the C program occupies."""
    size = sizes(program)
    compiled = c_program.sections(c_program.written(program, folder), folder)
    return {
        "onnx": to_onnx(program, folder / "p.onnx").stat().st_size,
        "c": to_c(program, folder / "p.c").stat().st_size,
        "weights": size.weights,
        "tables": size.tables,
        "ram": size.ram,
        "code": compiled[".text"],
    }


def tools(page):
    compiler = subprocess.run([c_program.compiler(), "--version"], capture_output=True, text=True).stdout
    return {
        "compiler": compiler.splitlines()[0],
        "onnx": metadata.version("onnx"),
        "onnxruntime": metadata.version("onnxruntime"),
        "qonnx": metadata.version("qonnx"),
        "browser": f"Chromium {page.context.browser.version}",
    }


def main():
    from dqt_book.pages.browser import browser, chromium

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--qonnx", action="store_true")
    parser.add_argument("names", nargs="*", choices=list(IMAGES))
    given = parser.parse_args()
    with_data = os.environ.get(data.ENVIRONMENT_VARIABLE)
    names = given.names or [name for name in IMAGES if name == "embedded" or with_data]
    with contextlib.nullcontext() if given.qonnx else browser(chromium()) as running:
        for name in names:
            dataset = data.load(name)
            made = with_qonnx(name, dataset) if given.qonnx else record(name, dataset, running.new_page())
            print(results.write(made, FOLDER / f"{name}.json").relative_to(ROOT))


if __name__ == "__main__":
    main()
