"""Reads a net's config off the arrays of one dialect, by asking for ours under its names."""

import itertools
from collections.abc import Mapping
from fractions import Fraction
from typing import Any, get_args

import numpy as np

from resnetjax.config import ConvSite, ResNetConfig
from resnetjax.errors import ConfigError
from resnetjax.measure import leaves
from resnetjax.plan import plan
from resnetjax.presets import ARCHITECTURES
from resnetjax.weights.dialect import Dialect, base_config, entries, entry
from resnetjax.weights.numbered import Numbered

_HEAD = {"kernel": "dense", "bias": "bias"}


class Probe:
    """Reads a config off the arrays of one dialect, by asking for ours under their names."""

    def __init__(self, dialect: Dialect, theirs: Mapping[str, np.ndarray]) -> None:
        self.dialect = dialect
        self.theirs = theirs
        self.hidden: set[str] = set()  # fields of VISIBLE that this dialect's names do not show

    def array(self, path: str, kind: str, config: ResNetConfig) -> np.ndarray | None:
        """Our array of this path, if theirs is there and has its rank."""
        named = entry(self.dialect, path, kind, config)
        if named is None or named.name not in self.theirs:
            return None
        array = named.load(self.theirs[named.name])
        rank = {"conv": 4, "dense": 2}.get(kind, 1)
        return array if array is not None and array.ndim == rank else None

    def has(self, path: str, config: ResNetConfig) -> bool:
        """Whether our array of this path is there, whatever its shape."""
        kind = {"kernel": "conv", "scale": "scale", "bias": "bias", "mean": "mean"}[
            path.rpartition("/")[2]
        ]
        named = entry(self.dialect, path, kind, config)
        return named is not None and named.name in self.theirs

    def head(self, config: ResNetConfig) -> dict[str, Any]:
        """The config fields of the head."""
        config = config.replace(head_widths=(), num_classes=1)
        found = {"num_classes": self._classes(config), "head_widths": ()}
        while True:
            longer = config.replace(head_widths=(*config.head_widths, 1))
            name = f"head/hidden{len(longer.head_widths)}/kernel"
            array = self.array(name, "dense", longer)
            if array is None or not array.size:
                return found
            config = config.replace(head_widths=(*config.head_widths, array.shape[-1]))
            if classes := self._classes(config):  # else this may have been the last layer
                found = {"num_classes": classes, "head_widths": config.head_widths}

    def _classes(self, config: ResNetConfig) -> int:
        """Outputs of the head, 0 without one; 1 of a head that is there and makes no sense."""
        arrays = (self.array(f"head/{x}", y, config) for x, y in _HEAD.items())
        if sized := [array.shape[-1] for array in arrays if array is not None]:
            return sized[0]
        named = (entry(self.dialect, f"head/{x}", y, config) for x, y in _HEAD.items())
        return int(any(found is not None and found.name in self.theirs for found in named))

    def sized_like(self, known: ResNetConfig) -> ResNetConfig:
        """The net with the head and input channels of these arrays."""
        first = self.array("stem/conv1/kernel", "conv", known)
        channels = {} if first is None or not first.size else {"in_channels": first.shape[2]}
        return known.replace(**self.head(known), **channels)

    def config(self) -> ResNetConfig | None:
        """The net of these arrays, as far as they tell; None if it cannot be of this dialect."""
        if self.dialect.numbered and self.dialect.numbered.projection != "aligned":
            return self._numbered(self.dialect.numbered)
        if self.dialect.numbered or any("{block" in rule.theirs for rule in self.dialect.rules):
            return self._counted()
        blocks = self.dialect.expresses.get("block") or ("bottleneck",)
        for stem, block in itertools.product(("conv7", "deep", "conv3"), reversed(blocks)):
            skeleton = self.skeleton(stem=stem, block=block)
            first = self.array("stem/conv1/kernel", "conv", skeleton)
            last = self.array("stem/conv3/kernel", "conv", skeleton) if stem == "deep" else first
            if (
                first is not None
                and last is not None
                and first.shape[0] == (7 if stem == "conv7" else 3)
                and (depths := self.depths(skeleton))
            ):
                break
        else:
            return None
        found: dict[str, Any] = {
            "in_channels": first.shape[2],
            "stem_width": last.shape[3],
            **self.head(skeleton),
        }
        if stem == "deep":
            second = self.array("stem/conv2/kernel", "conv", skeleton)
            equal = second is None or second.shape[3] == first.shape[3]
            found["stem"] = "deep" if equal else "tiered"
        else:
            found["stem"] = stem
        if stem == "conv3":
            found["stem_pool"] = "none"
        if self.has("stem/pool/conv/kernel", skeleton):
            found["stem_pool"] = "conv"
        try:
            found |= self._stages(depths, skeleton)
            base = base_config(self.dialect, depths, found["widths"])
            return self._projecting(base.replace(**found))
        except (ConfigError, _Absent, ZeroDivisionError):  # kernels without channels
            return None

    def _numbered(self, numbered: Numbered) -> ResNetConfig | None:
        found = numbered.fields(self.theirs)
        if found is None:
            return None
        try:
            return ResNetConfig(**{**self.dialect.base, **found})
        except ConfigError:
            return None

    def _counted(self) -> ResNetConfig | None:
        """The architecture with just these arrays: a count over all stages tells no stage's end."""
        shapes = {name: array.shape for name, array in self.theirs.items()}
        for name in self.dialect.architectures():
            if self.array("stem/conv1/kernel", "conv", ARCHITECTURES[name]) is None:
                continue
            config = self.sized_like(ARCHITECTURES[name])
            expected = leaves(plan(config))
            if len(expected) != len(shapes):
                continue
            named = entries(self.dialect, config)
            if {named[path].name: leaf.shape for path, leaf in expected.items()} == shapes:
                return config
        return None

    def skeleton(self, **fields: Any) -> ResNetConfig:
        """A net just large enough to ask for names."""
        pools = {"stem_pool": "none"} if fields.get("stem") == "conv3" else {}
        plain = ResNetConfig(depths=(1, 1, 1, 1), num_classes=1)
        return plain.replace(**{"block": "bottleneck", **fields, **self.dialect.base, **pools})

    def depths(self, skeleton: ResNetConfig) -> tuple[int, ...]:
        """Number of blocks of each stage."""
        depths: list[int] = []
        while (blocks := self.blocks(len(depths) + 1, skeleton)) > 0:
            depths.append(blocks)
        return tuple(depths)

    def blocks(self, stage: int, skeleton: ResNetConfig) -> int:
        """Number of blocks of a stage; one whose every part is missing ends it."""
        block = 0
        parts = ("conv1/kernel", "conv2/kernel", "norm1/scale", "norm2/scale")
        while any(self.has(f"stage{stage}_block{block + 1}/{part}", skeleton) for part in parts):
            block += 1
        return block

    def _stages(self, depths: tuple[int, ...], skeleton: ResNetConfig) -> dict[str, Any]:
        paths = [f"stage{stage}_block1/conv3/kernel" for stage in range(1, len(depths) + 1)]
        thirds = [self.array(path, "conv", skeleton) for path in paths]
        blocks = ["basic" if third is None else "bottleneck" for third in thirds]
        found: dict[str, Any] = {
            "block": blocks[0] if len(set(blocks)) == 1 else tuple(blocks),
            "norm": "batch" if self.has("stage1_block1/norm1/mean", skeleton) else "group",
        }
        found |= self._pruned(depths, blocks, skeleton) or self._widths(blocks, skeleton)
        pre = self.has("norm/scale", skeleton)
        order = {"order": "pre", "shortcut_norm": False} if pre else {}
        found["conv_bias"] = self._bias_sites(skeleton)
        found |= order | self._shortcuts(len(depths), skeleton, order)
        return found | self._attention(len(depths), skeleton)

    def _widths(self, blocks: list[str], skeleton: ResNetConfig) -> dict[str, Any]:
        """The channels of every block, as the first of its stage has them."""
        found, widths = {}, []
        for stage, kind in enumerate(blocks, start=1):
            conv1, conv2 = (self._kernel(f"stage{stage}_block1/conv{n}", skeleton) for n in (1, 2))
            width = conv2.shape[3]
            found["reduce_first"] = max(conv2.shape[3] // conv1.shape[3], 1)
            if kind == "bottleneck":
                width = self._kernel(f"stage{stage}_block1/conv3", skeleton).shape[3] // 4
                groups = conv1.shape[3] // conv2.shape[2]
                found["groups"] = groups
                found["group_width"] = conv2.shape[3] // groups * 64 // width
            widths.append(width)
        return {**found, "widths": tuple(widths)}

    def _pruned(
        self, depths: tuple[int, ...], blocks: list[str], skeleton: ResNetConfig
    ) -> dict[str, Any]:
        """The channels of every block, if no net has them that is not pruned; else {}.

        What a stage had before pruning no array tells: its width is taken for a power of two.
        """
        pruned, widths, incoming = [], [], None
        for stage, (depth, kind) in enumerate(zip(depths, blocks, strict=True), start=1):
            modules = ("conv1", "conv2", "conv3")[: 2 if kind == "basic" else 3]
            features = []
            for block in range(1, depth + 1):
                paths = [f"stage{stage}_block{block}/{module}/kernel" for module in modules]
                kernels = [self.array(path, "conv", skeleton) for path in paths]
                shapes = [kernel.shape for kernel in kernels if kernel is not None]
                fed = [shape[2] for shape in shapes]
                left = tuple(shape[3] for shape in shapes)
                if len(left) < len(modules) or fed != [incoming or fed[0], *left[:-1]]:
                    return {}  # an array that is lacking, mis-shaped or grouped
                features.append(left)
                incoming = left[-1]
            pruned.append(tuple(features))
            inner = max(max(left[:2]) for left in features)
            most = inner if kind == "basic" else max(inner, -(-features[0][-1] // 4))
            widths.append(1 << (most - 1).bit_length())
        if all(len(set(stage)) == 1 for stage in pruned) and _whole([s[0] for s in pruned]):
            return {}
        return {"widths": tuple(widths), "pruned_features": tuple(pruned)}

    def _projecting(self, config: ResNetConfig) -> ResNetConfig:
        """The net with a projection in each stage's first block that has one."""
        paths = [
            f"stage{stage}_block1/shortcut/conv/kernel"
            for stage in range(1, 1 + len(config.depths))
        ]
        expected = leaves(plan(config))
        there = tuple(self.has(path, config) for path in paths)
        if config.shortcut == "pad" or there == tuple(path in expected for path in paths):
            return config
        return config.replace(projections=there)

    def _kernel(self, module: str, config: ResNetConfig) -> np.ndarray:
        kernel = self.array(f"{module}/kernel", "conv", config)
        if kernel is None:
            raise _Absent
        return kernel

    def _bias_sites(self, skeleton: ResNetConfig) -> str | tuple[ConvSite, ...]:
        places = {site: f"stage1_block1/{site}/bias" for site in ("conv1", "conv2", "conv3")}
        places |= {"stem": "stem/conv1/bias", "shortcut": "stage2_block1/shortcut/conv/bias"}
        sites = tuple(site for site in get_args(ConvSite) if self.has(places[site], skeleton))
        return "all" if sites == get_args(ConvSite) else sites or "none"

    def _shortcuts(
        self, stages: int, skeleton: ResNetConfig, order: dict[str, Any]
    ) -> dict[str, Any]:
        """Which shortcut projects, and how; in which stage it first does depends on the net."""
        for kind in ("conv", "avg_conv"):
            config = skeleton.replace(shortcut=kind)
            for stage in range(stages, 0, -1):
                prefix = f"stage{stage}_block1/shortcut"
                kernel = self.array(f"{prefix}/conv/kernel", "conv", config)
                if kernel is None:
                    continue
                other = skeleton.replace(shortcut="avg_conv")
                if (
                    kind == "conv"
                    and self.array(f"{prefix}/conv/kernel", "conv", other) is not None
                ):
                    self.hidden.add("shortcut")  # one name for both
                    # timm's v2 nets average in their shortcuts where the stem is deep, only there.
                    lacking = dict(self.dialect.lacks(other.replace(**order)))
                    deep = skeleton.stem == "deep" and "shortcut" not in lacking
                    kind = "avg_conv" if deep else "conv"
                normed = self.has(f"{prefix}/norm/scale", config)
                size = kernel.shape[0]
                return {"shortcut": kind, "shortcut_norm": normed, "shortcut_kernel": size}
        return {"shortcut": "pad"}

    def _attention(self, stages: int, skeleton: ResNetConfig) -> dict[str, Any]:
        prefix = f"stage{stages}_block1/attention"
        reduce = self.array(f"{prefix}/reduce/kernel", "dense", skeleton)
        if reduce is not None:
            return {"attention": "se", "se_ratio": reduce.shape[1] / reduce.shape[0]}
        eca = self.array(f"{prefix}/conv/kernel", "channel_conv", skeleton)
        return {"attention": "none" if eca is None else "eca"}


class _Absent(Exception):
    """A kernel that every net has is not there."""


def _whole(features: list[tuple[int, ...]]) -> bool:
    """Whether one `reduce_first` and one `group_width` explain the channels of a block a stage."""
    reduced = {Fraction(left[1], max(left[0], 1)) for left in features}
    grouped = {Fraction(64 * 4 * left[1], max(left[2], 1)) for left in features if len(left) == 3}
    fours = all(left[2] % 4 == 0 for left in features if len(left) == 3)
    integers = all(share.denominator == 1 for share in reduced | grouped)
    return fours and integers and len(reduced) == 1 and len(grouped) <= 1
