"""Wrong answers to the exercises of chapter 11: each checker must reject its own."""

import numpy as np


def priced(logits, threshold, narrow, wide, again=None):
    second, first = np.sort(logits, axis=1)[:, -2:].T
    return narrow + wide * (first - second < threshold if again is None else again(first - second))


def widest(planes):
    return 8 if planes >= 8 else max(0, planes - 1)


WRONG = {
    "usable_width": {
        "floor": lambda received, weights: min(8, received // -(-weights // 8)),
        "a plane more at 8 bits too": lambda received, weights: max(
            0, min(8, received // -(-weights // 8) - 1)
        ),
        "half a byte of weights": lambda received, weights: widest(received * 8 // weights),
        "below none": lambda received, weights: (
            8 if (planes := received // -(-weights // 8)) >= 8 else planes - 1
        ),
        "begun planes": lambda received, weights: widest(-(-received // -(-weights // 8))),
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
