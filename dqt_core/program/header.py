"""What a program says before its operations: its name, the choices of widths, the layers, the image."""

from typing import Any

from dqt_core.nested import MASTER_WIDTH, Rounding
from dqt_core.program.operations import Choice, Shape
from dqt_core.program.refusal import LARGEST_VALUE, Place

# A slash ends a comment of C and a folder's name; backends put one into the names they make for themselves.
FORBIDDEN = frozenset('/\\:*?"<>|')


def require_header(
    name: str, choices: tuple[Choice, ...], layers: tuple[str, ...], image_shape: Shape, rounding: Rounding
) -> Place:
    """Check these fields of a program; the place of its errors.

    Parameters
    ----------
    name, choices, layers, image_shape, rounding
        As those of `Program`.

    Returns
    -------
    Place

    Raises
    ------
    ProgramError
        If a field is none of its kind, or a width or a size is out of range.

    Examples
    --------
    >>> require_header("small", ((4, 4), (8, 8)), ("conv",), (32, 32, 3), "half_up").text
    'the program'
    """
    at = Place("the program")
    at.name("name", name)
    if bad := FORBIDDEN & set(name):
        at.refuse("name", name, f"one without {' '.join(sorted(bad))}: it is that of its file", "rename it")
    _require_choices(at, choices)
    _require_layers(at, layers)
    given: Any = image_shape  # a file may hold anything
    if type(given) is not tuple or len(given) != 3:
        at.refuse("image_shape", image_shape, "a tuple (H, W, C)")
    for size in given:
        at.integer("a size of image_shape", size, 1, LARGEST_VALUE)
    at.size("image_shape", image_shape)
    if rounding not in ("half_up", "floor"):
        at.refuse("rounding", rounding, "'half_up' or 'floor'")
    return at


def _require_choices(at: Place, choices: object) -> None:
    if type(choices) is not tuple or not choices:
        at.refuse("choices", choices, "a tuple of (weight bits, input bits)")
    for pair in choices:
        if type(pair) is not tuple or len(pair) != 2:
            at.refuse("a choice", pair, "(weight bits, input bits)")
        for bits in pair:
            at.integer("a width of choices", bits, 1, MASTER_WIDTH)
    costs = [(weight * x, weight, x) for weight, x in choices]
    if any(costs[i] >= costs[i + 1] for i in range(len(costs) - 1)):
        at.refuse("choices", choices, "different ones, by the product of their bits from narrow to wide")


def _require_layers(at: Place, layers: object) -> None:
    if type(layers) is not tuple:
        at.refuse("layers", layers, "a tuple of names")
    for name in layers:
        at.name("a name of layers", name)
    if len(set(layers)) != len(layers):
        at.refuse("layers", layers, "different names")
