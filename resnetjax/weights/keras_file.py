"""Keras weight files, of every version, under one spelling of names: `<layer>/<variable>`.

Three layouts: the legacy one (`layer_names` and `weight_names`, keras/src/legacy/saving/
legacy_h5_format.py), that of `.weights.h5` (a group `vars` for every layer, its variables numbered;
keras/src/saving/saving_lib.py), and `.keras`, a zip archive with a file of the second layout beside
the model's configuration. Configurations are data: they name things, and never build objects.

Any other HDF5 file is read as what it is: a tree of groups, whose arrays go by their paths.
"""

import re
import struct
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from resnetjax.errors import CorruptFile, ResNetJAXError, UnsupportedFile
from resnetjax.weights import bounded_json, hdf5_file, keras_config
from resnetjax.weights.hdf5_file import Dataset, Group
from resnetjax.weights.zip_archive import ZipArchive

MAX_DEPTH = 50  # of models within models, and of groups within groups
MAX_LAYERS = 10_000  # of one model, as its configuration counts them
MAX_NAME = 1000

_CONFIG, _METADATA, _WEIGHTS = "config.json", "metadata.json", "model.weights.h5"
_LAYERS = ("layers", "_layer_checkpoint_dependencies")  # the latter in Keras 2.13
# Beside the layers at the top, and within a dropout layer: state of training, not weights.
_TRAINING = ("optimizer", "metrics", "compile_metrics")
_RANDOM_STATE = "seed_generator"

_NORM = ("gamma", "beta", "moving_mean", "moving_variance")
_KNOWN = ("kernel", "bias", "depthwise_kernel", "pointwise_kernel", *_NORM)
# Keras 1 names; what it called a standard deviation is a variance, in TensorFlow and Theano alike
# (keras 1.2, layers/normalization.py).
_OLD = {
    "W": "kernel",
    "b": "bias",
    "running_mean": "moving_mean",
    "running_std": "moving_variance",
}


class KerasFile(NamedTuple):
    """The arrays by `<layer>/<variable>`, in the order of the file's layers, and what is beside.

    Of `metadata`, `container` (keras-h5, keras-weights-h5, keras-zip; hdf5 for any other tree) and
    `names` are always there: `given`, or `order` where the file names no layers, and its groups
    (`conv2d`, `conv2d_1`, ...) only count them by class. `keras_version`, `backend` and
    `model_config` are there where the file has them.
    """

    arrays: dict[str, np.ndarray]
    metadata: dict[str, Any]


class _Variable(NamedTuple):
    """An array not yet read: the models that its layer is in, the layer, its name there."""

    models: tuple[str, ...]
    layer: str
    name: str
    dataset: Dataset


def detect(data: memoryview) -> bool:
    """Returns whether the bytes begin like an HDF5 file, or like an archive of a Keras model."""
    if hdf5_file.detect(data):
        return True
    if data[:4] != b"PK\3\4" or len(data) < 30:
        return False
    (length,) = struct.unpack_from("<H", data, 26)
    # The first name tells even if the file is cut off; the others, if something repacked it.
    if bytes(data[30 : 30 + length]) in (_CONFIG.encode(), _METADATA.encode(), _WEIGHTS.encode()):
        return True
    try:
        return {_CONFIG, _WEIGHTS} <= ZipArchive(data).members.keys()
    except ResNetJAXError:
        return False


def parse(data: memoryview) -> KerasFile:
    """Returns what the bytes of a Keras file hold; arrays that are not compressed are views.

    Raises:
        CorruptFile: The file is truncated, or contradicts itself.
        UnsafeWeights: It refers to other files, describes layers that are code, or asks for memory
            beyond its size.
        UnsupportedFile: It is an HDF5 file without arrays of numbers.
    """
    if not hdf5_file.detect(data):
        return _parse_archive(data)
    root = hdf5_file.parse(data)
    metadata: dict[str, Any] = {"container": "keras-h5"}
    if (config := root.text("model_config")) is not None:
        metadata["model_config"] = bounded_json.loads(config.encode(), what="the model_config")
        keras_config.refuse_code(metadata["model_config"])
    weights = root.group("model_weights") if "model_weights" in root else root
    for key in ("keras_version", "backend"):
        if (text := root.text(key) or weights.text(key)) is not None:
            metadata[key] = text
    if (layers := weights.texts("layer_names")) is not None:
        variables = list(_legacy(weights, layers, metadata.get("model_config")))
        return _read(variables, metadata | {"names": "given"})
    if not {"vars", *_LAYERS} & set(root.names):
        return _read(list(_plain(root, ())), metadata | {"container": "hdf5", "names": "given"})
    variables, names = _numbered(root, None)
    return _read(variables, metadata | {"container": "keras-weights-h5", "names": names})


def _parse_archive(data: memoryview) -> KerasFile:
    archive = ZipArchive(data)
    config = bounded_json.loads(archive.read(_CONFIG), what=_CONFIG)
    keras_config.refuse_code(config)
    metadata: dict[str, Any] = {"container": "keras-zip", "model_config": config}
    if _METADATA in archive.members:
        version = bounded_json.loads(archive.read(_METADATA), what=_METADATA).get("keras_version")
        if type(version) is str:
            metadata["keras_version"] = version
    weights = archive.read(_WEIGHTS)
    inflated_from = len(data) if archive.members[_WEIGHTS].deflated else None
    root = hdf5_file.parse(weights, inflated_from=inflated_from)
    variables, names = _numbered(root, config)
    return _read(variables, metadata | {"names": names})


def _read(variables: list[_Variable], metadata: dict[str, Any]) -> KerasFile:
    if not variables:
        raise UnsupportedFile("the HDF5 file holds no weights")
    layers = dict.fromkeys(variable[:2] for variable in variables)
    occurrences = Counter(layer for _, layer in layers)
    named: dict[str, Dataset] = {}
    # Layer by layer: of a model within the model, Keras lists what it trains first.
    places = {layer: place for place, layer in enumerate(layers)}
    for models, layer, name, dataset in sorted(variables, key=lambda x: places[x[:2]]):
        path = (layer, name) if occurrences[layer] == 1 else (*models, layer, name)
        if sum(map(len, path)) > MAX_NAME:
            raise CorruptFile(f"the Keras file has a name of more than {MAX_NAME:,} characters")
        if (key := "/".join(path)) in named:
            raise CorruptFile(f"the Keras file has {key!r:.80} twice")
        named[key] = dataset
    return KerasFile({key: dataset.read() for key, dataset in named.items()}, metadata)


def _legacy(weights: Group, layers: list[str], config: Any) -> Iterator[_Variable]:
    """Yields the variables of the legacy layout, by `layer_names` and `weight_names`."""
    depthwise = {
        _name(layer) for layer in _all_configs(config) if "Depthwise" in _text(layer, "class_name")
    }
    if "top_level_model_weights" in weights:  # variables of no layer
        layers = [*layers, "top_level_model_weights"]
    for layer in _unique(layers):
        group = weights
        for part in layer.split("/"):  # in HDF5, a slash within a name makes a group
            group = group.group(part)
        names = group.texts("weight_names")
        if names is None:
            raise CorruptFile(f"layer {layer!r:.80} of the Keras file has no weight_names")
        scopes = {tuple(name.split("/")[:-1]) for name in names}
        for name in _unique(names):
            *scope, variable = name.removesuffix(":0").split("/")
            # Keras 1 writes conv1_W_1:0, with no scope. A scope of another name than the layer's
            # is a layer of a model within the model; conv1_1 is conv1, made twice in a session.
            own = not scope or (
                len(scopes) == 1
                and re.search(rf"(\A|/){re.escape(layer)}(_\d+)?\Z", "/".join(scope))
            )
            inner = layer if own else scope[-1]
            variable = _spelling(variable.removeprefix(f"{layer}_"))
            if variable == "kernel" and inner in depthwise:  # as Keras 3 names it
                variable = "depthwise_kernel"
            models = () if own else (layer, *scope[:-1])
            yield _Variable(models, inner, variable, group.dataset(name))


def _plain(group: Group, path: tuple[str, ...]) -> Iterator[_Variable]:
    """Yields every array of a file that Keras did not write, with the path of its group."""
    if len(path) > MAX_DEPTH:
        raise CorruptFile("the HDF5 file nests its groups too deeply")
    for name in group.names:
        member = group[name]
        if isinstance(member, Group):
            yield from _plain(member, (*path, name))
        else:
            yield _Variable((), "/".join(path), name, member)


def _unique(names: list[str]) -> list[str]:
    if len(set(names)) != len(names):
        twice = next(name for name, count in Counter(names).items() if count > 1)
        raise CorruptFile(f"the Keras file lists {twice!r:.80} twice")
    return names


def _spelling(name: str) -> str:
    """Returns today's name of a variable; a number behind it (`W_1`) only made it unique."""
    base = re.sub(r"_\d+\Z", "", name)
    base = _OLD.get(base, base)
    return base if base in _KNOWN else name


class _Layer(NamedTuple):
    """A layer or a model in the `.weights.h5` layout, with the group of its own variables."""

    models: tuple[str, ...]
    label: str
    name: str | None
    variables: Group
    config: Any


def _numbered(root: Group, config: Any) -> tuple[list[_Variable], str]:
    """Returns the variables of the `.weights.h5` layout, and where their layers' names are from."""
    variables, names = [], "given"
    for layer in _saved(root, "", config, ()):
        found = _variables(layer)
        variables += found
        if found and layer.name is None:
            names = "order"
    return variables, names


def _saved(group: Group, label: str, config: Any, models: tuple[str, ...]) -> Iterator[_Layer]:
    """Yields the layer or model that was saved to a group, then what is in it."""
    if group.name.count("/") > MAX_DEPTH:
        raise CorruptFile("the Keras file nests its groups too deeply")
    if "vars" in group:
        variables = group.group("vars")
        name = variables.text("name") or _name(config)
        yield _Layer(models, label, name, variables, config)
        if label:  # of the whole model, the name says nothing
            models = (*models, name or label)
    for child in sorted(group.names, key=_natural):
        if child in ("vars", _RANDOM_STATE) or (not label and child in _TRAINING):
            continue
        if child not in _LAYERS:
            yield from _saved(group.group(child), child, None, models)
            continue
        layers = group.group(child)
        configs = _matched(layers.names, config)
        order = {name: place for place, name in enumerate(configs)}
        for name in sorted(layers.names, key=lambda x: (order.get(x, len(order)), _natural(x))):
            yield from _saved(layers.group(name), name, configs.get(name), models)


def _matched(names: list[str], config: Any) -> dict[str, Any]:
    """Returns the configurations of the layers saved to groups of these names, in their order.

    Keras names the groups by class and counts them in the order of the layers (saving_lib.py,
    `_save_container_state`); Keras 2.13 counts in twos. Empty where a class has
    not as many groups as layers: names of layers would mix with those of groups.
    """
    kinds: dict[str, list[str]] = {}
    for name in sorted(names, key=_natural):
        kinds.setdefault(_natural(name)[0], []).append(name)
    configs = _configs(config)
    counts = Counter(map(_kind, configs))
    if any(len(names) != counts[kind] for kind, names in kinds.items()):
        return {}
    waiting = {kind: iter(names) for kind, names in kinds.items()}
    return {next(waiting[kind]): layer for layer in configs if (kind := _kind(layer)) in waiting}


def _variables(layer: _Layer) -> list[_Variable]:
    keys = sorted(layer.variables.names, key=_natural)
    if all(key.isdecimal() for key in keys) and keys != [str(i) for i in range(len(keys))]:
        raise CorruptFile(f"layer {layer.label!r:.80} of the Keras file lacks variables")
    datasets = [layer.variables.dataset(key) for key in keys]
    kind = _kind(layer.config) or _natural(layer.label)[0]
    names = _roles(kind, layer.config, [len(dataset.shape) for dataset in datasets]) or keys
    return [
        _Variable(layer.models, layer.name or layer.label, name, dataset)
        for name, dataset in zip(names, datasets, strict=True)
    ]


def _roles(kind: str, config: Any, ranks: list[int]) -> tuple[str, ...] | None:
    """Returns the names of variables from how many dimensions each has; None if that cannot tell.

    A batch norm of three vectors has either no gamma or no beta: only its configuration knows.
    """
    matrices = sum(rank > 1 for rank in ranks)
    if ranks[matrices:] == [1] * (len(ranks) - matrices):
        kernel = "depthwise_kernel" if "depthwise" in kind else "kernel"
        match matrices, len(ranks) - matrices:
            case 1, 0 | 1:
                return (kernel, "bias")[: len(ranks)]
            case 2, 0 | 1 if kind == "separable_conv2d":
                return ("depthwise_kernel", "pointwise_kernel", "bias")[: len(ranks)]
            case 0, 4:
                return _NORM
            case 0, 2:
                return _NORM[2:] if kind.endswith("batch_normalization") else _NORM[:2]
            case 0, 3 if kind.endswith("batch_normalization"):
                settings = config.get("config") if type(config) is dict else None
                if type(settings) is dict and settings.get("scale") is False:
                    return _NORM[1:]
                if type(settings) is dict and settings.get("center") is False:
                    return _NORM[0], *_NORM[2:]
    return None


def _natural(name: str) -> tuple[str, int]:
    """Returns a key that sorts `conv2d_2` before `conv2d_10`, and both behind `conv2d`."""
    match = re.fullmatch(r"(.*?)(?:(?:^|_)([0-9]{1,9}))?", name, re.DOTALL)
    assert match is not None
    return match[1], int(match[2] or -1)


def _text(config: Any, key: str) -> str:
    value = config.get(key) if type(config) is dict else None
    return value if type(value) is str else ""


def _name(config: Any) -> str | None:
    """Returns the name in a layer's configuration."""
    settings = config.get("config") if type(config) is dict else None
    return _text(settings, "name") or None


def _kind(config: Any) -> str:
    """Returns a layer's class as Keras spells it in names (keras/src/utils/naming.py)."""
    name = re.sub(r"\W+", "", _text(config, "class_name").rpartition(">")[2])
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()


def _configs(config: Any) -> list[Any]:
    """Returns the configurations of a model's layers, in their order."""
    settings = config.get("config") if type(config) is dict else None
    layers = settings.get("layers") if type(settings) is dict else None
    if type(layers) is not list:
        return []
    if len(layers) > MAX_LAYERS:
        raise CorruptFile(f"the Keras file describes {len(layers):,} layers")
    return layers


def _all_configs(config: Any, depth: int = 0) -> Iterator[Any]:
    """Yields the same of the models within the model too."""
    if depth > MAX_DEPTH:
        raise CorruptFile("the Keras file nests models too deeply")
    for layer in _configs(config):
        yield layer
        yield from _all_configs(layer, depth + 1)
