"""Every claim with its status: read from `expected/claims.json`, judged by the records there are."""

import json
from functools import cache

from dqt_book.places import ROOT
from dqt_book.records import comparison
from dqt_book.records import gpu as gpu_records
from dqt_book.records import imagenet as imagenet_table
from dqt_book.show import Table
from dqt_core import results, statistics

EXPECTED = ROOT / "reproductions" / "expected"
RECORDS = ROOT / "reproductions" / "results" / "resnet18_cifar"
NOT_YET = "not attempted (not yet run)"
WORDS = ("reproduced", "shown", "within band", "not reproduced", "not shown", "not attempted")
# nobody has published what this book claims itself: it cannot be reproduced here
OWN = {"reproduced": "shown", "not reproduced": "not shown"}


def read(name):
    return json.loads((EXPECTED / f"{name}.json").read_text())


def claims():
    return read("claims")


def table(group):
    """The claims of a group: claim, source, status, and what shows it."""
    head = ["claim", "source", "status", "shown by"]
    return Claims(head, [row for claim in claims() if claim["group"] == group for row in rows(claim)])


class Claims(Table):
    """A table whose long names of tests are broken to fit the page."""

    def _repr_html_(self):
        return super()._repr_html_().replace("table dataframe", "table dataframe claims")


def counted(is_own):
    """How many rows have which status: of this book's own claims, or of the paper's."""
    found = [row[2] for claim in claims() if is_own == (claim["source"] == "here") for row in rows(claim)]
    shares = {word: sum(status.split(" (")[0] == word for status in found) for word in WORDS}
    return ", ".join(f"{count} {word}" for word, count in shares.items() if count)


def rows(claim):
    """Claim, source, status and evidence, for each result that the claim's rule finds."""
    shown_by = " ".join(claim["evidence"]) + (f"; again: {again}" if (again := claim.get("command")) else "")
    for number, (detail, status) in enumerate(RULES[claim["rule"]](claim)):
        told = ("… " + detail.lstrip(" :")) if number else claim["claim"] + detail
        if claim["source"] == "here":
            status = OWN.get(status, status)
        yield told, claim["source"], status, "as above" if number else shown_by


# One rule for each kind of claim: it yields (detail, status)


def tests(claim):
    """The evidence is a test that fails where the claim does."""
    yield "", "reproduced"


def absent(claim):
    """Not attempted as long as there is no record."""
    found = sorted(ROOT.glob(claim["absent"]))
    if found:
        raise ValueError(
            f"{found[0].name} is a record of {claim['claim']!r}: give the claim a rule that reads it"
        )
    yield "", f"not attempted ({claim['why']})"


def shipped_bands(claim, record=None):
    record = record or results.read(RECORDS / "cifar10.json")
    rows = {row["widths"]: row for row in record["rows"]} | {"float": record["float_row"]}
    rows |= {f"cut {row['widths']}": row for row in record["cut_rows"]}
    for band in read("resnet18_cifar")["cifar10"]:
        gap = comparison.accuracy([rows[band["row"]]]) - comparison.accuracy([rows[band["against"]]])
        status = "within band" if gap >= band["at_least"] else "not reproduced"
        yield _band(f"{band['row']} minus {band['against']}", f"{gap:+.2f} points", band["at_least"]), status


def comparison_bands(claim):
    for group in groups():
        for name, gap, at_least, status in comparison.statuses(group, read("resnet18_cifar")["comparison"]):
            detail = f"{name} {gap or 'not yet run'}, band {at_least} ({_size(group)})"
            yield detail, status.replace("not attempted", NOT_YET)


def imagenet_bands(claim):
    paths = sorted((ROOT / "reproductions" / "results" / "resnet50_imagenet").glob("*.json"))
    records = {path.stem: results.read(path) for path in paths}
    for name, gap, at_least, status in imagenet_table.band_rows(records, read("resnet50_imagenet")["bands"]):
        yield f"{name} {gap or 'not yet run'}, band {at_least}", status.replace("not yet run", NOT_YET)


def _band(name, gap, at_least):
    return f"{name} {gap}, band at least {at_least:+.2f}"


def twins(claim):
    for group in groups():
        same, seen, _ = comparison.twins(group)
        if not seen:
            yield f" ({_size(group)})", NOT_YET
            continue
        at_least = read("resnet18_cifar")["twins"]["same_class"]
        detail = f": {same:,} of {seen:,} images, band at least {at_least:.2%} ({_size(group)})"
        yield detail, "within band" if same / seen >= at_least else "not reproduced"


def consistency(claim):
    for group in groups():
        with_it, without = (comparison.Line("", row, "2") for row in ("joint", "no-consistency"))
        pairs = group.pairs(with_it, without)
        if not pairs:
            yield f" ({_size(group)})", NOT_YET
            continue
        tested = [statistics.paired(results.hits(one), results.hits(other)) for _, one, other in pairs]
        points = ", ".join(f"{100 * test['difference']:+.2f}" for test in tested)
        is_so = all(test["difference"] > 0 and test["p"] < 0.05 for test in tested)
        yield f": {points} points ({_size(group)})", "reproduced" if is_so else "not reproduced"


@cache
def groups():
    return comparison.groups(RECORDS)


def _size(group):
    return f"{group.channels} channels, {group.epochs:g} epochs"


def bitops(claim):
    for name, written in claim["figures"].items():
        macs = layer_counts(name)[:, 0]
        first_last = int(macs[[0, -1]].sum())
        at_4 = 16 * int(macs.sum())
        found = [f"{macs.sum() / 1e9:.4f}", f"{at_4 / 1e9:.2f}", f"{(at_4 + 48 * first_last) / 1e9:.2f}"]
        status = "reproduced" if found == written else "not reproduced"
        yield f"{name}, {found[0]} G MACs, {found[1]} / {found[2]} G", status


def transition_ratio(claim):
    paper = read("published")["dqt"]
    ratio = paper["transition_float_macs_m"] / paper["transition_shifts_m"]
    yield f": {ratio:g} to 1 there", "reproduced" if ratio == 2 else "not reproduced"


def transition_count(claim):
    """No way of counting agrees: weights and inputs, all layers or without the first and the last."""
    counts, paper = layer_counts("ResNet-50"), read("published")["dqt"]["transition_shifts_m"]
    parts = [counts[layers, column].sum() for layers in (slice(None), slice(1, -1)) for column in (1, 2)]
    ways = [*parts, parts[0] + parts[1], parts[2] + parts[3]]
    agrees = any(round(way / 1e6, 1) == paper for way in ways)
    yield f": {ways[-1] / 1e6:.1f} million as counted here", "reproduced" if agrees else "not reproduced"


@cache
def layer_counts(name):
    """MACs, weights and inputs of every convolution and linear layer, counted without numbers in it."""
    import numpy as np
    import torch

    from dqt_core import models

    with torch.device("meta"):
        make, side = {
            "ResNet-50": (models.resnet50, 224),
            "ResNet-18": (models.resnet18, 224),
            "MobileNetV2": (models.mobilenet_v2, 224),
            "ResNet-18 for 32 by 32 pixels": (lambda: models.resnet18(10, 64, True), 32),
        }[name]
        net, counts = make().eval(), []

        def note(layer, inputs, output):
            weights = layer.weight.numel()
            counts.append((weights * output[0, 0].numel(), weights, inputs[0].numel()))

        for layer in net.modules():
            if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear):
                layer.register_forward_hook(note)
        net(torch.zeros(1, 3, side, side))
    return np.array(counts)


def _on_gpus(passed):
    records = gpu_records.records()
    if not records:
        return "not attempted (not yet run on a GPU)"
    return "reproduced" if all(map(passed, records)) else "not reproduced"


def gpu_checks(claim):
    yield "", _on_gpus(lambda record: all(check["passed"] for check in record["checks"]))


def gpu_aims(claim):
    yield "", _on_gpus(lambda record: all(row["met"] is not False for row in record["rows"]))


RULES = {
    rule.__name__: rule
    for rule in (
        *(tests, absent, shipped_bands, comparison_bands, imagenet_bands, twins, consistency),
        *(bitops, transition_ratio, transition_count, gpu_checks, gpu_aims),
    )
}
