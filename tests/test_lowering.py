"""A lowered program is its torch twin in integers."""

import lowering_checks
import numpy as np
import pytest
import torch
from lowering_checks import CHOICES, LOWERING_CHECKS, assert_equals_twin, block, images, nested
from torch import nn

from dqt_core import convert, data, load, lower, models
from dqt_core.program import Conv, Requantize, Scale
from dqt_core.training import agreement, lowering

torch.set_num_threads(1)  # small tensors: threads would only wait for each other


@pytest.mark.parametrize("check", LOWERING_CHECKS, ids=lambda check: check.__name__)
def test_lowering(check):
    check(lowering)


@pytest.fixture(scope="module")
def pictures():
    return data.embedded().test_images[:4]


@pytest.fixture(scope="module")
def resnet(pictures):
    torch.manual_seed(0)
    float_net = models.resnet18(classes=10, channels=8, small_images=True)
    return nested(float_net, choices=(2, 3, 4, (4, 6), 8), pictures=pictures)


@pytest.mark.parametrize("width", [2, 3, 4, 8])
def test_resnet_equals_its_twin(resnet, pictures, width):
    program = lower(resnet)
    choice = program.choices.index((width, width))
    assert_equals_twin(resnet, program, pictures, np.full((len(pictures), len(program.layers)), choice))


def test_resnet_equals_its_twin_at_mixed_widths(resnet, pictures):
    program = lower(resnet)
    shape = len(pictures), len(program.layers)
    choices = np.random.default_rng(0).integers(0, len(program.choices), shape)
    assert_equals_twin(resnet, program, pictures, choices)
    assert_equals_twin(resnet, program, pictures, None)


def test_logits_of_a_whole_run_are_close(resnet, pictures):
    """Codes beside a tie differ by one and are carried on, so this is a matter of degree."""
    program = lower(resnet)
    for choice in range(len(program.choices)):
        choices = np.full((len(pictures), len(program.layers)), choice)
        expected = agreement.run(resnet, pictures, choices).logits
        run = program.run(pictures, np.array(program.choices)[choices])
        logits = np.ldexp(run.logits.astype(np.float64), -program.ops[-1].r)
        assert np.abs(logits - expected).max() < 0.1 * expected.std()


def test_every_width_has_its_own_table(resnet):
    """The tables differ, or a program could mix them up unnoticed."""
    for op in lower(resnet).ops:
        for term in getattr(op, "terms", ()):
            rows = term.multiplier
            assert len(rows) == (1 if term.layer is None else 5), term.x
            assert len(np.unique(rows, axis=0)) == len(rows), term.x


@pytest.mark.parametrize("rounding", ["half_up", "floor"])
def test_tables_do_not_depend_on_the_widths(rounding):
    """Only batch norm has rows for widths: with a shared one there is one row, at any choice of widths."""
    shared = block(rounding, "shared")
    program = lower(shared)
    for op in program.ops:
        terms = getattr(op, "terms", ()) or ([op.term] if isinstance(op, Scale) else [])
        assert all(len(term.multiplier) == len(term.offset) == 1 for term in terms)
    choices, shared.choices = shared.choices, ((1, 7), (3, 3), (5, 8), (8, 8))
    other = lower(shared)
    shared.choices = choices
    for op, same in zip(program.ops, other.ops, strict=True):
        if isinstance(op, Requantize):
            assert op.r == same.r
            for term, same_term in zip(op.terms, same.terms, strict=True):
                np.testing.assert_array_equal(term.multiplier, same_term.multiplier)
                np.testing.assert_array_equal(term.offset, same_term.offset)


def test_first_last_and_controller_are_not_switchable():
    program = lower(block())
    fixed = [op.name for op in program.ops if isinstance(op, Conv) and op.layer is None]
    assert fixed == ["stem", "controller.fc1", "controller.fc2", "last"]
    assert program.layers == ("conv1", "shortcut", "conv3", "conv4", "plain")
    assert program.choices == CHOICES


def test_a_float_network_is_refused():
    with pytest.raises(ValueError, match="the network is a Linear, expected what convert returns"):
        lower(nn.Linear(2, 2))


def test_lowering_leaves_the_net_unchanged_and_repeats(tmp_path):
    net = block()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    digests = {lower(net).digest for _ in range(2)}
    assert digests == {load(lower(net).save(tmp_path)).digest}
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, before[name]), name


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    "name",
    [
        "graph.conv1.weight",
        "graph.conv1.log_step",
        "graph.relu1_codes.log_step",
        "graph.conv4.norms.2.running_var",
        "graph.conv4.norms.0.bias",
        "graph.controller.fc2.bias",
    ],
)
def test_a_number_that_is_none_is_named(name, value):
    net = block()
    tensor = net.state_dict()[name].reshape(-1)
    before = tensor[-1].clone()
    tensor[-1] = value
    try:
        with pytest.raises(
            ValueError, match=rf"^{name} holds 1 NaN or infinite of {len(tensor)} numbers; .*"
        ) as error:
            lower(net)
        assert "\n" not in str(error.value)
    finally:
        tensor[-1] = before


@pytest.mark.parametrize("log_step", [-200.0, 200.0])
@pytest.mark.parametrize("name", ["graph.conv1.log_step", "graph.relu1_codes.log_step"])
def test_a_step_that_is_none_is_named(name, log_step):
    """Its logarithm is finite, the step itself is 0 or infinite in float32."""
    test_a_number_that_is_none_is_named(name, log_step)


def test_a_sum_at_the_output_is_refused():
    class TwoHeads(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.relu, self.mean = nn.Conv2d(3, 4, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1)
            self.one, self.two = nn.Linear(4, 2), nn.Linear(4, 2)

        def forward(self, x):
            x = self.mean(self.relu(self.stem(x))).flatten(1)
            return self.one(x) + self.two(x)

    with pytest.raises(ValueError, match="the output is a sum of 2 terms; end the model with a linear layer"):
        lower(nested(TwoHeads(), controller=False))


@pytest.mark.parametrize("rounding", ["half_up", "floor"])
@pytest.mark.parametrize("name", ["mobilenet_v2", "resnet50", "resnet18 with max-pool"])
def test_other_models(name, rounding):
    torch.manual_seed(0)
    float_net = {
        "mobilenet_v2": lambda: models.mobilenet_v2(classes=7),
        "resnet50": lambda: models.resnet50(classes=7, channels=4),
        "resnet18 with max-pool": lambda: models.resnet18(classes=7, channels=4),
    }[name]()
    pictures = images(2, size=32)
    net = nested(float_net, rounding, choices=(2, (3, 5), 8), pictures=pictures)
    program = lower(net)
    shape = 2, len(program.layers)
    choices = np.random.default_rng(1).integers(0, len(program.choices), shape)
    assert_equals_twin(net, program, pictures, choices)
    pairs = np.array(program.choices)[choices]
    for widths in (pairs, 2, "controller"):
        results = [program.run(pictures, widths, backend) for backend in ("numpy", "torch")]
        assert results[0].digest == results[1].digest
        np.testing.assert_array_equal(results[0].choices, results[1].choices)


def test_input_codes_are_the_quantized_normalization(pictures):
    net = convert(lowering_checks.Block(), pictures, (0.5,) * 3, (0.25,) * 3)
    table = lower(net).ops[0].table
    step = net.graph.get_submodule("x_codes").log_step.exp().item()
    real = (np.arange(256) / 255 - 0.5) / 0.25 / step
    assert np.abs(table - real.clip(-128, 127)).max() < 0.5 + 1e-4
    assert table.dtype == np.int8
