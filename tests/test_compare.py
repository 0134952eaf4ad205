"""The comparison's runner: baselines as their papers say, rows that resume, budgets that are met."""

import dataclasses
import functools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from small_nets import CourseNet, images, nested_net, seeded, tensors
from torch import nn

from dqt_book.records import comparison
from dqt_core import allocate, cost, lower, models, results
from dqt_core.training.layers import SwitchLayer
from reproductions.cifar10 import baselines
from reproductions.cifar10 import compare as runner

FOLDER = Path(__file__).resolve().parents[1] / "reproductions"


@pytest.fixture
def compare(monkeypatch):
    """The runner, with few images behind statistics."""
    monkeypatch.setattr(runner, "CALIBRATION", 64)
    monkeypatch.setattr(runner, "SENSITIVITY", 16)
    return runner


# Baselines


def test_dorefa_weights_are_those_of_equation_9():
    weight = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    for bits in (2, 3, 4):
        found = baselines.dorefa_weight(weight, bits).double().numpy()
        squashed = np.tanh(weight.double().numpy())
        steps = 2**bits - 1
        expected = 2 * np.round((squashed / (2 * np.abs(squashed).max()) + 0.5) * steps) / steps - 1
        np.testing.assert_allclose(found, expected, atol=1e-6)
        assert len(np.unique(found.round(5))) <= 2**bits


def test_pact_clips_rounds_and_learns_its_clip():
    x = torch.tensor([-1.0, 0.2, 0.74, 1.5, 9.0], requires_grad=True)
    alpha = torch.tensor(1.5, requires_grad=True)
    y = baselines.clip_and_round(x, alpha, 2)
    assert y.tolist() == pytest.approx([0, 0, 0.5, 1.5, 1.5])
    (y * torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0])).sum().backward()
    assert x.grad.tolist() == [0, 2, 4, 0, 0]
    assert alpha.grad.item() == 8 + 16


def test_a_baseline_rounds_all_but_the_first_input():
    net = baselines.BaselineNet(models.resnet18(10, 8, small_images=True), "pact", (2,))
    layers = [m for m in net.modules() if isinstance(m, baselines.QuantLayer)]
    switched = [layer for layer in layers if layer.current is not None]
    assert (len(layers), len(switched)) == (21, 19)
    assert [layer.clips is None for layer in layers] == [True] + [False] * 20
    net.calibrate(tensors(4, 32))
    assert all(layer.clips.item() != 1 for layer in layers[1:])
    seen = {}
    for i, layer in enumerate(switched):
        layer._product = functools.partial(_keep, seen, i, layer._product)
    net.eval()(tensors(2, 32))
    for x, weight in seen.values():
        assert len(x.unique()) <= 4
        assert len(weight.unique()) <= 4


def _keep(seen, i, product, x, weight):
    seen[i] = x, weight
    return product(x, weight)


def test_a_switchable_baseline_has_a_norm_for_every_width():
    net = baselines.BaselineNet(seeded(CourseNet), "any-precision", (2, 8)).eval()
    narrow, wide = net(tensors(), 2), net(tensors(), 8)
    assert not torch.equal(narrow, wide)
    for norm in (m for m in net.modules() if isinstance(m, baselines.SwitchNorm)):
        norm.norms[0].weight.data.zero_()
    assert torch.equal(net(tensors(), 8), wide)
    assert not torch.equal(net(tensors(), 2), narrow)


@pytest.mark.parametrize(("method", "learns"), [("pact", True), ("dorefa", False), ("any-precision", False)])
def test_clips_start_where_they_round_best_at_each_width_and_pact_learns_them(method, learns):
    net = baselines.BaselineNet(seeded(CourseNet), method, (2, 8))
    net.calibrate(tensors(8))
    layer = next(
        m for m in net.modules() if isinstance(m, baselines.QuantLayer) and m.current and m.clips is not None
    )
    narrow, wide = layer.clips.tolist()
    assert 0 < narrow < wide, "few levels are worth a tighter clip"
    loss, _ = baselines.BaselineLoss(method)(net, tensors(), torch.tensor([0, 1, 2, 3]), 0.0)
    loss.backward()
    assert (layer.clips.grad is not None) == learns


def test_narrow_widths_learn_from_the_next_wider():
    net = baselines.BaselineNet(seeded(CourseNet), "any-precision", (2, 8))
    labels = torch.tensor([0, 1, 2, 3])
    loss, _ = baselines.BaselineLoss("any-precision")(net, tensors(), labels, 0.0)
    wide, narrow = net(tensors(), 8), net(tensors(), 2)
    cross_entropy = nn.functional.cross_entropy
    expected = cross_entropy(wide, labels) + cross_entropy(narrow, wide.detach().softmax(1))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


# Statistics and budgets


def test_statistics_come_from_the_passes_of_the_row(compare):
    net = nested_net()
    first, second = net.switch_layers
    unused = [norm.running_mean.clone() for norm in first.norms]
    compare.estimate_norms(net, [lambda x: net(x, [2, 8])], [tensors(8, seed=s) for s in (1, 2)])
    assert [int(norm.num_batches_tracked) for norm in first.norms] == [2, 0, 0]
    for k in (1, 2):
        assert torch.equal(first.norm_of(k).running_mean, unused[k])
    assert not torch.equal(first.norm_of(0).running_mean, unused[0])
    assert not len(second.norms)
    assert all(norm.momentum == 0.1 for norm in net.modules() if isinstance(norm, nn.BatchNorm2d))
    assert not net.training


def test_a_blind_controller_says_the_same_of_every_image(compare):
    net = nested_net().eval()
    torch.nn.init.normal_(net.controller.fc2.weight, std=1.0, generator=torch.Generator().manual_seed(1))
    looks = compare._picks(net, tensors(16))[0]
    net.controller.pool = compare.Blind()
    blind = compare._picks(net, tensors(16))[0]
    assert len(looks.unique(dim=0)) > 1
    assert blind.shape == looks.shape
    assert len(blind.unique(dim=0)) == 1


@pytest.mark.parametrize("share", [0.05, 0.3, 0.7])
def test_the_bias_meets_the_budget(compare, share):
    net = nested_net()
    torch.nn.init.normal_(net.controller.fc2.weight, std=0.3, generator=torch.Generator().manual_seed(1))
    batches = [tensors(32, seed=s) for s in range(4)]
    net(batches[0], 8)
    program = lower(net)
    costs = allocate.layer_bitops(program)
    controller = sum(size.macs for size in cost.layer_sizes(program) if size.controller) * 64
    low, high = (int(f(costs, axis=1).sum()) for f in (np.min, np.max))
    budget = low + share * (high - low) + allocate.fixed_bitops(program) + controller
    compare.meet_budget(net, batches, budget)
    picks = torch.cat([compare._picks(net, x)[1] for x in batches])
    spent = net.bitops(picks).mean().item()
    assert spent <= budget * (1 + 1e-6)
    assert spent > budget - 0.5 * costs.max(), "within one layer's step of the budget"


def test_the_chosen_allocation_is_the_best_candidate(compare, tmp_path):
    program = lower(nested_net())
    dataset = type("Images", (), {"train_images": images(16), "train_labels": np.arange(16) % 10})
    settings = compare.Settings(out=tmp_path)
    run = type("Run", (), {"images": dataset, "settings": settings, "training": {}})()
    budget = allocate.uniform_bitops(program, 5)
    chosen = compare.best_allocation(run, program, budget)
    assert cost.bitops(program, chosen)[0] <= budget
    candidates = run.training["candidates"]
    assert candidates[run.training["chosen"]] == min(candidates.values())
    assert {"uniform 2", "uniform 4", "sensitivities at 8"} <= set(candidates)
    assert "uniform 8" not in candidates


# Tables


def record(folder, row, seed, rows, channels=8, start="a digest"):
    whole = {"row": row, "seed": seed, "channels": channels, "epochs": 1, "rows": rows, "programs": {}}
    whole |= {
        "name": row,
        "training": {"starts from": start},
        "dataset": {"name": "cifar10", "limit": None},
        "provenance": {},
    }
    results.write(whole, folder / f"{row}_c{channels}_e1_s{seed}.json")


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


def test_groups_are_network_sizes_and_lengths_the_fullest_first(tables):
    comparison, folder = tables
    assert comparison.groups(folder) == [(8, 1), (16, 1)]


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


def test_the_front_holds_what_nothing_cheaper_beats():
    points = [(2, 80.0), (1, 70.0), (3, 79.0), (4, 90.0), (2, 60.0)]
    assert comparison.pareto(points) == [(1, 70.0), (2, 80.0), (4, 90.0)]


def test_entropy_of_widths():
    entropy = comparison.entropy
    assert (entropy([0, 10, 0]), entropy([5, 5, 0]), entropy([2, 2, 2, 2])) == (0, 1, 2)


def test_every_line_and_band_names_a_row(compare):
    lines = [*comparison.MAIN, *(line for lines in comparison.ABLATIONS.values() for line in lines)]
    assert {line.row for line in lines} == set(compare.ROWS)
    known = {f"{line.row}/{line.result}" for line in lines}
    for band in json.loads((FOLDER / "expected" / "resnet18_cifar.json").read_text())["comparison"]:
        assert {band["row"], band.get("against", band["row"])} <= known
    for row, _, against, _ in comparison.CHANGES.values():
        assert {row, against} <= set(compare.ROWS)


# Rows


def test_every_row_is_named_and_described(compare):
    assert {"float", "dqt-static", "any-precision", "lsq-6", "mixed-5", "dynamic-3", "blind-4"} <= set(
        compare.ROWS
    )
    assert len({row.method for row in compare.ROWS.values()}) == len(compare.ROWS)


def embedded(compare, tmp_path, **changes):
    paths = {"out": tmp_path / "runs", "records": tmp_path / "records"}
    changes = {"compiled": False, "limit": 40} | changes
    return compare.Settings(dataset="embedded", channels=8, epochs=0.2, **paths, **changes)


def test_a_row_is_recorded_once_and_resumes(compare, tmp_path, monkeypatch, capsys):
    settings = embedded(compare, tmp_path)
    assert compare.make_all(settings, ["lsq-4"]) == 0
    record = results.read(settings.record("lsq-4"))
    (row,) = record["rows"]
    assert (row["kind"], row["images"], record["training"]["steps"]) == ("integer", 40, 2)
    assert int(results.hits(row).sum()) == row["correct"]
    assert record["programs"] == {"trained": row["program"]}

    with monkeypatch.context() as patch:
        patch.setattr(compare, "Run", _fail)
        assert compare.make_all(settings, ["lsq-4"]) == 0
    said = f"recorded before: {settings.record('lsq-4')}; to run it again, move that file away"
    assert said in capsys.readouterr().out

    settings.record("lsq-4").unlink()  # as if it had been stopped before the record: no step is taken twice
    monkeypatch.setattr(SwitchLayer, "forward", _not_in_training(SwitchLayer.forward))
    assert compare.make_all(settings, ["lsq-4"]) == 0
    assert results.read(settings.record("lsq-4"))["rows"][0]["logits"] == row["logits"]


def _fail(*_):
    raise AssertionError("a recorded row was run again")


def _not_in_training(forward):
    def checked(layer, x):
        assert not (layer.training and torch.is_grad_enabled()), "a step was taken again"
        return forward(layer, x)

    return checked


def test_a_failing_row_is_counted_and_leaves_the_others_to_run(compare, tmp_path, capsys):
    settings = embedded(compare, tmp_path, float_path=tmp_path / "absent.safetensors")
    assert compare.make_all(settings, ["float", "lsq-2"]) == 2
    assert "absent.safetensors" in capsys.readouterr().err


def test_the_blind_row_has_one_choice_of_widths(compare, tmp_path):
    settings = embedded(compare, tmp_path)
    assert compare.make_all(settings, ["blind-4"]) == 0
    (row,) = results.read(settings.record("blind-4"))["rows"]
    assert row["bitops"] <= row["budget"]
    assert row["widths"] == "blind"
    assert set(row["run"]) <= set(compare.WIDTHS)


def test_twins_are_counted_and_traced(compare, tmp_path):
    settings = embedded(compare, tmp_path)
    run = compare.Run(settings, "dqt-static")
    net = run.nested().eval()
    program = lower(net)
    assert run.twin(net, program, 4) == {"same": 40, "images": 40, "differing": []}
    logits = program.ops[-1]
    term = dataclasses.replace(
        logits.term, offset=logits.term.offset - 2**50 * np.eye(10, dtype=np.int64)[:1]
    )
    other = dataclasses.replace(program, ops=(*program.ops[:-1], dataclasses.replace(logits, term=term)))
    found = run.twin(net, other, 4)
    assert found["same"] + len(found["differing"]) == 40
    assert found["differing"]
    for difference in found["differing"]:
        assert difference["value"] == "logits"
        assert difference["gap"] > 0


def test_the_controllers_opponents_spend_the_same(compare, tmp_path):
    settings = embedded(compare, tmp_path)
    run = compare.Run(settings, "dynamic-4")
    net = run.nested()
    torch.nn.init.normal_(net.controller.fc2.weight, std=1.0, generator=torch.Generator().manual_seed(1))
    looks, shuffled, usual = compare.opponents(run, lower(net), [2] * 19, 1e9)
    assert looks["bitops"] == shuffled["bitops"]
    assert looks["logits"] != shuffled["logits"]
    assert usual["bitops"] == allocate.uniform_bitops(lower(net), 4)
    assert looks["patterns"] > 1
    assert set(looks["fewest"]).isdisjoint(looks["most"])


def test_the_further_training_of_the_float_network_is_a_row(compare, tmp_path):
    settings = embedded(compare, tmp_path)
    assert compare.make_all(settings, ["float", "float-further"]) == 0
    before, after = (results.read(settings.record(row)) for row in ("float", "float-further"))
    assert after["training"]["steps"] == 2
    assert after["training"]["float"] == before["training"]["float"]
    (row,) = after["rows"]
    assert (row["kind"], row["bitops"], row["images"]) == ("float", None, 40)


def test_cascades_look_at_the_image_and_their_controls_do_not(compare, tmp_path, monkeypatch):
    monkeypatch.setattr(compare, "LOOKING", 200)
    settings = embedded(compare, tmp_path, limit=359)
    assert compare.make_all(settings, ["cascade"]) == 0
    record = results.read(settings.record("cascade"))
    assert record["training"]["starts from"] != record["programs"]["trained"]
    rows = {row["widths"]: row for row in record["rows"]}
    for bits, steps in ((3, [2, 4]), (4, [3, 6])):
        looks, other = rows[f"cascade at {bits} bits"], rows[f"cascade at {bits} bits, dealt to other images"]
        assert (looks["steps"], looks["passes"]) == (steps, other["passes"])
        assert sum(looks["passes"]) == 359
        narrow, wide = (rows[str(width)]["bitops"] for width in steps)
        assert looks["bitops"] == pytest.approx(narrow + looks["passes"][1] / 359 * wide)
        assert looks["budget"] == rows[str(bits)]["bitops"]
        assert looks["logits"] != other["logits"]
        assert looks["correct"] > other["correct"]
    curve = [rows[f"2 -> 4, {share:.0%}"]["passes"][1] for share in compare.SHARES]
    assert curve == sorted(curve)
    assert len(rows["cascade of three steps at 3 bits"]["thresholds"]) == 2
