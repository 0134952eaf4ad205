"""Calibration: steps by each rule, tables by each kind, and how far the result is from the float network."""

import copy

import numpy as np
import pytest
import torch
from small_nets import MEAN, STD, images, nested_net, seeded, state
from torch import nn

from dqt_core import convert, lower, models, nested
from dqt_core.nested import code_range
from dqt_core.training import calibration, straight_through
from dqt_core.training.layers import Quantizer

BATCHES = [images(8, seed=1), images(8, seed=2)]


def quantizers(net):
    return [module for module in net.graph.modules() if isinstance(module, Quantizer)]


def seen_by(net, quantizer):
    """All that a quantizer rounds at the widest choice."""
    seen = []
    handle = quantizer.register_forward_pre_hook(
        lambda module, x: seen.append(x[0] if torch.is_tensor(x[0]) else x[0].value)
    )
    with torch.no_grad():
        for batch in BATCHES:
            net(calibration.inputs(net, batch), 8)
    handle.remove()
    return torch.cat(seen)


# Steps


def test_the_largest_value_is_not_clipped():
    net = nested_net(controller=False)
    first = quantizers(net)[0]
    calibration.set_steps(net, BATCHES, "largest")
    x = seen_by(net, first)
    assert torch.isclose(first.log_step.exp(), x.abs().max() / 127)


def test_a_percentile_clips_the_share_it_names():
    x = torch.arange(1, 100_001) / 100_000
    step = calibration.step_of(x, "percentile", 0, 255, (8,)).exp()
    assert (x > 255 * step + 1e-6).sum() == 10


@pytest.mark.parametrize("width", [2, 4, 8])
def test_the_rule_of_error_has_the_least_error(width):
    x = torch.randn(20_000, generator=torch.Generator().manual_seed(0)).abs() ** 1.5

    def error(log_step):
        codes = straight_through.quantize(x, log_step, 0, 255)
        view = straight_through.switch(codes, width, False) * 2.0 ** (8 - width)
        return ((view * log_step.exp() - x) ** 2).mean()

    errors = {rule: error(calibration.step_of(x, rule, 0, 255, (width,))) for rule in calibration.RULES}
    assert errors["error"] <= min(errors.values())
    assert errors["error"] < errors["largest"]


def test_every_batch_counts():
    small, large = nested_net(controller=False), nested_net(controller=False)
    calibration.set_steps(small, BATCHES[:1], "largest")
    calibration.set_steps(large, [BATCHES[0] // 4, BATCHES[0]], "largest")
    assert quantizers(small)[0].log_step == quantizers(large)[0].log_step  # the second holds the largest
    calibration.set_steps(large, [BATCHES[0] // 4], "largest")
    assert quantizers(small)[0].log_step != quantizers(large)[0].log_step


def test_the_order_of_old_steps_is_forgotten():
    net = nested_net(controller=False)
    quantizers(net)[0].log_step.data.fill_(5.0)
    calibration.set_steps(net, BATCHES, "error")
    assert -6 < quantizers(net)[0].log_step < 0


def test_a_relu6_is_never_given_more_than_6():
    float_net = seeded(lambda: nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU6(), nn.Conv2d(4, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(4, 5),
    ))  # fmt: skip
    float_net[0].weight.data *= 30
    net = convert(float_net, images(), MEAN, STD, (8,), controller=False)
    calibration.set_steps(net, BATCHES, "largest")
    clamped = next(module for module in quantizers(net) if module.limit == 6.0)
    assert torch.isclose(clamped.log_step.exp() * code_range(8, False)[1], torch.tensor(6.0))


@pytest.mark.parametrize("width", [4, 8])
def test_steps_reach_the_program(width):
    net = nested_net(controller=False)
    calibration.set_steps(net, BATCHES, "percentile")
    with torch.no_grad():
        classes = net(calibration.inputs(net, BATCHES[0]), width).argmax(1)
    assert lower(net).run(BATCHES[0], width).classes.tolist() == classes.tolist()


def test_no_images_and_no_rule():
    with pytest.raises(ValueError, match="there are no calibration images; give at least one batch"):
        calibration.set_steps(nested_net(controller=False), [])
    with pytest.raises(ValueError, match="rule 'max' is unknown; choose one of"):
        calibration.set_steps(nested_net(controller=False), BATCHES, "max")


# Weights


@pytest.mark.parametrize("drops", [[1], [2, 4], [2, 3, 4], [1, 2, 3, 4, 5, 6, 7]])
def test_every_view_is_the_weight_rounded_directly(drops):
    x = 40 * torch.randn(8, 3000, generator=torch.Generator().manual_seed(0))
    x[0, :600] = torch.arange(600) / 4 - 75  # exact ties among them
    codes = calibration.once_rounded(x, drops).numpy()
    assert (codes == codes.astype(np.int8)).all()
    twice = nested.switch(
        np.clip(np.floor(x.numpy() + 0.5), -128, 127).astype(np.int8), 8 - drops[0], signed=True
    )
    for drop in drops:
        view = nested.switch(codes.astype(np.int8), 8 - drop, signed=True)
        top = 2 ** (7 - drop)
        direct = np.clip(np.floor(x.numpy().astype(np.float64) / 2**drop + 0.5), -top, top - 1)
        np.testing.assert_array_equal(view, direct)
        if drop == drops[0]:
            assert (twice != direct).mean() > 0.01


def test_the_master_is_not_biased_either():
    x = 20 * torch.randn(8, 3000, generator=torch.Generator().manual_seed(0))
    codes = calibration.once_rounded(x, [2, 3, 4])
    assert (codes - x.clamp(-128, 127)).sum(1).abs().max() <= 0.5 + 1e-2
    assert (codes - x.clamp(-128, 127)).abs().max() <= 1.5
    rounded_down_only = (x + 0.5).floor()
    rounded_down_only -= ((rounded_down_only % 4 == 2) & (x < rounded_down_only)).float()
    assert (rounded_down_only - x).mean() < -0.1


def test_the_codes_chosen_are_those_of_the_layer():
    net = nested_net(controller=False)
    wanted = [
        calibration.once_rounded((layer.weight / layer.log_step.exp()).flatten(1), [4, 6]).reshape(
            layer.weight.shape
        )
        for layer in net.switch_layers
    ]
    before = [layer.master() for layer in net.switch_layers]
    calibration.round_once(net)
    for layer, expected, old in zip(net.switch_layers, wanted, before, strict=True):
        assert torch.equal(layer.master(), expected)
        assert not torch.equal(layer.master(), old)


def test_depthwise_layers_keep_their_codes():
    layers = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.ReLU(), nn.Conv2d(8, 8, 1)]
    small = nn.Sequential(*layers, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
    net = convert(seeded(lambda: small), images(), MEAN, STD, widths=(4, 8), controller=False)
    before = state(net)
    calibration.round_once(net)
    moved = [
        not torch.equal(layer.weight, before[f"graph.{i}.weight"])
        for i, layer in zip((2, 4), net.switch_layers, strict=True)
    ]
    assert moved == [False, True]


def test_floor_has_no_ties():
    with pytest.raises(ValueError, match="floor has no ties"):
        calibration.round_once(nested_net(controller=False, rounding="floor"))


# Tables


def moments(net, width):
    """Mean and deviation of every channel after the first switchable layer's norm."""
    seen = []
    handle = net.switch_layers[0].register_forward_hook(lambda module, x, out: seen.append(out))
    with torch.no_grad():
        for batch in BATCHES:
            net(calibration.inputs(net, batch), width)
    handle.remove()
    return torch.cat(seen).mean((0, 2, 3)), torch.cat(seen).std((0, 2, 3))


def test_corrected_tables_leave_the_widest_choice_and_the_fixed_layers():
    net = nested_net(controller=False)
    before = state(net)
    calibration.correct_norms(net, BATCHES)
    after = state(net)
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert changed == {
        f"graph.conv2.norms.{choice}.{table}"
        for choice in (0, 1)
        for table in ("running_mean", "running_var")
    }


def test_corrected_tables_give_means_and_deviations_back():
    net = nested_net(controller=False)
    wide = moments(net, 8)
    before = moments(net, 2)
    calibration.correct_norms(net, BATCHES)
    after = moments(net, 2)
    for one, other, first in zip(after, wide, before, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-3, atol=2e-3)
        assert (first - other).abs().max() > 0.1


def test_tables_of_a_network_whose_statistics_were_folded():
    float_net = seeded(lambda: models.resnet18(10, 8, small_images=True))
    for module in float_net.modules():
        if isinstance(module, nn.BatchNorm2d):  # gain and bias hold them: what enters has other moments
            module.running_mean.zero_()
            module.running_var.fill_(1.0)
            module.weight.data *= 0.2
    net = convert(float_net, images(), MEAN, STD, (3, 8), controller=False)
    with torch.no_grad():
        logits = [float_net(calibration.inputs(net, batch)) for batch in BATCHES]
    before = calibration.divergence(net, BATCHES, logits, 3)
    calibration.correct_norms(net, BATCHES)
    assert calibration.divergence(net, BATCHES, logits, 3) < 0.5 * before
    assert calibration.divergence(net, BATCHES, logits, 8) < 0.1 * before


def test_only_the_tables_of_a_setting_change():
    net = nested_net(controller=False)
    mixed = [(2, 2), (4, 4)]
    before = state(net)
    calibration.correct_norms(net, BATCHES, [mixed])
    changed = {name for name, value in state(net).items() if not torch.equal(value, before[name])}
    assert changed == {"graph.conv2.norms.0.running_mean", "graph.conv2.norms.0.running_var"}
    assert all(norm.momentum == 0.1 and not norm.training for norm in calibration._norms(net, mixed))


def test_a_shared_table_is_refused():
    with pytest.raises(ValueError, match="shares its batch norm among widths"):
        calibration.correct_norms(nested_net(controller=False, batch_norm="shared"), BATCHES)


# Divergence


def test_divergence_is_0_from_oneself_and_grows_as_bits_go():
    net = nested_net(controller=False)
    with torch.no_grad():
        logits = [net(calibration.inputs(net, batch), 8) for batch in BATCHES]
    assert calibration.divergence(net, BATCHES, logits, 8) == pytest.approx(0, abs=1e-6)
    four, two = (calibration.divergence(net, BATCHES, logits, width) for width in (4, 2))
    assert 0 < four < two


def test_divergence_is_kullback_and_leiblers():
    net = copy.deepcopy(nested_net(controller=False))
    with torch.no_grad():
        own = net(calibration.inputs(net, BATCHES[0]), 4).softmax(1).double().numpy()
    wanted = np.full_like(own, 0.1)
    expected = (wanted * np.log(wanted / own)).sum(1).mean()
    found = calibration.divergence(net, BATCHES[:1], [torch.zeros(8, 10)], 4)
    assert found == pytest.approx(expected, rel=1e-5)


# Statistics that were folded into gain and bias


def test_restored_statistics_make_training_start_from_the_same_function():
    net = seeded(lambda: models.resnet18(10, 8, small_images=True))
    x = torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    folded = copy.deepcopy(net)
    for norm in (module for module in folded.modules() if isinstance(module, nn.BatchNorm2d)):
        slope = norm.weight.data / (norm.running_var + norm.eps).sqrt()
        norm.bias.data -= slope * norm.running_mean
        norm.weight.data = slope * (1 + norm.eps) ** 0.5
        norm.running_mean, norm.running_var = torch.zeros_like(slope), torch.ones_like(slope)
    with torch.no_grad():
        expected = net(x)
        torch.testing.assert_close(folded(x), expected, rtol=1e-3, atol=1e-3)
        assert (copy.deepcopy(folded).train()(x) - expected).abs().max() > 0.5, "training began elsewhere"
        calibration.restore_statistics(folded, [x[:8], x[8:]])
        torch.testing.assert_close(folded(x), expected, rtol=1e-3, atol=1e-3)
        calibration.restore_statistics(folded, [x])
        torch.testing.assert_close(folded.train()(x), expected, rtol=1e-3, atol=1e-3)
    memory = [value.untyped_storage().data_ptr() for value in folded.state_dict().values()]
    assert len(set(memory)) == len(memory), "a checkpoint leaves out what shares its memory"


def test_statistics_need_images():
    with pytest.raises(ValueError, match="there are no images to take statistics of"):
        calibration.restore_statistics(models.resnet18(10, 8), [])
