"""One array of a net dropped, added, renamed, transposed or recast: an error says which.

Every dialect, every array. What no reader can see is said where it is tested: arrays of one shape
that changed places, and a transposition that leaves the shape as it was.
"""

import functools

import numpy as np
import pytest

from resnetjax.config import ResNetConfig
from resnetjax.errors import UnsupportedFile, WeightsMismatch
from resnetjax.measure import leaves
from resnetjax.plan import plan
from resnetjax.weights.arrays import load_arrays, save_arrays
from resnetjax.weights.detect import detect
from resnetjax.weights.dialect import base_config, entries
from resnetjax.weights.dialects import DIALECTS, get

# What a dialect has beyond its plainest net, so that each of its rules is tried.
MORE = {
    "resnetjax": {"stem": "deep", "shortcut": "avg_conv", "attention": "se", "conv_bias": "all"},
    "timm": {"stem": "deep", "shortcut": "avg_conv", "attention": "se"},
    "timm_v2": {"stem": "tiered", "shortcut": "avg_conv"},
    "akamaster": {"shortcut": "conv"},
    "keras_order": {"conv_bias": "all"},
}
DEPTHS, WIDTHS = (1, 1), (32, 64)


@functools.cache
def net(dialect: str) -> ResNetConfig:
    fields = {"num_classes": 5, "stem_width": 32, **MORE.get(dialect, {})}
    return base_config(get(dialect), DEPTHS, WIDTHS).replace(**fields)


@functools.cache
def file_of(dialect: str) -> dict[str, np.ndarray]:
    """The arrays of a net as the dialect writes them, no two alike."""
    rng = np.random.default_rng(0)
    expected = leaves(plan(net(dialect)))
    ours = {path: rng.standard_normal(leaf.shape, np.float32) for path, leaf in expected.items()}
    return save_arrays(get(dialect), ours, net(dialect))


def weights(arrays: dict[str, np.ndarray]) -> list[str]:
    return [name for name in arrays if not name.endswith("num_batches_tracked")]


def problems(dialect: str, arrays: dict[str, np.ndarray]) -> list[list[str]]:
    """The kind and the subject of each line that an error lists, the array's name last."""
    with pytest.raises(WeightsMismatch) as caught:
        load_arrays(get(dialect), arrays, net(dialect), source="x")
    lines = str(caught.value).splitlines()[1:]
    return [line.split()[:2] for line in lines if line.startswith("  ")]


def shown(dialect: str, name: str) -> str:
    """An array's name as errors spell it: without the prefixes that all have."""
    scope = get(dialect).scope
    return (name.partition("/")[2] if scope else name).removeprefix(get(dialect).root)


# By their order alone: a layer that is gone renumbers those behind it, which then do not fit.
NUMBERED = [name for name, dialect in DIALECTS.items() if dialect.numbered]
NAMED = [name for name in DIALECTS if name not in NUMBERED]


@pytest.mark.parametrize("dialect", DIALECTS)
def test_the_file_itself_loads_whole(dialect):
    loaded, skipped = load_arrays(get(dialect), file_of(dialect), net(dialect), source="x")
    assert loaded.keys() == leaves(plan(net(dialect))).keys()
    assert skipped == ()


@pytest.mark.parametrize("dialect", NAMED)
def test_a_dropped_array_is_missing(dialect):
    arrays = file_of(dialect)
    for name in weights(arrays):
        rest = {other: array for other, array in arrays.items() if other != name}
        assert problems(dialect, rest) == [["missing", shown(dialect, name)]]


@pytest.mark.parametrize("dialect", NAMED)
def test_a_renamed_array_is_missing_and_unexpected(dialect):
    arrays = file_of(dialect)
    for name in weights(arrays):
        renamed = {(f"{o}_" if o == name else o): array for o, array in arrays.items()}
        missing, unexpected = shown(dialect, name), shown(dialect, f"{name}_")
        assert problems(dialect, renamed) == [["missing", missing], ["unexpected", unexpected]]


@pytest.mark.parametrize("dialect", NUMBERED)
def test_a_dropped_or_renamed_array_of_a_numbered_layer_is_a_mismatch(dialect):
    arrays = file_of(dialect)
    for name in arrays:
        rest = {other: array for other, array in arrays.items() if other != name}
        assert problems(dialect, rest)
        assert problems(dialect, rest | {f"{name}_": arrays[name]})


@pytest.mark.parametrize("dialect", DIALECTS)
def test_an_added_array_is_unexpected(dialect):
    arrays = file_of(dialect)
    for name in weights(arrays):
        module, separator, leaf = name.rpartition(get(dialect).separator)
        added = f"{module}{separator}more_{leaf}"
        ((kind, _),) = problems(dialect, {**arrays, added: arrays[name]})
        assert kind == "unexpected"


@pytest.mark.parametrize("dialect", DIALECTS)
def test_an_array_recast_to_whole_numbers_is_refused_by_its_dtype(dialect):
    arrays = file_of(dialect)
    for name in weights(arrays):
        recast = {**arrays, name: arrays[name].astype(np.int32)}
        ((kind, found),) = problems(dialect, recast)
        assert kind == "dtype"
        assert found == shown(dialect, name) or dialect in NUMBERED


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_recast_to_other_real_numbers_keeps_their_values(dialect):
    arrays = {name: array.astype(np.float16) for name, array in file_of(dialect).items()}
    loaded, skipped = load_arrays(get(dialect), arrays, net(dialect), source="x")
    assert skipped == ()
    saved = save_arrays(get(dialect), loaded, net(dialect))
    for name in weights(arrays):
        np.testing.assert_array_equal(saved[name], arrays[name])


@pytest.mark.parametrize("axes", ["all", "first two"])
@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_transposed_array_is_mis_shaped_unless_it_keeps_its_shape(dialect, axes):
    arrays = file_of(dialect)
    for name in weights(arrays):
        array = arrays[name]
        if array.ndim < 2:
            continue
        turned = array.T if axes == "all" else array.swapaxes(0, 1)
        if turned.shape != array.shape:
            ((kind, found),) = problems(dialect, {**arrays, name: turned})
            assert kind == "shape"
            assert found == shown(dialect, name) or dialect in NUMBERED
        else:  # of equal shapes, no reader knows which is meant: it is loaded, as it is
            loaded, _ = load_arrays(
                get(dialect), {**arrays, name: turned}, net(dialect), source="x"
            )
            saved = save_arrays(get(dialect), loaded, net(dialect))
            np.testing.assert_array_equal(saved[name], turned)


def test_two_arrays_of_one_shape_that_changed_places_are_loaded_so():
    # No name, shape or dtype tells: only a digest or the net's outputs would.
    arrays = file_of("torchvision")
    first, second = "layer2.0.bn1.weight", "layer2.0.bn2.weight"
    swapped = {**arrays, first: arrays[second], second: arrays[first]}
    loaded, skipped = load_arrays(
        get("torchvision"), swapped, net("torchvision"), source="x", strict=True
    )
    assert skipped == ()
    np.testing.assert_array_equal(loaded["stage2_block1/norm1/scale"], arrays[second])


def load(arrays: dict[str, np.ndarray], known: ResNetConfig | None = None) -> dict[str, np.ndarray]:
    """The arrays of the net that they are taken for."""
    found = detect(arrays, source="x", known=known)
    return load_arrays(found.dialect, arrays, found.config, source="x")[0]


@pytest.mark.parametrize(
    "path",
    [
        "head/kernel",
        pytest.param("head/bias", marks=pytest.mark.slow),
        pytest.param("stem/conv1/kernel", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("dialect", DIALECTS)
def test_an_end_of_the_net_that_is_amiss_is_not_taken_for_none(dialect, path):
    arrays = file_of(dialect)
    theirs = entries(get(dialect), net(dialect))[path].name
    name = min((name for name in arrays if name.endswith(theirs)), key=len)  # roots aside
    array = arrays[name]
    faults = [{other: held for other, held in arrays.items() if other != name}]
    faults += [arrays | {name: other} for other in (array.reshape(-1), array[None], array.T)]
    for fault in faults:
        if name in fault and fault[name].shape == array.shape:
            continue  # a vector stays what it is
        for known in (None, net(dialect)):
            with pytest.raises((UnsupportedFile, WeightsMismatch)):
                load(fault, known)


@pytest.mark.slow
@pytest.mark.parametrize("dialect", DIALECTS)
def test_no_fault_makes_a_file_that_is_taken_for_another_net(dialect):
    arrays = file_of(dialect)
    names = weights(arrays)  # looking for a net that fits none takes a tenth of a second and more
    for name in (names[0], names[len(names) // 2], names[-1]):
        array = arrays[name]
        rest = {other: held for other, held in arrays.items() if other != name}
        added, recast = {f"{name}_": array}, {name: array.astype(np.int32)}
        faults = [rest, rest | added, arrays | added, arrays | recast]
        if array.T.shape != array.shape:
            faults.append(arrays | {name: array.T})
        for fault in faults:
            with pytest.raises((UnsupportedFile, WeightsMismatch)):
                load(fault)
