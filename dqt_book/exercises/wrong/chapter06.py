"""Wrong answers to the exercises of chapter 6: each checker must reject its own."""

import numpy as np


def on_ties(x, drop, lowered):
    codes = np.floor(x + 0.5).astype(int)
    return codes - ((codes % 2**drop == 2 ** (drop - 1)) & lowered)


def moved(old, wide, own, gain, ratio):
    return np.stack([own[0] + (old[0] - wide[0]) * gain, old[1] * ratio])


WRONG = {
    "tie_count": {
        "negative codes": lambda codes, drop: int(
            (np.fmod(codes.astype(int), 2**drop) == 2 ** (drop - 1)).sum()
        ),
        "top dropped bit": lambda codes, drop: int((codes.astype(int) >> (drop - 1) & 1).sum()),
        "multiples": lambda codes, drop: int((codes.astype(int) % 2 ** (drop - 1) == 0).sum()),
        "one bit too many": lambda codes, drop: int((codes.astype(int) % 2 ** (drop + 1) == 2**drop).sum()),
        "not a tie": lambda codes, drop: int((codes.astype(int) % 2**drop != 2 ** (drop - 1)).sum()),
    },
    "single_rounding": {
        "nearest": lambda x, drop: np.floor(x + 0.5).astype(int),
        "every tie": lambda x, drop: on_ties(x, drop, x == x),
        "ties of x too": lambda x, drop: on_ties(x, drop, x <= np.floor(x + 0.5)),
        "above the tie": lambda x, drop: on_ties(x, drop, x > np.floor(x + 0.5)),
        "rounded down": lambda x, drop: np.floor(x).astype(int),
        "the view": lambda x, drop: np.floor(x / 2**drop + 0.5).astype(int),
    },
    "corrected_table": {
        "deviations": lambda old, wide, own: moved(old, wide, own, own[1] / wide[1], own[1] / wide[1]),
        "mean alone": lambda old, wide, own: np.stack([own[0] + old[0] - wide[0], old[1]]),
        "own table": lambda old, wide, own: own,
        "upside down": lambda old, wide, own: moved(
            old, wide, own, np.sqrt(wide[1] / own[1]), wide[1] / own[1]
        ),
        "other sign": lambda old, wide, own: moved(
            wide, old, own, np.sqrt(own[1] / wide[1]), own[1] / wide[1]
        ),
        "mean not scaled": lambda old, wide, own: moved(old, wide, own, 1.0, own[1] / wide[1]),
    },
}
