"""Load a pretrained net from what people have, and save it as what they want."""

import dataclasses
import hashlib
import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from resnetjax import folders, presets
from resnetjax.config import Labels, Preprocess, ResNetConfig
from resnetjax.data import labels as label_sets
from resnetjax.errors import AssumptionWarning, ConfigError, UnknownName, UnsupportedFile
from resnetjax.measure import leaves
from resnetjax.nn.init import initialize
from resnetjax.nn.resnet import ResNet
from resnetjax.plan import plan
from resnetjax.pretrained import Pretrained, Source, Variables, flatten, make_variables, seed_of
from resnetjax.weights import detect, dialects, files
from resnetjax.weights.dialect import Dialect, inexpressible, load_arrays, save_arrays


def create(
    arch: str | ResNetConfig, *, rng: int | jax.Array = 0, dtype: Any = jnp.float32
) -> tuple[ResNet, Variables]:
    """A net with random weights.

    Args:
        arch: Name of an architecture, or a config.
        rng: A seed, or a key of `jax.random.key`.
        dtype: Of the activations; the variables are float32.

    Raises:
        UnknownName: No architecture goes by this name.

    Example:
        >>> model, variables = create("cifar_resnet20", rng=0)
        >>> model.apply(variables, jnp.zeros((1, 32, 32, 3))).shape
        (1, 10)
    """
    config = presets.get(arch) if isinstance(arch, str) else arch
    expected = leaves(plan(config))
    return ResNet(config, dtype=dtype), make_variables(expected, initialize(expected, seed_of(rng)))


def load(
    source: str | os.PathLike[str],
    *,
    arch: str | None = None,
    config: ResNetConfig | None = None,
    preprocess: Preprocess | None = None,
    labels: Labels | None = None,
    num_classes: int | None = None,
    in_channels: int | None = None,
    strict: bool = True,
    rng: int | jax.Array = 0,
    dtype: Any = jnp.float32,
) -> Pretrained:
    """A pretrained net from a weight file, or from a directory of Transformers, timm or resnetjax.

    Format, dialect and architecture are detected. What the file leaves open (where the stride is,
    how images are prepared) is read in the dialect's commonest way; a warning and
    `source.assumptions` say so, and `arch`, `config`, `preprocess` and `labels` decide instead.

    Args:
        source: Path of a `.safetensors`, `.pth`, `.pt`, `.th` or `.bin` file, of an index of
            shards, or of a directory.
        arch: Name of the architecture.
        config: A net of your own. Classes and input channels are those of the file.
        preprocess: How images are prepared.
        labels: What the outputs mean.
        num_classes: For another number than the file's a new head is drawn; 0 leaves the head away.
        in_channels: For another number than the file's the stem is folded as timm does: summed for
            1 channel, else repeated and scaled.
        strict: False skips what does not fit; `source.skipped` lists it, and fresh values stand in.
        rng: Seed or key of whatever is drawn.
        dtype: Of the activations; the variables are float32.

    Raises:
        UnknownName: There is no such file, directory or architecture.
        WeightsMismatch: The arrays do not fit; all that is missing, unexpected or mis-shaped is
            listed.
        UnsupportedFile, UnsafeWeights, CorruptFile: The file is refused.
        ConfigError: `arch` and `config` are both given, or values are not allowed.
    """
    if arch is not None and config is not None:
        raise ConfigError(f"arch={arch!r} and config are both given: use one of them")
    path = Path(source)
    if not path.exists():
        raise UnknownName(f"there is no file or directory {os.fspath(source)!r}")
    described = folders.describe(path)
    file = files.read(folders.find_weights(path) if path.is_dir() else path)
    with ThreadPoolExecutor(1) as pool:
        digest = pool.submit(_sha256, file.paths)
        wanted = presets.get(arch) if arch is not None else config
        found = _identify(file, described, wanted, name=str(path))
        target = found.config.replace(
            **({} if num_classes is None else {"num_classes": num_classes}),
            **({} if in_channels is None else {"in_channels": in_channels}),
        )
        arrays, skipped = load_arrays(
            found.dialect,
            file.arrays,
            found.config,
            source=str(path),
            new_head=target.num_classes != found.config.num_classes,
            strict=strict,
        )
        if target.in_channels != found.config.in_channels and "stem/conv1/kernel" in arrays:
            kernel = arrays["stem/conv1/kernel"]
            arrays["stem/conv1/kernel"] = fold_channels(kernel, target.in_channels)
        variables = make_variables(leaves(plan(target)), arrays, rng)
    assumed = list(found.assumptions)
    if preprocess is None:
        preprocess = described.preprocess if described else None
    if preprocess is None:
        preprocess = found.dialect.preprocess
        assumed.append(
            f"images prepared as by {found.dialect.name}: "
            f"{_in_words(preprocess)} (preprocess= decides)"
        )
    if labels is None and target.num_classes == found.config.num_classes:
        labels = described.labels if described else None
        if labels is None and (known := _KNOWN_LABELS.get((_is_cifar(found), target.num_classes))):
            labels = label_sets.get(known)
            assumed.append(f"{target.num_classes} classes taken for {known} (labels= decides)")
    if assumed:
        warnings.warn(
            f"{path} leaves open what was assumed: " + "; ".join(assumed),
            AssumptionWarning,
            stacklevel=2,
        )
    return Pretrained(
        model=ResNet(target, dtype=dtype),
        variables=variables,
        config=target,
        preprocess=_with_channels(preprocess, target.in_channels),
        labels=labels,
        source=Source(
            path=str(path),
            format=file.format,
            dialect=found.dialect.name,
            arch=found.arch if arch is None else arch,
            sha256=digest.result(),
            licence=described.licence if described else None,
            assumptions=tuple(assumed),
            skipped=skipped,
        ),
    )


def save(
    pretrained: Pretrained, path: str | os.PathLike[str], *, dialect: str | None = None
) -> None:
    """Writes a net as a directory that `load` reads, or its arrays under another system's names.

    Files are written beside their place and then renamed, so that what was there stays until all is
    written.

    Args:
        pretrained: What to write.
        path: A directory, made where it is absent (`config.json` and `model.safetensors`), or a
            `.safetensors` file.
        dialect: Whose names the arrays get in a `.safetensors` file; ours by default.

    Raises:
        ConfigError: The dialect's system has no such net; the fields are named. Weights may always
            go back to the dialect that they came from.
        UnsupportedFile: The path ends in something else.
        UnknownName: There is no such dialect.
    """
    path = Path(path)
    target = dialects.get(dialect or dialects.NATIVE.name)
    if path.suffix == "" and target is not dialects.NATIVE:
        raise UnsupportedFile(
            f"{path}: give a file ending in .safetensors to write dialect {dialect}"
        )
    if path.suffix not in ("", ".safetensors"):
        raise UnsupportedFile(
            f"{path}: {path.suffix} is not written: use .safetensors, or a directory"
        )
    wrong = inexpressible(target, pretrained.config)
    if wrong and pretrained.source.dialect != target.name:
        raise ConfigError(
            f"dialect {target.name} cannot express this net:\n  " + "\n  ".join(wrong)
        )
    arrays = save_arrays(target, flatten(pretrained.variables), pretrained.config)
    if path.suffix:
        files.write_safetensors(path, arrays, target.metadata)
        return
    path.mkdir(parents=True, exist_ok=True)
    files.write_safetensors(path / "model.safetensors", arrays, target.metadata)
    folders.write(
        path,
        folders.Description(
            layout=folders.NATIVE,
            config=pretrained.config,
            arch=pretrained.source.arch,
            preprocess=pretrained.preprocess,
            labels=pretrained.labels,
            licence=pretrained.source.licence,
        ),
    )


def fold_channels(kernel: np.ndarray, in_channels: int) -> np.ndarray:
    """A stem kernel [height, width, in, out] for another number of channels, as timm folds it.

    One channel gets the sum over all, so that a grey image gives what its three equal channels
    gave; more channels repeat the kernel's, scaled to keep the sum's size.

    Raises:
        ConfigError: The kernel has other than 3 channels, and more than one is wanted.
    """
    if in_channels == 1:
        return kernel.astype(np.float32).sum(2, keepdims=True)
    if kernel.shape[2] != 3:
        raise ConfigError(
            f"in_channels={in_channels} is not allowed: the file has {kernel.shape[2]}, not 3"
        )
    repeated = np.take(kernel.astype(np.float32), np.arange(in_channels) % 3, axis=2)
    return repeated * np.float32(3 / in_channels)


@dataclass(frozen=True)
class _Identity:
    """What a file was found to be; the config has the file's own classes and channels."""

    dialect: Dialect
    config: ResNetConfig
    arch: str | None
    assumptions: tuple[str, ...] = ()


def _identify(
    file: files.WeightFile,
    described: folders.Description | None,
    wanted: ResNetConfig | None,
    *,
    name: str,
) -> _Identity:
    seen = detect.detect(file.arrays, source=name)
    if wanted is not None:
        config = detect.sized_like(wanted, file.arrays, seen.dialect)
        return _Identity(seen.dialect, config, folders.architecture_of(config))
    if described is not None:
        config = detect.sized_like(described.config, file.arrays, seen.dialect)
        return _Identity(seen.dialect, config, described.arch)
    told = file.metadata.get("arch")  # as PyTorch's ImageNet example and timm write it
    if told in seen.alternatives:
        config = detect.sized_like(presets.get(str(told)), file.arrays, seen.dialect)
        return _Identity(seen.dialect, config, str(told))
    if told == seen.arch and told is not None:
        return _Identity(seen.dialect, seen.config, seen.arch)
    if seen.arch is None:
        also = "strides, padding, activation and norm's epsilon taken from " + seen.dialect.name
        assumed = (f"no architecture has these shapes: {also} (config= decides)",)
    elif seen.alternatives:
        others = ", ".join(seen.alternatives)
        assumed = (f"architecture {seen.arch}, though {others} look the same (arch= decides)",)
    else:
        assumed = ()
    return _Identity(seen.dialect, seen.config, seen.arch, assumed)


_KNOWN_LABELS = {
    (False, 1000): "imagenet_1k",
    (False, 1001): "imagenet_1k_background",
    (True, 10): "cifar10",
    (True, 100): "cifar100",
}


def _is_cifar(found: _Identity) -> bool:
    return found.config.stem == "conv3"


def _in_words(preprocess: Preprocess) -> str:
    height, width = preprocess.crop_px
    resize = f"{preprocess.resize_mode} {preprocess.resize_px} {preprocess.interpolation}"
    return f"{resize}, crop {height}x{width}, mean {preprocess.mean}, std {preprocess.std}"


def _with_channels(preprocess: Preprocess, channels: int) -> Preprocess:
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


def _sha256(paths: tuple[Path, ...]) -> str:
    if len(paths) == 1:
        with paths[0].open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    return hashlib.sha256("".join(_sha256((path,)) for path in paths).encode()).hexdigest()
