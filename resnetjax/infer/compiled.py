"""A net compiled ahead of time for one size of batch, in the form that runs fastest."""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from numbers import Integral
from typing import Any, Literal, TypeAlias

import flax.traverse_util
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from resnetjax.errors import ConfigError
from resnetjax.infer.fold import fold
from resnetjax.measure import leaves
from resnetjax.nn import winograd
from resnetjax.nn.resnet import ResNet
from resnetjax.pretrained import Variables, flatten
from resnetjax.specs import Block, Conv, Plan, Shortcut, Stage, Stem

# From here on the matrix products outweigh the transforms.
_WINOGRAD_FEATURES = 64
# Eight images of 224 x 224: the activations of more of them leave a CPU's caches.
_PART_PX = 8 * 224 * 224


Images: TypeAlias = Float[Array, "batch height width channels"]
Logits: TypeAlias = Float[Array, "batch classes"]


def compile_inference(
    model: ResNet,
    variables: Variables,
    *,
    batch_size: int,
    image_px: tuple[int, int] = (224, 224),
    dtype: Any = None,
) -> Callable[[Images], Logits]:
    """A function from preprocessed float32 images to logits, compiled for JAX's default device.

    It takes images of just this number and size, and never compiles again. Batch norm is folded
    into the convolutions. On a CPU large batches run in parts, and the weights are constants of the
    program, which measures a tenth faster and takes longer to compile; elsewhere they are its
    arguments.

    Args:
        model: The net.
        variables: Its arrays, which the function keeps a copy of.
        batch_size: Images at once.
        image_px: Their height and width.
        dtype: Of the arithmetic; None is the model's own.

    Raises:
        ConfigError: `batch_size` or an edge of `image_px` is below 1, or `image_px` is not two.

    Example:
        >>> import resnetjax as rj
        >>> model, variables = rj.create("cifar_resnet20")
        >>> run = rj.compile_inference(model, variables, batch_size=2, image_px=(32, 32))
        >>> run(jnp.zeros((2, 32, 32, 3))).shape
        (2, 10)
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size={batch_size} is not allowed: use 1 or more")
    edges = tuple(image_px) if isinstance(image_px, Iterable) else ()
    if len(edges) != 2 or not all(isinstance(edge, Integral) and edge >= 1 for edge in edges):
        raise ConfigError(
            f"image_px={image_px!r} is not allowed: use (height, width), 1 or more each"
        )
    net, params = for_inference(model, variables, dtype=dtype)
    shape = (batch_size, *edges, model.config.in_channels)
    images = jax.ShapeDtypeStruct(shape, jnp.float32)
    if on_cpu():
        return jax.jit(functools.partial(apply_in_parts, net, params)).lower(images).compile()
    return functools.partial(jax.jit(net.apply).lower(params, images).compile(), params)


def for_inference(
    model: ResNet, variables: Variables, *, dtype: Any = None
) -> tuple[ResNet, Variables]:
    """The folded net in the form that JAX's default device runs fastest, and its arrays.

    On a CPU 1x1 convolutions are matrix products, and in float32 the wider ones of 3x3 at stride 1
    go by Winograd's algorithm, whose kernels are 16/9 as large. Kernels are kept in the dtype of
    the arithmetic.
    """
    net, arrays = fold(model, variables)
    folded = flatten(arrays)
    dtype = jnp.dtype(net.dtype if dtype is None else dtype)
    plan = net.net
    assert plan is not None
    if on_cpu():
        plan = _fastest(plan, exact=dtype == jnp.float32)
    params = {}
    for path, leaf in leaves(plan).items():
        array = folded[path]
        if array.shape != leaf.shape:
            array = winograd.transform(array)
        # Kernels alone: scales and shifts are few, and their rounding would count.
        params[tuple(path.split("/"))] = array.astype(dtype) if array.ndim > 1 else array
    nested = flax.traverse_util.unflatten_dict(jax.device_put(params))
    return net.clone(net=plan, dtype=dtype), {"params": nested}


def _fastest(node: Any, *, exact: bool) -> Any:
    """A plan, or a part of one, with the forms of convolutions that a CPU is fastest in."""
    if isinstance(node, tuple):
        return tuple(_fastest(part, exact=exact) for part in node)
    if isinstance(node, Conv):
        return dataclasses.replace(node, form=_fastest_form(node, exact=exact))
    if isinstance(node, Plan | Stem | Stage | Block | Shortcut):
        parts = {field.name: getattr(node, field.name) for field in dataclasses.fields(node)}
        return type(node)(**{name: _fastest(part, exact=exact) for name, part in parts.items()})
    return node


def _fastest_form(conv: Conv, *, exact: bool) -> Literal["xla", "dot", "winograd"]:
    if conv.kernel == conv.groups == 1:
        return "dot"
    plain = conv.kernel == 3 and conv.stride == conv.dilation == conv.groups == 1
    wide = conv.in_features >= _WINOGRAD_FEATURES
    return "winograd" if exact and plain and wide and conv.padding in (1, "same") else "xla"


def apply_in_parts(net: ResNet, params: Variables, images: Images) -> Logits:
    """The logits of a batch, computed for as few images at a time as is fastest on a CPU.

    Parts are of one size, so that some zeros may be computed on beside the images.
    """

    def run(part: Images) -> Any:
        return net.apply(params, part, train=False)

    if images.ndim != 4 or images.size == 0:
        return run(images)  # which refuses them
    batch, height, width, _ = images.shape
    most = max(1, _PART_PX // (height * width))
    count = -(-batch // most)
    if count == 1:
        return run(images)
    size = -(-batch // count)
    images = jnp.pad(images, ((0, count * size - batch), (0, 0), (0, 0), (0, 0)))
    logits = jax.lax.map(run, images.reshape(count, size, *images.shape[1:]))
    return logits.reshape(count * size, -1)[:batch]


def on_cpu() -> bool:
    """Whether JAX's default device is one."""
    return jax.default_backend() == "cpu"
