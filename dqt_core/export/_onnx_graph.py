"""Writing ONNX files: the one place that imports onnx, and only when a file is written."""

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import ArrayLike

from dqt_core._extras import needed
from dqt_core.program import MaxPool, Program
from dqt_core.program.operations import Shape, out_shape

if TYPE_CHECKING:
    from onnx import GraphProto, NodeProto, TensorProto, ValueInfoProto

OPSET, IR_VERSION = 17, 8


class Writer:
    """The nodes and constants of a graph under construction; its methods return the name of a value.

    Parameters
    ----------
    taken : collection of str
        Names that are somebody else's.
    """

    def __init__(self, taken: Collection[str] = ()) -> None:
        with needed("exporting", "export"):
            import onnx  # noqa: F401
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []
        self._taken = frozenset(taken)
        self._numbers, self._constants = itertools.count(), itertools.count()

    def constant(self, values: ArrayLike, dtype: Any) -> str:
        """An array stored in the file."""
        from onnx import numpy_helper

        name = self._own("constant", self._constants)
        self.constants.append(numpy_helper.from_array(np.asarray(values, dtype).copy(order="C"), name))
        return name

    def add(self, kind: str, *inputs: str, out: str = "", **attributes: Any) -> str:
        """The first result of an operator, under a name of its own unless `out` is given."""
        return self.add_all(kind, inputs, [out or self._own(kind, self._numbers)], **attributes)[0]

    def _own(self, stem: str, numbers: Iterator[int]) -> str:
        """The next name that is nobody else's."""
        return next(name for number in numbers if (name := f"{stem}{number}") not in self._taken)

    def add_all(self, kind: str, inputs: tuple[str, ...], outs: list[str], **attributes: Any) -> list[str]:
        """The results of an operator that has several."""
        from onnx import helper

        self.nodes.append(helper.make_node(kind, inputs, outs, f"node of {outs[0]}", **attributes))
        return outs

    def cast(self, x: str, dtype: Any) -> str:
        """The same numbers in another type."""
        return self.add("Cast", x, to=element_type(dtype))


def element_type(dtype: Any) -> int:
    """ONNX's number of a NumPy type."""
    from onnx import helper

    return cast(int, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))


def value(name: str, dtype: Any, shape: tuple[int | str, ...]) -> "ValueInfoProto":
    """An input or output of a graph."""
    from onnx import helper

    return helper.make_tensor_value_info(name, element_type(dtype), shape)


def window(kernel: Sequence[int], stride: int, padding: int) -> dict[str, Any]:
    """Attributes of a convolution or a pool."""
    return {"kernel_shape": list(kernel), "strides": [stride] * 2, "pads": [padding] * 4}


def pool_window(op: MaxPool, x: Shape) -> dict[str, Any]:
    """Attributes of a max-pool of a value (H, W, C); a last window that `ceil` adds ends in padding."""
    made = window([op.kernel] * 2, op.stride, op.padding)
    for axis, count in enumerate(out_shape(op, x)[:2]):
        more = (count - 1) * op.stride + op.kernel - x[axis] - 2 * op.padding
        made["pads"][2 + axis] += max(0, more)
    return made


def graph(
    name: str, nodes: list["NodeProto"], inputs: Any, outputs: Any, constants: Any = ()
) -> "GraphProto":
    """A graph of nodes."""
    from onnx import helper

    return helper.make_graph(nodes, name, inputs, outputs, constants)


def save(
    whole: "GraphProto", program: Program, path: str | Path, domains: Mapping[str, int] | None = None
) -> Path:
    """Check a graph against ONNX's specification and write it; equal graphs make equal files.

    `domains` are those of operators that are not ONNX's own, with their versions.
    """
    from onnx import checker, helper

    versions = {"": OPSET} | dict(domains or {})
    opsets = [helper.make_opsetid(domain, version) for domain, version in versions.items()]
    model = helper.make_model(whole, ir_version=IR_VERSION, opset_imports=opsets)
    model.producer_name = "dqt_core"
    helper.set_model_props(model, {"program": program.name, "digest": program.digest})
    checker.check_model(model, full_check=True)
    path = Path(path)
    path.write_bytes(model.SerializeToString(deterministic=True))
    return path
