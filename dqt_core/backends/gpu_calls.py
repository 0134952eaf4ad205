"""Operations on arrays that are already on the GPU: CuPy arrays, and torch CUDA tensors without a copy.

Each call runs on the caller's stream (CuPy's current stream; torch's, where a torch tensor comes) and returns
the kind of array that it was given, at once: like any other work on a GPU it is done when the stream is. An
array that is not C-contiguous is copied first. ``engine=emulated.engine()`` runs the same kernels on the CPU,
with NumPy arrays or torch CPU tensors; the examples do.
"""

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dqt_core import integer
from dqt_core.backends import cupy_gpu, gpu_plan
from dqt_core.backends.gpu_launches import THREADS, Batch, Launch, Launches, blocks
from dqt_core.integer import products
from dqt_core.kernels.engine import Engine, Kernel
from dqt_core.nested import MASTER_WIDTH, Rounding, require_codes, require_rounding, require_width
from dqt_core.program import IMAGE, Conv, Widths, bounds
from dqt_core.program.operations import out_shape

CODES_PER_THREAD = 16
OUTPUTS_PER_BLOCK = 8
BATCHES = 1, 2, 4, 8  # of `gemv`: sums that a thread keeps


def switch(codes: Any, width: int, rounding: Rounding = "half_up", engine: Engine | None = None) -> Any:
    """`nested.switch` on the device.

    Parameters
    ----------
    codes : int8 or uint8 array
        Master codes.
    width : int
        1..8.
    rounding : {"half_up", "floor"}
    engine : Engine, optional
        None: the GPU.

    Returns
    -------
    array, shape and dtype of `codes`

    Raises
    ------
    TypeError, ValueError
        As `nested.switch`; TypeError also where the array is not on the engine's device.
    cupy_gpu.GpuError
        If no GPU can be used.

    Examples
    --------
    >>> from dqt_core.backends import emulated
    >>> switch(np.array([88, 255], np.uint8), 4, engine=emulated.engine())
    array([ 6, 15], dtype=uint8)
    """
    return _on_device(engine, _switch, [codes], require_width(width), rounding)


def _switch(engine: Engine, codes: Any, width: int, rounding: Rounding) -> Any:
    out = engine.xp.empty_like(codes)
    kernel = engine.kernel("switch", "switch_codes", **_variant(codes, rounding))
    grid = blocks(-(-codes.size // CODES_PER_THREAD))
    _start(kernel, grid, THREADS, codes, out, np.int64(codes.size), np.int32(width))
    return out


def to_planes(codes: Any, engine: Engine | None = None) -> Any:
    """`nested.to_planes` on the device.

    Parameters
    ----------
    codes : int8 or uint8 array, (..., n)
    engine : Engine, optional

    Returns
    -------
    uint8 array, (8, ..., ceil(n / 8))

    Raises
    ------
    TypeError, ValueError, cupy_gpu.GpuError
        As `switch`; ValueError also if `codes` has no axis.

    Examples
    --------
    >>> from dqt_core.backends import emulated
    >>> to_planes(np.array([128, 0, 129], np.uint8), engine=emulated.engine())[[0, 7]]
    array([[160],
           [ 32]], dtype=uint8)
    """
    if codes.ndim == 0:
        raise ValueError("to_planes packs codes along their last axis, got a single code; reshape it to (1,)")
    return _on_device(engine, _to_planes, [codes])


def _to_planes(engine: Engine, codes: Any) -> Any:
    length = codes.shape[-1]
    planes = engine.xp.empty((MASTER_WIDTH, *codes.shape[:-1], -(-length // 8)), np.uint8)
    kernel = engine.kernel("planes", "pack_planes", **_variant(codes, "floor"))
    rows = np.int32(codes.size // max(length, 1))
    _start(kernel, blocks(planes[0].size), THREADS, codes, planes, rows, np.int32(length))
    return planes


def from_planes(
    planes: Any,
    width: int = MASTER_WIDTH,
    signed: bool = True,
    rounding: Rounding = "floor",
    length: int | None = None,
    engine: Engine | None = None,
) -> Any:
    """`nested.from_planes` on the device, reading no plane below those it needs.

    Parameters
    ----------
    planes : uint8 array, (at least width, ..., m)
    width, signed, rounding, length
        As in `nested.from_planes`.
    engine : Engine, optional

    Returns
    -------
    int8 or uint8 array, (..., length)

    Raises
    ------
    TypeError, ValueError, cupy_gpu.GpuError
        As `switch`; ValueError also if there are too few planes or codes.

    Examples
    --------
    >>> from dqt_core.backends import emulated
    >>> planes = to_planes(np.arange(-4, 4, dtype=np.int8) * 16, engine=emulated.engine())
    >>> from_planes(planes[:4], width=4, engine=emulated.engine())
    array([-4, -3, -2, -1,  0,  1,  2,  3], dtype=int8)
    """
    length = 8 * planes.shape[-1] if length is None else length
    needed = min(require_width(width) + (rounding == "half_up"), MASTER_WIDTH)
    if len(planes) < needed or -(-length // 8) != planes.shape[-1]:
        raise ValueError(
            f"planes {tuple(planes.shape)} do not hold {length} codes of width {width}: expected at least "
            f"{needed} planes of {-(-length // 8)} bytes a row"
        )
    return _on_device(engine, _from_planes, [planes], width, signed, rounding, length)


def _from_planes(
    engine: Engine, planes: Any, width: int, signed: bool, rounding: Rounding, length: int
) -> Any:
    codes = engine.xp.empty((*planes.shape[1:-1], length), np.int8 if signed else np.uint8)
    kernel = engine.kernel("planes", "unpack_planes", **_variant(codes, rounding))
    rows = np.int32(codes.size // max(length, 1))
    sizes = rows, np.int32(length), np.int32(width)
    _start(kernel, blocks(planes[0].size), THREADS, planes, codes, *sizes)
    return codes


def gemv(planes: Any, x: Any, width: int, engine: Engine | None = None) -> Any:
    """Matrix times a few vectors, reading `width` of the matrix's eight bit planes.

    Parameters
    ----------
    planes : uint8 array, (at least width, O, ceil(I / 8))
        Of int8 master weights (O, I), as `to_planes` makes them.
    x : int8 or uint8 array, (N, I)
        N is 1..8.
    width : int
        Bits of the weights, 1..8; they are rounded by floor, which no lower plane changes.
    engine : Engine, optional

    Returns
    -------
    int32 array, (N, O)
        ``integer.matmul(x, nested.switch(weights, width, rounding="floor"))``.

    Raises
    ------
    TypeError, ValueError, cupy_gpu.GpuError
        As `switch`; ValueError also if the shapes do not fit.

    Examples
    --------
    >>> from dqt_core.backends import emulated
    >>> weights = np.array([[-128, 64], [1, 127]], np.int8)
    >>> planes = to_planes(weights, engine=emulated.engine())
    >>> gemv(planes, np.array([[3, 1]], np.uint8), 2, engine=emulated.engine())
    array([[-5,  1]], dtype=int32)
    """
    if planes.ndim != 3 or x.ndim != 2 or not 1 <= len(x) <= max(BATCHES):
        raise ValueError(
            f"expected planes (8, O, I/8) and x (1..{max(BATCHES)}, I), got {tuple(planes.shape)} and "
            f"{tuple(x.shape)}"
        )
    if len(planes) < require_width(width) or -(-x.shape[1] // 8) != planes.shape[2]:
        raise ValueError(
            f"planes {tuple(planes.shape)} do not hold weights of width {width} for x {tuple(x.shape)}; pack "
            "them with to_planes"
        )
    return _on_device(engine, _gemv, [planes, x], width)


def _gemv(engine: Engine, planes: Any, x: Any, width: int) -> Any:
    (batch, length), outputs = x.shape, planes.shape[1]
    integer.require_accumulator(length)
    y = engine.xp.empty((batch, outputs), np.int32)
    room = next(size for size in BATCHES if size >= batch)
    kernel = engine.kernel("planes", "gemv_planes", X_SIGNED=int(require_codes(x, "gemv")), BATCH=room)
    sizes = map(np.int32, (outputs, length, batch, width))
    _start(kernel, -(-outputs // OUTPUTS_PER_BLOCK), 32 * OUTPUTS_PER_BLOCK, planes, x, y, *sizes)
    return y


def conv2d(
    x: Any,
    weight: Any,
    stride: int = 1,
    padding: int = 0,
    groups: int = 1,
    widths: int | Sequence[int] | NDArray[np.integer] = MASTER_WIDTH,
    rounding: Rounding = "half_up",
    engine: Engine | None = None,
) -> Any:
    """Convolution of master codes, both operands switched on the way, each image at widths of its own.

    Parameters
    ----------
    x : int8 or uint8 array, (N, H, W, I)
    weight : int8 array, (O, kernel height, kernel width, I / groups)
    stride, padding, groups : int
    widths : int, (weight bits, input bits), or NumPy array (N, 2)
        For all images, or for each.
    rounding : {"half_up", "floor"}
    engine : Engine, optional

    Returns
    -------
    int32 array, (N, H', W', O)
        `integer.conv2d` of the switched codes; with floor, `integer.conv2d_mid_bin`.

    Raises
    ------
    TypeError, ValueError, OverflowError, cupy_gpu.GpuError
        As `integer.conv2d` and `switch`.

    Examples
    --------
    >>> from dqt_core.backends import emulated
    >>> x, weight = np.full((2, 1, 1, 1), 255, np.uint8), np.full((1, 1, 1, 1), 64, np.int8)
    >>> conv2d(x, weight, widths=np.array([[8, 8], [2, 4]]), engine=emulated.engine()).ravel()
    array([16320,    15], dtype=int32)
    """
    require_rounding(rounding)
    pairs = np.broadcast_to(np.asarray(widths), (len(x), 2))
    choices, picks = np.unique(pairs, axis=0, return_inverse=True)
    for width in np.unique(choices):
        require_width(int(width))
    op = Conv("conv2d", weight, stride, padding, groups, 0, IMAGE, "sums")
    return _on_device(engine, _conv2d, [x, weight], op, choices, picks, rounding)


def _conv2d(
    engine: Engine,
    x: Any,
    weight: Any,
    op: Conv,
    choices: NDArray[Any],
    picks: NDArray[Any],
    rounding: Rounding,
) -> Any:
    products.require_operands(x, weight, "conv2d")
    products.require_fit(x, weight, op.groups)
    # What is not part of a program has not been checked yet.
    full = MASTER_WIDTH, MASTER_WIDTH
    largest = bounds.largest_product(full, signed=False, is_floor=rounding == "floor")
    integer.require_accumulator(math.prod(op.weight.shape[1:]), largest)
    shape = out_shape(replace(op, weight=weight), x.shape[1:])
    if min(op.stride, *shape) < 1 or op.padding < 0:
        raise ValueError(f"stride {op.stride} and padding {op.padding} leave x {x.shape} no output: {shape}")
    sums = engine.xp.empty((len(x), *shape), np.int32)
    launches = Launches(engine, [(int(w), int(a)) for w, a in choices], rounding)
    batch = Batch(engine.xp, len(x), layers=1, choices=len(choices))
    batch.picks[:, 0] = engine.xp.asarray(picks.ravel())
    launches.group_images(batch)()
    launches.of(replace(op, weight=weight), {IMAGE: x, "sums": sums}, batch)()
    return sums


def logits(backend: gpu_plan.Backend, images: Any, widths: Widths = MASTER_WIDTH) -> Any:
    """Run a program on images that are already on the device; the logits stay there.

    Parameters
    ----------
    backend : cupy_gpu.Backend
        The program, compiled: keep it, as it holds the weights, the plans and their graphs.
    images : uint8 array, (N, H, W, C)
    widths : as in `Program.run`

    Returns
    -------
    int64 array, (N, classes)

    Raises
    ------
    TypeError, ValueError
        If the images or the widths do not fit the program, or the images are not on the device.

    Examples
    --------
    >>> backend = cupy_gpu.Backend(program)  # doctest: +SKIP
    >>> logits(backend, torch_images, widths=4).argmax(1)  # doctest: +SKIP
    """
    return _on_device(backend.engine, _logits, [images], backend, widths)


def _logits(engine: Engine, images: Any, backend: gpu_plan.Backend, widths: Widths) -> Any:
    backend.program._require_images(images)
    choices = backend.program._choices_of(widths, len(images))
    return backend.logits(images, choices)


def _on_device(engine: Engine | None, run: Callable[..., Any], arrays: Sequence[Any], *options: Any) -> Any:
    """Call ``run(engine, *arrays, *options)`` with arrays of the engine, on the caller's stream."""
    engine = cupy_gpu.engine() if engine is None else engine
    tensors = [array for array in arrays if _is_torch(array)]
    with _stream(engine, tensors):
        result = run(engine, *(_own(engine.xp, array) for array in arrays), *options)
        if not tensors:
            return result
        from torch.utils.dlpack import from_dlpack

        return from_dlpack(result)


def _is_torch(array: Any) -> bool:
    return type(array).__module__.split(".")[0] == "torch"


def _stream(engine: Engine, tensors: Sequence[Any]) -> contextlib.AbstractContextManager[Any]:
    """The current stream of torch where a tensor comes, on an engine that has streams."""
    stream_of = getattr(engine, "stream_of", None)
    return stream_of(tensors[0]) if tensors and stream_of and tensors[0].is_cuda else contextlib.nullcontext()


def _own(xp: Any, array: Any) -> Any:
    """An array of the engine on the same memory."""
    if _is_torch(array) and array.is_cuda == (xp is not np):
        array = xp.from_dlpack(array.detach())
    if not isinstance(array, xp.ndarray):
        where = getattr(array, "device", type(array).__module__)
        raise TypeError(
            f"got a {type(array).__name__} of {where}, expected an array of {xp.__name__} or a torch "
            "tensor on the same device; move it there first, with cupy.asarray or .cuda()"
        )
    return xp.ascontiguousarray(array)


def _variant(codes: Any, rounding: Rounding) -> dict[str, int]:
    require_rounding(rounding)
    return {"X_SIGNED": int(require_codes(codes, "the kernel")), "FLOOR": int(rounding == "floor")}


def _start(kernel: Kernel, grid: int, threads: int, *args: Any) -> None:
    if grid:  # nothing to do where an array is empty
        Launch(kernel, grid, threads, args)()
