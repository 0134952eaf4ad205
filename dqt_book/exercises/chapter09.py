"""Checkers for the exercises of chapter 9, training through the shift."""

import numpy as np

from dqt_book.exercises.judging import bits, judge, judge_reals
from dqt_core import nested


def gradient_mask(function):
    """function(w, step, lo, hi): 1 where the straight-through gradient reaches a weight, else 0."""
    cases = []
    for step, lo, hi in ((0.25, -128, 127), (0.01, -128, 127), (0.02, 0, 255), (0.5, -8, 7)):
        w = np.random.default_rng(10).uniform(1.5 * lo - 9, 1.5 * hi, 60) * step
        expected, _ = _gradients(w, step, lo, hi)
        cases.append((f"gradient_mask(w, {step}, {lo}, {hi})", (w, step, lo, hi), expected != 0, 1))
    return judge(function, cases, "60 weights in 4 ranges", lambda i: f"weight {i}")


def updates_until_jump(function):
    """function(q, rate, width): updates until the view of a latent weight changes; 0 if it never does."""
    cases = []
    for width in (2, 3, 4, 6, 8):
        for rate in (1, 3, 10):
            for q in range(-128, 128):
                path = np.minimum(q + rate * np.arange(257), 127).astype(np.int8)
                views = nested.switch(path, width)
                call = f"updates_until_jump({q} ({bits(q, 8)}), {rate}, {width})"
                cases.append((call, (q, rate, width), int((views != views[0]).argmax()), 8))
    return judge(function, cases, f"{len(cases):,} starts")


def exact_terms(function):
    """function(b_w, b_a, significant): products that surely add up exactly in a float."""
    cases = []
    for significant in (8, 11, 24, 53):
        for b_w, b_a in ((8, 8), (4, 4), (2, 2), (4, 8), (1, 1)):
            largest = -nested.code_range(b_w, True)[0] * nested.code_range(b_a, False)[1]
            arguments = (b_w, b_a, significant)
            cases.append((f"exact_terms{arguments}", arguments, 2**significant // largest, 54))
    return judge(function, cases, f"{len(cases)} pairs of widths and floats")


def step_pull(function):
    """function(w, step, width): derivative of a view's value by the master step, straight-through."""
    cases = []
    for step in (0.25, 0.03):
        w = np.random.default_rng(11).uniform(-170, 170, 40) * step
        for width in range(1, 9):
            expected = _gradients(w, step, -128, 127, width)[1]
            cases.append((f"step_pull(w, {step}, {width})", (w, step, width), expected))
    masters = nested.quantize(w / step, step=1.0)[0]
    return judge_reals(
        function, cases, "40 weights at 8 widths", lambda i: f"master {masters[i]} ({bits(masters[i], 8)})"
    )


def common_statistics(function):
    """function(means, variances): mean and variance of equally many values from each width."""
    rng = np.random.default_rng(12)
    cases = []
    for count in (2, 5):
        means, variances = rng.normal(size=count), rng.uniform(0.5, 2, count)
        square = (variances + means**2).mean()
        expected = np.array([means.mean(), square - means.mean() ** 2])
        cases.append((f"common_statistics of {count} widths", (means, variances), expected))
    return judge_reals(function, cases, "2 channels", lambda i: ("the mean", "the variance")[i])


def _gradients(w, step, lo, hi, width=8):
    """Derivatives of a view's value by the weight and by the step, as the package's training has them."""
    import torch  # the exercises of other chapters do without

    from dqt_core.training import straight_through

    steps = torch.full(w.shape, step, requires_grad=True)
    leaf = torch.tensor(w, dtype=torch.float32, requires_grad=True)
    codes = straight_through.switch(
        straight_through.quantize(leaf, steps.log(), lo, hi), width, signed=lo < 0
    )
    gradients = torch.autograd.grad((codes * 2.0 ** (8 - width) * steps).sum(), (leaf, steps))
    return [gradient.numpy() for gradient in gradients]
