"""Writes docs/models.md: every published weight that `resnetjax.load` knows by name."""

import itertools
from pathlib import Path

from resnetjax import presets
from resnetjax.measure import parameter_count
from resnetjax.plan import plan
from resnetjax.weights.sources import ACCURACY_SOURCES, PUBLISHERS, WEIGHTS, PublishedWeights

PAGE = Path(__file__).parents[1] / "docs" / "models.md"
HEAD = """# Published weights

`resnetjax.load("resnet50.tv2_in1k")` fetches a weight once into the cache (`$RESNETJAX_HOME`),
checks it at every use, and knows its preprocessing and labels: the names, and WordNet ids, of
ImageNet-1k, of the 21,843 classes of `*_in21k` and of the 11,821 of `*_in12k`.
`resnetjax names 'resnet50.*'` lists the same on the command line. This page is written by
`scripts/make_models.py` from `resnetjax/weights/published.tsv`.

Accuracies are the publishers', on ImageNet-1k's validation set (CIFAR-10's test set for `cifar_*`),
in percent, at the size of image that is given; nobody measured what is left empty. "check" is what
a download is compared with: the publisher's SHA-256 (of eight hexadecimal digits where a file's
name has no more) or MD5, or else what came first.
"""


def page() -> str:
    """The text of docs/models.md."""
    parts = [HEAD]
    for publisher, weights in itertools.groupby(WEIGHTS.values(), key=lambda x: x.publisher):
        parts.append(f"\n## {publisher}\n\nRead in: {PUBLISHERS[publisher]}.\n")
        parts.append("| name | million parameters | pixels | top-1 | top-5 | licence | check |")
        parts.append("|---|---|---|---|---|---|---|")
        parts += [_row(one) for one in weights]
    parts.append("\n## Where the accuracies were read\n")
    parts += [f"- {key}: {text}" for key, text in ACCURACY_SOURCES.items()]
    return "\n".join(parts) + "\n"


def _row(one: PublishedWeights) -> str:
    config = presets.get(one.arch).replace(num_classes=one.num_classes)
    cells = (
        f"`{one.name}`",
        f"{parameter_count(plan(config)) / 1e6:.1f}",
        "x".join(map(str, one.image_px)),
        _percent(one.top1),
        _percent(one.top5),
        one.licence or "",
        (one.digest or "first use").partition(":")[0],
    )
    return f"| {' | '.join(cells)} |"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


if __name__ == "__main__":
    PAGE.write_text(page())
