"""Layers without names of their own: Keras calls them `conv2d`, `conv2d_1`, ... as it makes them.

The numbers run through a whole Python process, so they begin anywhere, but their order is that of
creation. Shapes tell the rest: where a block ends, and which convolution is its projection.
"""

import functools
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

from resnetjax.config import ResNetConfig
from resnetjax.measure import leaves
from resnetjax.plan import plan

Projection: TypeAlias = Literal["first", "last", "aligned"]


@dataclass(frozen=True)
class Numbered:
    """How a system numbers its layers.

    Attributes:
        conv: What a convolution is called.
        norm: What a norm is called.
        dense: What a fully connected layer is called.
        projection: Whether a block's projection comes before its other convolutions ("first"),
            after them ("last"), or before the last of them ("aligned": in the order in which Keras
            lists the layers of a model, which is by their distance from the end).
    """

    conv: str = "conv2d"
    norm: str = "batch_normalization"
    dense: str = "dense"
    projection: Projection = "last"

    def name(self, module: str, config: ResNetConfig) -> str | None:
        """What our module is called."""
        return _names(self, config).get(module)

    def renumber(self, names: Iterable[str]) -> dict[str, str]:
        """The same names, with each kind of layer numbered from zero."""
        kinds = "|".join((self.conv, self.norm, self.dense))
        found = {name: re.fullmatch(rf"({kinds})(?:_(\d+))?(/.*)", name) for name in names}
        numbers = {
            kind: sorted({int(m[2] or 0) for m in found.values() if m and m[1] == kind})
            for kind in (self.conv, self.norm, self.dense)
        }
        return {
            name: _numbered(m[1], numbers[m[1]].index(int(m[2] or 0))) + m[3] if m else name
            for name, m in found.items()
        }

    def fields(self, arrays: Mapping[str, np.ndarray]) -> dict[str, Any] | None:
        """The config fields that the shapes tell, None if they are those of no net of blocks.

        Args:
            arrays: Numbered from zero.
        """
        kernels = list(_kernels(arrays, self.conv, rank=4))
        dense = list(_kernels(arrays, self.dense, rank=2))
        if len(kernels) < 3 or not dense:
            return None
        stem, rest = kernels[0], kernels[1:]
        blocks: list[tuple[int, int, bool]] = []  # channels in, channels out, whether it projects
        sizes = [size for size, *_ in rest]
        kind = "basic" if sizes.count(3) > sizes.count(1) else "bottleneck"
        layers = [3, 3] if kind == "basic" else [1, 3, 1]
        while rest:
            width_in = blocks[-1][1] if blocks else stem[3]
            first = self.projection == "first" and rest[0][0] == 1
            first = first and [size for size, *_ in rest[1 : len(layers) + 1]] == layers
            body, rest = rest[first : len(layers) + first], rest[len(layers) + first :]
            if [size for size, *_ in body] != layers or body[0][2] != width_in:
                return None
            width = body[-1][3]
            last = (
                self.projection == "last"
                and bool(rest)
                and (rest[0][0], *rest[0][2:]) == (1, width_in, width)
                and [size for size, *_ in rest[: len(layers)]] != layers
            )
            rest = rest[last:]
            blocks.append((width_in, width, bool(first or last)))
        return self._of_blocks(blocks, kind, stem, arrays) | {
            "num_classes": dense[-1][1],
            "head_widths": tuple(features for _, features in dense[:-1]),
        }

    def _of_blocks(
        self,
        blocks: list[tuple[int, int, bool]],
        kind: str,
        stem: tuple[int, ...],
        arrays: Mapping[str, np.ndarray],
    ) -> dict[str, Any]:
        # A stage begins where the width changes, which is where the stride is.
        starts = [i for i, (before, after, _) in enumerate(blocks) if i == 0 or before != after]
        depths = np.diff([*starts, len(blocks)]).tolist()
        widths = [blocks[i][1] // (1 if kind == "basic" else 4) for i in starts]
        norms = sum(name.endswith("/gamma") for name in arrays)
        count = sum(projects for *_, projects in blocks)
        projections = tuple(blocks[i][2] for i in starts)
        needed = tuple(i > 0 or blocks[i][0] != blocks[i][1] for i in starts)
        unnormed = 1 + len(blocks) * (2 if kind == "basic" else 3)
        return {
            "block": kind,
            "depths": tuple(depths),
            "widths": tuple(widths),
            "strides": (1, *(2,) * (len(depths) - 1)),
            "dilations": (1,) * len(depths),
            "projections": None if projections == needed else projections,
            "stem": "conv7" if stem[0] == 7 else "conv3",
            "stem_pool": "max" if stem[0] == 7 else "none",
            "stem_width": stem[3],
            "in_channels": stem[2],
            "shortcut_norm": norms == unnormed + count,
            "conv_bias": "all" if f"{self.conv}/bias" in arrays else "none",
        }


def _kernels(
    arrays: Mapping[str, np.ndarray], kind: str, *, rank: int
) -> Iterator[tuple[int, ...]]:
    """Shapes of the kernels of one kind of layer, in their order."""
    for number in itertools.count():
        kernel = arrays.get(f"{_numbered(kind, number)}/kernel")
        if kernel is None or kernel.ndim != rank:
            return
        yield kernel.shape


def _numbered(kind: str, number: int) -> str:
    return f"{kind}_{number}" if number else kind


@functools.lru_cache(maxsize=64)
def _names(numbered: Numbered, config: ResNetConfig) -> dict[str, str]:
    names, counts = {}, dict.fromkeys((numbered.conv, numbered.norm, numbered.dense), 0)
    for module in in_order(config, numbered.projection):
        last = module.rpartition("/")[2]
        kind = numbered.dense if module.startswith("head") else numbered.conv
        if last.startswith("norm"):
            kind = numbered.norm
        names[module] = _numbered(kind, counts[kind])
        counts[kind] += 1
    return names


def in_order(config: ResNetConfig, projection: Projection) -> list[str]:
    """Our modules in the order in which a system makes or lists them.

    Example:
        >>> from resnetjax.presets import get
        >>> in_order(get("keras_resnet50"), "aligned")[4:10]
        ['stage1_block1/conv2', 'stage1_block1/norm2', 'stage1_block1/shortcut/conv',
        'stage1_block1/conv3', 'stage1_block1/shortcut/norm', 'stage1_block1/norm3']
    """
    modules = list(dict.fromkeys(path.rpartition("/")[0] for path in leaves(plan(config))))
    blocks = list(dict.fromkeys(module.partition("/")[0] for module in modules))
    before = -1 if config.order == "pre" else 1  # whether a block's norms come before its kernels

    def place(module: str) -> tuple[int, float]:
        block, _, part = module.partition("/")
        if block == "head":
            return blocks.index(block), modules.index(module)
        kind, number = re.sub(r"\d", "", part), int(re.sub(r"\D", "", part) or 0)
        shift = before if kind.endswith("norm") and block != "stem" else 0
        shift = 1 if kind == "norm" and block == "stem" else shift
        if kind.startswith("shortcut/"):
            plain = kind.removeprefix("shortcut/")
            last = sum(re.fullmatch(rf"{block}/{plain}\d", name) is not None for name in modules)
            # A bare projection is as near to the end as the last norm of its block.
            last += 0.5 * (config.order == "post" and not config.shortcut_norm)
            where = {"first": 0, "last": 99, "aligned": last}[projection]
            return blocks.index(block), 2 * where + shift - 0.5
        return blocks.index(block), 2 * number + shift

    return sorted(modules, key=place)
