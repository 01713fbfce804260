"""Heads that users give to a system's nets: which of a file's layers they are."""

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np

from resnetjax.weights.dialect import Dialect, base_config

_Shapes: TypeAlias = Mapping[str, tuple[int, ...]]


def own_head(dialect: Dialect, arrays: Mapping[str, np.ndarray]) -> dict[str, str]:
    """The dense layers of a user's own head, in their order, and what the dialect calls them.

    All of a file's dense layers, if the dialect knows their names, each takes what the one before
    gives, and there is room for an activation between them. Nothing of a head that has the
    dialect's names already, or whose names other layers have.
    """
    dense = dense_layers(dialect, arrays)
    known = {name: re.fullmatch(dialect.own_head_names, name) for name in dense}
    order = _in_order(dense)
    if not order or not all(known.values()):
        return {}
    places = [int(match["position"]) for name in order if (match := known[name]) and match.groups()]
    if any(after < before + 2 for before, after in itertools.pairwise(places)):
        return {}
    if dialect.numbered and all(re.fullmatch(rf"{dialect.head}(_\d+)?", name) for name in dense):
        return {}  # which numbers tell
    named = base_config(dialect, (1,), (64,)).replace(head_widths=(1,) * (len(dense) - 1))
    modules = (*(f"head/hidden{number}" for number in range(1, len(dense))), "head")
    names = [found[0] for x in modules if (found := dialect.translate(x, named))]
    others = {name.rpartition(dialect.separator)[0] for name in arrays} - dense.keys()
    if names == order or others.intersection(names):
        return {}
    return dict(zip(order, names, strict=True))


def dense_layers(dialect: Dialect, arrays: Mapping[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    """The dense layers, and the shapes of their kernels as ours: those of all others have four."""
    leaf = dialect.separator + dialect.leaf_names["dense"]
    kernels = {
        x.removesuffix(leaf): y for x, y in arrays.items() if x.endswith(leaf) and y.ndim == 2
    }
    layout = dialect.layouts.get("dense")
    return {x: (y.T if layout else y).shape for x, y in kernels.items()}


def in_words(own: Mapping[str, str]) -> str:
    """What is said of the layers of a user's own head."""
    *hidden, last = own
    layers = f"{', '.join(hidden)} and {last}, the dense layers, were"
    return f"{layers if hidden else f'{last}, the only dense layer, was'} taken for the head"


def _in_order(dense: _Shapes) -> list[str]:
    """As they are numbered or listed, if the shapes allow it; else as these tell, if they do."""
    order = list(dense)
    if len({re.sub(r"_?\d+$", "", name) for name in dense}) == 1:
        order.sort(key=lambda name: int((re.findall(r"\d+$", name) or [0])[0]))
    if _follow(dense, order):
        return order
    ends = {out for _, out in dense.values()}
    order, behind = [], [name for name, (width, _) in dense.items() if width not in ends]
    while len(behind) == 1:
        order += behind
        left = (name for name in dense if name not in order)
        behind = [name for name in left if _follow(dense, (order[-1], name))]
    return order if len(order) == len(dense) else []


def _follow(dense: _Shapes, order: Sequence[str]) -> bool:
    return all(dense[a][1] == dense[b][0] for a, b in itertools.pairwise(order))
