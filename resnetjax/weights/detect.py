"""Which dialect and which architecture a set of arrays is, from their names and shapes alone.

Names are probed by translating our own paths, so what is known of a dialect stays in its table.
What names and shapes cannot tell (where the stride is, how a pool pads) comes from the first
architecture that fits, and is reported as an assumption.
"""

import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, get_args

import numpy as np

from resnetjax.config import ConvSite, ResNetConfig
from resnetjax.errors import ConfigError, UnsupportedFile
from resnetjax.measure import leaves
from resnetjax.plan import plan
from resnetjax.presets import ARCHITECTURES
from resnetjax.weights.dialect import (
    Dialect,
    base_config,
    entries,
    entry,
    inexpressible,
    strip_root,
)
from resnetjax.weights.dialects import DIALECTS


@dataclass(frozen=True)
class Detection:
    """What a set of arrays was taken to be.

    Attributes:
        dialect: Whose names they have.
        config: The net, with the file's classes and input channels.
        arch: The architecture's name, or None for a net that has none.
        alternatives: Architectures whose arrays have the same names and shapes, and which compute
            other things.
    """

    dialect: Dialect
    config: ResNetConfig
    arch: str | None
    alternatives: tuple[str, ...]


# What names and shapes tell. Everything else in a config is assumed.
VISIBLE = (
    "blocks", "depths", "widths", "order", "stem", "stem_width", "shortcut", "shortcut_norm",
    "shortcut_kernel", "groups", "group_width", "reduce_first", "norm", "bias_sites", "attention",
)  # fmt: skip


def detect(
    arrays: Mapping[str, np.ndarray], *, source: str, known: ResNetConfig | None = None
) -> Detection:
    """The dialect and architecture whose arrays these are.

    Args:
        arrays: By name.
        source: Named in errors.
        known: The net, where it need not be found; its classes and channels are still the arrays'.

    Raises:
        UnsupportedFile: No dialect's names are among them.
    """
    found: list[tuple[_Fit, _Probe, Detection]] = []
    for dialect in DIALECTS.values():
        probe = _Probe(dialect, strip_root(dialect, arrays))
        config = probe.config() if known is None else probe.sized_like(known)
        if config is not None:
            detection = Detection(dialect, config, None, ())
            found.append((_fit(detection, probe.theirs), probe, detection))
    best = max((fit for fit, _, _ in found), default=_NOTHING)
    if known is None and best.share < 1:
        # Arrays are lacking, or there are others: what they were meant to be tells which.
        nearest = _nearest(arrays)
        if nearest and nearest[0] > best:
            return nearest[1]
    if best.share == 0:
        some = ", ".join(list(arrays)[:4])
        raise UnsupportedFile(
            f"{source}: the names of its arrays ({some}, ...) are of no dialect that is known "
            f"({', '.join(DIALECTS)})"
        )
    probe, detection = next((probe, detection) for fit, probe, detection in found if fit == best)
    return detection if known else _name(detection, probe.theirs, hidden=probe.hidden)


class _Fit(NamedTuple):
    """How well arrays fit a net in a dialect: the greater the better, field by field."""

    share: float  # of names in common
    expressible: int  # minus the number of fields that the dialect's system does not have
    shapes: int  # that agree


_NOTHING = _Fit(0.0, 0, 0)


def _fit(detection: Detection, theirs: Mapping[str, np.ndarray]) -> _Fit:
    dialect, config = detection.dialect, detection.config
    try:
        named = entries(dialect, config)
    except ConfigError:  # it has no name for some
        return _NOTHING
    ours = {entry.name for entry in named.values()}
    share = len(ours & set(theirs)) / len(ours | set(theirs))
    if share == 0:
        return _NOTHING
    expected = leaves(plan(config))
    there = (path for path in expected if named[path].name in theirs)
    arrays = ((named[path].load(theirs[named[path].name]), expected[path]) for path in there)
    shapes = sum(array is not None and array.shape == leaf.shape for array, leaf in arrays)
    return _Fit(share, -len(inexpressible(dialect, config)), shapes)


def _nearest(arrays: Mapping[str, np.ndarray]) -> tuple[_Fit, Detection] | None:
    """The architecture with most names, then shapes, in common, if they are half or more."""
    best, found = _Fit(0.5, 0, 0), None
    for dialect in DIALECTS.values():
        theirs = strip_root(dialect, arrays)
        probe = _Probe(dialect, theirs)
        if not probe.depths(probe.skeleton()):
            continue
        for name in _family(dialect):
            config = ARCHITECTURES[name]
            size = len(leaves(plan(config)))
            if abs(size - len(theirs)) > len(theirs) / 4 or inexpressible(dialect, config):
                continue
            detection = Detection(dialect, probe.sized_like(config), name, ())
            fit = _fit(detection, theirs)
            if fit > best:
                best, found = fit, detection
    if found is None:
        return None
    sizes = {"num_classes": found.config.num_classes, "in_channels": found.config.in_channels}
    expected = leaves(plan(found.config))
    alike = (
        name
        for name in _family(found.dialect)
        if name != found.arch and leaves(plan(ARCHITECTURES[name].replace(**sizes))) == expected
    )
    return best, replace(found, alternatives=tuple(alike))


def _family(dialect: Dialect) -> list[str]:
    """The architectures that a file of the dialect may hold, each once."""
    listed = [name for glob in dialect.families for name in fnmatch.filter(ARCHITECTURES, glob)]
    return list(dict.fromkeys(listed))


def _name(found: Detection, theirs: Mapping[str, np.ndarray], *, hidden: set[str]) -> Detection:
    """The architectures that look like what was found; the first gives what cannot be seen."""
    dialect, config = found.dialect, found.config

    def looks(net: ResNetConfig) -> list[Any]:
        shown = {field: getattr(net, field) for field in VISIBLE}
        if "shortcut" in hidden and net.shortcut != "pad":
            shown["shortcut"] = "conv or avg_conv"
        return list(shown.values())

    matching = [
        name
        for name in _family(dialect)
        if looks(ARCHITECTURES[name]) == looks(config)
        and _has_names(dialect, ARCHITECTURES[name], theirs)
    ]
    if not matching:
        return found
    known = ARCHITECTURES[matching[0]]
    sized = known.replace(in_channels=config.in_channels, num_classes=config.num_classes)
    return Detection(dialect, sized, matching[0], tuple(matching[1:]))


def _has_names(dialect: Dialect, config: ResNetConfig, theirs: Mapping[str, np.ndarray]) -> bool:
    """Whether the stem's pool and the first block's attention are there as the config has them."""
    parts = ("stem/pool/conv/kernel", "stage1_block1/attention/reduce/kernel")
    wanted = leaves(plan(config))
    for path in parts:
        named = entry(dialect, path, "dense" if "attention" in path else "conv", config)
        if named is None:
            continue
        if (named.name in theirs) != (path in wanted):
            return False
        if path in wanted:
            array = named.load(theirs[named.name])
            if array is None or array.shape != wanted[path].shape:
                return False
    return True


class _Probe:
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
        return named.load(self.theirs[named.name])

    def has(self, path: str, config: ResNetConfig) -> bool:
        """Whether our array of this path is there, whatever its shape."""
        kind = {"kernel": "conv", "scale": "scale", "bias": "bias", "mean": "mean"}[
            path.rpartition("/")[2]
        ]
        named = entry(self.dialect, path, kind, config)
        return named is not None and named.name in self.theirs

    def classes(self, config: ResNetConfig) -> int:
        """Outputs of the head, 0 without one."""
        head = self.array("head/kernel", "dense", config)
        return 0 if head is None else head.shape[1]

    def sized_like(self, known: ResNetConfig) -> ResNetConfig:
        """The net with the class count and input channels of these arrays."""
        first = self.array("stem/conv1/kernel", "conv", known)
        channels = {} if first is None or not first.size else {"in_channels": first.shape[2]}
        return known.replace(num_classes=self.classes(known), **channels)

    def config(self) -> ResNetConfig | None:
        """The net of these arrays, as far as they tell; None if it cannot be of this dialect."""
        for stem in ("conv7", "deep", "conv3"):
            skeleton = self.skeleton(stem=stem)
            first = self.array("stem/conv1/kernel", "conv", skeleton)
            last = self.array("stem/conv3/kernel", "conv", skeleton) if stem == "deep" else first
            if (
                first is not None
                and last is not None
                and first.shape[0] == (7 if stem == "conv7" else 3)
            ):
                break
        else:
            return None
        depths = self.depths(skeleton)
        if not depths:
            return None
        found: dict[str, Any] = {
            "in_channels": first.shape[2],
            "stem_width": last.shape[3],
            "num_classes": self.classes(skeleton),
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
            return base.replace(**found)
        except (ConfigError, _Absent, ZeroDivisionError):  # kernels without channels
            return None

    def skeleton(self, **fields: Any) -> ResNetConfig:
        """A net just large enough to ask for names."""
        pools = {"stem_pool": "none"} if fields.get("stem") == "conv3" else {}
        plain = ResNetConfig(depths=(1, 1, 1, 1), num_classes=1)
        return plain.replace(**{**self.dialect.base, "block": "bottleneck", **fields, **pools})

    def depths(self, skeleton: ResNetConfig) -> tuple[int, ...]:
        depths: list[int] = []
        while (blocks := self._blocks(len(depths) + 1, skeleton)) > 0:
            depths.append(blocks)
        return tuple(depths)

    def _blocks(self, stage: int, skeleton: ResNetConfig) -> int:
        """Number of blocks of a stage; one whose every part is missing ends it."""
        block = 0
        parts = ("conv1/kernel", "conv2/kernel", "norm1/scale", "norm2/scale")
        while any(self.has(f"stage{stage}_block{block + 1}/{part}", skeleton) for part in parts):
            block += 1
        return block

    def _stages(self, depths: tuple[int, ...], skeleton: ResNetConfig) -> dict[str, Any]:
        blocks, widths = [], []
        for stage in range(1, len(depths) + 1):
            third = self.array(f"stage{stage}_block1/conv3/kernel", "conv", skeleton)
            second = self._kernel(f"stage{stage}_block1/conv2", skeleton)
            blocks.append("basic" if third is None else "bottleneck")
            widths.append(second.shape[3] if third is None else third.shape[3] // 4)
        found: dict[str, Any] = {
            "block": blocks[0] if len(set(blocks)) == 1 else tuple(blocks),
            "widths": tuple(widths),
            "norm": "batch" if self.has("stage1_block1/norm1/mean", skeleton) else "group",
        }
        for index, kind in enumerate(blocks, start=1):
            conv1, conv2 = (self._kernel(f"stage{index}_block1/conv{n}", skeleton) for n in (1, 2))
            found["reduce_first"] = max(conv2.shape[3] // conv1.shape[3], 1)
            if kind == "bottleneck":
                groups = conv1.shape[3] // conv2.shape[2]
                found["groups"] = groups
                found["group_width"] = conv2.shape[3] // groups * 64 // widths[index - 1]
        if self.has("norm/scale", skeleton):
            found |= {"order": "pre", "shortcut_norm": False}
        found["conv_bias"] = self._bias_sites(skeleton)
        found |= self._shortcuts(len(depths), skeleton)
        return found | self._attention(len(depths), skeleton)

    def _kernel(self, module: str, config: ResNetConfig) -> np.ndarray:
        kernel = self.array(f"{module}/kernel", "conv", config)
        if kernel is None:
            raise _Absent
        return kernel

    def _bias_sites(self, skeleton: ResNetConfig) -> str | tuple[ConvSite, ...]:
        places = {site: f"stage1_block1/{site}/bias" for site in ("conv1", "conv2", "conv3")}
        places |= {"stem": "stem/conv1/bias", "shortcut": "stage2_block1/shortcut/conv/bias"}
        sites = tuple(site for site in get_args(ConvSite) if self.has(places[site], skeleton))
        return sites or "none"

    def _shortcuts(self, stages: int, skeleton: ResNetConfig) -> dict[str, Any]:
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
                normed = self.has(f"{prefix}/norm/scale", config)
                return {
                    "shortcut": kind,
                    "shortcut_norm": normed,
                    "shortcut_kernel": kernel.shape[0],
                }
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
