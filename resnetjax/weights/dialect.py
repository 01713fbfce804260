"""The conversion engine: one table of names, read in both directions.

A dialect says what another framework calls each of our modules. Names are only ever translated from
ours to theirs, starting from the list of our own arrays, so that loading and saving cannot drift
apart and no pattern is ever inverted.
"""

import fnmatch
import functools
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from resnetjax.config import Preprocess, ResNetConfig
from resnetjax.errors import ConfigError
from resnetjax.measure import leaves
from resnetjax.plan import plan
from resnetjax.presets import ARCHITECTURES
from resnetjax.weights.numbered import Numbered, Projection


@dataclass(frozen=True)
class Rule:
    """What a module is called.

    Attributes:
        ours: Path of our modules, with `{s}`, `{b}` and `{n}` for the numbers of stage, block and
            layer.
        theirs: Their name, with the same fields, and `{s0}`, `{s1}`, `{s_letter}` (and so on) for
            numbers counted from zero and from two, and for letters; `{block0}` and `{block2}` count
            the blocks of all stages from zero and from two, `{blocks3}` is their number plus three.
            `{n_even}` counts in twos from zero, and so does `{head_even}` the layers of the head.
        when: Config fields and the values for which the rule holds; of several rules the first that
            does wins.
        layout: Overrides the layout of the module's kernel.
    """

    ours: str
    theirs: str
    when: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    layout: str | None = None

    def translate(self, module: str, config: ResNetConfig) -> str | None:
        """Their name for our module, or None where the rule does not apply."""
        found = _pattern(self.ours).fullmatch(module)
        if not found or any(
            getattr(config, name) not in allowed for name, allowed in self.when.items()
        ):
            return None
        numbers = {name: int(digits) for name, digits in found.groupdict().items()}
        spelled: dict[str, int | str] = {**numbers}
        for name, value in numbers.items():
            spelled |= {f"{name}0": value - 1, f"{name}1": value + 1}
            spelled[f"{name}_letter"] = chr(ord("a") + value - 1)
            spelled[f"{name}_even"] = 2 * (value - 1)
        if "s" in numbers and "b" in numbers:
            spelled["block0"] = sum(config.depths[: numbers["s"] - 1]) + numbers["b"] - 1
            spelled["block2"] = spelled["block0"] + 2
        spelled["blocks3"] = sum(config.depths) + 3
        spelled["head_even"] = 2 * len(config.head_widths)
        return self.theirs.format(**spelled)


@dataclass(frozen=True)
class Layout:
    """How an array of theirs becomes ours: singleton axes dropped, then the others permuted.

    Attributes:
        permutation: Their axes in our order.
        singletons: Axes of theirs that have the length 1.
        optional: Whether they may lack the singletons; they are then written without.
    """

    permutation: tuple[int, ...]
    singletons: tuple[int, ...] = ()
    optional: bool = False

    def load(self, array: np.ndarray) -> np.ndarray | None:
        """Their array as ours (a view), or None if it has another rank."""
        if self.optional and array.ndim == len(self.permutation):
            return array.transpose(self.permutation)
        if array.ndim != len(self.permutation) + len(self.singletons):
            return None
        if any(array.shape[axis] != 1 for axis in self.singletons):
            return None
        return array.squeeze(self.singletons).transpose(self.permutation)

    def save(self, array: np.ndarray) -> np.ndarray:
        """Our array as theirs, contiguous."""
        theirs = array.transpose(np.argsort(self.permutation))
        if not self.optional:
            theirs = np.expand_dims(theirs, self.singletons)
        return np.ascontiguousarray(theirs)


@dataclass(frozen=True)
class Depthwise:
    """A grouped kernel as a depthwise one, whose products a fixed 1x1 adds up (CONVERSION F10).

    Theirs is [height, width, channels in, channels a group]; the last axis counts what a channel
    gives to each channel out of its group. Ours is [height, width, channels a group, channels out].
    """

    def load(self, array: np.ndarray) -> np.ndarray | None:
        """Their array as ours, or None if it can be no grouped kernel."""
        if array.ndim != 4 or not array.shape[3] or array.shape[2] % array.shape[3]:
            return None
        height, width, channels, each = array.shape
        parts = array.reshape(height, width, channels // each, each, each)
        return parts.swapaxes(2, 3).reshape(height, width, each, channels)

    def save(self, array: np.ndarray) -> np.ndarray:
        """Our array as theirs, contiguous."""
        height, width, each, channels = array.shape
        parts = array.reshape(height, width, each, channels // each, each)
        return np.ascontiguousarray(parts.swapaxes(2, 3)).reshape(height, width, channels, each)


ANY: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Dialect:
    """How one system names and lays out its arrays, and what its nets can be.

    Attributes:
        name: As given to `save(dialect=)`.
        rules: The table.
        leaf_names: What each kind of array is called within its module, and a kernel of a layout
            that rules name, if otherwise; "shift" is a norm's bias.
        layouts: The layout of each kind of array, and of those that rules name; vectors need none.
        families: Patterns of the architectures that a file of this dialect may hold.
        base: The config fields in which the system differs from the defaults.
        expresses: The fields for which the system has a choice, and the values, `ANY` for all; the
            other fields are as in `base`.
        preprocess: How images are taken to be prepared where a file does not say.
        metadata: What a safetensors file says of itself.
        separator: Between the parts of a name.
        root: A prefix that all names but the head's may carry.
        scope: A first part of all names, in place of which any other may stand; `{layers}` is the
            number of the net's layers.
        counter: A leaf beside each batch norm's statistics that is no weight: zero on saving.
        ignored: A pattern of names that are no weights.
        head: What the head is called.
        own_head_names: A pattern of what else the dense layers of a user's own head may be called;
            a `position` in it counts the modules of which they are some.
        listing: Where a file lists a block's projection, if its readers go by the order.
        numbered: How layers are numbered, where they have no names; there are no rules then.
        lacks: The fields of a net that the system does not have together, and what it has.
    """

    name: str
    rules: tuple[Rule, ...]
    leaf_names: Mapping[str, str]
    layouts: Mapping[str, Layout | Depthwise]
    families: tuple[str, ...]
    base: Mapping[str, Any]
    expresses: Mapping[str, tuple[Any, ...]]
    preprocess: Preprocess
    metadata: Mapping[str, str] = field(default_factory=dict)
    separator: str = "."
    root: str = ""
    scope: str = ""
    counter: str | None = None
    ignored: str | None = None
    head: str = ""
    own_head_names: str = ""
    listing: Projection | None = None
    numbered: Numbered | None = None
    lacks: Callable[[ResNetConfig], Iterable[tuple[str, str]]] = lambda config: ()

    def architectures(self) -> list[str]:
        """The architectures that a file may hold, each once."""
        listed = [name for glob in self.families for name in fnmatch.filter(ARCHITECTURES, glob)]
        return list(dict.fromkeys(listed))

    def translate(self, module: str, config: ResNetConfig) -> tuple[str, str | None] | None:
        """Their name for our module and its kernel's layout; None if they have none for it."""
        if self.numbered:
            name = self.numbered.name(module, config)
            return None if name is None else (name, None)
        for rule in self.rules:
            name = rule.translate(module, config)
            if name is not None:
                return name, rule.layout
        return None


@dataclass(frozen=True)
class Entry:
    """One array's name in a dialect, and its layout there (None: as ours)."""

    name: str
    layout: Layout | Depthwise | None

    def load(self, array: np.ndarray) -> np.ndarray | None:
        """Their array as ours, or None if its rank does not fit."""
        return array if self.layout is None else self.layout.load(array)

    def save(self, array: np.ndarray) -> np.ndarray:
        """Our array as theirs."""
        return array if self.layout is None else self.layout.save(array)


def entry(dialect: Dialect, path: str, kind: str, config: ResNetConfig) -> Entry | None:
    """What the dialect calls one of our arrays; None if it has no name for it."""
    module, _, _ = path.rpartition("/")
    if kind == "bias" and module.rpartition("/")[2].startswith("norm"):
        kind = "shift"
    named = dialect.translate(module, config)
    if named is None or kind not in dialect.leaf_names:
        return None
    name, layout = named
    form = layout if layout and kind in ("conv", "dense", "channel_conv") else kind
    leaf = dialect.leaf_names.get(form, dialect.leaf_names[kind])
    return Entry(name + dialect.separator + leaf, dialect.layouts.get(form))


def entries(dialect: Dialect, config: ResNetConfig) -> dict[str, Entry]:
    """What the dialect calls every array of a net, without its root prefix.

    Raises:
        ConfigError: The dialect has no name for some of them; they are listed.
    """
    expected = leaves(plan(config))
    found = {path: entry(dialect, path, leaf.kind, config) for path, leaf in expected.items()}
    nameless = [path for path, named in found.items() if named is None]
    if nameless:
        raise ConfigError(f"dialect {dialect.name} has no name for {', '.join(nameless)}")
    return {path: named for path, named in found.items() if named is not None}


def inexpressible(dialect: Dialect, config: ResNetConfig) -> list[str]:
    """What no net of this dialect's system can have, as `field=value` phrases."""
    base = base_config(dialect, config.depths, (64,) * len(config.depths))  # any will do
    allowed = {
        name: dialect.expresses.get(name, (value,)) for name, value in base.to_json().items()
    }
    return [
        f"{name}={value!r} ({dialect.name} has {' or '.join(map(repr, allowed[name]))})"
        for name, value in config.to_json().items()
        if name not in _FREE
        and allowed[name] != ANY
        and effective(name, value, config)
        not in [effective(name, choice, config) for choice in allowed[name]]
    ] + [f"{name}={getattr(config, name)!r} ({what})" for name, what in dialect.lacks(config)]


def effective(name: str, value: Any, config: ResNetConfig) -> Any:
    """The value, spelled out where None stands for another field's."""
    return config.activation if name == "inner_activation" and value is None else value


def base_config(dialect: Dialect, depths: tuple[int, ...], widths: tuple[int, ...]) -> ResNetConfig:
    """The plainest net of these sizes that the dialect's system has."""
    stages = len(depths)
    first, second, *_, last = dialect.base.get("strides", (1, 2, 2, 2))
    sizes = {
        "depths": depths,
        "widths": widths,
        "strides": (first, *(second,) * (stages - 2), last)[-stages:],
        "dilations": (1,) * stages,
    }
    return ResNetConfig(**{**dialect.base, **sizes})


# Sizes, which every system leaves free, and what matters in training only.
_FREE = (
    "depths", "widths", "num_classes", "in_channels",
    "norm_decay", "drop_path_rate", "block_dropout", "dropout", "zero_init_residual",
)  # fmt: skip


@functools.cache
def _pattern(ours: str) -> re.Pattern[str]:
    """A regular expression in which `{s}`, `{b}` and `{n}` match numbers."""
    return re.compile(re.sub(r"\\\{(\w)\\\}", r"(?P<\1>\\d+)", re.escape(ours)))
