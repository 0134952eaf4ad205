"""Wrong answers to the exercises of chapter 3: each checker must reject its own."""

import numpy as np


def offset_product(x, w, product, axis=1, dtype=np.int64):
    return product(x, w.view(np.uint8) ^ 128) - 128 * x.sum(axis=axis, keepdims=True, dtype=dtype)


def float_sums(products, dtype=np.float32):
    return np.cumsum(products, dtype=dtype) != np.cumsum(products, dtype=np.int64)


def windows(x, size, stride, padding, fill=0):
    edges = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    padded = np.pad(x, edges, constant_values=fill)
    found = np.lib.stride_tricks.sliding_window_view(padded, (size, size), axis=(1, 2))
    found = found[:, ::stride, ::stride]
    return found, (*found.shape[:3], -1)


def cut_bits(numbers, kept, add):
    drop = np.maximum(np.frexp(numbers.astype(float))[1] - kept, 0)
    return ((numbers + (add * 2**drop).astype(np.int64)) >> drop) << drop


WRONG = {
    "wrap": {
        "saturates": lambda totals, width: totals.clip(-(2 ** (width - 1)), 2 ** (width - 1) - 1),
        "unsigned": lambda totals, width: totals % 2**width,
        "no wrap": lambda totals, width: totals,
        "sign and magnitude": lambda totals, width: np.sign(totals) * (abs(totals) % 2 ** (width - 1)),
        "always 16 bits": lambda totals, width: totals.astype(np.int16),
    },
    "longest_sum": {
        "unsigned register": lambda n, b_w, b_a: (2**n - 1) // (2 ** (b_w - 1) * (2**b_a - 1)),
        "both unsigned": lambda n, b_w, b_a: (2 ** (n - 1) - 1) // ((2**b_w - 1) * (2**b_a - 1)),
        "powers of two": lambda n, b_w, b_a: 2 ** (n - 1) // 2 ** (b_w - 1 + b_a),
        "master codes": lambda n, b_w, b_a: (2 ** (n - 1) - 1) // (128 * 255),
        "one more": lambda n, b_w, b_a: 2 ** (n - 1) // (2 ** (b_w - 1) * (2**b_a - 1)) + 1,
        "one less below zero": lambda n, b_w, b_a: (2 ** (n - 1) - 1) // (2 ** (b_w - 1) * (2**b_a - 1)),
    },
    "im2col_strided": {
        "no stride": lambda x, size, stride, padding: (
            lambda found, shape: found.transpose(0, 1, 2, 4, 5, 3).reshape(shape)
        )(*windows(x, size, 1, padding)),
        "channels first": lambda x, size, stride, padding: (lambda found, shape: found.reshape(shape))(
            *windows(x, size, stride, padding)
        ),
        "transposed kernel": lambda x, size, stride, padding: (
            lambda found, shape: found.transpose(0, 1, 2, 5, 4, 3).reshape(shape)
        )(*windows(x, size, stride, padding)),
        "border of 128": lambda x, size, stride, padding: (
            lambda found, shape: found.transpose(0, 1, 2, 4, 5, 3).reshape(shape)
        )(*windows(x, size, stride, padding, fill=128)),
        "no padding": lambda x, size, stride, padding: (
            lambda found, shape: found.transpose(0, 1, 2, 4, 5, 3).reshape(shape)
        )(*windows(x, size, stride, 0)),
    },
    "unsigned_bytes_only": {
        "no correction": lambda x, w, product: product(x, w.view(np.uint8) ^ 128),
        "no offset": lambda x, w, product: product(x, w.view(np.uint8)),
        "sum of the weights": lambda x, w, product: (
            product(x, w.view(np.uint8) ^ 128) - 128 * w.sum(axis=1, dtype=np.int64)
        ),
        "sum in a byte": lambda x, w, product: offset_product(x, w, product, dtype=np.uint8),
        "sum of everything": lambda x, w, product: offset_product(x, w, product, axis=(0, 1)),
        "result in 16 bits": lambda x, w, product: offset_product(x, w, product).astype(np.int16),
    },
    "first_inexact": {
        "counts from zero": lambda products: int(float_sums(products).argmax()),
        "first beyond 2**24": lambda products: int((abs(np.cumsum(products)) > 2**24).argmax() + 1),
        "a float64": lambda products: int(
            float_sums(products, np.float64).argmax() + float_sums(products, np.float64).any()
        ),
        "how many are wrong": lambda products: int(float_sums(products).sum()),
        "only the last": lambda products: len(products) * int(float_sums(products)[-1]),
        "never 0": lambda products: int(float_sums(products).argmax() + 1),
    },
    "significant": {
        "cuts": lambda numbers, kept: cut_bits(numbers, kept, 0),
        "ties up": lambda numbers, kept: cut_bits(numbers, kept, 0.5),
        "last bits": lambda numbers, kept: numbers % 2**kept,
        "always float32": lambda numbers, kept: numbers.astype(np.float32).astype(np.int64),
        "clamps": lambda numbers, kept: np.minimum(numbers, 2**kept - 1),
    },
}
