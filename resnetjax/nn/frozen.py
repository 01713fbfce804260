"""Which arrays of a net are frozen, by patterns on the names of its tree."""

import functools
import re
from fnmatch import fnmatchcase

from resnetjax.errors import ConfigError

_UP_TO = "up to "
_PARTS = ("stem", "stage", "norm", "head")  # in the order of computation


@functools.lru_cache
def frozen_names(names: tuple[str, ...], patterns: tuple[str, ...]) -> frozenset[str]:
    """The names that at least one pattern matches.

    A norm's running statistics are frozen together: then the norm uses them in training too.

    Args:
        names: Of parameters and statistics, such as "stage1_block1/norm1/mean".
        patterns: Parts of the net ("stem", "stage1"), modules ("stage1_block2"), shell patterns of
            names ("*/bias", "stage[12]", "*norm*": * stands for / too), or "up to stage3": that
            part or module and all that is computed before it.

    Raises:
        ConfigError: A pattern matches nothing.

    Example:
        >>> names = ("stem/conv1/kernel", "stage1_block1/conv1/kernel", "head/kernel")
        >>> sorted(frozen_names(names, ("up to stage1",)))
        ['stage1_block1/conv1/kernel', 'stem/conv1/kernel']
        >>> sorted(frozen_names(names, ("stage*", "head")))
        ['head/kernel', 'stage1_block1/conv1/kernel']
    """
    found: set[str] = set()
    idle = []
    for pattern in patterns:
        point = pattern.removeprefix(_UP_TO)
        matching = {name for name in names if matches(name, point)}
        if point != pattern and matching:
            # Within a module the names do not say what comes first.
            last = max(map(place, matching)) if "/" not in point else ()
            matching = {name for name in names if place(name) <= last}
        if not matching:
            idle.append(pattern)
        found |= matching
    if idle:
        modules = ", ".join(sorted({name.split("/")[0] for name in names}))
        raise ConfigError(
            f"frozen={idle} is not allowed: use parts of the net or patterns of its names (after "
            f"'up to ' a part or a module), which has {modules}"
        )
    norms = {name.rpartition("/")[0] for name in found if name.endswith(("/mean", "/var"))}
    return frozenset(found | {f"{norm}/{statistic}" for norm in norms for statistic in _STATISTICS})


_STATISTICS = ("mean", "var")


def matches(name: str, pattern: str) -> bool:
    """Whether an array is, or lies in, what a pattern names."""
    return any(fnmatchcase(name, form) for form in (pattern, f"{pattern}/*", f"{pattern}_*"))


def place(name: str) -> tuple[int, ...]:
    """Where the module of an array stands in the order of computation, for comparison.

    Example:
        >>> place("stem/conv1/kernel") < place("stage2_block1/norm1/scale")
        True
        >>> place("stage2_block10/conv1/kernel") > place("stage2_block9/conv1/kernel")
        True
    """
    module = name.split("/")[0]
    part = next(i for i, word in enumerate(_PARTS) if module.startswith(word))
    return part, *map(int, re.findall(r"\d+", module))
