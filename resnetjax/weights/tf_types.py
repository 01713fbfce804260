"""The dtypes and shapes of tensors, as TensorFlow's messages spell them.

tensorflow/core/framework/types.proto and tensor_shape.proto.
"""

from resnetjax.errors import CorruptFile
from resnetjax.weights.mapped import MAX_DIMENSIONS
from resnetjax.weights.protobuf import number_in, read_fields, unique_fields

STRING = 7
DTYPES = {
    1: "float32",
    2: "float64",
    3: "int32",
    4: "uint8",
    5: "int16",
    6: "int8",
    8: "complex64",
    9: "int64",
    10: "bool",
    14: "bfloat16",
    17: "uint16",
    18: "complex128",
    19: "float16",
    22: "uint32",
    23: "uint64",
    24: "float8_e5m2",
    25: "float8_e4m3fn",
}


def parse_shape(message: memoryview, *, what: str) -> list[int]:
    """Returns the lengths in a `TensorShapeProto`; negative ones show as beyond 2^63.

    Raises:
        CorruptFile: The shape is unknown, or has more dimensions than numpy allows.
    """
    shape = []
    for number, dimension in read_fields(message):
        if number != 2 or isinstance(dimension, int) or len(shape) == MAX_DIMENSIONS:
            raise CorruptFile(f"{what} has no shape, or too many dimensions")
        shape.append(number_in(unique_fields(dimension), 1))
    return shape
