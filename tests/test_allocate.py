"""The best static allocation: exact against brute force, with costs and losses of the program itself."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_nets import WIDTHS, images, nested_net

from dqt_core import allocate, cost, lower

LABELS = np.array([1, 3, 0, 7])


@pytest.fixture(scope="module")
def program():
    return lower(nested_net(), "small")


def brute_force(costs, sensitivities, budget):
    layers, choices = costs.shape
    rows = np.arange(layers)
    fitting = [
        sensitivities[rows, list(picks)].sum()
        for picks in itertools.product(range(choices), repeat=layers)
        if costs[rows, list(picks)].sum() <= budget
    ]
    return min(fitting, default=None)


@st.composite
def instances(draw):
    layers, choices = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    unit = draw(st.sampled_from([1, 64, 589_824]))
    costs = random.integers(1, 50, (layers, choices)) * unit
    sensitivities = random.normal(size=(layers, choices)) * draw(st.sampled_from([1e-6, 1.0, 1e3]))
    low, high = costs.min(axis=1).sum(), costs.max(axis=1).sum()
    return costs, sensitivities, int(low + draw(st.floats(0, 1)) * (high - low))


@settings(max_examples=60, deadline=None)
@given(instances())
def test_an_allocation_is_the_best_of_all(instance):
    costs, sensitivities, budget = instance
    picks = allocate.allocate(costs, sensitivities, budget)
    rows = np.arange(len(costs))
    assert costs[rows, picks].sum() <= budget
    best = brute_force(costs, sensitivities, budget)
    assert sensitivities[rows, picks].sum() == pytest.approx(
        best, rel=1e-9, abs=1e-12 * np.ptp(sensitivities)
    )


def test_a_greedy_choice_would_be_worse():
    # The best ratio of loss to cost goes to the first layer, which then leaves no room for the second.
    costs = np.array([[0, 6], [0, 10]])
    sensitivities = np.array([[7.0, 0.0], [10.0, 0.0]])
    np.testing.assert_array_equal(allocate.allocate(costs, sensitivities, budget=10), [0, 1])


def test_a_budget_below_the_cheapest_is_named():
    with pytest.raises(ValueError, match=r"budget is 9, and the cheapest choices cost 10"):
        allocate.allocate(np.array([[4, 8], [6, 9]]), np.zeros((2, 2)), budget=9)


@pytest.mark.parametrize(
    ("costs", "sensitivities", "message"),
    [
        (np.ones((2, 2), int), np.zeros((2, 3)), "both must be"),
        (np.ones(2, int), np.zeros(2), "both must be"),
        (np.ones((2, 2)), np.zeros((2, 2)), "expected integers"),
        (np.ones((1, 2), int), np.array([[0.0, np.nan]]), "NaN"),
    ],
)
def test_what_is_no_instance_is_named(costs, sensitivities, message):
    with pytest.raises(ValueError, match=message):
        allocate.allocate(costs, sensitivities, budget=10)


def test_costs_are_those_of_cost(program):
    costs, rows = allocate.layer_bitops(program), np.arange(len(program.layers))
    for picks in itertools.product(range(len(WIDTHS)), repeat=len(program.layers)):
        total = costs[rows, list(picks)].sum() + allocate.fixed_bitops(program)
        assert total == cost.bitops(program, [WIDTHS[k] for k in picks])[0]


def test_a_uniform_width_need_not_be_a_choice(program):
    for width in WIDTHS:
        assert allocate.uniform_bitops(program, width) == cost.bitops(program, width)[0]
    between = allocate.uniform_bitops(program, 5)
    assert allocate.uniform_bitops(program, 4) < between < allocate.uniform_bitops(program, 8)


def test_the_loss_is_the_cross_entropy_of_the_logits(program):
    logits = program.run(images(), 4).logits
    r = next(op.r for op in program.ops if type(op).__name__ == "Scale" and not op.controller)
    real = logits / 2.0**r
    losses = [np.log(np.exp(row - row[label]).sum()) for row, label in zip(real, LABELS, strict=True)]
    assert allocate.loss(program, images(), LABELS, 4) == pytest.approx(np.mean(losses), rel=1e-12)


def test_a_sensitivity_is_one_layer_alone(program):
    measured = allocate.sensitivities(program, images(), LABELS)
    assert (measured[:, WIDTHS.index(8)] == 0).all()
    start = allocate.loss(program, images(), LABELS, 8)
    for k, width in enumerate(WIDTHS):
        expected = allocate.loss(program, images(), LABELS, [8, width]) - start
        assert measured[1, k] == expected
    assert np.abs(measured).sum() > 0


def test_another_reference_is_another_measurement(program):
    measured = allocate.sensitivities(program, images(), LABELS, reference=[2, 4])
    assert measured[0, WIDTHS.index(2)] == measured[1, WIDTHS.index(4)] == 0
    lone = allocate.loss(program, images(), LABELS, [8, 4]) - allocate.loss(program, images(), LABELS, [2, 4])
    assert measured[0, WIDTHS.index(8)] == lone


@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_a_divergence_is_one_layer_alone(program, backend):
    measured = allocate.divergences(program, images(), backend=backend)

    def probabilities(widths):
        real = program.run(images(), widths).logits / 2.0 ** allocate.logit_shift(program)
        powers = np.exp(real - real.max(1, keepdims=True))
        return powers / powers.sum(1, keepdims=True)

    wanted = probabilities(8)
    for layer, k in itertools.product(range(2), range(len(WIDTHS))):
        found = probabilities([WIDTHS[k] if i == layer else 8 for i in range(2)])
        expected = (wanted * np.log(wanted / found)).sum(1).mean()
        assert measured[layer, k] == pytest.approx(expected, rel=1e-6, abs=1e-12)
    assert (measured[:, WIDTHS.index(2)] > 0).all()


def test_a_divergence_needs_a_backend_that_is_led_step_by_step(program):
    with pytest.raises(ValueError, match="'emulator' plans whole programs; choose 'numpy' or 'torch'"):
        allocate.divergences(program, images(), backend="emulator")


def test_by_itself_it_takes_one_that_is(program):
    expected = allocate.divergences(program, images(), backend="numpy")
    assert np.array_equal(allocate.divergences(program, images()), expected)
