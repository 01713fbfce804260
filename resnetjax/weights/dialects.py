"""Every dialect by its name: those of the other systems, and our own names."""

import dataclasses
import difflib

from resnetjax.config import Preprocess, ResNetConfig
from resnetjax.errors import UnknownName
from resnetjax.weights import flax_dialects, keras_dialects, tf_dialects, torch_dialects
from resnetjax.weights.dialect import ANY, Dialect, Rule

_OURS = (
    "stem/conv{n}", "stem/norm{n}", "stem/pool/conv", "stem/pool/norm",
    "stage{s}_block{b}/conv{n}", "stage{s}_block{b}/norm{n}",
    "stage{s}_block{b}/shortcut/conv", "stage{s}_block{b}/shortcut/norm",
    "stage{s}_block{b}/attention/reduce", "stage{s}_block{b}/attention/expand",
    "stage{s}_block{b}/attention/conv", "norm", "head/hidden{n}", "head",
)  # fmt: skip

NATIVE = Dialect(
    name="resnetjax",
    rules=tuple(Rule(module, module) for module in _OURS),
    leaf_names=dict.fromkeys(("conv", "dense", "channel_conv"), "kernel")
    | {kind: kind for kind in ("scale", "bias", "mean", "var")}
    | {"shift": "bias"},
    layouts={},
    families=("*",),
    base={},
    expresses={field.name: ANY for field in dataclasses.fields(ResNetConfig)},
    preprocess=Preprocess(),
    metadata={"format": "flax"},
    separator="/",
)

# In the order in which `detect` tries them.
DIALECTS: dict[str, Dialect] = {
    dialect.name: dialect
    for dialect in (
        NATIVE,
        *torch_dialects.ALL,
        *keras_dialects.ALL,
        *tf_dialects.ALL,
        *flax_dialects.ALL,
    )
}


def get(name: str) -> Dialect:
    """The dialect of this name.

    Raises:
        UnknownName: With the nearest names.
    """
    if name not in DIALECTS:
        near = difflib.get_close_matches(name, DIALECTS, n=2, cutoff=0.4)
        hint = f": did you mean {' or '.join(near)}?" if near else ""
        raise UnknownName(f"no dialect is called {name!r}{hint} (there are {', '.join(DIALECTS)})")
    return DIALECTS[name]
