"""Where a program and the torch network it came from part, and whether a tie explains it."""

import dataclasses

import numpy as np
import pytest
import torch
from lowering_checks import NEAR_TIE, images
from small_nets import nested_net

from dqt_core import lower
from dqt_core.program import Choose, Requantize
from dqt_core.training import agreement


@pytest.fixture
def net():
    net = nested_net().eval()
    torch.nn.init.normal_(net.controller.fc2.weight, std=1.0, generator=torch.Generator().manual_seed(1))
    return net


@pytest.fixture
def pictures(net):
    return images(24, net.image_shape[0])


def changed(program, out, **changes):
    """The program with one operation changed."""
    ops = [
        dataclasses.replace(op, **changes) if getattr(op, "out", None) == out else op for op in program.ops
    ]
    return dataclasses.replace(program, ops=tuple(ops))


@pytest.mark.parametrize("width", [2, 8, "controller"])
def test_a_lowered_program_differs_at_ties_alone(net, pictures, width):
    assert all(d.distance < NEAR_TIE for d in agreement.differences(net, lower(net), pictures, width))


def test_the_first_value_that_differs_is_named_with_its_distance(net, pictures):
    program = lower(net)
    wrong = [op for op in program.ops if isinstance(op, Requantize) and not op.controller][1]
    terms = tuple(dataclasses.replace(t, offset=t.offset + (60 << wrong.r)) for t in wrong.terms)
    found = agreement.differences(net, changed(program, wrong.out, terms=terms), pictures, 8)
    assert found, "60 steps do change classes"
    for difference in found:
        assert difference.value == wrong.out
        assert difference.count > 1
        assert NEAR_TIE < difference.distance <= 0.5
        assert difference.gap > 0


def test_images_are_numbered_through_the_batches(net, pictures):
    program = lower(net)
    last = program.ops[-1]
    term = dataclasses.replace(last.term, offset=last.term.offset[:, ::-1] + (np.arange(10) << last.r + 4))
    other = changed(program, last.out, term=term)
    found = agreement.differences(net, other, pictures, 8)
    theirs = agreement.run(net, pictures, np.full((24, len(program.layers)), 2)).logits.argmax(1)
    expected = np.flatnonzero(other.run(pictures, 8).classes != theirs)
    assert [d.image for d in found] == expected.tolist() != []
    assert {d.value for d in found} == {"logits"}
    assert agreement.differences(net, other, pictures, 8, batch_size=5) == found


def test_another_decision_on_equal_codes_is_named(net, pictures):
    program = lower(net)
    choose = next(op for op in program.ops if isinstance(op, Choose))
    before = next(op for op in program.ops if getattr(op, "out", "") == choose.x)
    term = dataclasses.replace(before.term, multiplier=-before.term.multiplier)
    found = agreement.differences(net, changed(program, before.out, term=term), pictures, "controller")
    assert {d.value for d in found} == {"choices"}


def test_a_network_in_training_mode_is_refused(net, pictures):
    with pytest.raises(ValueError, match=r"training mode, expected evaluation mode: call net.eval"):
        agreement.differences(net.train(), lower(net), pictures, 8)


def test_distance_from_a_tie():
    assert agreement.from_tie(np.array([-1.5, -0.25, 0.0, 0.75, 3.0])).tolist() == [0, 0.25, 0.5, 0.25, 0.5]
