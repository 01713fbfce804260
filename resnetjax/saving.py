"""Save a pretrained net as what people want."""

import difflib
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import flax.serialization
import flax.traverse_util
import numpy as np
import safetensors.numpy

from resnetjax import folders
from resnetjax.config import Preprocess, ResNetConfig
from resnetjax.errors import ConfigError, UnsupportedFile
from resnetjax.layouts import native
from resnetjax.layouts.description import Description
from resnetjax.pretrained import Pretrained, flatten
from resnetjax.weights import (
    dialects,
    files,
    flax_dialects,
    keras_archive,
    keras_dialects,
    keras_writer,
    npz_file,
    passes,
    torch_dialects,
    torch_writer,
)
from resnetjax.weights.arrays import save_arrays
from resnetjax.weights.dialect import Dialect, inexpressible


def save(
    pretrained: Pretrained, path: str | os.PathLike[str], *, dialect: str | None = None
) -> None:
    """Writes a net as a directory that `load` reads, or its arrays under another system's names.

    What that system spells otherwise is rewritten exactly: a bias that a norm follows goes into its
    mean, another epsilon into its variances, blue first into the stem. Files are written beside
    their place and then renamed, so that what was there stays until all is written.

    Args:
        pretrained: What to write.
        path: A `.safetensors` or `.npz` file; of a torch dialect a `.pth`, `.pt` or `.bin`, of a
            Keras dialect a `.h5` (legacy) or `.weights.h5`, weights alone, or a `.keras`, a model
            that Keras 3 loads; of a Flax dialect a `.msgpack`. Anything else is a directory, made
            where it is absent, for ours, `transformers`, `timm`, `timm_v2` or `kerashub`, whose
            presets have no labels: it gets the weights, and what says the net, its labels and how
            images are prepared (else only our own `.safetensors` says that). Descriptions that
            another model left there are removed; where it left its weights, nothing is written.
        dialect: Whose names the arrays get; ours by default.

    Raises:
        ConfigError: The dialect's system has no such net, or its description cannot say how images
            are prepared; the fields are named. Weights alone may always go back to the dialect that
            they came from. Or the directory holds other weights, or a training run.
        UnsupportedFile: The path ends as a weight file that is not written (`.onnx`, `.ckpt`, ...),
            or nearly as one that is.
        UnknownName: There is no such dialect.
    """
    path = Path(path)
    target = target_of(path, dialect=dialect)
    form = _form(path)
    net = _rewritten(pretrained, target, form)
    description = Description(
        layout="timm" if target is torch_dialects.TIMM_V2 else target.name,
        config=net.config,
        arch=pretrained.source.arch,
        preprocess=net.preprocess,
        labels=pretrained.labels,
        licence=pretrained.source.licence,
    )
    if target is dialects.NATIVE:
        net = net._replace(metadata={**net.metadata, native.NAME: native.to_text(description)})
    if form is not _DIRECTORY:
        files.write({path: form.encode(net)})
        return
    contents = {**_in_directory(net), **folders.compose(description)}
    path.mkdir(parents=True, exist_ok=True)
    stale = folders.leftovers(path, contents)
    files.write({path / name: content for name, content in contents.items()}, remove=stale)


def target_of(path: str | os.PathLike[str], *, dialect: str | None = None) -> Dialect:
    """The dialect that `save` writes at a path, ours by default.

    Raises:
        UnsupportedFile: The path ends as a weight file that is not written; or as a file, or is to
            be a directory, that this dialect's arrays are not written as.
        UnknownName: There is no such dialect.
    """
    path = Path(path)
    target = dialects.get(dialect or dialects.NATIVE.name)
    form = _form(path)
    if form is _DIRECTORY and not path.is_dir():
        near = difflib.get_close_matches(path.suffix, _FORMS, n=1, cutoff=0.75)
        if near or path.suffix in _UNWRITTEN:
            raise UnsupportedFile(f"{path}: {path.suffix} is not written: use {', '.join(_FORMS)}")
    if target not in form.dialects:
        forms = {**_FORMS, "directory": _DIRECTORY}
        names = ", ".join(known.name for known in form.dialects)
        others = ", ".join(name for name, other in forms.items() if target in other.dialects)
        raise UnsupportedFile(
            f"{path}: dialect= of a {'directory' if form is _DIRECTORY else _ending(path)} is one "
            f"of {names}; {target.name} is written as {others}"
        )
    return target


def images_of(
    pretrained: Pretrained, path: str | os.PathLike[str], *, dialect: str | None = None
) -> Preprocess | None:
    """How images are to be prepared for a net saved so, or None where what is saved says it."""
    target, form = target_of(path, dialect=dialect), _form(Path(path))
    if form is _DIRECTORY or target is dialects.NATIVE:
        return None
    turned = not _goes_back(pretrained, target, form) and _turned(pretrained, target)
    return passes.reversed_order(pretrained.preprocess) if turned else pretrained.preprocess


class _Net(NamedTuple):
    """A net as another system has it: its arrays by that system's names."""

    dialect: Dialect
    config: ResNetConfig
    preprocess: Preprocess
    arrays: dict[str, np.ndarray]
    metadata: dict[str, str]


def _rewritten(pretrained: Pretrained, target: Dialect, form: "_Form") -> _Net:
    config, arrays = pretrained.config, flatten(pretrained.variables)
    preprocess = pretrained.preprocess
    if not _goes_back(pretrained, target, form):
        arrays, config = passes.adapt(arrays, config, target)
        if wrong := inexpressible(target, config):
            raise ConfigError(
                f"dialect {target.name} cannot express this net:\n  " + "\n  ".join(wrong)
            )
        if _turned(pretrained, target):
            arrays, preprocess = passes.reverse_channels(arrays, preprocess)
    named = save_arrays(target, arrays, config)
    return _Net(target, config, preprocess, named, dict(target.metadata))


def _goes_back(pretrained: Pretrained, target: Dialect, form: "_Form") -> bool:
    """Whether arrays go where they came from, as they are: a description would have to fit them."""
    return pretrained.source.dialect == target.name and not form.described


def _turned(pretrained: Pretrained, target: Dialect) -> bool:
    """Whether the target takes the channels the other way: ours says how, others have one order."""
    turned = pretrained.preprocess.channel_order != target.preprocess.channel_order
    return turned and target is not dialects.NATIVE and pretrained.config.in_channels == 3


def _in_directory(net: _Net) -> dict[str, bytes]:
    """The files of weights, by their names."""
    if net.dialect is keras_dialects.KERASHUB:
        return keras_archive.encode_preset(net.arrays)
    return {"model.safetensors": _DIRECTORY.encode(net)}


@dataclass(frozen=True)
class _Form:
    """A kind of file: whose names its arrays may have, and how it is encoded.

    Attributes:
        dialects: In the order in which errors list them.
        encode: The bytes of a net.
        described: Whether it says what the net is, so that it must be one that the system has.
    """

    dialects: tuple[Dialect, ...]
    encode: Callable[[_Net], bytes]
    described: bool = False


def _h5(net: _Net) -> bytes:
    tree = net.dialect is flax_dialects.FLAXMODELS
    return (keras_writer.encode_tree if tree else keras_writer.encode)(net.arrays)


def _msgpack(arrays: dict[str, np.ndarray]) -> bytes:
    """As `flax.serialization.to_bytes` writes variables, statistics in their own collection."""
    collections: dict[str, dict[str, np.ndarray]] = {"params": {}, "batch_stats": {}}
    for name, array in arrays.items():
        statistic = name.rpartition("/")[2] in ("mean", "var")
        collections["batch_stats" if statistic else "params"][name] = array
    nested = {
        name: flax.traverse_util.unflatten_dict(tree, sep="/") for name, tree in collections.items()
    }
    return flax.serialization.msgpack_serialize(nested)


_ALL = tuple(dialects.DIALECTS.values())
_SAFETENSORS = _Form(_ALL, lambda net: safetensors.numpy.save(net.arrays, net.metadata))
_TORCH = _Form(torch_dialects.ALL, lambda net: torch_writer.encode(net.arrays))
# keras-applications sums up a grouped convolution in a layer of code, which no file may hold.
_GRAPHS = tuple(x for x in keras_dialects.ALL if x is not keras_dialects.KERAS_RESNEXT)
_FORMS = {
    ".safetensors": _SAFETENSORS,
    **dict.fromkeys((".pth", ".pt", ".bin"), _TORCH),
    # An npz cannot say what ours says of itself.
    ".npz": _Form(_ALL[1:], lambda net: npz_file.encode(net.arrays)),
    ".h5": _Form((*keras_dialects.ALL, flax_dialects.FLAXMODELS), _h5),
    ".weights.h5": _Form(
        keras_dialects.ALL,
        lambda net: keras_archive.encode_weights(net.arrays, net.config, net.dialect),
    ),
    ".keras": _Form(
        _GRAPHS,
        lambda net: keras_archive.encode(net.arrays, net.config, net.dialect),
        described=True,
    ),
    ".msgpack": _Form(flax_dialects.TREES, lambda net: _msgpack(net.arrays)),
}
_DIRECTORY = replace(
    _SAFETENSORS,
    dialects=(
        dialects.NATIVE,
        torch_dialects.TRANSFORMERS,
        torch_dialects.TIMM,
        torch_dialects.TIMM_V2,
        keras_dialects.KERASHUB,
    ),
    described=True,
)
_UNWRITTEN = (".th", ".ckpt", ".onnx", ".stablehlo")


def _form(path: Path) -> _Form:
    return _FORMS.get(_ending(path), _DIRECTORY)


def _ending(path: Path) -> str:
    return "".join(path.suffixes[-2:]) if path.name.endswith(".weights.h5") else path.suffix
