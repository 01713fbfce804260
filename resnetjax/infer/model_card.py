"""What a net is, as the README.md of a repository on Hugging Face."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

from resnetjax import folders, presets
from resnetjax.config import Labels, Preprocess
from resnetjax.measure import parameter_count
from resnetjax.plan import plan
from resnetjax.pretrained import Pretrained
from resnetjax.weights import sources

SHOWN_LABELS = 10


def card(
    pretrained: Pretrained,
    repository: str,
    *,
    origin: str | None = None,
    metrics: Mapping[str, str] | None = None,
) -> str:
    """The card's text: what the net is, its licence, source, input, labels, and how to load it.

    Args:
        pretrained: The net.
        repository: `owner/name`, where it will be.
        origin: What `load` was given; of a path its last part is told. None is the source's path.
        metrics: What is known of its accuracy: each with its value and who measured it.
    """
    config, source = pretrained.config, pretrained.source
    name = source.arch or presets.architecture_of(config) or "a ResNet"
    head = f"{config.num_classes} classes" if config.num_classes else "no head: features only"
    parts = [
        _front_matter(pretrained),
        f"# {repository.partition('/')[2]}",
        f"{name}: {parameter_count(plan(config)):,} parameters, {head}, for JAX and Flax.",
        f"```python\nimport resnetjax\n\npre = resnetjax.load({f'hf://{repository}'!r})\n"
        + ("resnetjax.predict(pre, ['image.jpg'])\n```" if config.num_classes else "```"),
        "The first two lines load it (`pip install resnetjax[hub]`); `pre.model` is a Flax module "
        "and `pre.variables` its arrays.",
        _list("Source", _source(pretrained, origin or pretrained.source.path)),
        _list("Accuracy", dict(metrics or {})),
        _list("Input", _input(pretrained.preprocess)),
        _list("Labels", _labels(pretrained.labels)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def known_metrics(source: str | os.PathLike[str]) -> dict[str, str]:
    """What is known of the accuracy of what `load` reads there.

    Of a published weight it is what the table says; of a run of training, the best evaluation in
    its `metrics.jsonl`.
    """
    text = os.fspath(source)
    if not Path(text).exists() and text in sources.WEIGHTS:
        published = sources.WEIGHTS[text]
        measured = sources.ACCURACY_SOURCES.get(published.accuracy_from or "", "its publisher")
        found = {"top-1": published.top1, "top-5": published.top5}
        return {
            name: f"{value} %, at {published.image_px[0]} pixels, as measured by {measured}"
            for name, value in found.items()
            if value is not None
        }
    folder = Path(text)
    if folder.name in folders.RUN_MODELS:
        folder = folder.parent
    if (log := folder / "metrics.jsonl").is_file():
        lines = [json.loads(line) for line in log.read_text().splitlines() if '"top1"' in line]
        # The latest model need not be the best one, of which this is.
        if lines and Path(text).name != "latest":
            best = max(lines, key=lambda line: line["top1"])
            where = f"on the run's own test set, after {best['step']:,} steps"
            return {
                name: f"{best[key]:.2%}, {where}"
                for name, key in (("top-1", "top1"), ("top-5", "top5"))
                if key in best
            }
    return {}


def _front_matter(pretrained: Pretrained) -> str:
    """The metadata that Hugging Face reads, in YAML; strings are quoted as JSON, which is YAML."""
    licence = pretrained.source.licence
    lines = [
        "library_name: resnetjax",
        *([f"license: {json.dumps(licence)}"] if licence else []),
        *(["pipeline_tag: image-classification"] if pretrained.config.num_classes else []),
        "tags: [resnetjax, jax, flax, resnet]",
    ]
    return "\n".join(("---", *lines, "---"))


def _source(pretrained: Pretrained, origin: str) -> dict[str, str]:
    source = pretrained.source
    # A file's name, and not the folders of whoever pushes it.
    told = origin if "://" in origin else Path(origin).name
    return {
        "weights": told or "random",
        **({"names of its arrays": source.dialect} if source.dialect else {}),
        **({"SHA-256": source.sha256} if source.sha256 else {}),
        "licence": source.licence or "not known",
        **{f"assumption {i}": text for i, text in enumerate(source.assumptions, start=1)},
    }


def _input(preprocess: Preprocess) -> dict[str, str]:
    height, width = preprocess.crop_px
    order = "red first" if preprocess.channel_order == "rgb" else "blue first"
    resized = (
        "as they are"
        if preprocess.resize_mode == "none"
        else (
            f"{preprocess.resize_mode.replace('_', ' ')} to {preprocess.resize_px} pixels, "
            f"{preprocess.interpolation}{'' if preprocess.antialias else ', not antialiased'}"
        )
    )
    return {
        "resized": resized,
        "cropped": f"the centre {height} x {width}",
        "values": f"(x / {preprocess.divisor} - mean) / std of 0..255, {order}",
        "mean": str(list(preprocess.mean)),
        "std": str(list(preprocess.std)),
    }


def _labels(labels: Labels | None) -> dict[str, str]:
    if labels is None:
        return {}
    some = ", ".join(labels.names[:SHOWN_LABELS])
    more = ", ..." if len(labels.names) > SHOWN_LABELS else ""
    return {
        "outputs": f"{len(labels.names)}: {some}{more} (`pre.labels.names`)",
        "activation": labels.activation,
    }


def _list(title: str, values: Mapping[str, str]) -> str:
    if not values:
        return ""
    return "\n".join((f"## {title}", "", *(f"- {key}: {text}" for key, text in values.items())))
