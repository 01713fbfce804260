"""Which dialect and which architecture a set of arrays is, from their names and shapes alone.

Names are probed by translating our own paths, so what is known of a dialect stays in its table.
What names and shapes cannot tell (where the stride is, how a pool pads) comes from the first
architecture that fits, and is reported as an assumption.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from resnetjax.config import ResNetConfig
from resnetjax.errors import ConfigError, UnsupportedFile
from resnetjax.measure import leaves
from resnetjax.plan import plan
from resnetjax.presets import ARCHITECTURES, SIZES
from resnetjax.weights.arrays import strip_root
from resnetjax.weights.dialect import Dialect, effective, entries, entry, inexpressible
from resnetjax.weights.dialects import DIALECTS
from resnetjax.weights.probe import Probe


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
    "shortcut_kernel", "projections", "groups", "group_width", "reduce_first", "norm",
    "pruned_features", "bias_sites", "attention",
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
    found: list[tuple[_Fit, Probe, Detection]] = []
    for dialect in DIALECTS.values():
        probe = Probe(dialect, strip_root(dialect, arrays))
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
            f"({', '.join(DIALECTS)}); where blocks are counted over all stages, as Flax does, a "
            "net of other depths than the papers' needs config="
        )
    probe, detection = next((probe, detection) for fit, probe, detection in found if fit == best)
    return detection if known else _name(detection, probe.theirs, hidden=probe.hidden)


class _Fit(NamedTuple):
    """How well arrays fit a net in a dialect: the greater the better, field by field."""

    share: float  # of names in common
    shapes: int  # that agree
    expressible: int  # minus the number of fields that the dialect's system does not have


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
    return _Fit(share, shapes, -len(inexpressible(dialect, config)))


def _nearest(arrays: Mapping[str, np.ndarray]) -> tuple[_Fit, Detection] | None:
    """The architecture with most names, then shapes, in common, if they are half or more."""
    best, found = _Fit(0.5, 0, 0), None
    for dialect in DIALECTS.values():
        theirs = strip_root(dialect, arrays)
        probe = Probe(dialect, theirs)
        if dialect.numbered or not probe.blocks(1, probe.skeleton()):
            continue
        for name in dialect.architectures():
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
    sizes = {field: getattr(found.config, field) for field in SIZES}
    expected = leaves(plan(found.config))
    alike = (
        name
        for name in found.dialect.architectures()
        if name != found.arch and leaves(plan(ARCHITECTURES[name].replace(**sizes))) == expected
    )
    return best, replace(found, alternatives=tuple(alike))


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
        for name in dialect.architectures()
        if looks(ARCHITECTURES[name]) == looks(config)
        and _has_names(dialect, ARCHITECTURES[name], theirs)
    ]
    if not matching:
        return found
    return as_architecture(replace(found, alternatives=tuple(matching[1:])), matching[0])


def as_architecture(found: Detection, name: str) -> Detection:
    """The same with an architecture's config, for the file's classes and input channels.

    Where the dialect's system has no choice, as with an epsilon, it decides, not the architecture.
    """
    dialect = found.dialect
    sizes = {field: getattr(found.config, field) for field in SIZES}
    known = ARCHITECTURES[name].replace(**sizes)
    fixed = {
        field: value
        for field, value in dialect.base.items()
        if field not in dialect.expresses
        and effective(field, getattr(known, field), known) != effective(field, value, known)
    }
    return replace(found, arch=name, config=known.replace(**fixed))


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
