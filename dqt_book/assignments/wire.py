"""What goes between the judge and a student's process: frames of JSON, with arrays as bytes.

It runs no code of the other side, as a pickle would. The file is copied into the student's folder and imports
no module of this package.
"""

import base64
import json
import os
import select
import struct
import time

import numpy as np

LARGEST = 256 * 2**20  # bytes of a frame


class ClosedError(Exception):
    """The other side is gone."""


class LateError(Exception):
    """The other side did not answer in time."""


def pack(value):
    """A value as JSON; tensors must have no gradient, or be leaves."""
    if value is None or isinstance(value, bool | float | str):
        return value
    if value is Ellipsis:
        return {"ellipsis": True}
    if isinstance(value, int):
        return {"int": hex(value)}
    if isinstance(value, list | tuple):
        return {type(value).__name__ if type(value) is list else "tuple": [pack(item) for item in value]}
    if isinstance(value, np.ndarray | np.generic):
        array = np.asarray(value)
        if array.dtype.kind not in "biufUS":
            raise TypeError(f"an array of {array.dtype} cannot be judged; expected integers or floats")
        data = base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()
        kind = "scalar" if isinstance(value, np.generic) else "array"
        return {kind: data, "dtype": array.dtype.str, "shape": array.shape}
    if type(value).__module__.partition(".")[0] == "torch" and hasattr(value, "detach"):
        return {"tensor": pack(value.detach().cpu().numpy()), "requires_grad": value.requires_grad}
    raise TypeError(f"a {type(value).__name__} cannot be judged; expected numbers, arrays, tensors or text")


def unpack(packed):
    if not isinstance(packed, dict):
        return packed
    if "ellipsis" in packed:
        return Ellipsis
    if "int" in packed:
        return int(packed["int"], 16)
    if "list" in packed:
        return [unpack(item) for item in packed["list"]]
    if "tuple" in packed:
        return tuple(unpack(item) for item in packed["tuple"])
    if "tensor" in packed:
        import torch

        return torch.from_numpy(unpack(packed["tensor"])).requires_grad_(packed["requires_grad"])
    data = base64.b64decode(packed["array" if "array" in packed else "scalar"])
    array = np.frombuffer(data, np.dtype(packed["dtype"])).reshape(packed["shape"]).copy()
    return array if "array" in packed else array[()]


def send(descriptor, message, until=None):
    """Send a frame; `until` is for a descriptor that does not block, as the other side may never read."""
    data = json.dumps(message).encode()
    data = memoryview(struct.pack(">Q", len(data)) + data)
    while data:
        try:
            data = data[os.write(descriptor, data) :]
        except BlockingIOError:
            _, ready, _ = select.select([], [descriptor], [], max(until - time.monotonic(), 0))
            if not ready:
                raise LateError from None
        except BrokenPipeError:
            raise ClosedError from None


def receive(descriptor, until=None):
    """The next frame; `until` is a time of `time.monotonic`."""
    (size,) = struct.unpack(">Q", _exactly(descriptor, 8, until))
    if size > LARGEST:
        raise ClosedError
    return json.loads(_exactly(descriptor, size, until))


def _exactly(descriptor, size, until):
    parts = []
    while size:
        if until is not None:
            ready, _, _ = select.select([descriptor], [], [], max(until - time.monotonic(), 0))
            if not ready:
                raise LateError
        data = os.read(descriptor, min(size, 2**20))
        if not data:
            raise ClosedError
        parts.append(data)
        size -= len(data)
    return b"".join(parts)
