"""Wrong answers to the exercises of chapter 11: each checker must reject its own."""

import numpy as np


def priced(logits, threshold, narrow, wide, again=None):
    second, first = np.sort(logits, axis=1)[:, -2:].T
    return narrow + wide * (first - second < threshold if again is None else again(first - second))


WRONG = {
    "affordable_width": {
        "one batch": lambda prices, charge, batches: max(
            (width for width in prices if prices[width] <= charge), default=min(prices)
        ),
        "narrowest": lambda prices, charge, batches: min(prices),
        "last of the table": lambda prices, charge, batches: [
            min(prices),
            *(width for width in prices if prices[width] * batches <= charge),
        ][-1],
        "not the last drop": lambda prices, charge, batches: max(
            (width for width in prices if prices[width] * batches < charge), default=min(prices)
        ),
    },
    "cost_of_looks": {
        "second look alone": lambda logits, threshold, narrow, wide: np.where(
            priced(logits, threshold, 0, 1) == 1, wide, narrow
        ),
        "at the threshold too": lambda logits, threshold, narrow, wide: priced(
            logits, threshold, narrow, wide, lambda margin: margin <= threshold
        ),
        "sure ones again": lambda logits, threshold, narrow, wide: priced(
            logits, threshold, narrow, wide, lambda margin: margin >= threshold
        ),
        "largest logit": lambda logits, threshold, narrow, wide: narrow + wide * (logits.max(1) < threshold),
        "unequal second": lambda logits, threshold, narrow, wide: (
            narrow + wide * np.array([np.diff(np.unique(row)[-2:])[0] < threshold for row in logits])
        ),
    },
    "most_looks": {
        "first look is free": lambda n, narrow, middle, wide: min(n, n * middle // wide),
        "difference of a look": lambda n, narrow, middle, wide: max(
            0, min(n, n * (middle - narrow) // (wide - narrow))
        ),
        "below zero": lambda n, narrow, middle, wide: min(n, n * (middle - narrow) // wide),
        "more than all": lambda n, narrow, middle, wide: max(0, n * (middle - narrow) // wide),
        "rounded up": lambda n, narrow, middle, wide: max(0, min(n, -(-n * (middle - narrow) // wide))),
    },
}
