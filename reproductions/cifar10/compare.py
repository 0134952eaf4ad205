"""One row of the CIFAR-10 table: train a method from the float network, evaluate it, record it.

    python -m reproductions.cifar10.compare --list
    python -m reproductions.cifar10.compare --row dqt-static --seed 0 --epochs 4
    python -m reproductions.cifar10.compare --all

Every row of a seed starts from the same float network and takes the same number of steps of the same recipe. A
run that was interrupted goes on from its last checkpoint; `--all` leaves out the rows whose record exists.

On another processor a row becomes another program, `--row cut` too: training and conversion run in float32, whose last
bits depend on the machine. Its counts then lie near the recorded ones, its digests differ. The recorded program itself
has the recorded digests everywhere.
"""

import argparse
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dqt_core import results
from reproductions.cifar10.foresight import foresight
from reproductions.cifar10.looking_rows import (
    dynamic,
    joint,
    later,
    looking,
    looking_twice,
    looking_twice_chosen,
)
from reproductions.cifar10.run import RECORDS, WIDTHS, Run, Settings
from reproductions.cifar10.static_rows import (
    baseline,
    cut,
    float_further,
    float_row,
    mixed,
    single,
    switchable,
)
from reproductions.cifar10.torchao_row import torchao

BUDGETS = (3, 4, 5)
# what differs from the rows `dynamic`, and in words
CONTROLLERS: dict[str, tuple[dict[str, Any], str]] = {
    "paths": ({"mixed_paths": 1}, "with a random mixed path in the consistency term"),
    "rates": ({"around": (2, 6)}, "asked for a rate of 2 and of 6 bits in each layer"),
    "quiet": ({"is_quiet": True}, "without noise, from the widest widths on, their price growing"),
}
# what a decision is trained on, the uniform widths among which it is made (None: around learned widths), in words
DECISIONS: dict[str, tuple[Any, tuple[int, ...] | None, str]] = {
    "right": ("right", WIDTHS, "trained by itself on the narrowest width that is right"),
    "losses": ("losses", WIDTHS, "trained by itself on the loss at each width"),
    "offset": ("losses", None, "widths around those that a blind controller learned, by the loss at each"),
    "margin": ("margin", (2, 4), "trained by itself to foresee a cascade's second look"),
}


@dataclass(frozen=True)
class Row:
    """How a row is made, and what it is."""

    make: Callable[..., list[results.Record]]
    method: str
    arguments: dict[str, Any] = field(default_factory=dict)
    ablation: bool = False


def _rows() -> dict[str, Row]:
    nested = "nested codes, one network for all widths, consistency alone"
    rows = {
        "float": Row(float_row, "float32"),
        "float-further": Row(float_further, "float32, trained further as the other rows are"),
        "cut": Row(cut, "nested codes, not trained further"),
        "dqt-static": Row(switchable, nested),
        "cascade": Row(looking_twice, f"{nested}, trained further; cascades by margin on it"),
        "cascade-3": Row(
            looking_twice,
            "nested codes, trained further at 2 and 4 bits alone; a cascade of both at the BitOPs of uniform 3",
            {"only": (2, 4)},
        ),
        "cascade-chosen-3": Row(
            looking_twice_chosen,
            "a cascade between the best static widths at the BitOPs of 2.5 and of 4 bits, trained further at both",
            {"bits": 3, "around": (2.5, 4)},
        ),
    }
    sees = "which images a second look would help, predicted from the codes at one place"
    rows["foresight"] = Row(foresight, sees, ablation=True)
    for bits in (4, 3, 5):
        static = f"best static widths at the BitOPs of uniform {bits} bits"
        rows[f"mixed-{bits}"] = Row(mixed, static, {"bits": bits})
        looks = f"controller at the BitOPs of uniform {bits} bits"
        rows[f"dynamic-{bits}"] = Row(dynamic, looks, {"bits": bits})
        sees = f"the same training as dynamic-{bits}, the controller sees nothing: learned static widths"
        rows[f"blind-{bits}"] = Row(dynamic, sees, {"bits": bits, "is_blind": True}, ablation=True)
        for name, (options, differs) in CONTROLLERS.items():
            rows[f"{name}-{bits}"] = Row(
                dynamic, f"{looks}, {differs}", {"bits": bits, **options}, ablation=True
            )
        for name, (target, uniform, learns) in DECISIONS.items():
            what = f"one decision an image at the BitOPs of uniform {bits} bits, {learns}"
            rows[f"{name}-{bits}"] = Row(looking, what, {"bits": bits, "target": target, "uniform": uniform})
        for stages, name in ((1, "stage1"), (2, "stage2")):
            what = f"one decision an image behind stage {stages} at the BitOPs of uniform {bits} bits"
            what += ", for the layers that follow, trained by itself on the loss at each width"
            rows[f"{name}-{bits}"] = Row(later, what, {"bits": bits, "stages": stages}, ablation=True)
    for bits in (4, 3):
        further = f"uniform {bits} bits, trained further as the best static widths are"
        rows[f"uniform-{bits}"] = Row(mixed, further, {"bits": bits, "uniform": True})
    for bits in (4, 2, 3, 8, 6):
        rows[f"lsq-{bits}"] = Row(single, f"learned step, trained for {bits} bits alone", {"width": bits})
    for bits in (4, 2, 3):
        for method, name in (("pact", "PACT"), ("dorefa", "DoReFa-Net")):
            arguments = {"method": method, "widths": (bits,)}
            rows[f"{method}-{bits}"] = Row(baseline, f"{name}, {bits} bits", arguments)
    rows["torchao-8"] = Row(torchao, "torchao's quantization-aware training (PT2E), 8 bits")
    arguments = {"method": "any-precision", "widths": WIDTHS}
    rows["any-precision"] = Row(baseline, "Any-Precision, one network for all widths", arguments)
    floor = {"rounding": "floor"}
    rows["floor"] = Row(switchable, f"{nested}, rounding floor", floor, ablation=True)
    shared = {"batch_norm": "shared"}
    rows["shared-norm"] = Row(switchable, f"{nested}, one batch norm", shared, ablation=True)
    for alpha, name in ((1.0, "joint"), (0.0, "no-consistency")):
        what = f"controller trained from the float network on, alpha = {alpha:g}"
        rows[name] = Row(joint, what, {"alpha": alpha}, ablation=True)
    return rows


ROWS = _rows()


def make(row: str, settings: Settings) -> Path:
    """Train, evaluate and record one row; its record's path."""
    run = Run(settings, row)
    return run.write(ROWS[row].make(run, **ROWS[row].arguments), ROWS[row].method)


def otherwise(record: results.Record, settings: Settings) -> str:
    """What a record was made with that is asked for otherwise now, in words."""
    training = record.get("training", {})
    made = {"limit": record["dataset"].get("limit")}
    made |= {
        name: training[key] for name, key in (("lr", "lr"), ("float", "float network")) if key in training
    }
    asked = {"limit": settings.limit, "lr": settings.lr}
    asked |= {"float": settings.float_path.name} if settings.float_path else {}
    other = [
        f"{name} {made[name]}, not {asked[name]}"
        for name in made
        if made[name] != asked.get(name, made[name])
    ]
    return f" with {' and '.join(other)}" if other else ""


def make_all(settings: Settings, rows: Sequence[str]) -> int:
    """Every row whose record is missing, in order; how many failed. Of the others it says so.

    A record that was made with other settings than these, which its name does not hold, counts as a failure.
    """
    failures = 0
    for row in rows:
        try:
            if (path := settings.record(row)).exists():
                other = otherwise(results.read(path), settings)
                print(f"recorded before{other}: {path}; to run it again, move that file away", flush=True)
                failures += bool(other)
                continue
            print(f"{time.strftime('%H:%M:%S')} {settings.name(row)}", flush=True)
            path = make(row, settings)
            print(f"{time.strftime('%H:%M:%S')} {path.name}", flush=True)
        except Exception:  # one row's failure is printed, counted, and leaves the others to run
            traceback.print_exc()
            failures += 1
    return failures


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--row", choices=list(ROWS), nargs="+")
    what.add_argument("--all", action="store_true", help="every row without a record")
    what.add_argument("--list", action="store_true", help="the rows and their states")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--channels", type=int, default=16)
    parser.add_argument(
        "--epochs", type=float, default=Settings.epochs, help="of every stage after the float network"
    )
    parser.add_argument("--float-epochs", type=float, default=Settings.float_epochs)
    parser.add_argument(
        "--float-lr", type=float, default=Settings.float_lr, help="peak rate of the float network"
    )
    parser.add_argument(
        "--eager",
        action="store_false",
        dest="compiled",
        help="without torch.compile: slower, no C++ compiler",
    )
    parser.add_argument("--float", type=Path, dest="float_path", help="a float network to start from")
    parser.add_argument("--dataset", default="cifar10", choices=["cifar10", "embedded"])
    parser.add_argument("--limit", type=int, help="first test images only")
    parser.add_argument("--out", type=Path, default=Settings.out, help="for checkpoints and programs")
    parser.add_argument("--records", type=Path, default=RECORDS)
    return parser.parse_args()


def main() -> int:
    options = vars(_arguments())
    rows, everything, listed = (options.pop(name) for name in ("row", "all", "list"))
    settings = Settings(**options)
    if listed:
        for name, row in ROWS.items():
            state = "recorded" if settings.record(name).exists() else "not yet run"
            print(f"{name:16} {state:12} {'ablation: ' if row.ablation else ''}{row.method}")
        return 0
    return make_all(settings, list(ROWS) if everything else rows)


if __name__ == "__main__":
    raise SystemExit(main())
