"""How far a program is from the float model that it was made of, at each width, and which layer hurts."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dqt_core.evaluation import allocate, cost
from dqt_core.program import BackendName, Choice, Program

Reals = NDArray[np.float64]

BATCH = 8  # images whose every intermediate value is held in memory
_SHOWN = 10  # layers, in a text


@dataclass(frozen=True)
class Report:
    """Figures of a program beside its float model; its text is a table for each.

    Attributes
    ----------
    program : str
        Name and digest.
    images, layer_images : int
        How many were compared, and how many of them for the layers.
    widths : tuple of str
        "4" for a width, "4/8" for a pair (weight bits, input bits); from narrow to wide.
    layers : tuple of str
        The switchable layers.
    agreement : tuple of float
        For each width, the share of images that the float model and the program put into one class.
    divergence : tuple of float
        For each width, the mean Kullback-Leibler divergence of the classes' probabilities from the float
        model's, in nats.
    by_layer : tuple of L tuples of float
        The divergence, from the program at its widest choice, when one layer alone is at a width.
    weight_bytes, bitops : tuple of float
        For each width, of one image's run; bytes as bit planes.
    master_bytes : int
        Of all weights as they are stored, for every width.
    calibration : dict
        What was tried and taken, see `conversion.quantization.calibrate`.

    Examples
    --------
    >>> by_layer = (0.1, 0.0), (0.7, 0.0)
    >>> figures = (0.5, 1.0), (0.9, 0.0), by_layer, (1e6, 4e6), (1e8, 1e9), 4_000_000
    >>> found = Report("net-0123", 64, 16, ("2", "8"), ("conv1", "conv2"), *figures)
    >>> found.worst(2), found.as_dict()["agreement"]
    (['conv2', 'conv1'], (0.5, 1.0))
    """

    program: str
    images: int
    layer_images: int
    widths: tuple[str, ...]
    layers: tuple[str, ...]
    agreement: tuple[float, ...]
    divergence: tuple[float, ...]
    by_layer: tuple[tuple[float, ...], ...]
    weight_bytes: tuple[float, ...]
    bitops: tuple[float, ...]
    master_bytes: int
    calibration: Mapping[str, Any] = field(default_factory=dict)

    def worst(self, width: str | int | None = None) -> list[str]:
        """The layers from the one that hurts most at a width, the narrowest if none is given.

        Parameters
        ----------
        width : str or int, optional
            One of `widths`: "4" or 4, "4/8"; None: the narrowest.

        Returns
        -------
        list of str
            All layers.

        Raises
        ------
        ValueError
            If the program has no such width.
        """
        label = self.widths[0] if width is None else str(width)
        if label not in self.widths:
            raise ValueError(f"width {label} is not in the report; it holds {', '.join(self.widths)}")
        k = self.widths.index(label)
        order = sorted(range(len(self.layers)), key=lambda layer: -self.by_layer[layer][k])
        return [self.layers[layer] for layer in order]

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON holds it."""
        return asdict(self)

    def __str__(self) -> str:
        return "\n".join([*self._by_width(), "", *self._by_layer()])

    def _by_width(self) -> Iterator[str]:
        yield f"{self.program}, beside its float model on {self.images} images:"
        yield f"{'bits':>6}{'same class':>13}{'divergence':>13}{'MB of weights':>16}{'G BitOPs':>11}"
        rows = zip(self.widths, self.agreement, self.divergence, self.weight_bytes, self.bitops, strict=True)
        for width, same, far, size, work in reversed(list(rows)):
            yield f"{width:>6}{same:>13.1%}{far:>13.2g}{size / 1e6:>16.3f}{work / 1e9:>11.3f}"
        yield f"One file holds all widths: {self.master_bytes / 1e6:.3f} MB of weights."

    def _by_layer(self) -> Iterator[str]:
        names = self.worst()[:_SHOWN]
        yield f"Which layer hurts: the divergence where it alone is at a width, on {self.layer_images} images"
        if len(names) < len(self.layers):
            yield f"(the first {len(names)} of {len(self.layers)}; `by_layer` holds all)"
        wide = max(map(len, names), default=0)
        yield " " * wide + "".join(f"{width:>10}" for width in self.widths[:-1])
        for name in names:
            row = self.by_layer[self.layers.index(name)]
            yield name.ljust(wide) + "".join(f"{far:>10.2g}" for far in row[:-1])


def report(
    program: Program,
    images: NDArray[np.uint8],
    logits: NDArray[np.floating],
    layer_images: int = 16,
    backend: BackendName = "auto",
    tick: Callable[[], object] = lambda: None,
    calibration: Mapping[str, Any] | None = None,
) -> Report:
    """Compare a program with the logits that its float model makes of some images.

    Parameters
    ----------
    program : Program
    images : uint8 array, (N, H, W, C)
    logits : float array, (N, classes)
        The float model's, of the same images.
    layer_images : int
        How many of the images tell which layer hurts; each is run once for every layer and width.
    backend : as in `Program.run`
    tick : callable
        Called after each of `steps(program, N, layer_images)` parts.
    calibration : dict, optional
        For the report.

    Returns
    -------
    Report

    Raises
    ------
    ValueError
        If the logits are not one row of the program's classes for every image.

    Examples
    --------
    >>> from dqt_core import selftest
    >>> program, images = selftest.network(), selftest.images()
    >>> exact = np.ldexp(program.run(images, 8).logits.astype(float), -allocate.logit_shift(program))
    >>> found = report(program, images, exact)
    >>> found.agreement[-1], found.divergence[-1]
    (1.0, 0.0)
    """
    agreement, divergence = [], []
    for choice in program.choices:
        found = program.run(images, [choice] * len(program.layers), backend).logits
        if found.shape != np.shape(logits):
            raise ValueError(f"logits are {np.shape(logits)}, the program makes {found.shape} of the images")
        agreement.append(float((found.argmax(1) == logits.argmax(1)).mean()))
        divergence.append(_divergence(program, logits, found))
        tick()
    by_layer = _of_layers(program, images[:layer_images], tick)
    static = [[choice] * len(program.layers) for choice in program.choices]
    return Report(
        program=f"{program.name}-{program.digest[:12]}",
        images=len(images),
        layer_images=len(images[:layer_images]),
        widths=labels(program.choices),
        layers=program.layers,
        agreement=tuple(agreement),
        divergence=tuple(divergence),
        by_layer=tuple(tuple(row) for row in by_layer.tolist()),
        weight_bytes=tuple(float(cost.weight_bytes(program, widths)[0]) for widths in static),
        bitops=tuple(float(cost.bitops(program, widths)[0]) for widths in static),
        master_bytes=sum(size.weights for size in cost.layer_sizes(program)),
        calibration=calibration or {},
    )


def steps(choices: int, images: int, layer_images: int = 16) -> int:
    """How often `report` ticks.

    Parameters
    ----------
    choices, images, layer_images : int
        How many there are of each, 1 or more.

    Returns
    -------
    int

    Examples
    --------
    >>> steps(choices=5, images=100, layer_images=16)
    7
    """
    return choices + -(-min(images, layer_images) // BATCH)


def labels(choices: Sequence[Choice]) -> tuple[str, ...]:
    """What choices of widths are called.

    Parameters
    ----------
    choices : sequence of (weight bits, input bits)

    Returns
    -------
    tuple of str

    Examples
    --------
    >>> labels([(4, 4), (4, 8)])
    ('4', '4/8')
    """
    return tuple(str(w) if w == a else f"{w}/{a}" for w, a in choices)


def _divergence(program: Program, logits: NDArray[np.floating], found: NDArray[np.int64]) -> float:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    wanted = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    own = allocate.log_probabilities(program, found)
    return max(0.0, float((np.exp(wanted) * (wanted - own)).sum(1).mean()))


def _of_layers(program: Program, images: NDArray[np.uint8], tick: Callable[[], object]) -> Reals:
    total = np.zeros((len(program.layers), len(program.choices)))
    widest = [program.choices[-1]] * len(program.layers)
    for start in range(0, len(images), BATCH):
        part = images[start : start + BATCH]
        total += allocate.divergences(program, part, widest) * len(part)
        tick()
    return total / len(images)
