"""The comparison's tables: lines, duels, bands, what is missing, drawn from records."""

import json
from pathlib import Path

import numpy as np
import pytest

from dqt_book.records import comparison, looking, panels
from dqt_core import results
from reproductions.cifar10 import compare

FOLDER = Path(__file__).resolve().parents[1] / "reproductions"


def record(folder, row, seed, rows, channels=8, start="a digest", epochs=1):
    whole = {"row": row, "seed": seed, "channels": channels, "epochs": epochs, "rows": rows, "programs": {}}
    whole |= {
        "name": row,
        "training": {"starts from": start},
        "dataset": {"name": "cifar10", "limit": None},
        "provenance": {},
    }
    results.write(whole, folder / f"{row}_c{channels}_e{epochs}_s{seed}.json")


def result(label, right, bitops=1e9):
    hits = np.asarray(right, bool)
    counts = {"correct": int(hits.sum()), "images": len(hits), "hits": results.packed(hits)}
    return {"widths": label, "bitops": bitops, "kind": "integer", **counts}


@pytest.fixture
def tables(tmp_path):
    """Two seeds of a controller that gets 60 images right, against 40 of the best static widths."""
    for seed in (0, 1):
        looks = np.arange(100) < 60 + 2 * seed
        rows = [result("controller", looks), result("another image's widths", looks, 2e9)]
        record(tmp_path, "dynamic-4", seed, [*rows, result("each layer's usual width", ~looks)])
        record(tmp_path, "mixed-4", seed, [result("mixed", np.arange(100) < 40)])
    record(tmp_path, "float", 0, [result("float", np.ones(100), None)])
    record(tmp_path, "float", 0, [result("float", np.ones(100), None)], channels=16)
    return comparison, tmp_path


def test_groups_are_network_sizes_and_lengths_the_longest_and_then_the_fullest_first(tables):
    comparison, folder = tables
    assert [(g.channels, g.epochs) for g in comparison.groups(folder)] == [(8, 1), (16, 1)]
    record(folder, "float", 0, [result("float", np.ones(100), None)], channels=16, epochs=4)
    assert [(g.channels, g.epochs) for g in comparison.groups(folder)] == [(16, 4), (8, 1), (16, 1)]


def test_a_table_has_the_recorded_lines_and_the_others_are_named(tables):
    comparison, folder = tables
    records = comparison.Records(folder, 8, 1)
    rows = {row[0]: row[1:] for row in records.table(comparison.MAIN)}
    assert list(rows) == ["float", "best static at 4-bit BitOPs", "controller at 4-bit BitOPs"]
    assert rows["controller at 4-bit BitOPs"] == ["61.00 % ± 1.41", "2", "1.000", "integer"]
    assert rows["float"][0].startswith("100.00 % (")
    missing = records.missing(comparison.MAIN)
    names = dict.fromkeys(
        line.row for line in comparison.MAIN if line.row not in {r["row"] for r in records.all}
    )
    assert missing.startswith(f"not yet run: {', '.join(names)}; what would run them: `python ")
    assert missing.endswith(f" --channels 8 --epochs 1 --row {' '.join(names)}`")
    assert records.missing(line for line in comparison.MAIN if line.label in rows) == "every row was run"


def test_the_command_for_a_missing_row_trains_the_same_float_network(tables):
    comparison, folder = tables
    path = folder / "float_c8_e1_s0.json"
    results.write(results.read(path) | {"training": {"float epochs": 6, "float lr": 0.1}}, path)
    missing = comparison.Records(folder, 8, 1).missing(comparison.MAIN)
    options = "--channels 8 --epochs 1 --float-epochs 6 --float-lr 0.1 --row float-further lsq-8 "
    assert options in missing


def test_duels_are_of_one_seed_and_budget(tables):
    comparison, folder = tables
    duels = comparison.duels(comparison.Records(folder, 8, 1))
    assert [(d["bits"], d["seed"]) for d in duels] == [(4, 0), (4, 1)] * 3
    assert comparison.over_seeds(duels, comparison.UNIFORM, 5) == "not attempted (no such width)"
    static, shuffled = duels[0], duels[2]
    assert (static["only_first"], static["only_second"], static["difference"]) == (20, 0, pytest.approx(0.2))
    assert (shuffled["difference"], shuffled["p"], shuffled["bitops"]) == (0, 1, 0.5)
    assert comparison.verdict(duels, "the best static widths").startswith("better in 2, worse in 0")
    assert comparison.verdict(duels, "another image's widths").startswith("better in 0, worse in 0")
    together = comparison.verdict(duels, "the best static widths", comparison.SHUFFLED)
    assert together.startswith("better in 2, worse in 0, not distinguishable in 2 of 4")
    assert comparison.verdict([], "another image's widths") == "not yet run"
    assert comparison.over_seeds(duels, "the best static widths", 4) == "+21.00 ± 1.41 (2 seeds)"
    assert comparison.over_seeds(duels, "the best static widths", 3) == "not yet run"


def test_a_second_look_is_compared_over_the_seeds_that_have_both(tables):
    comparison, folder = tables
    assert comparison.second_look(folder) is None
    looks = np.arange(100) < 70
    for seed in (0, 1):
        dealt = result("cascade at 3 bits, dealt to other images", np.arange(100) < 50)
        rows = [result("cascade at 3 bits", looks), dealt, result("3", looks)]
        record(folder, "cascade", seed, rows)
    record(folder, "uniform-3", 1, [result("uniform", np.arange(100) < 66)])
    found = comparison.second_look(folder)
    assert found["network"] == "8 channels, 1 epochs after float"
    assert found[comparison.UNIFORM] == "+4.00 points (+0.16 to +7.84, p = 0.12, one seed)"
    assert found[comparison.ITSELF].startswith("+0.00 points (+0.00 to +0.00, p = 1,")
    assert found[comparison.DEALT].endswith("p < 0.0001, 2 seeds)")
    assert found[comparison.LEARNED] == "not yet run"
    (folder / "uniform-3_c8_e1_s1.json").unlink()
    assert comparison.second_look(folder)[comparison.UNIFORM] == "not yet run"
    assert comparison.second_look(folder, row="cascade-3") is None
    record(folder, "cascade-3", 0, [result("cascade at 3 bits", np.arange(100) < 72), dealt])
    own = comparison.second_look(folder, row="cascade-3")
    assert own[comparison.DEALT].startswith("+22.00 points")
    assert comparison.ITSELF not in own


def test_networks_of_another_start_are_not_compared(tables):
    comparison, folder = tables
    record(folder, "mixed-4", 1, [result("mixed", np.arange(100) < 40)], start="another digest")
    duels = comparison.duels(comparison.Records(folder, 8, 1))
    static = [duel["seed"] for duel in duels if duel["opponent"] == "the best static widths"]
    assert static == [0]


def test_a_start_that_is_not_the_shown_network_is_named(tables):
    comparison, folder = tables
    path = folder / "dqt-static_c8_e1_s0.json"
    record(folder, "dqt-static", 0, [result("4", np.ones(100))])
    results.write(results.read(path) | {"programs": {"trained": "a digest"}, "training": {}}, path)
    named = comparison.Records(folder, 8, 1).starts_elsewhere()
    assert named == ["dynamic-4, seed 1", "mixed-4, seed 1"]


def test_a_band_that_is_missed_is_not_reproduced(tables):
    comparison, folder = tables
    band = {"row": "dynamic-4/controller", "against": "mixed-4/mixed"}
    bands = [band | {"at_least": 20}, band | {"at_least": 22}, band | {"row": "lsq-2/2", "at_least": 0}]
    bands += [{"row": "dynamic-4/controller", "at_least": level} for level in (61, 62)]
    found = comparison.statuses(comparison.Records(folder, 8, 1), bands)
    words = ["within band", "not reproduced", "not attempted", "within band", "not reproduced"]
    assert [row[3] for row in found] == words
    assert found[0][:3] == ["dynamic-4/controller minus mixed-4/mixed", "+21.00 points", "at least +20.00"]
    assert found[3][:3] == ["dynamic-4/controller", "61.00 %", "at least 61.00"]


def test_a_change_is_measured_on_the_seeds_that_have_both(tables):
    comparison, folder = tables
    records = comparison.Records(folder, 8, 1)
    name = "one batch norm for all widths"
    assert records.change(name, 2) is None
    record(folder, "dqt-static", 0, [result("2", np.arange(100) < 50)])
    record(folder, "dqt-static", 1, [result("2", np.ones(100))])
    record(folder, "shared-norm", 0, [result("2", np.arange(100) < 20)])
    assert comparison.Records(folder, 8, 1).change(name, 2) == pytest.approx(-30)


def test_entropy_of_widths():
    entropy = comparison.entropy
    assert (entropy([0, 10, 0]), entropy([5, 5, 0]), entropy([2, 2, 2, 2])) == (0, 1, 2)


def test_every_line_and_band_names_a_row():
    lines = [*comparison.MAIN, *(line for lines in comparison.ABLATIONS.values() for line in lines)]
    assert {line.row for line in lines} == set(compare.ROWS)
    known = {f"{line.row}/{line.result}" for line in lines}
    for band in json.loads((FOLDER / "expected" / "resnet18_cifar.json").read_text())["comparison"]:
        assert {band["row"], band.get("against", band["row"])} <= known
    for row, _, against, _ in comparison.CHANGES.values():
        assert {row, against} <= set(compare.ROWS)


def test_methods_have_a_row_each_and_the_figure_draws_them(tables, monkeypatch):
    comparison, folder = tables
    shown = []
    monkeypatch.setattr(panels.plt, "show", lambda: shown.append(panels.plt.gcf().axes))
    records = comparison.Records(folder, 8, 1)
    record(folder, "dqt-static", 0, [result("4", np.arange(100) < 90), result("3", np.arange(100) < 80, 5e8)])
    with pytest.raises(StopIteration):  # a record that lacks a line of its row
        comparison.Records(folder, 8, 1).methods()
    rows = [result(str(w), np.arange(100) < 90, w * w * 1e8) for w in comparison.WIDTHS]
    record(folder, "dqt-static", 0, rows)
    records = comparison.Records(folder, 8, 1)
    table = {row[0]: dict(zip(comparison.LEVELS, row[2:], strict=True)) for row in records.methods()}
    assert list(table) == ["DQT static", "best static", "controller"]
    assert table["controller"] == {8: "", 6: "", 5: "", 4: "61.00 ± 1.41", 3: "", 2: ""}
    assert panels.panels(records)
    labels = [[line.get_label() for line in axis.lines] for axis in shown[0]]
    assert labels[0][:1] == ["DQT static"]
    assert labels[1] == ["DQT static", "best static", "controller"]
    assert not panels.panels(comparison.Records(folder, 16, 1))
    panels.plt.close("all")


@pytest.mark.parametrize(
    ("row", "label", "drawn"), [("lsq-8", "8", (2, 0)), ("dynamic-4", "controller", (1, 1))]
)
def test_the_figure_can_be_drawn_of_any_row_alone(tmp_path, monkeypatch, row, label, drawn):
    shown = []
    monkeypatch.setattr(panels.plt, "show", lambda: shown.append(panels.plt.gcf().axes))
    record(tmp_path, row, 0, [result(label, np.arange(100) < 90)])
    records = comparison.Records(tmp_path, 8, 1)
    assert not panels.panels(records), "without float there is nothing to compare with"
    record(tmp_path, "float", 0, [result("float", np.ones(100), None)])
    assert panels.panels(comparison.Records(tmp_path, 8, 1))
    assert tuple(len(axis.lines) for axis in shown[0]) == drawn  # one on the left is the line of float
    panels.plt.close("all")


def test_second_looks_are_drawn_with_the_opponents_that_were_run(tables, monkeypatch):
    comparison, folder = tables
    shown = []
    monkeypatch.setattr(looking.plt, "show", lambda: shown.append(looking.plt.gcf().axes[0]))
    right = {"2": 60, "3": 66, "4": 70, "cascade at 3 bits, dealt to other images": 64}
    rows = [result(label, np.arange(100) < count) for label, count in right.items()]
    for share, hits in ((20, np.arange(100) < 68), (10, (np.arange(100) > 2) & (np.arange(100) < 65))):
        rows.append(result(f"2 -> 4, {share}%", hits) | {"passes": [100 - share, share]})
    record(folder, "cascade", 0, rows)
    record(folder, "uniform-3", 1, [result("uniform", np.arange(100) < 66)])  # of another seed
    record(folder, "blind-3", 0, [result("blind", np.arange(100) < 66)])
    records = comparison.Records(folder, 8, 1)
    (looked,) = looking.looked_twice(records)
    assert looking.rescued(looked) == [(10, 5, 3), (20, 8, 0)]
    looking.curve(records, looked)
    looking.gains(looked)
    looking.duels(comparison.duels(records))
    curve, gains, duels = shown
    names = [line.get_label() for line in curve.lines]
    assert names == ["one width for all", "2, then 4 bits", "dealt by chance", comparison.LEARNED]
    assert gains.lines[0].get_ydata().tolist() == [2, 8]
    titles = [text.get_text() for text in duels.texts]
    assert titles == ["the best static widths", "another image's widths", "each layer's usual width"]
    looking.plt.close("all")
