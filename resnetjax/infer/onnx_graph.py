"""ONNX nodes, constants and files: what a writer of graphs needs, and nothing about nets."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from resnetjax import __version__
from resnetjax.errors import MissingExtra, UnsupportedFile

OPSET = 17
_IR_VERSION = 8  # that of ONNX 1.12, the first with opset 17: older runtimes read it too
_MAX_BYTES = 2**31 - 1  # protobuf's


class Graph:
    """Nodes in the order of computation; each has one output, which has the node's name.

    Raises:
        MissingExtra: The package `onnx` is not installed.
    """

    def __init__(self) -> None:
        self._onnx = import_onnx()
        self._nodes: list[Any] = []
        self._constants: dict[str, Any] = {}

    def node(self, operator: str, *inputs: str, name: str, **attributes: Any) -> str:
        """Adds a node; its name, which is its output's."""
        made = self._onnx.helper.make_node(operator, inputs, [name], name=name, **attributes)
        self._nodes.append(made)
        return name

    def constant(self, name: str, value: Any, dtype: Any = np.float32) -> str:
        """Adds an array, once; its name."""
        if name not in self._constants:
            array = np.ascontiguousarray(value, dtype)
            self._constants[name] = self._onnx.numpy_helper.from_array(array, name)
        return name

    def serialize(
        self,
        *,
        inputs: tuple[str, Any, tuple[str | int, ...]],
        outputs: tuple[str, Any, tuple[str | int, ...]],
        metadata: Mapping[str, str],
    ) -> bytes:
        """The file's content.

        Args:
            inputs: Name, NumPy dtype and shape of the only input; text is a symbolic size.
            outputs: The same of the only output.
            metadata: The file's `metadata_props`.

        Raises:
            UnsupportedFile: It would be larger than an ONNX file may be.
        """
        helper = self._onnx.helper
        size = sum(len(array.raw_data) for array in self._constants.values())
        if size > _MAX_BYTES - 2**24:  # the nodes and their names need far less
            raise UnsupportedFile(
                f"an ONNX file holds at most 2 GiB, and the weights are {size:,} bytes"
            )

        def value(name: str, dtype: Any, shape: tuple[str | int, ...]) -> Any:
            kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
            return helper.make_tensor_value_info(name, kind, shape)

        graph = helper.make_graph(
            self._nodes,
            "resnetjax",
            [value(*inputs)],
            [value(*outputs)],
            [*self._constants.values()],
        )
        model = helper.make_model(
            graph,
            producer_name="resnetjax",
            producer_version=__version__,
            ir_version=_IR_VERSION,
            opset_imports=[helper.make_opsetid("", OPSET)],
        )
        helper.set_model_props(model, dict(metadata))
        return model.SerializeToString()


def import_onnx() -> Any:
    """The package `onnx`.

    Raises:
        MissingExtra: It is not installed.
    """
    try:
        import onnx.helper
        import onnx.numpy_helper
    except ImportError as error:
        raise MissingExtra('ONNX needs onnx: pip install "resnetjax[onnx]"') from error
    return onnx
