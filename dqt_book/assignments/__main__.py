"""Make and grade the assignments: python -m dqt_book.assignments --help."""

import argparse
import sys
from pathlib import Path

from dqt_book.assignments import course, marking


def main(arguments=None):
    parser = argparse.ArgumentParser(
        prog="python -m dqt_book.assignments", description=__doc__.partition(":")[0]
    )
    parser.add_argument("command", choices=("make", "grade"))
    parser.add_argument("submissions", nargs="?", help="grade: has a folder for each student")
    parser.add_argument("--course", type=Path, default=course.COURSE, help="the course folder (%(default)s)")
    limit = "grade: seconds for a task, and for a cell (%(default)s)"
    parser.add_argument("--seconds", type=int, default=course.SECONDS, help=limit)
    chosen = parser.parse_args(arguments)
    if chosen.command == "make":
        with course.alone(chosen.course):
            course.make(chosen.course)
        print(f"for students: {chosen.course / 'release'}\nfor instructors: {chosen.course / 'source'}")
    elif not chosen.submissions or not Path(chosen.submissions).is_dir():  # "" would be this very folder
        raise SystemExit(f"grade needs a folder of submissions, got {chosen.submissions or 'none'}")
    else:
        folders = chosen.course.resolve(), Path(chosen.submissions).resolve()
        return marking.grade_all(*folders, pages=True, seconds=chosen.seconds)


if __name__ == "__main__":
    sys.exit(main())
