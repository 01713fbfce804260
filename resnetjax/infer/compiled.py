"""A net compiled ahead of time for one size of batch, in the form that runs fastest."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from resnetjax.errors import ConfigError
from resnetjax.infer.fold import fold
from resnetjax.nn.resnet import ResNet
from resnetjax.pretrained import Variables
from resnetjax.specs import Block, Conv, Plan, Shortcut, Stage, Stem


def compile_inference(
    model: ResNet,
    variables: Variables,
    *,
    batch_size: int,
    image_px: tuple[int, int] = (224, 224),
    dtype: Any = None,
) -> Callable[[Float[Array, "batch height width channels"]], Float[Array, "batch classes"]]:
    """A function from preprocessed float32 images to logits, compiled for JAX's default device.

    It takes images of just this number and size, and never compiles again. Batch norm is folded
    into the convolutions. On a CPU the weights are constants of the program, which measures a
    tenth faster and takes twice as long to compile; elsewhere they are its arguments.

    Args:
        model: The net.
        variables: Its arrays, which the function keeps a copy of.
        batch_size: Images at once.
        image_px: Their height and width.
        dtype: Of the arithmetic; None is the model's own.

    Raises:
        ConfigError: `batch_size` is below 1.

    Example:
        >>> import resnetjax as rj
        >>> model, variables = rj.create("cifar_resnet20")
        >>> run = rj.compile_inference(model, variables, batch_size=2, image_px=(32, 32))
        >>> run(jnp.zeros((2, 32, 32, 3))).shape
        (2, 10)
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size={batch_size} is not allowed: use 1 or more")
    net, params = for_inference(model, variables, dtype=dtype)
    shape = (batch_size, *image_px, model.config.in_channels)
    images = jax.ShapeDtypeStruct(shape, jnp.float32)
    if _on_cpu():
        return jax.jit(functools.partial(net.apply, params)).lower(images).compile()
    return functools.partial(jax.jit(net.apply).lower(params, images).compile(), params)


def for_inference(
    model: ResNet, variables: Variables, *, dtype: Any = None
) -> tuple[ResNet, Variables]:
    """The folded net in the form that JAX's default device runs fastest, and its arrays.

    On a CPU 1x1 convolutions are matrix products. Kernels are kept in the dtype of the arithmetic.
    """
    net, folded = fold(model, variables)
    if _on_cpu():
        net = net.clone(net=_with_dots(net.net))
    net = net.clone(dtype=net.dtype if dtype is None else dtype)
    # Kernels alone: scales and shifts are few, and their rounding would count.
    params = jax.tree.map(lambda x: x.astype(net.dtype) if x.ndim > 1 else x, folded)
    return net, params


def _with_dots(node: Any) -> Any:
    """A plan, or a part of one, whose 1x1 convolutions are matrix products."""
    if isinstance(node, tuple):
        return tuple(map(_with_dots, node))
    if isinstance(node, Conv):
        return dataclasses.replace(node, as_dot=node.kernel == node.groups == 1)
    if isinstance(node, Plan | Stem | Stage | Block | Shortcut):
        parts = {field.name: getattr(node, field.name) for field in dataclasses.fields(node)}
        return type(node)(**{name: _with_dots(part) for name, part in parts.items()})
    return node


def _on_cpu() -> bool:
    return jax.default_backend() == "cpu"
