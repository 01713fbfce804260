"""A net rewritten for inference: batch norms folded into the convolutions that they follow.

Two halves walk the same plan: `folded` makes another plan, which the same modules run, and `fold`
the arrays that it asks for.
"""

import dataclasses
from collections.abc import Iterator, Mapping

import flax.traverse_util
import jax
import numpy as np

from resnetjax.measure import leaves
from resnetjax.nn.resnet import ResNet
from resnetjax.plan import plan
from resnetjax.pretrained import Variables, flatten
from resnetjax.specs import Block, Conv, Norm, Plan

Arrays = dict[str, np.ndarray]


def fold(model: ResNet, variables: Variables) -> tuple[ResNet, Variables]:
    """The same function of images without statistics: fewer layers, every convolution plain.

    A batch norm that directly follows a convolution becomes part of its kernel and bias; one that
    does not (in v2 each block's first, and the net's last) becomes a scale and a shift.
    Standardised kernels are standardised for good. Group norms stay. The arrays are computed in
    float64 and rounded once.

    Args:
        model: The net; one that is folded already comes back equal.
        variables: Its arrays.

    Returns:
        A net for inference, which runs the folded plan, and its arrays: float32 params alone.

    Example:
        >>> import resnetjax as rj
        >>> folded_model, params_alone = fold(*rj.create("cifar_resnet20"))
        >>> list(params_alone), sorted(params_alone["params"]["stem"]["conv1"])
        (['params'], ['bias', 'kernel'])
    """
    before = model.net or plan(model.config)
    after = folded(before)
    given = {path: array.astype(np.float64) for path, array in flatten(variables).items()}
    made = dict(given)
    for prefix, conv, norm in _convolutions(before):
        made |= _merged(given, prefix, conv, norm)
    for path, norm in _lone_norms(before):
        scale, shift = _scale_and_shift(given, path, norm)
        made |= {f"{path}/scale": scale, f"{path}/bias": shift}
    params = {tuple(path.split("/")): made[path].astype(np.float32) for path in leaves(after)}
    nested = flax.traverse_util.unflatten_dict(jax.device_put(params))
    return model.clone(net=after), {"params": nested}


def folded(net: Plan) -> Plan:
    """The plan without batch norms: convolutions have biases instead, and lone norms are affine."""
    stem = dataclasses.replace(
        net.stem,
        convs=tuple(_without_norm(conv, conv.norm) for conv in net.stem.convs),
        pool_conv=net.stem.pool_conv and _without_norm(net.stem.pool_conv, net.stem.pool_conv.norm),
    )
    stages = tuple(
        dataclasses.replace(stage, blocks=tuple(map(_folded_block, stage.blocks)))
        for stage in net.stages
    )
    return dataclasses.replace(net, stem=stem, stages=stages, norm=_affine(net.norm))


def _folded_block(block: Block) -> Block:
    convs = [
        _without_norm(conv, norm) for conv, norm in zip(block.convs, _behind(block), strict=True)
    ]
    if block.order == "pre":
        convs[0] = dataclasses.replace(convs[0], norm=_affine(block.convs[0].norm))
    projection = block.shortcut.conv
    shortcut = dataclasses.replace(
        block.shortcut, conv=projection and _without_norm(projection, projection.norm)
    )
    return dataclasses.replace(block, convs=tuple(convs), shortcut=shortcut)


def _without_norm(conv: Conv, behind: Norm | None) -> Conv:
    """A plain convolution, that has taken in the norm `behind` it and left its own to another."""
    return dataclasses.replace(
        conv,
        bias=conv.bias or _folds(behind),
        standardize_eps=None,
        norm=None if _folds(conv.norm) else conv.norm,
    )


def _affine(norm: Norm | None) -> Norm | None:
    return dataclasses.replace(norm, kind="affine") if norm and _folds(norm) else norm


def _folds(norm: Norm | None) -> bool:
    return norm is not None and norm.kind == "batch"


def _behind(block: Block) -> tuple[Norm | None, ...]:
    """The norm that directly follows each convolution: v2's belongs to the next convolution."""
    own = tuple(conv.norm for conv in block.convs)
    return (*own[1:], None) if block.order == "pre" else own


def _convolutions(net: Plan) -> Iterator[tuple[str, Conv, Norm | None]]:
    """Every convolution with where its arrays are and the norm that directly follows it."""
    for conv in net.stem.convs:
        yield "stem/", conv, conv.norm
    if net.stem.pool_conv:
        yield "stem/pool/", net.stem.pool_conv, net.stem.pool_conv.norm
    for block in (block for stage in net.stages for block in stage.blocks):
        for conv, norm in zip(block.convs, _behind(block), strict=True):
            yield f"{block.name}/", conv, norm
        if block.shortcut.conv:
            yield f"{block.name}/shortcut/", block.shortcut.conv, block.shortcut.conv.norm


def _lone_norms(net: Plan) -> Iterator[tuple[str, Norm]]:
    """The batch norms that follow no convolution directly, with where their arrays are."""
    for block in (block for stage in net.stages for block in stage.blocks):
        first = block.convs[0].norm
        if block.order == "pre" and first and _folds(first):
            yield f"{block.name}/{first.name}", first
    if net.norm and _folds(net.norm):
        yield net.norm.name, net.norm


def _merged(arrays: Mapping[str, np.ndarray], prefix: str, conv: Conv, norm: Norm | None) -> Arrays:
    path = prefix + conv.name
    kernel = arrays[f"{path}/kernel"]
    if conv.standardize_eps is not None:
        mean, var = kernel.mean((0, 1, 2)), kernel.var((0, 1, 2))
        kernel = (kernel - mean) / np.sqrt(var + conv.standardize_eps)
    if norm is None or not _folds(norm):
        return {f"{path}/kernel": kernel}
    scale, shift = _scale_and_shift(arrays, prefix + norm.name, norm)
    bias = arrays[f"{path}/bias"] if conv.bias else 0.0
    return {f"{path}/kernel": kernel * scale, f"{path}/bias": bias * scale + shift}


def _scale_and_shift(
    arrays: Mapping[str, np.ndarray], path: str, norm: Norm
) -> tuple[np.ndarray, np.ndarray]:
    """What a batch norm multiplies by and then adds."""
    scale, bias, mean, var = (arrays[f"{path}/{name}"] for name in ("scale", "bias", "mean", "var"))
    scale = scale / np.sqrt(var + norm.eps)
    return scale, bias - mean * scale
