"""How many small mistakes in Python the tests notice: `make mutants`.

mutmut plants them in the modules that `tool.mutmut` in pyproject.toml names, one at a time, and runs the
tests that reach the place:

    python tests/mutants.py ['dqt_core.nested*' ...]

The count of every module that was gone through is kept in mutants.json and shown in CONTRIBUTING.md.
"""

import collections
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RECORD = Path(__file__).with_name("mutants.json")
NOTICED = {"killed", "timeout", "segfault"}
BEGIN, END = "<!-- written by `make mutants` -->\n", "<!-- end -->\n"


def counted(commit):
    """{module: how many of its mutants were noticed} of the modules that mutmut has gone through."""
    from mutmut.stats import status_by_exit_code

    found = {}
    for path in sorted((ROOT / "mutants").rglob("*.py.meta")):
        codes = json.loads(path.read_text())["exit_code_by_key"].values()
        counts = collections.Counter(status_by_exit_code[code] for code in codes)
        if counts and not counts["not checked"]:
            noticed = sum(counts[status] for status in NOTICED)
            module = path.relative_to(ROOT / "mutants").as_posix().removesuffix(".meta")
            found[module] = {"mutants": counts.total(), "noticed": noticed, "commit": commit}
    return found


def table(record):
    rows = [
        f"| `{module}` | {row['noticed']:,} of {row['mutants']:,} "
        f"| {row['noticed'] / row['mutants']:.1%} | {row['commit'][:12]} |\n"
        for module, row in sorted(record.items())
    ]
    return "".join(["| module | mutants noticed | rate | at commit |\n| --- | --- | --- | --- |\n", *rows])


def within(page, new=None):
    """The table in a page; with another one in its place, the page."""
    head, rest = page.split(BEGIN)
    old, tail = rest.split(END)
    return old if new is None else f"{head}{BEGIN}{new}{END}{tail}"


def git(*command):
    return subprocess.run(["git", *command], cwd=ROOT, check=True, capture_output=True, text=True).stdout


def main(*modules):
    changed = git("status", "--porcelain", "dqt_core", "tests", "pyproject.toml").strip()
    if changed:
        sys.exit(
            f"the count is recorded with its commit, but no commit holds these: commit them first\n{changed}"
        )
    done = subprocess.run([sys.executable, "-m", "mutmut", "run", *modules], cwd=ROOT).returncode
    subprocess.run([sys.executable, "-m", "mutmut", "results"], cwd=ROOT, check=True)
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    record |= counted(git("rev-parse", "HEAD").strip())
    RECORD.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
    page = ROOT / "CONTRIBUTING.md"
    page.write_text(within(page.read_text(), table(record)))
    print(table(record))
    return done


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
