"""State dicts that we write are read back, here by our own reader; torch's reads them in parity."""

import pickle

import numpy as np
import pytest

from resnetjax.errors import UnsupportedFile
from resnetjax.weights import torch_file
from resnetjax.weights.torch_writer import encode

ARRAYS = {
    "conv1.weight": np.arange(2 * 3 * 5 * 7, dtype=np.float32).reshape(2, 3, 5, 7),
    "fc.weight": np.linspace(-1, 1, 300, dtype=np.float32).reshape(300, 1),
    "bn1.num_batches_tracked": np.zeros((), np.int64),
    "empty": np.empty((0, 4), np.float32),
    "ä": np.array([np.nan, np.inf, -0.0], np.float32),
}


def test_every_array_comes_back_bit_for_bit_in_its_order():
    found = torch_file.parse(memoryview(encode(ARRAYS)), "torch-zip")
    assert list(found) == list(ARRAYS)
    for name, array in ARRAYS.items():
        assert found[name].dtype == array.dtype
        assert found[name].shape == array.shape
        assert found[name].tobytes() == array.tobytes()


def test_strides_are_those_of_a_contiguous_array():
    turned = np.arange(12, dtype=np.float32).reshape(3, 4).T
    found = torch_file.parse(memoryview(encode({"x": turned})), "torch-zip")
    np.testing.assert_array_equal(found["x"], turned)


def test_equal_arrays_give_equal_bytes():
    assert encode(ARRAYS) == encode(dict(ARRAYS))


def test_other_dtypes_are_refused_by_name():
    with pytest.raises(UnsupportedFile, match="float16"):
        encode({"x": np.zeros(2, np.float16)})


def test_the_pickle_asks_for_nothing_but_tensors():
    import pickletools
    import zipfile
    from io import BytesIO

    with zipfile.ZipFile(BytesIO(encode(ARRAYS))) as archive:
        content = archive.read("archive/data.pkl")
    asked = {
        argument for opcode, argument, _ in pickletools.genops(content) if opcode.name == "GLOBAL"
    }
    assert asked == {
        "collections OrderedDict",
        "torch FloatStorage",
        "torch LongStorage",
        "torch._utils _rebuild_tensor_v2",
    }
    with pytest.raises((pickle.UnpicklingError, ModuleNotFoundError)):
        pickle.loads(content)  # as it stands: storages are elsewhere
