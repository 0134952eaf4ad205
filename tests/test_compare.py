"""The comparison's runner: rows that resume, budgets that are met, decisions that settle."""

import copy
import dataclasses
import re
import sys

import numpy as np
import pytest
import torch
from small_nets import images, nested_net, tensors
from torch import nn

from dqt_book.records import comparison
from dqt_core import allocate, cost, lower, results
from dqt_core.training import agreement, calibration
from dqt_core.training.layers import SwitchLayer
from reproductions.cifar10 import (
    compare,
    decisions,
    foresight,
    later,
    looking_rows,
    run,
    static_rows,
    torchao_row,
)

# Statistics and budgets


def test_statistics_come_from_the_passes_of_the_row():
    net = nested_net()
    first, second = net.switch_layers
    unused = [norm.running_mean.clone() for norm in first.norms]
    run.estimate_norms(net, [lambda x: net(x, [2, 8])], [tensors(8, seed=s) for s in (1, 2)])
    assert [int(norm.num_batches_tracked) for norm in first.norms] == [2, 0, 0]
    for k in (1, 2):
        assert torch.equal(first.norm_of(k).running_mean, unused[k])
    assert not torch.equal(first.norm_of(0).running_mean, unused[0])
    assert not len(second.norms)
    assert all(norm.momentum == 0.1 for norm in net.modules() if isinstance(norm, nn.BatchNorm2d))
    assert not net.training


def test_a_blind_controller_says_the_same_of_every_image():
    net = nested_net().eval()
    torch.nn.init.normal_(net.controller.fc2.weight, std=1.0, generator=torch.Generator().manual_seed(1))
    looks = looking_rows._picks(net, tensors(16))[0]
    net.controller.pool = looking_rows.Blind()
    blind = looking_rows._picks(net, tensors(16))[0]
    assert len(looks.unique(dim=0)) > 1
    assert blind.shape == looks.shape
    assert len(blind.unique(dim=0)) == 1


@pytest.mark.parametrize("share", [0.05, 0.3, 0.7])
def test_the_bias_meets_the_budget(share):
    net = nested_net()
    torch.nn.init.normal_(net.controller.fc2.weight, std=0.3, generator=torch.Generator().manual_seed(1))
    batches = [tensors(32, seed=s) for s in range(4)]
    net(batches[0], 8)
    program = lower(net)
    costs = allocate.layer_bitops(program)
    controller = sum(size.macs for size in cost.layer_sizes(program) if size.controller) * 64
    low, high = (int(f(costs, axis=1).sum()) for f in (np.min, np.max))
    budget = low + share * (high - low) + allocate.fixed_bitops(program) + controller
    looking_rows.meet_budget(net, batches, budget)
    picks = torch.cat([looking_rows._picks(net, x)[1] for x in batches])
    spent = net.bitops(picks).mean().item()
    assert spent <= budget * (1 + 1e-6)
    assert spent > budget - 0.5 * costs.max(), "within one layer's step of the budget"


def test_the_chosen_allocation_is_the_best_candidate(tmp_path):
    program = lower(nested_net())
    dataset = type("Images", (), {"train_images": images(16), "train_labels": np.arange(16) % 10})
    settings = run.Settings(out=tmp_path)
    made = type("Run", (), {"images": dataset, "settings": settings, "training": {}})()
    budget = allocate.uniform_bitops(program, 5)
    chosen = static_rows.best_allocation(made, program, budget)
    assert cost.bitops(program, chosen)[0] <= budget
    candidates = made.training["candidates"]
    assert candidates[made.training["chosen"]] == min(candidates.values())
    assert {"uniform 2", "uniform 4", "sensitivities at 8"} <= set(candidates)
    assert "uniform 8" not in candidates


# Rows


def test_every_row_is_named_and_described():
    assert {"float", "dqt-static", "any-precision", "lsq-6", "mixed-5", "dynamic-3", "blind-4"} <= set(
        compare.ROWS
    )
    assert len({row.method for row in compare.ROWS.values()}) == len(compare.ROWS)


def embedded(tmp_path, **changes):
    paths = {"out": tmp_path / "runs", "records": tmp_path / "records"}
    changes = {"compiled": False, "limit": 40, "calibration": 128, "looking": 128} | changes
    return run.Settings(dataset="embedded", channels=8, epochs=0.2, **paths, **changes)


def test_a_row_is_recorded_once_and_resumes(tmp_path, monkeypatch, capsys):
    settings = embedded(tmp_path)
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

    for name, value in (("limit", 41), ("lr", 0.5), ("float_path", tmp_path / "other.safetensors")):
        assert compare.make_all(dataclasses.replace(settings, **{name: value}), ["lsq-4"]) == 1
        option = name.removesuffix("_path")
        assert f"recorded before with {option} " in (said := capsys.readouterr().out)
        assert f", not {getattr(value, 'name', value)}: {settings.record('lsq-4')};" in said

    settings.record("lsq-4").unlink()  # as if it had been stopped before the record: no step is taken twice
    monkeypatch.setattr(SwitchLayer, "forward", _not_in_training(SwitchLayer.forward))
    assert compare.make_all(settings, ["lsq-4"]) == 0
    assert results.read(settings.record("lsq-4"))["rows"][0]["logits"] == row["logits"]


def _fail(*_):
    raise AssertionError("a recorded row was run again")


def _not_in_training(forward):
    def checked(layer, *given):
        assert not (layer.training and torch.is_grad_enabled()), "a step was taken again"
        return forward(layer, *given)

    return checked


def test_a_failing_row_is_counted_and_leaves_the_others_to_run(tmp_path, capsys):
    settings = embedded(tmp_path, float_path=tmp_path / "absent.safetensors")
    assert compare.make_all(settings, ["float", "lsq-2"]) == 2
    assert "absent.safetensors" in capsys.readouterr().err


def test_twins_are_counted_and_traced(tmp_path):
    settings = embedded(tmp_path)
    made = run.Run(settings, "dqt-static")
    net = made.nested().eval()
    program = lower(net)
    assert made.twin(net, program, 4) == {"same": 40, "images": 40, "differing": []}
    logits = program.ops[-1]
    term = dataclasses.replace(
        logits.term, offset=logits.term.offset - 2**50 * np.eye(10, dtype=np.int64)[:1]
    )
    other = dataclasses.replace(program, ops=(*program.ops[:-1], dataclasses.replace(logits, term=term)))
    found = made.twin(net, other, 4)
    assert found["same"] + len(found["differing"]) == 40
    assert found["differing"]
    for difference in found["differing"]:
        assert difference["value"] == "logits"
        assert difference["gap"] > 0


def test_the_controllers_opponents_spend_the_same(tmp_path):
    settings = embedded(tmp_path)
    made = run.Run(settings, "dynamic-4")
    net = made.nested()
    torch.nn.init.normal_(net.controller.fc2.weight, std=1.0, generator=torch.Generator().manual_seed(1))
    looks, shuffled, usual = looking_rows.opponents(made, lower(net), [2] * 19, 1e9)
    assert looks["bitops"] == shuffled["bitops"]
    assert looks["logits"] != shuffled["logits"]
    assert usual["bitops"] == allocate.uniform_bitops(lower(net), 4)
    assert looks["patterns"] > 1
    assert set(looks["fewest"]).isdisjoint(looks["most"])


def test_a_quiet_training_has_no_noise_and_a_growing_price():
    net, labels = nested_net().train(), torch.arange(8) % 10
    quiet = looking_rows.Quiet(alpha=0.0, beta=4.0, target_bitops=1.0)
    cheap, dear = (quiet(net, tensors(8), labels, progress) for progress in (0.25, 0.75))
    for (loss, figures), weight in ((cheap, 1.0), (dear, 3.0)):
        assert loss.item() == pytest.approx(figures["task"] + weight * figures["cost"], rel=1e-4)
    assert cheap[1] == dear[1], "nothing is drawn"


def test_a_quiet_controller_begins_at_the_widest_and_ends_at_the_budget(tmp_path):
    net = nested_net()
    looking_rows.widest_first(net.controller)
    probabilities, picks = looking_rows._picks(net, tensors(16))
    assert (picks.argmax(-1) == 2).all()
    assert 0.6 < probabilities.exp()[..., 2].mean() < 0.95, "and the others are within reach"
    settings = embedded(tmp_path)
    assert compare.make_all(settings, ["quiet-3"]) == 0
    looks, dealt, usual = results.read(settings.record("quiet-3"))["rows"]
    assert looks["budget"] * 0.7 < looks["bitops"] < looks["budget"] * 1.1
    assert (dealt["bitops"], usual["widths"]) == (looks["bitops"], "each layer's usual width")


@pytest.mark.slow
def test_torchaos_training_is_a_row_that_resumes_and_says_what_is_stored(tmp_path, monkeypatch):
    monkeypatch.setattr(run.Run, "_float", small_float)
    settings = embedded(tmp_path)
    assert compare.make_all(settings, ["torchao-8"]) == 0
    record = results.read(settings.record("torchao-8"))
    (row,) = record["rows"]
    assert (row["kind"], row["mean_width"], record["training"]["steps"]) == ("float simulation", 8, 2)
    stored = record["training"]["converted"]
    assert stored["tensors"]["torch.int8"] == 4, "the weights of every layer"
    assert stored["operations"]["aten.conv2d.default"] == 3
    assert stored["operations"]["quantized_decomposed.quantize_per_tensor.default"] >= 4
    assert not any("batch_norm" in name for name in stored["operations"])

    settings.record("torchao-8").unlink()
    monkeypatch.setattr(torchao_row.Prepared, "forward", _not_in_training(torchao_row.Prepared.forward))
    monkeypatch.setattr(torchao_row.Prepared, "converted", lambda net: net.eval().graph)  # in no time
    assert compare.make_all(settings, ["torchao-8"]) == 0
    assert results.read(settings.record("torchao-8"))["training"]["steps"] == 2


def small_float(made):
    """In place of a ResNet-18, whose conversion takes a minute."""
    made.float_origin = {}
    torch.manual_seed(0)  # the same network at each start
    convs = [nn.Conv2d(inputs, 8, 3, 2, 1, bias=False) for inputs in (3, 8, 8)]
    parts = [part for conv in convs for part in (conv, nn.BatchNorm2d(8), nn.ReLU())]
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)).eval()


def test_without_torchao_its_row_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run.Run, "_float", small_float)
    for name in [name for name in sys.modules if name.split(".")[0] == "torchao"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torchao", None)
    assert compare.make_all(embedded(tmp_path), ["torchao-8"]) == 1
    assert re.search(r'row torchao-8 needs torchao\S*: pip install -e "\.\[dev\]"', capsys.readouterr().err)


def test_the_further_training_of_the_float_network_is_a_row(tmp_path):
    settings = embedded(tmp_path)
    assert compare.make_all(settings, ["float", "float-further"]) == 0
    before, after = (results.read(settings.record(row)) for row in ("float", "float-further"))
    assert after["training"]["steps"] == 2
    assert after["training"]["float"] == before["training"]["float"]
    (row,) = after["rows"]
    assert (row["kind"], row["bitops"], row["images"]) == ("float", None, 40)


def test_cascades_look_at_the_image_and_their_controls_do_not(tmp_path):
    settings = embedded(tmp_path, limit=359, looking=200)
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
        # 3 bits get nearly all of these digits right: there a second look has nothing to win
        assert looks["correct"] - other["correct"] >= {3: 5, 4: 0}[bits]
    curve = [rows[f"2 -> 4, {share:.0%}"]["passes"][1] for share in looking_rows.SHARES]
    assert curve == sorted(curve)
    assert len(rows["cascade of three steps at 3 bits"]["thresholds"]) == 2


def test_a_cascade_trained_for_its_own_widths_is_a_row(tmp_path):
    settings = embedded(tmp_path)
    assert compare.make_all(settings, ["cascade-3"]) == 0
    rows = {row["widths"]: row for row in results.read(settings.record("cascade-3"))["rows"]}
    looks = "cascade at 3 bits"
    assert list(rows) == ["2", "4", looks, f"{looks}, dealt to other images"]
    assert rows[looks]["steps"] == [2, 4]
    assert rows["2"]["bitops"] < rows[looks]["bitops"] < rows["4"]["bitops"]


def test_a_cascade_between_two_allocations_is_a_row(tmp_path):
    settings = embedded(tmp_path)
    assert compare.make_all(settings, ["cascade-chosen-3"]) == 0
    record = results.read(settings.record("cascade-chosen-3"))
    looks, other, narrow, wide = record["rows"]
    assert looks["steps"] == [narrow["run"], wide["run"]] == record["training"]["allocations"]
    assert len(set(narrow["run"])) > 1, "2.5 bits are no uniform width"
    assert narrow["bitops"] < looks["bitops"] <= looks["budget"] < wide["bitops"]
    assert looks["passes"] == other["passes"]
    assert looks["logits"] != other["logits"]


# Decisions


def test_every_layer_follows_the_speaker_and_prices_move_the_decision():
    net = nested_net().eval()
    torch.nn.init.normal_(net.controller.fc2.weight, std=1.0, generator=torch.Generator().manual_seed(1))
    scores = decisions.Scores.of([(2, 2), (4, 4), (8, 8)])
    seen = scores(net, tensors(32))[0]
    for prices in (torch.zeros(3), seen.mean(0)):
        wanted = (seen - prices).argmax(1)
        settled = copy.deepcopy(net)
        scores.settle(settled, prices)
        picked = looking_rows._picks(settled, tensors(32))[1].argmax(2)
        assert torch.equal(picked, wanted[:, None].expand(-1, 2))
    assert len(wanted.unique()) > 1, "the images differ"


def test_a_layer_that_cannot_tell_allocations_apart_stays_at_the_middle_one():
    scores = decisions.Scores.of([(2, 2), (2, 4), (4, 8)])
    assert (scores.allocations, scores.speaker) == (((2, 2), (2, 4), (2, 8)), 1)
    net = nested_net().eval()
    scores.settle(net, torch.zeros(3))
    assert set(looking_rows._picks(net, tensors(8))[1].argmax(2)[:, 0].tolist()) == {0}
    with pytest.raises(ValueError, match="no layer with a width of its own"):
        decisions.Scores.of([(2, 2), (2, 4), (4, 4)])


@pytest.mark.parametrize("target", ["right", "losses", "margin"])
def test_a_decision_learns_its_target_and_moves_nothing_else(target):
    """The cheap allocation gets the bright half of the images wrong, and is a little better on the others."""
    net, allocations = nested_net(), ((2, 2), (8, 8))
    decisions.train_only_the_controller(net)
    bright = torch.arange(32) % 2
    images = tensors(32) * 0.1 + bright[:, None, None, None] * 2.0
    outputs = [torch.zeros(32, 10), torch.zeros(32, 10)]
    outputs[0][:, 0], outputs[1][:, 0] = 4.0 - 7 * bright, 3.0
    decision = decisions.Decision(allocations, target, share=0.5)
    before = {name: value.clone() for name, value in net.named_parameters() if "controller." not in name}
    scores = decision.scores
    frozen = type("Fixed", (), {"__call__": lambda _, n, x: (scores(n, x)[0], outputs)})()
    optimizer = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], 1e-2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decisions.Decision, "scores", property(lambda _: frozen))
        for _ in range(60):
            loss, figures = decision(net, images, torch.zeros(32, dtype=torch.int64), 0.0)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    picked = scores(net, images)[0].argmax(1)
    assert figures["agrees"] > 0.95
    assert torch.equal(picked[bright == 1], torch.ones(16, dtype=torch.int64))
    assert all(torch.equal(value, before[name]) for name, value in net.named_parameters() if name in before)


def test_prices_meet_the_budget():
    net = nested_net().eval()
    torch.nn.init.normal_(net.controller.fc2.weight, std=1.0, generator=torch.Generator().manual_seed(1))
    scores, costs = decisions.Scores.of([(2, 2), (4, 4), (8, 8)]), torch.tensor([1.0, 4.0, 16.0])
    batches = [tensors(64, seed=s) for s in range(3)]
    prices = decisions.prices_for(scores, net, batches, costs, 6.0)
    picked = torch.cat([(scores(net, x)[0] - prices).argmax(1) for x in batches])
    assert 5.0 < costs[picked].mean().item() <= 6.0


def later_net():
    """With a controller behind the second layer, which runs at 4 bits there, and a will of its own."""
    net = nested_net()
    later.place_controller(net, "relu_1_codes", 4, tensors(16))
    torch.nn.init.normal_(net.controller.fc2.weight, std=2.0, generator=torch.Generator().manual_seed(1))
    return net


def test_a_later_controller_reads_means_and_spreads_in_integers():
    net, pictures = later_net(), images(32, seed=3)
    x = calibration.inputs(net, pictures)
    scores = decisions.Scores.of([(4, 2), (4, 4), (4, 8)])
    scores.settle(net.eval(), scores(net, x)[0].mean(0))
    program = lower(net)
    result, (_, selection) = program.run(pictures, "controller", "numpy"), net.run(x, "controller")
    assert set(result.widths[:, 0]) == {4}
    assert set(result.widths[:, 1]) == {2, 4, 8}
    assert np.array_equal(selection.per_layer.argmax(-1).numpy(), result.choices)
    assert agreement.differences(net, program, pictures, "controller") == []
    spent = [net.bitops(selection.per_layer).tolist(), cost.bitops(program, result.widths).tolist()]
    assert spent[0] == pytest.approx(spent[1])
    other = lower(nested_net())
    assert program.run(pictures, 2).digest == other.run(pictures, 2).digest, "the layers are what they were"


def test_a_controller_is_placed_behind_codes():
    with pytest.raises(
        ValueError, match=r"behind='conv2' makes no codes .* one of \['x_codes', 'relu_codes'"
    ):
        later.place_controller(nested_net(), "conv2", 4, tensors(4))


def test_layers_behind_a_later_controller_follow_its_speaker():
    net = later_net().eval()
    scores = decisions.Scores.of([(4, 2), (4, 4), (4, 8)])
    seen = scores(net, tensors(32))[0]
    scores.settle(net, seen.mean(0))
    picked = looking_rows._picks(net, tensors(32))[1].argmax(2)
    assert torch.equal(picked[:, 1], (seen - seen.mean(0)).argmax(1))
    assert len(picked[:, 1].unique()) > 1
    assert (picked[:, 0] == 1).all()


def test_a_later_decision_is_a_row(tmp_path):
    settings = embedded(tmp_path)
    assert compare.make_all(settings, ["stage1-3"]) == 0
    rows = {row["widths"]: row for row in results.read(settings.record("stage1-3"))["rows"]}
    assert rows["controller"]["bitops"] == rows["another image's widths"]["bitops"]
    assert rows["controller"]["patterns"] <= 5
    allocated = [rows[f"allocation {i}"]["run"] for i in range(5)]
    assert all(widths[:4] == [3] * 4 and len(set(widths[4:])) == 1 for widths in allocated)
    assert rows["allocation 1"]["bitops"] < rows["controller"]["budget"] * 1.001


def test_a_decision_is_a_row_with_its_controls(tmp_path):
    settings = embedded(tmp_path)
    assert compare.make_all(settings, ["losses-3", "blind-3", "offset-3"]) == 0
    rows = {row["widths"]: row for row in results.read(settings.record("losses-3"))["rows"]}
    assert rows["controller"]["bitops"] == rows["another image's widths"]["bitops"]
    assert rows["controller"]["patterns"] <= 5
    assert {f"allocation {i}" for i in range(5)} <= set(rows)
    (blind,) = results.read(settings.record("blind-3"))["rows"]
    assert blind["bitops"] <= blind["budget"]
    assert blind["widths"] == "blind"
    assert set(blind["run"]) <= set(run.WIDTHS)
    around = results.read(settings.record("offset-3"))
    assert len(around["training"]["allocations"]) == 3


def test_a_gain_is_foreseen_where_the_features_tell_it_and_not_where_they_do_not():
    random = np.random.default_rng(0)
    gains = random.random(600) < 0.3
    tells = torch.from_numpy(random.normal(size=(600, 4)) + 2 * gains[:, None]).float()
    blank = torch.from_numpy(random.normal(size=(600, 4))).float()
    torch.manual_seed(0)
    for features, low, high in ((tells, 0.8, 1.0), (blank, -0.2, 0.2)):
        score = foresight.predicted(features[:400], torch.from_numpy(gains[:400]).float(), features[400:])
        assert low < np.corrcoef(score, gains[400:])[0, 1] < high


def test_foresight_is_a_row_whose_places_share_one_share(tmp_path):
    settings = embedded(tmp_path, limit=100)
    assert compare.make_all(settings, ["foresight"]) == 0
    rows = {row["widths"]: row for row in results.read(settings.record("foresight"))["rows"]}
    assert set(rows) == {f"seen from {place}" for place in comparison.PLACES}
    best = rows.pop("seen from the labels (no decision can)")
    assert all(row["correct"] <= best["correct"] for row in rows.values())
