"""Add to records that were written without it the digest of their content.

    python -m reproductions.sign reproductions/results

A record whose figures contradict one another, or whose digest is another one's, is refused: it was edited.
"""

import argparse
import sys
from pathlib import Path

from dqt_core.evaluation import consistency


def sign(path: Path) -> bool:
    """Whether a digest was missing; it is there now, and nothing else of the content has changed."""
    record = consistency.parse(path.read_text())
    if problems := consistency.problems(record):
        raise ValueError(f"{path}: {'; '.join(problems)}")
    if consistency.DIGEST in record:
        return False
    consistency.write_signed(record, path)
    return True


def run(folders: list[str]) -> int:
    """Exit status 1 where a record was refused; each is named."""
    paths = [
        path for name in folders for path in ([Path(name)] if Path(name).is_file() else records(Path(name)))
    ]
    refused = 0
    for path in paths:
        try:
            if sign(path):
                print(f"{path} has its digest now")
        except ValueError as error:
            refused += 1
            print(error, file=sys.stderr)
    print(f"{len(paths) - refused} of {len(paths)} records have their digest")
    return 1 if refused else 0


def records(folder: Path) -> list[Path]:
    """All JSON files below a folder."""
    return sorted(folder.rglob("*.json"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("paths", nargs="+", help="records, or folders of them")
    sys.exit(run(parser.parse_args().paths))
