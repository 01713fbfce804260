"""Load a pretrained net from what people have, or make one with random weights."""

import os
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from resnetjax import folders, presets
from resnetjax.config import Labels, Preprocess, ResNetConfig
from resnetjax.errors import AssumptionWarning, ConfigError, CorruptFile, WeightsMismatch
from resnetjax.identify import identify, labels_of, preprocess_of, with_channels
from resnetjax.layouts import native
from resnetjax.layouts.description import Description, Wanted
from resnetjax.locate import locate
from resnetjax.measure import Leaf, leaves
from resnetjax.nn.init import initialize
from resnetjax.nn.resnet import ResNet
from resnetjax.plan import plan
from resnetjax.pretrained import Pretrained, Source, Variables, make_variables, seed_of
from resnetjax.weights import files, passes
from resnetjax.weights.arrays import load_arrays
from resnetjax.weights.detect import Detection


def create(
    arch: str | ResNetConfig,
    *,
    rng: int | jax.Array = 0,
    dtype: Any = jnp.float32,
    **changes: Any,
) -> tuple[ResNet, Variables]:
    """A net with random weights.

    Args:
        arch: Name of an architecture, or a config.
        rng: A seed, or a key of `jax.random.key`.
        dtype: Of the activations; the variables are float32.
        **changes: Fields of the config to set, such as `num_classes`.

    Raises:
        UnknownName: No architecture goes by this name.
        ConfigError: There is no such field, or its value is not allowed.

    Example:
        >>> model, variables = create("cifar_resnet20", rng=0)
        >>> jax.jit(model.apply)(variables, jnp.zeros((1, 32, 32, 3))).shape
        (1, 10)
    """
    config = presets.get(arch) if isinstance(arch, str) else arch
    config = config.replace(**changes)
    expected = leaves(plan(config))
    return ResNet(config, dtype=dtype), make_variables(expected, initialize(expected, seed_of(rng)))


def load(
    source: str | os.PathLike[str],
    *,
    arch: str | None = None,
    config: ResNetConfig | None = None,
    preprocess: Preprocess | None = None,
    labels: Labels | Sequence[str] | None = None,
    num_classes: int | None = None,
    head_widths: tuple[int, ...] | None = None,
    in_channels: int | None = None,
    strict: bool = True,
    rng: int | jax.Array = 0,
    dtype: Any = jnp.float32,
) -> Pretrained:
    """A pretrained net: a published one by its name, or that of a file, a directory or an address.

    Format, dialect and architecture are detected. What the file leaves open (where the stride is,
    how images are prepared) is read in the dialect's commonest way; a warning and
    `source.assumptions` say so, and `arch`, `config`, `preprocess` and `labels` decide instead.

    Args:
        source: A published weight's name (`resnet50.tv2_in1k`; fetched once into the cache), an
            address (`hf://owner/repository`, `https://...`), or the path of a file of safetensors,
            torch, Keras (`.h5`, `.weights.h5`, `.keras`), NumPy (`.npz`) or Flax (`.msgpack`), of
            an index of shards, of a TensorFlow checkpoint, or of a directory; of a training run's
            it is the best model, or the latest.
        arch: Name of the architecture.
        config: A net of your own. Head and input channels are those of the file even so.
        preprocess: How images are prepared.
        labels: What the outputs mean, or their names alone.
        num_classes: For another number than the file's a new head is drawn; 0 leaves the head away.
        head_widths: For others than the file's a new head is drawn too: dense layers of so many
            features before the last.
        in_channels: For another number than the file's the stem is folded as timm does: summed for
            1 channel, else repeated and scaled.
        strict: False skips what does not fit; `source.skipped` lists it, and fresh values stand in.
        rng: Seed or key of whatever is drawn.
        dtype: Of the activations; the variables are float32.

    Raises:
        UnknownName: There is no such file, directory, published weight or architecture.
        WeightsMismatch: The arrays do not fit; all that is missing, unexpected or mis-shaped is
            listed.
        UnsupportedFile, UnsafeWeights, CorruptFile: The file is refused.
        DownloadFailed, DigestMismatch, MissingExtra: It is not here and cannot be fetched.
        ConfigError: `arch` and `config` are both given, or values are not allowed.
    """
    if arch is not None and config is not None:
        raise ConfigError(f"arch={arch!r} and config are both given: use one of them")
    if labels is not None and not isinstance(labels, Labels):
        labels = Labels(names=tuple(labels))
    path, published = locate(source)
    wanted = presets.get(arch) if arch is not None else config
    parts = Wanted(net=wanted is None, preprocess=preprocess is None)
    described = folders.describe(path, parts)
    file = files.read(folders.find_weights(path) if path.is_dir() else path)
    described = _with_metadata(described, file, path)
    with ThreadPoolExecutor(1) as pool:
        digest = pool.submit(file.sha256)
        found, identifying = identify(file, described, wanted, name=str(path), published=published)
        changes = {
            "num_classes": num_classes,
            "head_widths": head_widths,
            "in_channels": in_channels,
        }
        target = found.config.replace(**{n: v for n, v in changes.items() if v is not None})
        same_head = plan(target).head == plan(found.config).head
        arrays, skipped = load_arrays(
            found.dialect,
            file.arrays,
            found.config,
            source=str(path),
            new_head=not same_head,
            strict=strict,
        )
        theirs, preparing = preprocess_of(found, described, published, file=file)
        folded = target.in_channels != found.config.in_channels
        turned = folded and theirs.channel_order == "bgr"  # other numbers of channels are red first
        if folded and "stem/conv1/kernel" in arrays:
            kernel = arrays["stem/conv1/kernel"]
            kernel = kernel[:, :, ::-1] if turned else kernel
            arrays["stem/conv1/kernel"] = fold_channels(kernel, target.in_channels)
        if skipped and wanted is None:
            _check_drawn(leaves(plan(target)), arrays, name=str(path))
        variables = make_variables(leaves(plan(target)), arrays, rng)
    prepared = passes.reversed_order(theirs) if turned else theirs
    if preprocess is not None:
        prepared, preparing = preprocess, ()
    named, naming = (
        labels_of(found, described, published, file=file)
        if labels is None and same_head
        else (labels, ())
    )
    assumptions = (*identifying, *_sizes(config, found), *preparing, *naming)
    _warn(str(path), assumptions, skipped)
    return Pretrained(
        model=ResNet(target, dtype=dtype),
        variables=variables,
        preprocess=with_channels(prepared, target.in_channels),
        labels=named,
        source=Source(
            path=str(path),
            format=file.format,
            dialect=found.dialect.name,
            arch=arch or found.arch,
            sha256=digest.result(),
            licence=(published and published.licence) or (described and described.licence),
            assumptions=assumptions,
            skipped=skipped,
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


def _with_metadata(
    described: Description | None, file: files.WeightFile, path: Path
) -> Description | None:
    """The description, or else what a native file says of itself; they may not contradict.

    Raises:
        CorruptFile: They describe different nets, as after a save that was cut short.
    """
    own = folders.describe_metadata(file.metadata, path)
    if described is None or described.layout != native.NAME or described.config is None:
        return described or own
    if own is not None and own.config != described.config:
        raise CorruptFile(f"{path}: config.json describes another net than the weights do")
    return described


def _sizes(config: ResNetConfig | None, found: Detection) -> tuple[str, ...]:
    """Where the file's own sizes go before those of a config that was given."""
    given = config or found.config
    return tuple(
        f"{field}={getattr(found.config, field)} as in the file, not {getattr(given, field)} "
        f"as in config ({field}= decides)"
        for field in presets.SIZES
        if getattr(given, field) != getattr(found.config, field)
    )


def _check_drawn(
    expected: Mapping[str, Leaf], arrays: Mapping[str, np.ndarray], *, name: str
) -> None:
    """Refuses to draw far more than a file holds, where only the file says that it is needed.

    Raises:
        WeightsMismatch: The absent arrays are larger than three times the present ones and 200 MB.
    """
    absent = sum(4 * leaf.size for path, leaf in expected.items() if path not in arrays)
    present = sum(array.nbytes for array in arrays.values())
    if absent > 3 * present + 200e6:
        raise WeightsMismatch(
            f"{name}: {absent / 1e6:,.0f} MB of arrays are absent, {present / 1e6:,.0f} MB there: "
            "give arch= or config= if that is what you want"
        )


def _warn(name: str, assumptions: tuple[str, ...], skipped: tuple[str, ...]) -> None:
    if assumptions:
        text = (f"{name} does not say everything, so this was assumed:", *assumptions)
        warnings.warn("\n  ".join(text), AssumptionWarning, stacklevel=3)
    if skipped:
        text = (f"{name}: {len(skipped)} arrays do not fit and were skipped:", *skipped[:5])
        more = ("... (source.skipped lists them all)",) if len(skipped) > 5 else ()
        warnings.warn("\n  ".join((*text, *more)), AssumptionWarning, stacklevel=3)
