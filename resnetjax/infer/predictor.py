"""A net that stands ready: weights on every local device, few shapes, batches overlapped."""

import functools
import weakref
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, UInt8

from resnetjax.config import OutputActivation, Preprocess
from resnetjax.data.preprocess import crop_batch, normalize
from resnetjax.errors import ConfigError
from resnetjax.infer.batches import Pixels, check_batch_size, in_turn
from resnetjax.infer.compiled import apply_in_parts, for_inference, on_cpu
from resnetjax.nn.resnet import ResNet
from resnetjax.pretrained import Pretrained, Variables


class Predictor:
    """From batches of uint8 images to scores, for nets that answer more than once.

    Batches are padded to powers of two up to `batch_size`, each of which compiles once; rows are
    spread over the devices, and each device holds all weights. Batch norm is folded. The pixels'
    buffers are not donated: no output is of their shape and dtype, so that nothing could take their
    place, and JAX warns of each ("Some donated buffers were not usable", on a CPU too). They are
    freed when their batch has run, as nothing else refers to them.

    Args:
        pretrained: The net.
        batch_size: Images run at once, at most; with several devices it is rounded up to a multiple
            of their number.
        dtype: Of the arithmetic; None is the net's own.
        devices: Of `jax.devices()`, where it runs; None is all of this process's.
        resize: Take images of any one size and resize and crop them on the device, as the net's
            preprocessing says. Pillow's pixels differ from these by their rounding.

    Raises:
        ConfigError: The net has no head, `batch_size` is below 1, `devices` is empty, or the
            preprocessing's resize has no counterpart on the device.

    Example:
        >>> import resnetjax as rj
        >>> model, variables = rj.create("cifar_resnet20")
        >>> small = rj.Preprocess(crop_px=(32, 32), resize_mode="none", resize_px=None)
        >>> pre = rj.Pretrained(model=model, variables=variables, preprocess=small)
        >>> rj.Predictor(pre, batch_size=8)(np.zeros((11, 32, 32, 3), np.uint8)).shape
        (11, 10)
    """

    def __init__(
        self,
        pretrained: Pretrained,
        *,
        batch_size: int = 32,
        dtype: Any = None,
        devices: Sequence[Any] | None = None,
        resize: bool = False,
    ) -> None:
        if not pretrained.config.num_classes:
            raise ConfigError(
                "the net has no head (num_classes=0): load it with num_classes= to predict"
            )
        check_batch_size(batch_size)
        model, params = for_inference(pretrained.model, pretrained.variables, dtype=dtype)
        chosen = jax.local_devices() if devices is None else list(devices)
        if not chosen:
            raise ConfigError(f"devices={devices!r} is not allowed: use None, or one or more")
        mesh = jax.sharding.Mesh(np.array(chosen), ("batch",))
        self.batch_size = batch_size
        self.preprocess = pretrained.preprocess
        self.labels = pretrained.labels
        self.num_classes = pretrained.config.num_classes
        self._resize = resize
        self._devices = mesh.size
        self._rows = NamedSharding(mesh, PartitionSpec("batch"))
        self._params = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
        in_parts = on_cpu() and mesh.size == 1
        self._run = functools.partial(
            _scores, model, self.preprocess, pretrained.activation, resize, in_parts
        )

    def __call__(self, pixels: Pixels) -> Float[np.ndarray, "images classes"]:
        """Each image's score for each class, in the classes' order.

        What a score is, the labels' activation says: a probability, or the logit.

        Args:
            pixels: Any number of images, red first, as `preprocess` resizes and crops them.

        Raises:
            ConfigError: The pixels are of another shape or dtype.
        """
        self._check(pixels)
        parts = [pixels[i : i + self.batch_size] for i in range(0, len(pixels), self.batch_size)]
        run = functools.partial(self.top, count=self.num_classes)
        scores = np.zeros((len(pixels), self.num_classes), np.float32)
        for i, found in enumerate(in_turn(parts, run, batch_size=self.batch_size)):
            values, indices = found
            rows = scores[i * self.batch_size : (i + 1) * self.batch_size]
            np.put_along_axis(rows, indices, values, 1)
        return scores

    def top(self, pixels: Pixels, count: int) -> tuple[Array, Array]:
        """The scores of the likeliest classes of each image, likeliest first, and these.

        Sends the batch and sets the devices to work on it, without waiting for either.

        Args:
            pixels: One batch, padded as it is to be compiled.
            count: Number of classes.

        Raises:
            ConfigError: The pixels are of another shape or dtype.
        """
        self._check(pixels)
        given = len(pixels)
        if extra := -given % self._devices:
            pixels = np.concatenate((pixels, np.zeros((extra, *pixels.shape[1:]), np.uint8)))
        scores = self._run(self._params, jax.device_put(pixels, self._rows))
        scores, indices = _likeliest(scores, count)
        return (scores[:given], indices[:given]) if extra else (scores, indices)

    def _check(self, pixels: Pixels) -> None:
        edges = ("height", "width") if self._resize else self.preprocess.crop_px
        expected = (*edges, self.preprocess.channels)
        shape = pixels.shape[1:]
        of_any_size = self._resize and len(shape) == 3 and shape[2] == expected[2]
        fits = (shape == expected or of_any_size) and 0 not in shape
        if not fits or pixels.dtype != np.uint8:
            raise ConfigError(
                f"pixels of shape {pixels.shape} and dtype {pixels.dtype} are not allowed: use "
                f"uint8[images, {', '.join(map(str, expected))}]"
            )


# For each net that is still in use, with the arrays that it was made of: a second call finds its
# weights folded and in place, unless they are others by then.
_PREDICTORS: weakref.WeakKeyDictionary[Pretrained, tuple[Predictor, list[jax.Array]]] = (
    weakref.WeakKeyDictionary()
)


def predictor_of(pretrained: Pretrained) -> Predictor:
    """The predictor of a net, made once; anew where NumPy's arrays could have changed in place.

    Raises:
        ConfigError: The net has no head.
    """
    arrays = jax.tree.leaves(pretrained.variables)
    if not all(isinstance(array, jax.Array) for array in arrays):
        return Predictor(pretrained)
    predictor, known = _PREDICTORS.get(pretrained, (None, []))
    if predictor is None or list(map(id, known)) != list(map(id, arrays)):
        predictor = Predictor(pretrained)
        _PREDICTORS[pretrained] = predictor, arrays
    return predictor


# Apart from the net, which would compile anew for every count.
_likeliest = jax.jit(jax.lax.top_k, static_argnums=1)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def _scores(
    model: ResNet,
    preprocess: Preprocess,
    activation: OutputActivation,
    resize: bool,
    in_parts: bool,
    params: Variables,
    pixels: UInt8[Array, "batch height width channels"],
) -> Float[Array, "batch classes"]:
    images = crop_batch(pixels, preprocess) if resize else pixels
    run = apply_in_parts if in_parts else _apply
    logits = run(model, params, normalize(images, preprocess))
    if activation == "softmax":
        return jax.nn.softmax(logits)
    return jax.nn.sigmoid(logits) if activation == "sigmoid" else logits


def _apply(model: ResNet, params: Variables, images: Any) -> Any:
    return model.apply(params, images, train=False)
