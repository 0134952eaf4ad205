"""The records of runs on GPUs, and what the compiler says of the kernels, as tables."""

import json

from IPython.display import Markdown

from dqt_book.places import ROOT
from dqt_book.show import Table

FOLDER = ROOT / "reproductions" / "results" / "gpu"
RESOURCES = ROOT / "reproductions" / "kernel_resources.json"
SCHEMA = "dqt-gpu-1"
OUTCOMES = {True: "passed", False: "FAILED", None: "not run"}
AIMS = {True: "reached", False: "missed", None: ""}


def records(folder=FOLDER):
    """Every record of a GPU in the folder, the newest first."""
    read = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    return sorted((record for record in read if record.get("schema") == SCHEMA), key=lambda r: r["date"])[
        ::-1
    ]


def pages(folder=FOLDER):
    """What there is to show: texts and tables, or the sentence that there is nothing yet."""
    found = records(folder)
    if not found:
        return [Markdown("*Not yet run on a GPU.*")]
    return [part for record in found for part in _page(record)]


def _page(record):
    machine = record["machine"]
    whole = "" if record["finished"] else " The run was cut: what it had measured by then is below."
    yield Markdown(f"### {machine['device']}, {record['date']}\n\nCommit `{record['commit']}`.{whole}")
    yield Table(["what", "value"], sorted(machine.items()))
    yield Table(
        ["check", "outcome", "seconds", "detail"],
        [(c["name"], OUTCOMES[c["passed"]], c["seconds"], c["detail"]) for c in record["checks"]],
    )
    head = ["group", "what", "against", "ms", "its ms", "ratio", "aim", "", "GB", "G operations", "of copy"]
    yield Table(head, [_row(row) for row in record["rows"]])


def _row(row):
    aim, share = row["aim"], row.get("copy_share")
    return (
        *(row["group"], row["what"], row["peer"]),
        *(f"{row['ours_ms']:.4g}", f"{row['peer_ms']:.4g}", f"{row['ratio']:.2f}"),
        *("" if aim is None else f"{aim:.2f}", AIMS[row["met"]]),
        *(_giga(row["bytes"]), _giga(row["operations"]), "" if share is None else f"{share:.2f}"),
    )


def _giga(number):
    return "" if number is None else f"{number / 1e9:.3g}"


def status(folder=FOLDER):
    """Whether the kernels ran on a GPU, on which and when."""
    found = records(folder)
    return (
        f"run on {found[0]['machine']['device']} on {found[0]['date']}" if found else "not yet run on a GPU"
    )


def resources(path=RESOURCES):
    """Registers, shared memory and spills of every kernel, one line a variant."""
    record = json.loads(path.read_text())
    variants = {}
    for values in record["rows"]:
        row = dict(zip(record["columns"], values, strict=True))
        key = row["source"], row["kernel"], row["variant"]
        variants.setdefault(key, {})[row["sm"]] = row
    generations = sorted({sm for by_sm in variants.values() for sm in by_sm})
    head = ["file", "kernel", "variant", *(f"sm_{sm}" for sm in generations), "shared bytes", "spilled bytes"]
    return Table(head, [(*key, *_needs(by_sm, generations)) for key, by_sm in variants.items()])


def _needs(by_sm, generations):
    registers = [by_sm[sm]["registers"] if sm in by_sm else "" for sm in generations]
    shared = max(row["shared_bytes"] for row in by_sm.values())
    return *registers, shared, max(row["spilled_bytes"] for row in by_sm.values())


def compiler(path=RESOURCES):
    """The compiler that the table is from."""
    return json.loads(path.read_text())["compiler"]
