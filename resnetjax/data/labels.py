"""What the outputs of the published nets stand for, in `labels/`.

`imagenet_1k.tsv` has a line for each class of ILSVRC-2012, in the order of the WordNet ids: the id
and the lemmas of that synset in WordNet 3.0 (Copyright 2006 by Princeton University), which are the
names that Transformers shows. `cifar10.txt` and `cifar100.txt` have the (fine) names of
Krizhevsky's data sets, in their order.
"""

import functools
from pathlib import Path

from resnetjax.config import Labels
from resnetjax.errors import UnknownName

_FOLDER = Path(__file__).with_name("labels")
_NAMES = ("cifar10", "cifar100", "imagenet_1k", "imagenet_1k_background")


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
    if name == "imagenet_1k":
        lines = (_FOLDER / f"{name}.tsv").read_text(encoding="utf-8").splitlines()
        ids, lemmas = zip(*(line.split("\t") for line in lines), strict=True)
        return Labels(names=lemmas, ids=ids)
    return Labels(names=tuple((_FOLDER / f"{name}.txt").read_text(encoding="utf-8").splitlines()))
