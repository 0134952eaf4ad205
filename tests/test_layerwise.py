"""Layers fitted one after another: codes by the error of all widths, tables, and the option of `quantize`."""

import copy
import itertools

import numpy as np
import pytest
import torch
from PIL import Image
from small_nets import MEAN, STD, CourseNet, images, nested_net, seeded, state
from torch import nn
from torch.nn import functional

from dqt_book.records import imagenet
from dqt_core import convert, models, nested, quantize, results
from dqt_core.training import calibration, code_choice, layerwise
from reproductions.imagenet import evaluate
from reproductions.imagenet import layerwise as run

WIDTHS = (2, 4, 8)


def problem(rows=6, terms=7, apart=False, seed=0):
    """Weights, steps and moments of inputs that are alike, as those of neighbouring channels are."""
    random = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, terms, generator=random)
    step = weight.abs().amax(1, keepdim=True) / 127
    inputs = torch.randn(rows if apart else 1, 200, terms, generator=random) + 2 * torch.randn(
        rows if apart else 1, 200, 1, generator=random
    )
    moment = inputs.transpose(1, 2) @ inputs / 200
    moments = [moment if apart else moment[0]] * len(WIDTHS)
    return weight, step, (weight / step).round().clamp(-128, 127), moments


def cost(weight, step, codes, moments, counts):
    each = code_choice.errors([weight] * 3, step, codes, WIDTHS, moments)
    return sum(count * error for count, error in zip(counts, each, strict=True))


# Codes


@pytest.mark.parametrize("apart", [False, True], ids=["moments of all rows", "of each"])
def test_no_other_code_of_one_weight_is_better(apart):
    """Against a search through all 256 codes with NumPy's views."""
    weight, step, start, moments = problem(apart=apart)
    counts = code_choice.weights_of_widths([weight] * 3, step, start, WIDTHS, moments)
    codes = code_choice.chosen([weight] * 3, step, start, WIDTHS, moments, counts, sweeps=50)
    assert (codes == codes.numpy().astype(np.int8)).all()

    def total(codes):
        found = np.zeros(len(codes))
        for width, moment, count in zip(WIDTHS, moments, counts, strict=True):
            views = nested.switch(codes.astype(np.int8), width, signed=True).astype(float) * 2 ** (8 - width)
            error = step.numpy() * views - weight.numpy()
            found += (count.numpy()[:, 0]) * np.einsum(
                "ok,okj,oj->o", error, np.broadcast_to(moment, (len(error), *moment.shape[-2:])), error
            )
        return found

    own = codes.numpy()
    least = total(own)
    assert least.sum() < 0.7 * total(start.numpy()).sum()
    for k in range(own.shape[1]):
        for code in range(-128, 128):
            other = own.copy()
            other[:, k] = code
            assert (total(other) > least * (1 - 1e-4)).all()


def test_a_row_longer_than_a_block_is_one_problem():
    weight, step, start, moments = problem(rows=2, terms=2 * code_choice._BLOCK + 9)
    counts = code_choice.weights_of_widths([weight] * 3, step, start, WIDTHS, moments)
    found = [start]
    for _ in range(4):
        found.append(code_choice.chosen([weight] * 3, step, found[-1], WIDTHS, moments, counts, sweeps=1))
    costs = [cost(weight, step, codes, moments, counts) for codes in found]
    for before, after in itertools.pairwise(costs):
        assert (after <= before * (1 + 1e-5)).all()
    assert (costs[1] < 0.5 * costs[0]).all()
    twice = code_choice.chosen([weight] * 3, step, start, WIDTHS, moments, counts, sweeps=2)
    assert torch.equal(twice, found[2])


def test_balance_says_what_a_width_counts():
    weight, step, start, moments = problem()
    found = {}
    for balance in (0.0, 1.0):
        counts = code_choice.weights_of_widths([weight] * 3, step, start, WIDTHS, moments, balance)
        codes = code_choice.chosen([weight] * 3, step, start, WIDTHS, moments, counts)
        found[balance] = [
            error.sum() for error in code_choice.errors([weight] * 3, step, codes, WIDTHS, moments)
        ]
    assert found[0.0][0] < found[1.0][0]
    assert found[0.0][2] > 3 * found[1.0][2]


def test_weights_that_are_codes_already_leave_something_to_the_narrow_widths():
    """Without a floor an error of 0 at 8 bits counts so much that no code is ever moved."""
    weight, step, start, moments = problem()
    weight = start * step
    counts = code_choice.weights_of_widths([weight] * 3, step, start, WIDTHS, moments)
    assert all(count.isfinite().all() for count in counts)
    codes = code_choice.chosen([weight] * 3, step, start, WIDTHS, moments, counts)
    before, after = (
        code_choice.errors([weight] * 3, step, c, WIDTHS, moments)[0].sum() for c in (start, codes)
    )
    assert after < 0.8 * before


# Moments


GEOMETRIES = {
    "3x3": (lambda: nn.Conv2d(4, 6, 3, padding=1), (4, 6)),
    "stride": (lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1), (4, 6)),
    "dilated": (lambda: nn.Conv2d(4, 6, 3, padding=2, dilation=2), (4, 6)),
    "depthwise": (lambda: nn.Conv2d(4, 4, 3, padding=1, groups=4), (4, 4)),
    "groups": (lambda: nn.Conv2d(4, 6, 3, padding=1, groups=2), (4, 6)),
}


def layer_of(name):
    """A converted layer of a geometry, and its input channels."""
    make, (inputs, outputs) = GEOMETRIES[name]
    torch.manual_seed(0)
    float_net = nn.Sequential(
        nn.Conv2d(3, inputs, 1), nn.ReLU(), make(), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(outputs, 10),
    )  # fmt: skip
    net = convert(float_net, images(2, 8), MEAN, STD, (8,), controller=False)
    return net.switch_layers[0], inputs


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("name", list(GEOMETRIES))
def test_moments_are_those_of_the_outputs(name, centred, monkeypatch):
    """A row's w M w is the mean square, or variance, of what the convolution makes."""
    monkeypatch.setattr(layerwise, "_DAMPING", 0.0)
    layer, inputs = layer_of(name)
    x = torch.rand(3, inputs, 8, 8)
    made = layer.convolved(x, layer.weight)
    moment = layerwise.moment_of(layer, x, centred)
    rows = layer.weight.flatten(1)
    found = ((rows @ moment if moment.ndim == 2 else (rows[:, None] @ moment)[:, 0]) * rows).sum(1)
    expected = made.var((0, 2, 3), correction=0) if centred else made.square().mean((0, 2, 3))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("name", ["3x3", "groups"])
def test_targets_are_least_squares(name, centred, monkeypatch):
    """Of a layer whose inputs are scaled and mixed up a little: NumPy's solution for each row by itself."""
    monkeypatch.setattr(layerwise, "_MENDING", 0.0)
    monkeypatch.setattr(layerwise, "_RARE", 0.0)
    layer, inputs = layer_of(name)
    exact = torch.rand(3, inputs, 8, 8)
    x = 0.8 * exact + 0.3 * torch.rand(exact.shape)
    (found,) = layerwise.targets_of(layer, exact, [x], centred)
    wanted, rows = layer.convolved(exact, layer.weight), functional.unfold(x, 3, padding=1)
    rows = rows.reshape(3, layer.groups, -1, 64).permute(1, 0, 3, 2).reshape(layer.groups, 3 * 64, -1)
    outputs = len(layer.weight)
    for out in range(outputs):
        own, y = rows[out * layer.groups // outputs].numpy(), wanted[:, out].detach().flatten().numpy()
        own, y = (own - own.mean(0), y - y.mean()) if centred else (own, y)
        expected = np.linalg.lstsq(own, y, rcond=None)[0]
        np.testing.assert_allclose(found[out].detach(), expected, rtol=1e-3, atol=1e-3)


# Networks


@pytest.fixture(scope="module")
def course():
    """With steps set and weights rounded once; and as it was converted."""
    net = convert(seeded(CourseNet), images(12), MEAN, STD, WIDTHS, controller=False)
    original = copy.deepcopy(net)
    calibration.round_once(net)
    calibration.set_steps(net, [images(12)])
    return net, original


def fitted(course, **options):
    net = copy.deepcopy(course[0])
    layerwise.fit_layers(net, course[1], images(12), **options)
    return net


def far(net, width):
    """Mean squared error of the logits, from those of the float network on other images."""
    x = calibration.inputs(net, images(8, seed=5))
    with torch.no_grad():
        return float((net(x, width) - seeded(CourseNet).eval()(x)).square().mean())


def test_the_original_is_left_as_it_is(course):
    before = state(course[1])
    fitted(course)
    assert all(torch.equal(value, before[name]) for name, value in state(course[1]).items())


def test_tables_give_every_channel_its_float_mean_and_deviation(course):
    """At the first switchable layer, whose float output is worked out here by torch alone."""
    net = fitted(course, codes=False)
    float_net = seeded(CourseNet).eval()
    x = calibration.inputs(net, images(12))
    with torch.no_grad():
        read = float_net.pool(functional.relu(float_net.bn1(float_net.conv1(x))))
        wanted = float_net.bn2(float_net.conv2(read))
    for width in WIDTHS:
        seen = []
        handle = net.switch_layers[0].register_forward_hook(
            lambda module, x, out, seen=seen: seen.append(out)
        )
        with torch.no_grad():
            net(x, width)
        handle.remove()
        for moment in (torch.mean, torch.std):
            torch.testing.assert_close(
                moment(seen[0], (0, 2, 3)), moment(wanted, (0, 2, 3)), rtol=1e-3, atol=1e-3
            )


def test_tables_alone_leave_the_codes(course):
    net = fitted(course, codes=False)
    for layer, old in zip(net.switch_layers, course[0].switch_layers, strict=True):
        assert torch.equal(layer.master(), old.master())


def test_chosen_codes_bring_narrow_widths_nearer(course):
    tables, codes = fitted(course, codes=False), fitted(course)
    for width in (2, 4):
        assert far(codes, width) < 0.6 * far(tables, width)
    assert any(
        not torch.equal(a.master(), b.master())
        for a, b in zip(tables.switch_layers, codes.switch_layers, strict=True)
    )


def test_mended_inputs_bring_the_narrowest_width_nearer(monkeypatch):
    """On the images that layers were fitted to; so few say little of others."""
    monkeypatch.setattr(layerwise, "_RARE", 0.0)
    float_net = seeded(lambda: models.resnet18(10, 8, small_images=True)).eval()
    net = convert(float_net, images(12), MEAN, STD, (2, 8), controller=False)
    original, found = copy.deepcopy(net), []
    x = calibration.inputs(net, images(12))
    for mends in (False, True):
        own = copy.deepcopy(net)
        layerwise.fit_layers(own, original, images(12), mend_inputs=mends)
        with torch.no_grad():
            found.append(float((own(x, 2) - float_net(x)).square().mean()))
    assert found[1] < 0.9 * found[0]


def test_a_negative_gain_stays_negative():
    float_net = seeded(CourseNet)
    float_net.bn2.weight.data[::2] *= -1
    net = convert(float_net, images(12), MEAN, STD, (4, 8), controller=False)
    layerwise.fit_layers(net, copy.deepcopy(net), images(12), codes=False)
    signs = [net.switch_layers[0].norm_of(k).weight.sign().tolist() for k in (0, 1)]
    assert signs == [[-1, 1, -1, 1, -1, 1]] * 2


def test_a_layer_that_is_called_twice_is_chosen_once(monkeypatch):
    """A second choice would change what the first call was taken to make."""
    found, chosen = [], code_choice.chosen
    monkeypatch.setattr(code_choice, "chosen", lambda *a: found.append(a[1].shape) or chosen(*a))

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.conv, self.fc = (
                nn.Conv2d(3, 6, 3),
                nn.Conv2d(6, 6, 3, padding=1),
                nn.Linear(6, 10),
            )

        def forward(self, x):
            x = torch.relu(self.conv(torch.relu(self.stem(x))))
            return self.fc(torch.relu(self.conv(x)).mean((2, 3)))

    net = convert(seeded(Twice), images(12), MEAN, STD, (4, 8), controller=False)
    original = copy.deepcopy(net)
    layerwise.fit_layers(net, original, images(12))
    first, second = net.switch_layers
    assert first.weight is second.weight
    assert len(found) == 1
    assert not torch.equal(first.weight, original.switch_layers[0].weight)


def test_depthwise_steps_may_shrink():
    net = convert(models.mobilenet_v2(10).eval(), images(2, 32), MEAN, STD, (3, 8), controller=False)
    original = copy.deepcopy(net)
    layerwise.fit_layers(net, original, images(2, 32))
    shrunk = {
        layer.groups > 1
        for layer, old in zip(net.switch_layers, original.switch_layers, strict=True)
        if not torch.allclose(layer.log_step, old.log_step)
    }
    assert shrunk == {True}


def test_what_it_cannot_fit_is_refused():
    floor, shared = nested_net(controller=False, rounding="floor"), nested_net(batch_norm="shared")
    with pytest.raises(ValueError, match="rounds by floor, and fit_layers needs half_up"):
        layerwise.fit_layers(floor, floor, images())
    with pytest.raises(ValueError, match="shares its batch norm among widths"):
        layerwise.fit_layers(shared, shared, images())


# The option


def test_quantize_tries_it_beside_the_others(capsys):
    net = seeded(CourseNet)
    program, told = quantize(net, images(12), MEAN, STD, WIDTHS, layerwise=True)
    assert "9/9" in capsys.readouterr().err
    *others, last = told.calibration["tried"]
    assert (last["weights"], last["tables"]) == ("chosen", "layer by layer")
    plain, told_plain = quantize(net, images(12), MEAN, STD, WIDTHS, progress=False)
    assert told_plain.calibration["tried"] == others
    is_taken = set(told.calibration["tables"].values()) == {"layer by layer"}
    assert is_taken
    assert program.digest != plain.digest
    assert np.log(told.divergence).mean() < np.log(told_plain.divergence).mean()


# The record


def test_the_run_in_little(tmp_path, monkeypatch):
    """A narrow ResNet-50 on made-up pictures: every part, what is evaluated, and the table of the page."""
    random, names = np.random.default_rng(0), [f"n{i:08}" for i in range(1000)]
    (tmp_path / "synsets.txt").write_text("\n".join(names))
    for split in ("train", "val"):
        for name in names[10:14]:
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(8):
                coarse = Image.fromarray(random.integers(0, 256, (6, 6, 3), np.uint8))
                coarse.resize((227, 227)).save(tmp_path / split / name / f"{split}_{name}_{i}.JPEG")
    torch.save(seeded(lambda: models.resnet50(1000, 2)).state_dict(), tmp_path / "small.pth")
    monkeypatch.setattr(evaluate, "NETWORKS", {"resnet50": lambda: models.resnet50(1000, 2)})
    monkeypatch.setattr(run, "RESULTS", tmp_path / "results")
    given = ["--imagenet-root", tmp_path, "--weights", tmp_path / "small.pth", "--out", tmp_path / "out"]
    more = ["--sample", "--calibration", "16", "--held-out", "16", "--limit", "10"]
    record = results.read(run.run(evaluate.options([*map(str, given), *more])))
    assert [part["part"] for part in record["parts"]] == list(run.PARTS)
    assert record["images"] == {"fitted": 16, "held out": 16}
    evaluated = [part for part, (is_evaluated, _) in run.PARTS.items() if is_evaluated]
    assert [row["part"] for row in record["rows"]] == [part for part in evaluated for _ in run.WIDTHS]
    assert len(set(record["programs"].values())) == len(evaluated)
    table = imagenet.layerwise_rows(record)
    assert [row[0] for row in table] == list(run.PARTS)
    first = [f"{10 * row['correct']:.1f}" for row in record["rows"][:3]]
    assert table[0][2] == " / ".join(first)
    assert table[-1][2] == "not measured"
    assert table[0][1].split(" / ")[-1] == f"{record['parts'][0]['divergence']['4']:.2g}"
