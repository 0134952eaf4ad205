"""Write a program as an ONNX file, as a C file, as a QONNX file of some widths, or as several of them.

::

    python -m dqt_core.export PROGRAM.safetensors --onnx OUT.onnx --c OUT.c
    python -m dqt_core.export PROGRAM.safetensors --qonnx OUT.onnx --widths 4
"""

import argparse
import functools
import sys
from collections.abc import Sequence
from pathlib import Path

from dqt_core.export.c import sizes, to_c
from dqt_core.export.onnx import to_onnx
from dqt_core.export.qonnx import to_qonnx
from dqt_core.nested import MASTER_WIDTH
from dqt_core.program import ProgramError, load


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the files that the command line names; the exit code is 0 where all were written.

    Parameters
    ----------
    arguments : sequence of str, optional
        None: those of the process.

    Returns
    -------
    int
    """
    parser = argparse.ArgumentParser(
        prog="python -m dqt_core.export", description="Write a program as a file that something else runs."
    )
    parser.add_argument("program", type=Path, help="a file that Program.save wrote")
    parser.add_argument("--onnx", type=Path, metavar="OUT", help="needs the extra `export`")
    parser.add_argument("--c", type=Path, metavar="OUT", help="one C99 file")
    parser.add_argument("--qonnx", type=Path, metavar="OUT", help="at --widths; needs the extra `export`")
    parser.add_argument(
        "--widths",
        type=int,
        nargs="+",
        metavar="BITS",
        help="of --qonnx: one, or one a layer; 8 if not given",
    )
    given = parser.parse_args(arguments)
    if not (given.onnx or given.c or given.qonnx):
        parser.error("nothing to write: give --onnx OUT, --c OUT, --qonnx OUT, or several")
    if given.widths and not given.qonnx:
        parser.error(
            f"--widths {' '.join(map(str, given.widths))} came without --qonnx OUT, the file of some widths; "
            "add it, or leave --widths out: an ONNX and a C file are told theirs at each call"
        )
    asked = given.widths or [MASTER_WIDTH]
    widths = asked[0] if len(asked) == 1 else asked
    to_qonnx_at_widths = functools.partial(to_qonnx, widths=widths)
    files = (to_onnx, given.onnx), (to_c, given.c), (to_qonnx_at_widths, given.qonnx)
    try:
        program = load(given.program)
        for write, path in files:
            if path:
                path.parent.mkdir(parents=True, exist_ok=True)
                print(f"{write(program, path)}: {path.stat().st_size:,} bytes")
    except (ImportError, OSError, OverflowError, ProgramError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    if given.c:
        print(f"on the device: {sizes(program)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
