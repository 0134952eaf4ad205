"""Wrong answers to the exercises of chapter 10: each checker must reject its own."""

import numpy as np


def pareto(cost, correct, equal=False):
    beats = (cost[:, None] <= cost) & (correct[:, None] >= correct)
    if equal:
        return np.flatnonzero(~(beats & ~np.tri(len(cost), k=0, dtype=bool).T).any(0))
    strictly = (cost[:, None] < cost) | (correct[:, None] > correct)
    return np.flatnonzero(~(beats & strictly).any(0))


WRONG = {
    "channel_sums": {
        "overflows a byte": lambda codes: codes.sum((1, 2), dtype=codes.dtype),
        "overflows 16 bits": lambda codes: codes.sum((1, 2), dtype=np.int16),
        "means": lambda codes: codes.mean((1, 2)).round().astype(int),
        "over the channels": lambda codes: codes.sum((2, 3), dtype=int),
        "over the images": lambda codes: codes.sum((0, 1, 2), dtype=int),
    },
    "choose": {
        "ties to the wider": lambda logits, layers: (
            logits.reshape(len(logits), layers, -1).shape[-1]
            - 1
            - logits.reshape(len(logits), layers, -1)[..., ::-1].argmax(-1)
        ),
        "in float32": lambda logits, layers: (
            logits.astype(np.float32).reshape(len(logits), layers, -1).argmax(-1)
        ),
        "choices before layers": lambda logits, layers: logits.reshape(len(logits), -1, layers).argmax(1),
        "one width for all": lambda logits, layers: np.repeat(
            logits.reshape(len(logits), layers, -1).sum(1).argmax(-1)[:, None], layers, 1
        ),
        "the smallest": lambda logits, layers: logits.reshape(len(logits), layers, -1).argmin(-1),
    },
    "image_bitops": {
        "one width": lambda macs, widths, fixed: (macs * widths).sum(1) + 64 * fixed,
        "no fixed layers": lambda macs, widths, fixed: (macs * widths**2).sum(1),
        "fixed MACs": lambda macs, widths, fixed: (macs * widths**2).sum(1) + fixed,
        "mean over the images": lambda macs, widths, fixed: (macs * widths**2).sum(1).mean() + 64 * fixed,
        "int32": lambda macs, widths, fixed: (macs * widths**2).sum(1).astype(np.int32) + 64 * fixed,
        "mean width": lambda macs, widths, fixed: (macs.sum() * widths.mean(1) ** 2).astype(int) + 64 * fixed,
    },
    "not_dominated": {
        "all": lambda cost, correct: np.arange(len(cost)),
        "the best alone": lambda cost, correct: correct.argmax()[None],
        "dear is good": lambda cost, correct: pareto(-cost, correct),
        "one of equals": lambda cost, correct: np.unique(pareto(cost, correct, equal=True)),
        "by cost": lambda cost, correct: pareto(cost, correct)[np.argsort(cost[pareto(cost, correct)])][::-1],
    },
    "best_static": {
        "no budget": lambda loss, cost, budget: loss.argmin(1),
        "narrowest": lambda loss, cost, budget: cost.argmin(1),
        "an equal share for each": lambda loss, cost, budget: np.where(
            cost <= budget / len(cost), loss, 10**6
        ).argmin(1),
        "one width": lambda loss, cost, budget: np.full(
            len(loss), np.where(cost.sum(0) <= budget, loss.sum(0), 10**6).argmin()
        ),
        "cheapest loss": lambda loss, cost, budget: (loss * cost).argmin(1),
    },
}
