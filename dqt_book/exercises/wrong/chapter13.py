"""Wrong answers to the exercises of chapter 13: each checker must reject its own."""

import numpy as np

WRONG = {
    "one_sided_kernel": {
        "other side": lambda weight: np.pad(weight, ((0, 0), (0, 1), (0, 1), (0, 0))),
        "rows alone": lambda weight: np.pad(weight, ((0, 0), (1, 0), (0, 0), (0, 0))),
        "both sides": lambda weight: np.pad(weight, ((0, 0), (1, 1), (1, 1), (0, 0))),
        "mirrored": lambda weight: np.pad(weight[:, ::-1, ::-1], ((0, 0), (1, 0), (1, 0), (0, 0))),
        "repeated": lambda weight: np.pad(weight, ((0, 0), (1, 0), (1, 0), (0, 0)), "edge"),
    },
}
