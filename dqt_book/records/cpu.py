"""The records of ``make bench``: tables and figures of time on a CPU."""

import json

import matplotlib.pyplot as plt
from IPython.display import Markdown

from dqt_book.places import ROOT
from dqt_book.show import Table

FOLDER = ROOT / "reproductions" / "results" / "cpu"
CAUSES = ROOT / "benchmarks" / "cpu_causes.json"
TRAINING = ROOT / "reproductions" / "results" / "training_step.json"
PLANES = ROOT / "reproductions" / "results" / "planes_vnni512.json"
PLANES_COUNTED = PLANES.with_name("planes_counted.json")  # by counting bits, as processors without GFNI do
PLANES_AIMS = {"4 planes": 0.6, "2 planes": 0.35}  # of the time of 8
BYTES_AIM = 1.2  # 8 planes, of the time of the fastest product of bytes
OF_PASSES = 1.3  # a step is to take at most this of its forward and backward passes
SCHEMA = "dqt-cpu-1"
AIMS = {True: "reached", False: "missed", None: ""}
# by what a processor multiplies with, in the words of the page
PROCESSORS = {"Amx": "AMX", "Vnni512": "VNNI", "Vnni256": "VNNI of 256 bits", "Plain": "no VNNI"}
AXES = {"batch": "images in a batch", "channels": "channels of the first stage", "size": "rows of an image"}


def records(folder=FOLDER):
    """Every record of the folder, by processor and threads."""
    read = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    return sorted(
        (record for record in read if record.get("schema") == SCHEMA),
        key=lambda record: (processor(record), record["threads"]),
    )


def one_thread(processor_name="AMX", folder=FOLDER):
    """The record of one thread on a kind of processor."""
    (found,) = (r for r in records(folder) if (processor(r), r["threads"]) == (processor_name, 1))
    return found


def processor(record):
    """What the processor of a record multiplies with."""
    return PROCESSORS[record["machine"]["instructions"]]


def _where(record):
    return f"{processor(record)}, {record['threads']} thread(s)"


def pages(folder=FOLDER):
    """What there is to show: texts and tables, or the sentence that there is nothing yet."""
    found = records(folder)
    if not found:
        return [Markdown("*Not yet measured.*")]
    return [part for record in found for part in _page(record)]


def summary(folder=FOLDER):
    """How many times as long each peer takes: a row for a network and batch, a column for a peer."""
    rows = [(r, row) for r in records(folder) for row in r["rows"] if row["what"] == "dqt_core"]
    peers = list(dict.fromkeys(row["peer"] for _, row in rows))
    ratios = {}
    for record, row in rows:
        of = processor(record), record["threads"], row["group"]
        ratios.setdefault(of, {})[row["peer"]] = f"{row['ratio']:.2f}"
    head = ["processor", "threads", "network", *peers]
    return Table(head, [(*of, *(found.get(peer, "") for peer in peers)) for of, found in ratios.items()])


def _page(record):
    origin, machine = record["provenance"], record["machine"]
    whole = "" if record["finished"] else " The run was cut: what it had measured by then is below."
    hardware = origin["hardware"]
    text = (
        f"### {processor(record)}, {record['threads']} of {hardware['cores']} cores, {origin['date']}\n\n"
        f"{hardware['cpu']} ({', '.join(machine['flags'])}); products by {machine['instructions']}. "
        f"Clock {record['clock']}, {record['rounds']} rounds, commit `{origin['commit']}`.{whole}"
    )
    for part in record.get("joined", ()):
        groups, commit = ", ".join(part["groups"]), part["commit"][:12]
        text += f" Joined with a run of {groups} ({part['rounds']} rounds, `{commit}`)."
    yield Markdown(text)
    head = ["what", "ours", "peer", "ms", "its ms", "ratio", "quartiles", "aim", ""]
    yield Table(head, [_row(row) for row in record["rows"]])


def _row(row):
    return (
        *(row["group"], row["what"], row["peer"], f"{row['ours_ms']:.4g}", f"{row['peer_ms']:.4g}"),
        *(f"{row['ratio']:.2f}", f"{row['low']:.2f} to {row['high']:.2f}"),
        *("" if row["aim"] is None else f"{row['aim']:g}", AIMS[row["met"]]),
    )


def faster(folder=FOLDER):
    """Which peers are faster than the program, and where: a row for each, with its ratios."""
    found = {}
    for record in records(folder):
        for row in record["rows"]:
            if row["what"] == "dqt_core" and row["ratio"] < 1:
                of = row["peer"], processor(record), record["threads"]
                found.setdefault(of, []).append(f"{row['group']} ({row['ratio']:.2f})")
    return [(*of, ", ".join(where)) for of, where in sorted(found.items())]


def above_a_tenth(folder=FOLDER):
    """In words, the parts of a run, besides the products, that take more than a tenth of its time."""
    found = {}
    for record in records(folder):
        for name, parts in record["facts"].items():
            for part, share in parts.items() if name.endswith(" shares") else ():
                if part != "products" and share > 0.1:
                    found.setdefault(part, []).append(f"{name.removesuffix(' shares')} on {_where(record)}")
    said = [f"{part} ({'; '.join(where)})" for part, where in found.items()]
    return " and ".join(said) or "none"


def misses(folder=FOLDER, causes=CAUSES):
    """Every aim that was missed, and why."""
    known = json.loads(causes.read_text())
    head = ["processor", "threads", "what", "peer", "ratio", "aim", "cause"]
    rows = []
    for record in records(folder):
        causes_there = known.get(processor(record), {})
        for row in record["rows"]:
            if row["met"] is False:
                cause = causes_there.get(f"{row['group']} | {row['peer']}", "not known")
                figures = f"{row['ratio']:.2f}", f"{row['aim']:g}"
                rows.append(
                    (processor(record), record["threads"], row["group"], row["peer"], *figures, cause)
                )
    return Table(head, rows) if rows else Markdown("*None.*")


def shares(folder=FOLDER):
    """Where the time of a run goes."""
    head = ["processor", "threads", "network", "part", "share"]
    return Table(
        head,
        [
            (processor(record), record["threads"], name.removesuffix(" shares"), part, f"{100 * share:.0f} %")
            for record in records(folder)
            for name, parts in record["facts"].items()
            if name.endswith(" shares")
            for part, share in parts.items()
        ],
    )


def roofline(folder=FOLDER):
    """How near each network comes to what the machine can do at most."""
    head = [
        "processor",
        "threads",
        "what",
        "G operations",
        "MB at least",
        "operations' bound",
        "bytes' bound",
        "ms",
        "share",
    ]
    rows = []
    for record in records(folder):
        peak = record["facts"].get("roofline")
        own = {row["group"]: row for row in record["rows"] if "operations" in row and peak}
        for group, row in own.items():
            bounds = (
                1e3 * row["operations"] / peak["operations_per_second"],
                1e3 * row["bytes"] / peak["bytes_per_second"],
            )
            share = max(bounds) / row["ours_ms"]
            amounts = f"{row['operations'] / 1e9:.3g}", f"{row['bytes'] / 1e6:.3g}"
            times = *(f"{bound:.3g} ms" for bound in bounds), f"{row['ours_ms']:.3g}"
            of = processor(record), record["threads"], group
            rows.append((*of, *amounts, *times, f"{100 * share:.0f} %"))
    return Table(head, rows)


def growth(folder=FOLDER):
    """Time and memory against batch size, channels and image size, both axes in powers."""
    found = [record for record in records(folder) if record["growth"]]
    _, panels = plt.subplots(2, 3, figsize=(8, 5))
    for column, (axis, title) in zip(panels.T, AXES.items(), strict=True):
        for record in found:
            points = [point for point in record["growth"] if point["axis"] == axis]
            values = [point["value"] for point in points]
            column[0].plot(values, [p["ms"] for p in points], label=_where(record))
            memory = [(p["arena_bytes"] + p["weight_bytes"]) / 1e6 for p in points]
            column[1].plot(values, memory)
            if record is found[0] and points:
                work = [p["macs"] / points[-1]["macs"] * points[-1]["ms"] for p in points]
                column[0].plot(values, work, "--", marker="", label="as multiplications grow")
        for panel in column:
            panel.set_xscale("log", base=2)
            panel.set_yscale("log", base=2)
        column[1].set_xlabel(title)
    panels[0, 0].set_ylabel("ms")
    panels[1, 0].set_ylabel("MB of values and weights")
    if found:
        panels[0, 0].legend(fontsize=8)
    plt.show()


def memory(folder=FOLDER):
    """Peak memory of ResNet-50's evaluation, in GB; None: not measured."""
    for record in records(folder):
        for name, value in record["facts"].items():
            if name.startswith("peak memory of ResNet-50"):
                return value / 1e9
    return None


def controller_on_a_part(channels="64", path=TRAINING):
    """What the controller adds to a step on a part of the batch, as a share of what it adds on all."""
    steps = json.loads(path.read_text())["by_channels"][channels]
    static, whole, part = (step["cpu_seconds"] for step in steps[-3:])
    return f"{100 * (part - static) / (whole - static):.0f} %"


def training_step(path=TRAINING):
    """What a training step costs, against the float network's in the same run."""
    record = json.loads(path.read_text())
    head = ["channels", "step", "CPU seconds", "of float", "least to most", "passes", "of their sum", "aim"]
    rows = []
    for channels, steps in record["by_channels"].items():
        for step in steps:
            low, high = step["ratio_range"]
            is_own = not step["row"].startswith(("float", "torchao"))
            met = AIMS[step["ratio_to_sum_of_passes"] <= OF_PASSES] if is_own else ""
            ratios = f"{step['ratio_to_float']:.2f}", f"{low:.2f} to {high:.2f}"
            sums = f"{step['passes']:g}", f"{step['ratio_to_sum_of_passes']:.2f}"
            rows.append((channels, step["row"], f"{step['cpu_seconds']:.2f}", *ratios, *sums, met))
    return Table(head, rows)


def planes(path=PLANES):
    """The time of a product from bit planes at every width, or the sentence that it was not measured."""
    if not path.exists():
        return Markdown("*Not yet measured.*")
    record = json.loads(path.read_text())
    peer = next(name for name in record["rows"][0] if name.startswith("of ") and name != "of 8 planes")
    rows = []
    for row in record["rows"]:
        aim, value = PLANES_AIMS.get(row["row"]), row["of 8 planes"][0]
        if row["row"] == "8 planes":
            aim, value = BYTES_AIM, row[peer][0]
        met = "" if aim is None else f"{AIMS[value <= aim]} ({aim:g})"
        ratios = (_quartiles(row[name]) for name in ("of 8 planes", peer))
        rows.append((row["row"], f"{row['ms']:.2f}", *ratios, met))
    return Table(["product", "ms", "of 8 planes", peer, "aim"], rows)


def planes_times(path=PLANES):
    """Time of a product by the number of planes that it reads, of 8 planes: median and quartiles."""
    rows = json.loads(path.read_text())["rows"]
    return {int(r["row"].split()[0]): r["of 8 planes"] for r in rows if r["row"].endswith(" planes")}


def planes_facts(path=PLANES):
    """Of the record of planes, in words: its matrices, its processor, and its times at 4 and 2 planes."""
    if not path.exists():
        return dict.fromkeys(("matrices", "cpu", "four", "two"), "not yet measured")
    record = json.loads(path.read_text())
    at = {row["row"]: row["of 8 planes"][0] for row in record["rows"]}
    size = record["size"]
    return {
        "matrices": f"{record['matrices']} matrices of {size:,} by {size:,}",
        "cpu": record["provenance"]["hardware"]["cpu"],
        "four": f"{at['4 planes']:.2f}",
        "two": f"{at['2 planes']:.2f}",
    }


def _quartiles(parts):
    median, low, high = parts
    return f"{median:.2f} ({low:.2f} to {high:.2f})"
