"""Steps from data: the least error of all candidates, by NumPy and `nested`, however many are tried."""

import numpy as np
import pytest
import torch
from small_nets import tensors

from dqt_core import nested
from dqt_core.training import steps

SIGNS = pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])


def brute_force_errors(row, signed, widths):
    """Sum over widths of log mean squared error for each of the 46 candidates, through `nested`."""
    hi = nested.code_range(8, signed)[1]
    largest = np.abs(row).max() / hi
    tried = [largest * factor for factor in np.linspace(0.1, 1, 46)]
    errors = []
    for step in tried:
        codes, _ = nested.quantize(row, signed=signed, step=step)
        views = [nested.dequantize(nested.switch(codes, width), step, width) for width in set(widths)]
        errors.append(sum(np.log(np.mean((view - row) ** 2)) for view in views))
    return np.array(tried), np.array(errors)


@pytest.mark.parametrize("widths", [(8,), (2, 8), (2, 3, 4, 6, 8), (1,), (4, 4, 8)], ids=str)
@SIGNS
def test_initial_step_is_the_best_candidate(widths, signed):
    x = tensors(4, seed=5).flatten(1)
    x = (x**3) if signed else (x**3).relu()
    log_step = steps.initial_log_step(x, *nested.code_range(8, signed), widths, per_channel=True)
    one_step = steps.initial_log_step(x, *nested.code_range(8, signed), widths)
    assert log_step.shape == (4, 1)
    assert one_step.shape == ()
    rows = [(row, step) for row, step in zip(x, log_step.flatten(), strict=True)] + [(x, one_step)]
    for row, step in rows:
        tried, errors = brute_force_errors(row.double().numpy(), signed, widths)
        np.testing.assert_allclose(step.exp().item(), tried[errors.argmin()], rtol=1e-5)


def test_initial_steps_keep_the_axes_of_a_weight():
    weight = tensors(5, 3)
    log_step = steps.initial_log_step(weight, -128, 127, (4,), per_channel=True)
    assert log_step.shape == (5, 1, 1, 1)
    assert not log_step.requires_grad


def test_initial_step_of_zeros_is_finite():
    assert steps.initial_log_step(torch.zeros(3, 4), -128, 127, (2, 8), per_channel=True).isfinite().all()


@pytest.fixture
def tried(monkeypatch):
    """The candidates that were looked at, of all blocks together."""
    found, plain = [], steps._log_error
    monkeypatch.setattr(steps, "_log_error", lambda *given: found.append(given[1]) or plain(*given))
    return found


@pytest.mark.parametrize("tail", [1, 3, 5])
@pytest.mark.parametrize("widths", [(4,), (2, 3, 4, 6, 8)], ids=str)
def test_a_search_that_ends_early_finds_the_best_of_all(widths, tail):
    generator = torch.Generator().manual_seed(tail)
    weight = torch.randn(9, 2304, generator=generator) ** tail
    log_step = steps.initial_log_step(weight, -128, 127, widths, per_channel=True)
    for row, step in zip(weight, log_step.flatten(), strict=True):
        candidates, errors = brute_force_errors(row.double().numpy(), True, widths)
        np.testing.assert_allclose(step.exp().item(), candidates[errors.argmin()], rtol=1e-5)


def test_few_candidates_are_tried_where_clipping_hurts(tried):
    steps.initial_log_step(torch.randn(64, 256), -128, 127, (2, 3, 4, 6, 8), per_channel=True)
    assert len(tried) < 46 / 3


@pytest.mark.parametrize("threads", [1, 3])
def test_blocks_and_threads_change_nothing(threads, monkeypatch):
    weight = torch.randn(50, 30, generator=torch.Generator().manual_seed(0))
    whole = steps.initial_log_step(weight, -128, 127, (2, 8), per_channel=True)
    monkeypatch.setattr(steps, "_BLOCK", 100)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert torch.equal(steps.initial_log_step(weight, -128, 127, (2, 8), per_channel=True), whole)


def test_what_is_not_finite_stays_for_others_to_tell():
    weight = torch.tensor([[1.0, 2.0], [float("nan"), 1.0], [float("inf"), 1.0]])
    log_step = steps.initial_log_step(weight, -128, 127, (2, 8), per_channel=True).flatten()
    assert log_step.isfinite().tolist() == [True, False, False]
