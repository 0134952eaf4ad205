"""From a float model's files to a program's, and a program against its record.

::

    python -m dqt_core quantize MODEL.py:make --weights FILE --images IMAGES --out OUT
    python -m dqt_core verify PROGRAM RECORD
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dqt_core.data import imagenet
from dqt_core.evaluation import results, verification
from dqt_core.program import load
from dqt_core.program.storage import write_whole


def quantize(given: argparse.Namespace) -> int:
    """Write a program and its report; the exit code."""
    from dqt_core.training.conversion import from_files
    from dqt_core.training.conversion.quantization import quantize as quantized

    given.out.mkdir(parents=True, exist_ok=True)  # or it says so before anything is computed
    model, module = from_files.load_model(given.model)
    if given.weights:
        from_files.load_weights(model, given.weights)
    else:
        print("no --weights: the model is taken with the weights that its function gives it")
    mean, std, whose = _normalisation(given, module)
    print(f"normalised with mean {mean} and std {std}, {whose}")
    images = from_files.load_images(given.images, given.count, given.size, grey=len(mean) == 1)
    print(f"{len(images)} images of {images.shape[2]} x {images.shape[1]}, from {given.images}")
    name = given.name or Path(given.model.rpartition(":")[0]).stem
    program, report = quantized(model, images, mean, std, given.widths, name, layerwise=given.layerwise)
    path = program.save(given.out)
    beside = path.with_suffix(".json")
    write_whole(beside, f"{json.dumps(report.as_dict(), indent=1)}\n".encode())
    print(report, "", sep="\n")
    for written in (path, beside):
        print(f"{written}: {written.stat().st_size:,} bytes")
    return 0


def _normalisation(given: argparse.Namespace, module: Any) -> tuple[list[float], list[float], str]:
    if given.mean or given.std:
        if not (given.mean and given.std):
            raise ValueError("--mean and --std belong together; give both, one number for each channel")
        return given.mean, given.std, "as given"
    if hasattr(module, "MEAN") and hasattr(module, "STD"):
        return list(module.MEAN), list(module.STD), f"the MEAN and STD of {module.__file__}"
    whose = "ImageNet's; give --mean and --std, or MEAN and STD in the model's file, for others"
    return list(imagenet.MEAN), list(imagenet.STD), whose


def verify(given: argparse.Namespace) -> int:
    """Say whether a program is as its record says; the exit code is 0 if so."""
    program, record = load(given.program), results.read(given.record)
    dataset = None if given.costs_alone else verification.dataset_of(record, program.image_shape[2])
    found = verification.verify(program, record, dataset, given.limit or None)
    print(f"{program.name}-{program.digest[:12]} is a program of record {record['name']!r}, by its digest")
    print(f"BitOPs and transitions worked out again: widths {', '.join(found.costs) or 'none'}")
    if dataset is not None:
        print(f"logits made again on {found.images:,} images: widths {', '.join(found.logits) or 'none'}")
    else:
        name = record["dataset"]["name"]
        print(f"no logits were compared: {name} is not at hand" + "; set DQT_DATA" * (name == "cifar10"))
    for difference in found.differences:
        print(difference, file=sys.stderr)
    if not found.differences:
        print("all of it is as recorded")
    return 1 if found.differences else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says; the exit code is 0 where it was done, and a program is as recorded.

    Parameters
    ----------
    arguments : sequence of str, optional
        None: those of the process.

    Returns
    -------
    int
    """
    given = _options(arguments)
    try:
        done: int = given.run(given)
    except (ImportError, OSError, OverflowError, RuntimeError, TypeError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    return done


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m dqt_core", description="See also dqt_core.selftest, .export and .data."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    one = commands.add_parser("quantize", help="a float model becomes an integer program, without training")
    one.set_defaults(run=quantize)
    one.add_argument("model", metavar="MODEL.py:make", help="a file, and its function that returns the model")
    one.add_argument("--weights", metavar="FILE", help="a state dict: .safetensors, .npz, or of torch.save")
    one.add_argument(
        "--images", required=True, metavar="IMAGES", help="training images, in any folders below"
    )
    one.add_argument("--out", required=True, type=Path, metavar="OUT", help="a folder: program, report")
    one.add_argument("--widths", nargs="+", type=int, default=[4, 5, 6, 8], metavar="BITS")
    one.add_argument("--mean", nargs="+", type=float, help="a number for each channel, of [0, 1] images")
    one.add_argument("--std", nargs="+", type=float)
    one.add_argument("--size", type=int, metavar="N", help="images are resized and cut to N x N")
    one.add_argument("--count", type=int, default=128, metavar="N", help="images taken, evenly; 128")
    one.add_argument("--layerwise", action="store_true", help="fit layers one by one too, for few bits")
    one.add_argument("--name", help="of the program; that of the model's file if not given")
    two = commands.add_parser("verify", help="compare a program with the record of a run")
    two.set_defaults(run=verify)
    two.add_argument("program", metavar="PROGRAM", help='a file that Program.save wrote, or "digits"')
    two.add_argument("record", metavar="RECORD", help="such as reproductions/results/.../NAME.json")
    two.add_argument("--limit", type=int, default=100, metavar="N", help="the first 100 or 1000; 0: all")
    two.add_argument("--costs-alone", action="store_true", help="run no images")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
