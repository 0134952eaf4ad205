"""The three-term loss against sums written out by hand."""

import pytest
import torch
from small_nets import WIDTHS, CourseNet, nested_net, seeded, tensors
from torch.nn import functional

from dqt_core.training.objective import Objective

LABELS = torch.tensor([1, 7, 0, 3])
# Of CourseNet at 16x16: conv2 and conv3; the first and last layers and the controller's two
SWITCHED_MACS = (8 * 8 * 6 * 6 * 9, 2 * 2 * 12 * 6 * 9)
FIXED_MACS = 16 * 16 * 6 * 3 * 9 + 12 * 10 + 6 * 64 + 64 * 2 * 3


@pytest.fixture
def net():
    """In evaluation mode, where nothing is random and batch norm keeps still."""
    return nested_net().eval()


def task(net, widths):
    return functional.cross_entropy(net(tensors(), widths), LABELS)


def expected_bitops(probabilities):
    """Mean over images of the sum over layers and choices of probability * MACs * width * width."""
    total = 0.0
    for image in probabilities:
        total += 64 * FIXED_MACS
        for macs, layer in zip(SWITCHED_MACS, image, strict=True):
            total += sum(p.item() * macs * width**2 for p, width in zip(layer, WIDTHS, strict=True))
    return total / len(probabilities)


def cost(net):
    return expected_bitops(net.run(tensors(), "controller")[1].probabilities)


WIDEST = 64 * (sum(SWITCHED_MACS) + FIXED_MACS)


def test_a_float_network_is_refused():
    with pytest.raises(ValueError, match="the network is a CourseNet, expected what convert returns"):
        Objective()(CourseNet(), tensors(), torch.zeros(1), 0.5)


def test_terms_and_weights(net):
    loss, figures = Objective(alpha=0.7, beta=0.3)(net, tensors(), LABELS, 0.5)
    consistency = sum(task(net, width) for width in WIDTHS)
    by_controller, relative = task(net, "controller"), cost(net) / WIDEST
    torch.testing.assert_close(loss, 0.7 * consistency + by_controller + 0.3 * relative)
    expected = {"consistency": consistency.item(), "task": by_controller.item(), "cost": relative}
    assert figures == {name: pytest.approx(value, abs=1e-4) for name, value in expected.items()}
    assert 0 < relative < 1


def test_alpha_0_leaves_consistency_out(net):
    loss, figures = Objective(alpha=0, beta=2)(net, tensors(), LABELS, 0.5)
    assert figures.keys() == {"task", "cost"}
    torch.testing.assert_close(loss, task(net, "controller") + 2 * cost(net) / WIDEST)


def test_consistency_at_chosen_widths():
    net = nested_net(widths=(2, (2, 8), 8)).eval()
    loss, figures = Objective(consistency_widths=((2, 8), 8), controller_from=1)(net, tensors(), LABELS, 0)
    assert figures.keys() == {"consistency"}
    torch.testing.assert_close(loss, task(net, [(2, 8)] * 2) + task(net, 8))


def test_consistency_width_that_the_network_lacks(net):
    with pytest.raises(ValueError, match="width 5 is not among"):
        Objective(consistency_widths=(5,))(net, tensors(), LABELS, 0)


@pytest.mark.parametrize("share", [0.5, 0.9, 1.0, 1.1])
def test_target_is_a_hinge(net, share):
    target = cost(net) / share
    loss, figures = Objective(alpha=0, beta=3, target_bitops=target)(net, tensors(), LABELS, 0.5)
    excess = max(0.0, share - 1)
    assert figures["cost"] == pytest.approx(excess, abs=1e-4)
    torch.testing.assert_close(loss, task(net, "controller") + 3 * excess, rtol=1e-5, atol=1e-5)


def test_cost_trains_the_controller_alone_and_towards_narrow(net):
    Objective()._cost(net, net.run(tensors(), "controller")[1].probabilities).backward()
    reached = {name for name, parameter in net.named_parameters() if parameter.grad is not None}
    assert all(name.startswith("graph.controller.") for name in reached)
    by_bias = net.controller.fc2.bias.grad.unflatten(0, (2, 3))
    assert (by_bias[:, -1] > 0).all(), "a descent makes the widest choice less likely"
    assert (by_bias[:, 0] < 0).all()


def test_masters_are_computed_once_for_all_passes(net, monkeypatch):
    from dqt_core.training import straight_through

    computed, quantize = [], straight_through.quantize
    monkeypatch.setattr(
        straight_through, "quantize", lambda x, *rest: computed.append(x) or quantize(x, *rest)
    )
    Objective()(net, tensors(), LABELS, 0)
    assert [sum(x is layer.weight for x in computed) for layer in net.switch_layers] == [1, 1]


@pytest.mark.parametrize(("progress", "joins"), [(0.0, False), (0.39, False), (0.4, True), (0.9, True)])
def test_controller_joins_after_its_fraction(net, progress, joins):
    _, figures = Objective(controller_from=0.4)(net, tensors(), LABELS, progress)
    assert ("task" in figures) == ("cost" in figures) == joins


def test_network_without_controller_trains_consistency():
    net = nested_net(controller=False).eval()
    loss, figures = Objective(alpha=2)(net, tensors(), LABELS, 0.5)
    assert figures.keys() == {"consistency"}
    torch.testing.assert_close(loss, 2 * sum(task(net, width) for width in WIDTHS))


@pytest.mark.parametrize(("progress", "temperature"), [(0, 4.0), (0.5, 2.0), (0.75, 2**0.5), (1, 1.0)])
def test_temperature_falls_geometrically(net, progress, temperature):
    Objective(temperature=(4.0, 1.0))(net, tensors(), LABELS, progress)
    assert net.controller.temperature == pytest.approx(temperature)


@pytest.mark.parametrize(("controller", "start"), [(False, 0.0), (True, 0.5)])
def test_no_loss_at_all_is_refused(controller, start):
    with pytest.raises(ValueError, match="there is no loss: alpha is 0 and no controller's pass joins"):
        Objective(alpha=0, controller_from=start)(
            nested_net(controller=controller).eval(), tensors(), LABELS, 0.1
        )


def test_controllers_pass_may_take_a_part_of_the_batch(net):
    _, figures = Objective(alpha=0, controller_share=0.3)(net, tensors(), LABELS, 0.5)
    part = functional.cross_entropy(net(tensors()[:2], "controller"), LABELS[:2])
    assert figures["task"] == pytest.approx(part.item(), abs=1e-4)


@pytest.mark.parametrize("share", [0, -0.5, 1.5])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(ValueError, match="expected more than 0, at most 1"):
        Objective(controller_share=share)


# Distillation


def taught(net, widths, teacher, share):
    """Part of the loss is the divergence from the teacher, written out over classes."""
    own, wanted = net(tensors(), widths).softmax(1), teacher(tensors()).softmax(1)
    far = sum((p * (p / q).log()).sum() for p, q in zip(wanted, own, strict=True)) / len(own)
    return (1 - share) * task(net, widths) + share * far


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_a_teacher_has_its_part_of_every_task_loss(net, share):
    teacher = seeded(CourseNet, seed=5).train()
    objective = Objective(alpha=0.7, beta=0.0, teacher=teacher, distillation=share, controller_share=1.0)
    loss, _ = objective(net, tensors(), LABELS, 0.5)
    assert not teacher.training
    with torch.no_grad():
        consistency = sum(taught(net, width, teacher, share) for width in WIDTHS)
        expected = 0.7 * consistency + taught(net, "controller", teacher, share)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())


@pytest.mark.parametrize(("has_teacher", "share"), [(True, 0.0), (False, 0.5), (True, 1.5), (True, -0.1)])
def test_a_teacher_and_its_part_go_together(has_teacher, share):
    teacher = CourseNet() if has_teacher else None
    with pytest.raises(ValueError, match=rf"distillation={share} with .* teacher, expected 0 without one"):
        Objective(teacher=teacher, distillation=share)


def test_sampled_widths_are_the_narrowest_the_widest_and_others_drawn_anew():
    net = nested_net(widths=(2, 3, 4, 6, 8))
    seen = []
    for seed in range(12):
        torch.manual_seed(seed)
        drawn = Objective(sampled_widths=3)._widths(net)
        assert (drawn[0], drawn[-1], len(drawn)) == ((2, 2), (8, 8), 3)
        seen.append(drawn[1])
    assert set(seen) == {(3, 3), (4, 4), (6, 6)}
    assert list(Objective(sampled_widths=5)._widths(net)) == list(Objective()._widths(net))
    with pytest.raises(ValueError, match="sampled_widths=1, expected 2 or more"):
        Objective(sampled_widths=1)


def test_mixed_paths_join_the_consistency_term_and_differ_from_step_to_step(net):
    torch.manual_seed(0)
    objective = Objective(mixed_paths=2, controller_from=2.0)
    paths = {tuple(objective._mixed(net)) for _ in range(20)}
    assert len(paths) > 5
    assert {choice for path in paths for choice in path} == set(net.choices)
    torch.manual_seed(1)
    both = [objective._mixed(net) for _ in range(2)]
    expected = sum(task(net, path) for path in [*WIDTHS, *both])
    torch.manual_seed(1)
    found = objective(net, tensors(), LABELS, 0.0)[1]["consistency"]
    assert found == pytest.approx(expected.item(), abs=1e-3)


def test_rates_are_met_by_images_that_differ_and_not_by_one_decision_for_all(net):
    objective = Objective(target_rates=(0.5, 0.0, 0.5))
    split = torch.eye(3)[[0, 2, 0, 2]][:, None].expand(-1, 2, -1)
    alike = torch.eye(3)[[0, 0, 0, 0]][:, None].expand(-1, 2, -1)
    assert objective._cost(net, split).item() == 0
    assert objective._cost(net, alike).item() == pytest.approx(0.5)
    with pytest.raises(ValueError, match="got 2 target_rates for 3 choices"):
        Objective(target_rates=(0.5, 0.5))._cost(net, split)
    with pytest.raises(ValueError, match="both given"):
        Objective(target_rates=(0.5, 0.5), target_bitops=1.0)
