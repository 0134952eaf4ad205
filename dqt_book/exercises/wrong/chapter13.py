"""Wrong answers to the exercises of chapter 13: each checker must reject its own."""

import numpy as np


def sign_beyond(gap, half):
    return int(gap > half) - int(gap < -half)


def unpaired(first, second):
    p, q = first.mean(), second.mean()
    return sign_beyond(p - q, 1.96 * ((p * (1 - p) + q * (1 - q)) / len(first)) ** 0.5)


def with_half(factor):
    def answer(first, second):
        gap = first.astype(int) - second
        return sign_beyond(gap.mean(), factor(gap))

    return answer


WRONG = {
    "tell_apart": {
        "unpaired": unpaired,
        "one deviation": with_half(lambda gap: gap.std() / len(gap) ** 0.5),
        "no interval": with_half(lambda gap: 0),
        "deviation of one image": with_half(lambda gap: 1.96 * gap.std()),
        "half a deviation": with_half(lambda gap: 1.96 / 2 * gap.std() / len(gap) ** 0.5),
        "bytes": lambda first, second: sign_beyond((first.astype(np.uint8) - second).mean(), 0.01),
        "other way": lambda first, second: -np.sign(first.mean() - second.mean()).astype(int),
    },
}
