"""How large the integers of a program can become, at any choice of widths and for any image.

Sums of products must stay within int32, and what is rounded within 62 bits. `contract` refuses a program that
could leave them; the bounds are worked out here and nowhere else.
"""

import numpy as np
from numpy.typing import NDArray

from dqt_core import integer
from dqt_core.nested import MASTER_WIDTH, code_range
from dqt_core.program.operations import Choice, Term


def largest_code(signed: bool, width: int = MASTER_WIDTH) -> int:
    """The largest magnitude of a code.

    Parameters
    ----------
    signed : bool
    width : int
        1..8 bits.

    Returns
    -------
    int
        1..255.

    Examples
    --------
    >>> largest_code(signed=True), largest_code(signed=False), largest_code(signed=False, width=2)
    (128, 255, 3)
    """
    return max(map(abs, code_range(width, signed)))


def largest_product(widths: Choice, signed: bool, is_floor: bool) -> int:
    """The largest magnitude of a weight times an input, as a convolution adds them up.

    Parameters
    ----------
    widths : (weight bits, input bits)
        1..8 each.
    signed : bool
        Whether the input's codes are; the weights' always are.
    is_floor : bool
        Whether the program rounds by floor: its products are in half steps of the master.

    Returns
    -------
    int

    Examples
    --------
    >>> largest_product((2, 4), signed=False, is_floor=False)
    30
    >>> largest_product((2, 4), signed=False, is_floor=True) == 256 * (15 << 4)
    True
    """
    weight_bits, input_bits = widths
    if is_floor:  # half steps of the master, see integer.conv2d_mid_bin
        return 2 * largest_code(True) * largest_code(signed, input_bits) << (MASTER_WIDTH - input_bits)
    return largest_code(True, weight_bits) * largest_code(signed, input_bits)


def shifts(choices: tuple[Choice, ...], is_floor: bool) -> list[int]:
    """The bits that a term puts back, at every choice; the sums of floor have them.

    Parameters
    ----------
    choices : tuple of (weight bits, input bits)
    is_floor : bool

    Returns
    -------
    list of int
        0..14 bits, one for every choice.

    Examples
    --------
    >>> shifts(((2, 2), (8, 8)), is_floor=False)
    [12, 0]
    """
    return [0 if is_floor else 2 * MASTER_WIDTH - sum(pair) for pair in choices]


def largest_terms(term: Term, shifted: list[int]) -> NDArray[np.int64]:
    """The largest magnitude of ``(a << d) * M`` and of B together, for every channel.

    Parameters
    ----------
    term : Term
        Multipliers below 2**31, offsets below 2**62.
    shifted : list of int
        The largest ``|a << d|``, at every choice or at all of them; below 2**31.

    Returns
    -------
    int64 array, (C,) or (1,)
        Below 2**63.

    Examples
    --------
    >>> term = Term("x", np.array([[3, -4]], np.int32), np.array([[-10, 1]]), 0)
    >>> largest_terms(term, [100, 200])
    array([610, 801])
    """
    products = np.array(shifted, np.int64)[:, None] * np.abs(term.multiplier.astype(np.int64))
    largest: NDArray[np.int64] = (products + np.abs(term.offset)).max(axis=0)
    return largest


def too_long(terms: int, largest: int) -> str:
    """Why a sum of so many products may leave int32; empty where it cannot.

    Parameters
    ----------
    terms : int
        Products in a sum.
    largest : int
        Magnitude of one.

    Returns
    -------
    str

    Examples
    --------
    >>> too_long(65_793, 128 * 255)
    ''
    """
    try:
        integer.require_accumulator(terms, largest)
    except OverflowError as error:
        return str(error)
    return ""
