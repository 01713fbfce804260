"""What a weight file is, what goes in and what comes out; and what of that it leaves open."""

import dataclasses
from typing import Any

import numpy as np

from resnetjax import presets
from resnetjax.config import Labels, Preprocess, ResNetConfig
from resnetjax.data import labels as label_sets
from resnetjax.data.preprocess_formats import words
from resnetjax.layouts.description import Description
from resnetjax.weights import (
    dialects,
    files,
    keras_config,
    keras_described,
    keras_dialects,
    torch_described,
    torch_dialects,
)
from resnetjax.weights.arrays import stripped
from resnetjax.weights.detect import Detection, as_architecture, detect
from resnetjax.weights.dialect import inexpressible
from resnetjax.weights.own_head import in_words, own_head
from resnetjax.weights.sources import PublishedWeights


def identify(
    file: files.WeightFile,
    described: Description | None,
    wanted: ResNetConfig | None,
    *,
    name: str,
    published: PublishedWeights | None = None,
) -> tuple[Detection, tuple[str, ...]]:
    """What a file is, with its own classes and channels, and what had to be assumed for it."""
    averaged = file.metadata.get("ema")
    assumed = [f"the weights are those of {averaged}, a moving average"] if averaged else []
    known = wanted or (described.config if described else None)
    seen = detect(file.arrays, source=name, known=known)
    if published is None and (own := own_head(seen.dialect, file.arrays)):
        assumed.append(in_words(own))
    if own_code := torch_described.others(file.parts, file.wrappers):
        named = ", ".join(f"{kind:.200}" for kind in own_code[:5])
        assumed.append(
            f"{named} compute with their layers what {seen.dialect.name} does (the code is not in "
            "the file)"
        )
    if known is not None:
        assumed += _of_the_head(seen, set())
        seen = dataclasses.replace(seen, arch=presets.architecture_of(seen.config))
        if wanted is None and described and described.arch:
            seen = dataclasses.replace(seen, arch=described.arch)
        return seen, tuple(assumed)
    told = published.arch if published else _told(file) or _of_kerascv(seen, file)
    if isinstance(told, str) and told in (seen.arch, *seen.alternatives):
        seen = as_architecture(seen, told)
        seen, fields = _as_described(seen, file, name=name)
        return seen, (*assumed, *_of_the_head(seen, fields))
    seen, fields = _as_described(seen, file, name=name)
    assumed += _of_the_head(seen, fields)
    # No array tells of these, not even where only one architecture fits.
    left = [word for word, field in _UNSEEN.items() if field not in fields]
    if not left:
        return seen, tuple(assumed)
    unseen = " and ".join(filter(None, (", ".join(left[:-1]), left[-1])))
    if seen.arch is None:
        plain = (
            f"a net of no known architecture, with the {unseen} of {seen.dialect.name}'s plainest"
        )
        assumed.append(f"{plain} (config= decides)")
    else:
        others = f"; these arrays fit {', '.join(seen.alternatives)} too"
        assumed.append(
            f"architecture {seen.arch}, with its {unseen} (arch= or config= decides)"
            + others * bool(seen.alternatives)
        )
    return seen, tuple(assumed)


def _of_the_head(seen: Detection, fields: set[str]) -> list[str]:
    """What is assumed of a head of several layers where the file does not say these fields."""
    told = seen.dialect is dialects.NATIVE or fields.issuperset(_UNSEEN.values())
    between = f"{seen.config.activation} between the layers of the head"
    return [between] if seen.config.head_widths and not told else []


def _told(file: files.WeightFile) -> Any:
    """The architecture that a training program wrote beside the weights, or among its arguments."""
    arguments = file.metadata.get("args")
    among = (arguments.get("model"), arguments.get("arch")) if isinstance(arguments, dict) else ()
    # PyTorch's ImageNet example and timm; torchvision's reference scripts.
    return next(filter(None, (file.metadata.get("arch"), *among)), None)


def _of_kerascv(seen: Detection, file: files.WeightFile) -> str | None:
    """Of architectures with the same arrays KerasCV's, where the file says that it is from there.

    Its ResNet-50 v2 has the arrays of keras.applications', and strides in other blocks.
    """
    if not keras_config.from_kerascv(file.metadata.get("model_config")):
        return None
    return next((x for x in (seen.arch, *seen.alternatives) if str(x).startswith("kerascv_")), None)


_UNSEEN = {
    "strides": "stride_on",
    "dilations": "dilations",
    "padding": "padding",
    "pooling": "stem_pool",
    "activation": "activation",
    "epsilon": "norm_eps",
}


def _as_described(
    seen: Detection, file: files.WeightFile, *, name: str
) -> tuple[Detection, set[str]]:
    """The net with what the file's own description of it says, and the fields that it says.

    Raises:
        WeightsMismatch: It describes what no config says.
    """
    if file.parts:
        nets = (seen, *(as_architecture(seen, other) for other in seen.alternatives))
        config, told = torch_described.described(
            file.parts, [net.config for net in nets], seen.dialect, source=name
        )
        arch = presets.architecture_of(config)
        seen = dataclasses.replace(seen, config=config, arch=arch, alternatives=())
        if inexpressible(seen.dialect, config) and seen.dialect is torch_dialects.TORCHVISION:
            seen = dataclasses.replace(seen, dialect=torch_dialects.TIMM)  # of the same names
        return seen, told
    model_config = file.metadata.get("model_config")
    fields = keras_config.observed(model_config)
    placed = ("reduce", "spatial") if "bottleneck" in seen.config.blocks else ("last_spatial",)
    if fields.get("stride_on") not in placed:
        fields.pop("stride_on", None)
    if seen.config.stem_pool != "max":
        fields.pop("stem_pool_padding", None)
    if len(fields.get("strides", seen.config.strides)) != len(seen.config.depths):
        return seen, set()
    config, told = seen.config.replace(**fields), set(fields)
    if file.metadata.get("names") == "given":
        names = {
            theirs.rpartition("/")[0]: ours.rpartition("/")[0]
            for theirs, ours in stripped(seen.dialect, file.arrays).items()
        }
        net = keras_described.described(
            model_config, config, seen.dialect, names=names, source=name
        )
        if net is not None:
            config, told = net, {*told, *_UNSEEN.values()}
    if config == seen.config:
        return seen, told
    arch = presets.architecture_of(config)
    return dataclasses.replace(seen, config=config, arch=arch, alternatives=()), told


# By whether the stem is that of a net for CIFAR, and the number of classes.
_KNOWN_LABELS = {
    (True, 10): "cifar10",
    (True, 100): "cifar100",
    **{(False, classes): name for classes, name in label_sets.IMAGENETS.items()},
}


def preprocess_of(
    found: Detection,
    described: Description | None,
    published: PublishedWeights | None = None,
    *,
    file: files.WeightFile | None = None,
) -> tuple[Preprocess, tuple[str, ...]]:
    """How images are prepared, and what had to be assumed for it.

    Args:
        found: The net.
        described: What its directory says.
        published: What is known of published weights.
        file: That may describe what is before the net and behind it.
    """
    told = described.preprocess if described else None
    if published:
        # KerasHub's presets say what the table only guesses.
        at_first_hand = told if described and described.layout == "kerashub" else None
        return at_first_hand or published.preprocess, ()
    if told:
        return told, ()
    dialect = found.dialect
    if dialect is keras_dialects.KERAS_ORDER:  # a file of one of several systems
        systems = keras_dialects.IN_ORDER
        dialect = next((x for x in systems if not inexpressible(x, found.config)), dialect)
    if found.config.stem == "conv3" and dialect.preprocess.crop_px != (32, 32):
        dialect = torch_dialects.AKAMASTER  # whose are the CIFAR nets
    taken = with_channels(dialect.preprocess, found.config.in_channels)
    layers, _ = _around(file)
    own = keras_described.scaled(taken, layers) if layers and taken.channels == 3 else None
    who, kinds = dialect.name, ", ".join(kind for kind, _ in layers)
    if own:
        taken, who = own, f"{who}, and by its own {kinds}"
    elif layers:
        who += f", without its own {kinds:.200}"
    said = words.in_words(taken)
    return taken, (f"images prepared as by {who} (preprocess= decides): {said}",)


def _around(file: files.WeightFile | None) -> tuple[list[Any], str | None]:
    """A file's layers before the net, with their settings, and the activation behind it."""
    if file is None:
        return [], None
    if file.parts:
        return [], torch_described.ending(file.parts)
    return keras_described.around(file.metadata.get("model_config"))


def labels_of(
    found: Detection,
    described: Description | None,
    published: PublishedWeights | None = None,
    *,
    file: files.WeightFile | None = None,
) -> tuple[Labels | None, tuple[str, ...]]:
    """What the outputs mean, where that is known, and what had to be assumed for it.

    The arguments are those of `preprocess_of`.
    """
    classes = found.config.num_classes
    if described and described.labels and len(described.labels.names) == classes:
        return described.labels, ()
    if published:
        return (label_sets.get(published.labels) if published.labels else None), ()
    if described and described.layout == "transformers" and not described.labels:
        return None, ()  # each class has a placeholder there, which says that names are unknown
    known = _KNOWN_LABELS.get((found.config.stem == "conv3", classes))
    _, ending = _around(file)
    if classes != 1 and (ending in (None, "softmax") or not classes):
        if known is None:
            return None, ()
        said = f"{classes} classes are those of {known} (labels= decides)"
        return label_sets.get(known), (said,)
    # No probabilities of one class among several: each output is for itself.
    numbers = Labels(
        names=tuple(map(str, range(classes))),
        activation="sigmoid" if ending == "sigmoid" else "none",
    )
    left = f", without its {ending}" if ending not in (None, "sigmoid") else ""
    return numbers, (f"outputs are given for themselves{left} (labels= decides)",)


def with_channels(preprocess: Preprocess, channels: int) -> Preprocess:
    """The preprocessing for a folded stem: grey gets the average, more channels repeat."""
    if preprocess.channels == channels:
        return preprocess
    changes = {
        name: (sum(values) / len(values),)
        if channels == 1
        else tuple(np.resize(values, channels).tolist())
        for name, values in (("mean", preprocess.mean), ("std", preprocess.std))
    }
    return dataclasses.replace(preprocess, **changes, channel_order="rgb")
