"""What the outputs of the published nets stand for, in `labels/`.

`imagenet_1k.tsv` has a line for each class of ILSVRC-2012, in the order of the WordNet ids: the id
and the lemmas of that synset in WordNet 3.0 (Copyright 2006 by Princeton University), which are the
names that Transformers shows. `imagenet_21k.tsv` has the same of the 21,843 synsets that Google's
nets (BiT) tell apart, and a third column where timm's 12k nets do; both heads are in the order of
the ids (timm's imagenet21k_goog_synsets.txt and imagenet12k_synsets.txt). `cifar10.txt` and
`cifar100.txt` have the (fine) names of Krizhevsky's data sets, in their order.
"""

import functools
from pathlib import Path

from resnetjax.config import Labels
from resnetjax.errors import UnknownName

_FOLDER = Path(__file__).with_name("labels")
# By the number of classes, which no two share.
IMAGENETS = {
    1000: "imagenet_1k",
    1001: "imagenet_1k_background",
    11821: "imagenet_12k",
    21843: "imagenet_21k",
}
_NAMES = ("cifar10", "cifar100", *IMAGENETS.values())


def names() -> tuple[str, ...]:
    """The names that `get` knows."""
    return _NAMES


@functools.cache
def get(name: str) -> Labels:
    """The labels of a data set.

    "imagenet_1k_background" has a class 0 before the thousand, as TF-Slim's v2 nets do.

    Raises:
        UnknownName: No labels go by this name; the message lists those that are known.

    Example:
        >>> get("imagenet_1k").ids[285], get("imagenet_1k").names[285]
        ('n02124075', 'Egyptian cat')
    """
    if name not in _NAMES:
        raise UnknownName(f"no labels are named {name!r}: use one of {', '.join(_NAMES)}")
    if name == "imagenet_1k_background":
        images = get("imagenet_1k")
        assert images.ids is not None
        return Labels(names=("background", *images.names), ids=("background", *images.ids))
    if name not in IMAGENETS.values():
        lines = (_FOLDER / f"{name}.txt").read_text(encoding="utf-8").splitlines()
        return Labels(names=tuple(lines))
    part = name == "imagenet_12k"
    table = _FOLDER / f"{'imagenet_21k' if part else name}.tsv"
    rows = [line.split("\t") for line in table.read_text(encoding="utf-8").splitlines()]
    rows = [row for row in rows if "12k" in row[2:] or not part]
    return Labels(names=tuple(row[1] for row in rows), ids=tuple(row[0] for row in rows))
