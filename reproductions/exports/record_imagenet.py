"""ResNet-50 as an ONNX file on real ImageNet images: the digests of its logits beside those of the backends.

    python -m reproductions.exports.record_imagenet --imagenet-root DIR --weights FILE --limit 20 --widths 4 8 --rules largest

takes the options of `reproductions.imagenet.evaluate`, whose steps make the program, and writes results/export/imagenet.json.
The network is not kept: its weights may not be passed on.
"""

import tempfile
from pathlib import Path

from dqt_core import lower, results
from reproductions.exports.record import FAST, FOLDER, by_onnx, by_package, digest, mixed
from reproductions.imagenet import evaluate as imagenet_run


def main() -> None:
    options = imagenet_run.options()
    one = imagenet_run.Run(options)
    program = lower(one.convert(tuple(options.widths or imagenet_run.WIDTHS)), options.network)
    images, _ = next(one.files.batches(len(one.files)))
    settings = {str(w): w for w, _ in program.choices} | {"mixed": mixed(program, len(images))}
    with tempfile.TemporaryDirectory() as folder:
        ways = {backend: by_package(program, backend) for backend in FAST if backend != "onnx"}
        ways["onnx"] = by_onnx(program, Path(folder))
        rows = []
        for setting, widths in settings.items():
            rows.append({"widths": setting} | {way: digest(run(images, widths)) for way, run in ways.items()})
            print(setting, *(rows[-1][way][:12] for way in ways), flush=True)
    record = {
        "name": "export",
        "network": {"name": options.network, "weights": options.origin},
        "dataset": imagenet_run.described(one.files, options.limit),
        "programs": {"lowered": program.digest},
        "rows": rows,
        "provenance": results.provenance(),
    }
    print(results.write(record, FOLDER / "imagenet.json"))


if __name__ == "__main__":
    main()
