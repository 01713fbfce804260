"""Files in the layouts that Keras 1.2, 2.4, 2.13, 2.15 and 3.15 write, compared with h5py."""

import io
import json
import zipfile

import h5py
import numpy as np
import pytest

from resnetjax.errors import CorruptFile, ResNetJAXError, UnsafeWeights, UnsupportedFile
from resnetjax.weights import keras_file
from tests.weights.bounds import within

RNG = np.random.default_rng(0)
NORM = ("gamma", "beta", "moving_mean", "moving_variance")


def values(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def conv(inputs=3, outputs=4) -> dict[str, np.ndarray]:
    return {"kernel": values(3, 3, inputs, outputs), "bias": values(outputs)}


def norm(*, only=NORM) -> dict[str, np.ndarray]:
    return {name: values(4) for name in only}


# As in a model: by layer, and not alphabetically; input and activations have no variables.
LAYERS = {
    "input_1": {},
    "stem_conv": conv(),
    "stem_bn": norm(),
    "stem_relu": {},
    "block_conv": conv(4),
    "block_bn": norm(),
    "predictions": {"kernel": values(4, 5), "bias": values(5)},
}
CLASSES = {"conv": "Conv2D", "bn": "BatchNormalization", "relu": "ReLU", "predictions": "Dense"}


def layer_config(name: str, layers: dict | None = None, **settings) -> dict:
    if layers is not None:
        settings["layers"] = [layer_config(key) for key in layers]
    kind = CLASSES.get(name.rpartition("_")[2], "InputLayer")
    kind = "Functional" if layers is not None else kind
    return {"class_name": kind, "config": {"name": name, **settings}}


CONFIG = layer_config("model", LAYERS)


def flat(layers: dict[str, dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {f"{layer}/{name}": x for layer, held in layers.items() for name, x in held.items()}


def legacy_bytes(layers, *, full=False, suffix=":0", spell="{layer}/{name}", split=None) -> bytes:
    """The legacy layout: Keras 2.4 and 2.15 (suffix `:0`, bytes), Keras 3.15 (none, text).

    Args:
        layers: The variables of every layer.
        full: Whether it is a whole model, with its configuration and its optimizer's state.
        suffix: Behind every name of a variable.
        spell: What the name of a variable is made of.
        split: How many names an attribute may hold.
    """

    def put(group, attribute, names):
        names = names if suffix == "" else np.array([name.encode() for name in names])
        if split is None or len(names) <= split:
            group.attrs[attribute] = names
            return
        for i in range(0, len(names), split):
            group.attrs[f"{attribute}{i // split}"] = names[i : i + split]

    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        group = file
        if full:
            group = file.create_group("model_weights")
            file.attrs["model_config"] = json.dumps(CONFIG)
            file["optimizer_weights/adam/m"] = values(3)
        for place in {file, group}:
            place.attrs["keras_version"] = b"2.4.0"
            place.attrs["backend"] = b"tensorflow"
        put(group, "layer_names", list(layers))
        for layer, held in layers.items():
            names = {key: spell.format(layer=layer, name=key) + suffix for key in held}
            inner = group.create_group(layer)
            put(inner, "weight_names", list(names.values()))
            for key, name in names.items():
                inner[name] = held[key]
    return buffer.getvalue()


def numbered_bytes(
    layers, *, names=True, container="layers", step=1, labels=None, state=True
) -> bytes:
    """The layout of `.weights.h5`: Keras 3.15, tf_keras 2.15 (no names), Keras 2.13.

    Args:
        layers: The variables of every layer; or, for a model within the model, a dict of layers.
        names: Whether every `vars` has its layer's name.
        container: What the group of all layers is called.
        step: How far the numbers of groups are apart: 2 in Keras 2.13.
        labels: The class, in a group's name, by the last word of a layer's name.
        state: Whether there is an optimizer's state, and that of a metric.
    """
    labels = labels or {"conv": "conv2d", "bn": "batch_normalization", "relu": "re_lu"}

    def save(group, held, name):
        model = any(isinstance(x, dict) for x in held.values())
        variables = group.create_group("vars")
        if names and name:
            variables.attrs["name"] = name
        if not model:
            for i, x in enumerate(held.values()):
                variables[str(i)] = x
            return
        counts: dict[str, int] = {}
        for layer, inner in held.items():
            last = layer.rpartition("_")[2]
            label = labels.get(last, "dense" if last == "predictions" else "input_layer")
            if any(isinstance(x, dict) for x in inner.values()):
                label = "functional"
            number = counts[label] = counts.get(label, -step) + step
            label = f"{label}_{number}" if number else label
            save(group.create_group(f"{container}/{label}"), inner, layer)

    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        save(file, layers, "model")
        if state:
            file["optimizer/vars/0"] = 3
            file["metrics/mean/vars/0"] = 3.0
    return buffer.getvalue()


def archive_bytes(weights: bytes, *, config=CONFIG, compression=zipfile.ZIP_STORED) -> bytes:
    """A `.keras` file, its members in the order in which Keras writes them."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        archive.writestr("metadata.json", json.dumps({"keras_version": "3.15.1"}))
        archive.writestr("config.json", json.dumps(config))
        archive.writestr("model.weights.h5", weights)
    return buffer.getvalue()


def parse(content: bytes) -> keras_file.KerasFile:
    assert keras_file.detect(memoryview(content))
    return keras_file.parse(memoryview(content))


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    """Same names in the same order, same bits."""
    assert list(found) == list(expected)
    for name, array in found.items():
        assert array.tobytes() == expected[name].tobytes(), name
        assert array.shape == expected[name].shape


@pytest.mark.parametrize("full", [False, True], ids=["weights", "model"])
@pytest.mark.parametrize("suffix", [":0", ""], ids=["keras-2", "keras-3"])
@pytest.mark.parametrize("split", [None, 2], ids=["whole", "split"])
def test_f09_the_legacy_layout_is_read(full, suffix, split):
    arrays, metadata = parse(legacy_bytes(LAYERS, full=full, suffix=suffix, split=split))
    assert_same(arrays, flat(LAYERS))
    expected = {
        "container": "keras-h5",
        "names": "given",
        "keras_version": "2.4.0",
        "backend": "tensorflow",
    }
    assert metadata == (expected | {"model_config": CONFIG} if full else expected)


@pytest.mark.parametrize("suffix", [":0", "_1:0", ""])
def test_the_spelling_of_keras_1_is_todays(suffix):
    old = {"kernel": "W", "bias": "b", "moving_mean": "running_mean"}
    old["moving_variance"] = "running_std"
    layers = {
        layer: {old.get(name, name): x for name, x in held.items()}
        for layer, held in LAYERS.items()
    }
    content = legacy_bytes(layers, suffix=suffix, spell="{layer}_{name}")
    assert_same(parse(content).arrays, flat(LAYERS))


@pytest.mark.parametrize("spell", ["{layer}_1/{name}", "model/{layer}/{name}", "{layer}/{name}_2"])
def test_names_made_unique_in_a_session_are_the_layers(spell):
    assert_same(parse(legacy_bytes(LAYERS, spell=spell)).arrays, flat(LAYERS))


def test_a_layer_may_have_a_slash_in_its_name():
    layers = {"stem/conv": conv(), "stem/bn": norm()}
    assert_same(parse(legacy_bytes(layers)).arrays, flat(layers))


def test_a_depthwise_kernel_is_called_so_where_the_configuration_tells():
    # Keras 3 calls it kernel.
    config = layer_config("stem_conv") | {"class_name": "DepthwiseConv2D"}
    content = legacy_bytes({"stem_conv": conv()}, suffix="", full=True)
    with h5py.File(buffer := io.BytesIO(content), "r+") as file:
        file.attrs["model_config"] = json.dumps({"config": {"layers": [config]}})
    names = ["stem_conv/depthwise_kernel", "stem_conv/bias"]
    assert list(parse(buffer.getvalue()).arrays) == names


def nested_legacy_bytes(**models) -> bytes:
    """Models within the model: what is trained of all their layers comes first."""
    layers = {}
    for model, held in models.items():
        names = sorted(flat(held), key=lambda name: "moving" in name)
        layers[model] = {name: flat(held)[name] for name in names}
    return legacy_bytes(layers | {"head": {"head/kernel": values(5, 2)}}, spell="{name}")


def test_layers_of_a_model_within_the_model_keep_their_names():
    arrays = parse(nested_legacy_bytes(backbone=LAYERS)).arrays
    head = arrays.pop("head/kernel")
    assert head.shape == (5, 2)
    assert_same(arrays, flat(LAYERS))


def test_layers_of_one_name_in_two_models_are_told_apart_by_them():
    other = {"stem_conv": conv(), "other_bn": norm()}
    arrays = parse(nested_legacy_bytes(left=LAYERS, right=other)).arrays
    assert "left/stem_conv/kernel" in arrays
    assert "stem_bn/gamma" in arrays
    assert "other_bn/gamma" in arrays
    np.testing.assert_array_equal(arrays["right/stem_conv/bias"], other["stem_conv"]["bias"])


def by_class(layers) -> dict[str, np.ndarray]:
    order = ["stem_bn", "block_bn", "stem_conv", "block_conv", "predictions"]
    return flat({layer: layers[layer] for layer in order})


def test_f09_the_names_within_a_weights_h5_of_keras_3_are_used():
    arrays, metadata = parse(numbered_bytes(LAYERS))
    assert metadata == {"container": "keras-weights-h5", "names": "given"}
    assert_same(arrays, by_class(LAYERS))


@pytest.mark.parametrize(
    ("container", "step"), [("layers", 1), ("_layer_checkpoint_dependencies", 2)]
)
def test_f09_a_weights_h5_without_names_is_read_in_the_order_of_its_groups(container, step):
    layers = {f"x{i}_{kind}": held for i in range(12) for kind, held in (
        ("conv", conv()), ("bn", norm())
    )}  # fmt: skip
    content = numbered_bytes(layers, names=False, container=container, step=step)
    arrays, metadata = parse(content)
    assert metadata["names"] == "order"
    numbers = ["", *(f"_{i * step}" for i in range(1, 12))]
    expected = {
        f"batch_normalization{number}": layers[f"x{i}_bn"] for i, number in enumerate(numbers)
    }
    expected |= {f"conv2d{number}": layers[f"x{i}_conv"] for i, number in enumerate(numbers)}
    assert_same(arrays, flat(expected))


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"names": False},
        {"names": False, "container": "_layer_checkpoint_dependencies", "step": 2},
    ],
    ids=["keras-3", "tf-keras", "keras-2.13"],
)
def test_f09_a_keras_archive_is_read_in_the_order_of_its_configuration(options, compression):
    arrays, metadata = parse(
        archive_bytes(numbered_bytes(LAYERS, **options), compression=compression)
    )
    assert_same(arrays, flat(LAYERS))
    assert metadata == {
        "container": "keras-zip",
        "keras_version": "3.15.1",
        "model_config": CONFIG,
        "names": "given",
    }


def test_a_configuration_of_other_layers_gives_no_names():
    fewer = {name: held for name, held in LAYERS.items() if name != "block_conv"}
    config = layer_config("model", fewer)
    content = archive_bytes(numbered_bytes(LAYERS, names=False), config=config)
    arrays, metadata = parse(content)
    assert metadata["names"] == "order"
    assert {"conv2d/kernel", "conv2d_1/kernel", "batch_normalization/gamma"} <= arrays.keys()


@pytest.mark.parametrize("names", [True, False])
def test_a_model_within_an_archive_is_flattened(names):
    outer = {"input_2": {}, "net_model": LAYERS, "predictions": {"kernel": values(5, 2)}}
    config = layer_config("outer", outer)
    config["config"]["layers"][1] = layer_config("net_model", LAYERS)
    arrays = parse(archive_bytes(numbered_bytes(outer, names=names), config=config)).arrays
    np.testing.assert_array_equal(arrays["predictions/kernel"], outer["predictions"]["kernel"])
    inner = {name.removeprefix("net_model/"): x for name, x in arrays.items()}
    assert arrays["net_model/predictions/kernel"].shape == (4, 5)
    assert_same(
        {name: inner[name] for name in flat(LAYERS) if not name.startswith("predictions/k")},
        {name: x for name, x in flat(LAYERS).items() if not name.startswith("predictions/k")},
    )


@pytest.mark.parametrize(
    ("label", "shapes", "expected"),
    [
        ("conv2d", [(3, 3, 3, 4)], ["kernel"]),
        ("dense", [(3, 4), (4,)], ["kernel", "bias"]),
        ("depthwise_conv2d", [(3, 3, 4, 1), (4,)], ["depthwise_kernel", "bias"]),
        ("separable_conv2d", [(3, 3, 4, 1), (1, 1, 4, 2), (2,)],
         ["depthwise_kernel", "pointwise_kernel", "bias"]),
        ("group_normalization", [(4,), (4,)], ["gamma", "beta"]),
        ("batch_normalization", [(4,), (4,)], ["moving_mean", "moving_variance"]),
        ("batch_normalization", [(4,)] * 4, list(NORM)),
        ("batch_normalization", [(4,)] * 3, ["0", "1", "2"]),
        ("something_else", [(3, 4), (3, 4), (4,)], ["0", "1", "2"]),
    ],
)  # fmt: skip
def test_numbered_variables_are_named_by_their_shapes(label, shapes, expected):
    layers = {"x_layer": {str(i): values(*shape) for i, shape in enumerate(shapes)}}
    arrays = parse(numbered_bytes(layers, labels={"layer": label})).arrays
    assert_same(arrays, {f"x_layer/{name}": x for name, x in zip(
        expected, layers["x_layer"].values(), strict=True
    )})  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "expected"),
    [({"scale": False}, NORM[1:]), ({"center": False}, (NORM[0], *NORM[2:]))],
)
def test_a_norm_of_three_vectors_is_told_by_its_configuration(settings, expected):
    layers = {"x_bn": norm(only=expected)}
    config = layer_config("model", layers)
    config["config"]["layers"] = [layer_config("x_bn", **settings)]
    arrays = parse(archive_bytes(numbered_bytes(layers), config=config)).arrays
    assert_same(arrays, flat(layers))


def test_the_state_of_random_numbers_is_no_weight():
    content = numbered_bytes({"x_conv": conv()})
    with h5py.File(buffer := io.BytesIO(content), "r+") as file:
        file["layers/dropout/seed_generator/vars/0"] = np.zeros(2, np.uint32)
    assert list(parse(buffer.getvalue()).arrays) == ["x_conv/kernel", "x_conv/bias"]


def test_the_optimizer_is_not_read():
    content = legacy_bytes(LAYERS, full=True)
    with h5py.File(buffer := io.BytesIO(content), "r+") as file:
        del file["optimizer_weights"]
        file["optimizer_weights"] = h5py.ExternalLink("elsewhere.h5", "/")
    assert_same(parse(buffer.getvalue()).arrays, flat(LAYERS))


def edited(content: bytes, change) -> bytes:
    with h5py.File(buffer := io.BytesIO(content), "r+") as file:
        change(file)
    return buffer.getvalue()


def link_layer(file):
    del file["stem_conv"]
    file["stem_conv"] = h5py.ExternalLink("elsewhere.h5", "/x")


def lengthen(file):
    del file["stem_conv"].attrs["weight_names"]
    file["stem_conv"].attrs["weight_names"] = np.full(3000, b"stem_conv/kernel:0")
    file.attrs["layer_names"] = np.full(6000, b"stem_conv")


def name_at_length(file):
    for i in range(100):
        file[f"layers/conv2d/vars/{i + 2}"] = np.zeros(3, np.float32)
    file["layers/conv2d/vars"].attrs["name"] = "x" * 2**23  # in the name of 102 arrays


LEGACY, NUMBERED = legacy_bytes(LAYERS), numbered_bytes(LAYERS)
MALICIOUS = {
    "layer-in-another-file": (lambda: edited(LEGACY, link_layer), UnsafeWeights),
    "names-without-end": (lambda: edited(LEGACY, lengthen), CorruptFile),
    "name-of-great-length": (lambda: edited(NUMBERED, name_at_length), CorruptFile),
    "configuration-nested-deeply": (
        lambda: edited(
            LEGACY,
            lambda file: file.attrs.update(
                model_config='{"config":{"layers":[' * 200 + "]}}" * 200
            ),
        ),
        CorruptFile,
    ),
    "configuration-too-long": (
        lambda: edited(
            LEGACY, lambda file: file.attrs.update(model_config='{"a":[' + "0," * 2**21)
        ),
        CorruptFile,
    ),
    # Within what the archive may inflate to, and again within what its arrays may.
    "archive-bomb-of-bombs": (
        lambda: archive_bytes(
            edited(
                NUMBERED,
                lambda file: [
                    file.create_dataset("layers/dense_1/vars/0", data=np.zeros(2**23, np.float32)),
                    file.create_dataset(
                        "layers/dense_2/vars/0",
                        data=np.zeros(2**23, np.float32),
                        chunks=(2**20,),
                        compression="gzip",
                    ),
                ],
            ),
            compression=zipfile.ZIP_DEFLATED,
        ),
        UnsafeWeights,
    ),
    "archive-whose-weights-are-none": (
        lambda: archive_bytes(b"\x89HDF\r\n\x1a\n" * 9),
        ResNetJAXError,
    ),
    "archive-whose-weights-are-text": (lambda: archive_bytes(b"hello" * 20), ResNetJAXError),
}


@pytest.mark.parametrize("name", MALICIOUS)
def test_a_malicious_file_is_refused_within_a_second(name):
    make, error = MALICIOUS[name]
    content = make()
    if content[:4] == b"\x89HDF":  # the control: h5py sees nothing wrong
        with h5py.File(io.BytesIO(content)) as file:
            assert len(file) + len(file.attrs)
    with within(seconds=1), pytest.raises(error):
        parse(content)


def drop(*path, attribute=None):
    def change(file):
        if attribute is not None:
            del file["/".join(path) or "/"].attrs[attribute]
        else:
            del file["/".join(path)]

    return change


def test_any_other_hdf5_file_is_a_tree_of_arrays():
    written = io.BytesIO()
    with h5py.File(written, "w") as file:
        file["layer1/block0/conv1/weight"] = np.arange(6, dtype=np.float32)
        file["fc/bias"] = np.ones(2, np.float32)
        file.create_group("empty")
    arrays, metadata = parse(written.getvalue())
    assert {name: array.tolist() for name, array in arrays.items()} == {
        "fc/bias": [1, 1],
        "layer1/block0/conv1/weight": [0, 1, 2, 3, 4, 5],
    }
    assert metadata["container"] == "hdf5"


def test_groups_within_groups_without_end_are_refused():
    written = io.BytesIO()
    with h5py.File(written, "w") as file:
        file["/".join("a" * 52)] = np.ones(2, np.float32)
    with pytest.raises(CorruptFile, match="nests its groups too deeply"):
        parse(written.getvalue())


@pytest.mark.parametrize(
    ("content", "error", "words"),
    [
        (edited(LEGACY, drop("stem_conv")), CorruptFile, "no '/stem_conv'"),
        (edited(LEGACY, drop("stem_conv", "stem_conv", "bias:0")), CorruptFile, "bias:0"),
        (edited(LEGACY, drop("stem_conv", attribute="weight_names")), CorruptFile, "weight_names"),
        (edited(NUMBERED, drop("layers", "conv2d", "vars", "0")), CorruptFile, "lacks variables"),
        (edited(NUMBERED, drop("layers")), UnsupportedFile, "no weights"),
        (legacy_bytes({}), UnsupportedFile, "no weights"),
        (edited(LEGACY, lambda file: file.attrs.update(layer_names=[1, 2])), CorruptFile, "text"),
        (
            edited(LEGACY, lambda file: file.attrs.update(layer_names=["stem_bn"] * 2)),
            CorruptFile,
            "lists 'stem_bn' twice",
        ),
        (edited(LEGACY, lambda file: file.attrs.update(model_config="[]")), CorruptFile, "JSON"),
        (archive_bytes(NUMBERED, config=[]), CorruptFile, "config.json is not a JSON object"),
        (
            archive_bytes(NUMBERED).replace(b"model.w", b"medal.w"),
            CorruptFile,
            "no member 'model.w",
        ),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_what_is_wrong_is_named(content, error, words):
    with pytest.raises(error, match=words):
        parse(content)


@pytest.mark.parametrize(
    "content", [b"", b"PK\3\4", b"PK\3\4" + bytes(40), b"hello", b"\x89PNG\r\n\x1a\n"]
)
def test_other_files_are_not_taken_for_keras(content):
    assert not keras_file.detect(memoryview(content))


def test_an_archive_repacked_in_another_order_is_found():
    with zipfile.ZipFile(buffer := io.BytesIO(), "w") as archive:
        archive.writestr("assets/x", "")
        archive.writestr("model.weights.h5", NUMBERED)
        archive.writestr("config.json", json.dumps(CONFIG))
    assert_same(parse(buffer.getvalue()).arrays, flat(LAYERS))


def test_a_real_file_of_keras_2_is_read(shared_weights):
    path = shared_weights / "mlperf-tiny-resnet8.h5"
    if not path.exists():
        pytest.skip(f"{path} is absent")
    arrays, metadata = parse(path.read_bytes())
    assert sum(array.size for array in arrays.values()) == 78_666
    assert metadata["keras_version"] == "2.4.0"
    assert metadata["model_config"]["class_name"] == "Functional"
    with h5py.File(path) as file:
        weights = file["model_weights"]
        expected = {
            name.decode().removesuffix(":0"): weights[layer][name][()]
            for layer in weights.attrs["layer_names"]
            for name in weights[layer].attrs["weight_names"]
        }
    assert_same(arrays, expected)
