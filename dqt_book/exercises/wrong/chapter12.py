"""Wrong answers to the exercises of chapter 12: each checker must reject its own."""

import base64
import math

import numpy as np


def unpacked(text, order="big"):
    return np.unpackbits(np.frombuffer(base64.b64decode(text), np.uint8), bitorder=order)


WRONG = {
    "count_hits": {
        "padding counted": lambda text, n: int(unpacked(text).sum()),
        "last bit first": lambda text, n: int(unpacked(text, "little")[:n].sum()),
        "bytes": lambda text, n: int((np.packbits(unpacked(text)) > 0)[:n].sum()),
        "wrong ones": lambda text, n: int((unpacked(text)[:n] == 0).sum()),
        "one too few": lambda text, n: int(unpacked(text)[: n - 1].sum()),
    },
    "images_needed": {
        "one deviation": lambda p, points: math.ceil(p * (1 - p) / (points / 100) ** 2),
        "not percent": lambda p, points: math.ceil(4 * p * (1 - p) / points**2),
        "rounded down": lambda p, points: math.floor(4 * p * (1 - p) / (points / 100) ** 2),
        "not squared": lambda p, points: math.ceil(4 * p * (1 - p) / (points / 100)),
        "variance of right alone": lambda p, points: math.ceil(4 * p / (points / 100) ** 2),
    },
    "dividing_images": {
        "swapped": lambda first, second: [int((~first & second).sum()), int((first & ~second).sum())],
        "all right": lambda first, second: [int(first.sum()), int(second.sum())],
        "sum": lambda first, second: [int((first ^ second).sum()), int((first ^ second).sum())],
        "both": lambda first, second: [int((first & second).sum()), int((~first & ~second).sum())],
        "or": lambda first, second: [int((first | ~second).sum()), int((second | ~first).sum())],
    },
    "tail_count": {
        "one side": lambda a, n: sum(math.comb(n, k) for k in range(min(a, n - a) + 1)),
        "even split twice": lambda a, n: 2 * sum(math.comb(n, k) for k in range(min(a, n - a) + 1)),
        "strictly": lambda a, n: 2 * sum(math.comb(n, k) for k in range(min(a, n - a))),
        "at most a": lambda a, n: 2 * sum(math.comb(n, k) for k in range(a + 1)),
        "this outcome": lambda a, n: math.comb(n, a),
    },
}
