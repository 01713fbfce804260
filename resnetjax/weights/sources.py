"""Where published weights live, and what is needed to use them: a table, `published.tsv`.

It has a line for each weight: what torchvision, timm and the Keras packages say, as
`scripts/make_sources.py` writes it, and what was collected by hand. Weights of nets that `presets`
cannot build are not in it. Where timm republishes torchvision's weights, under the same names,
there is one line: torchvision's, with timm's as mirror. Importing this needs neither JAX nor a
network.
"""

import difflib
import fnmatch
import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resnetjax import presets
from resnetjax.config import CAFFE_MEAN_BGR, HALF_MEAN, HALF_STD, Preprocess
from resnetjax.errors import UnknownName

TABLE = Path(__file__).with_name("published.tsv")

# What becomes of a pixel, by the word for it in the table.
PIXELS: dict[str, dict[str, Any]] = {
    "imagenet": {},
    "half": {"mean": HALF_MEAN, "std": HALF_STD},
    "unit": {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)},
    "raw": {"divisor": 1.0, "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)},
    "caffe_bgr": {
        "divisor": 1.0, "mean": CAFFE_MEAN_BGR, "std": (1.0, 1.0, 1.0), "channel_order": "bgr",
    },
    # tensorflow/models research/slim/preprocessing/vgg_preprocessing.py, which rounds Caffe's.
    "slim_rgb": {"divisor": 1.0, "mean": (123.68, 116.78, 103.94), "std": (1.0, 1.0, 1.0)},
}  # fmt: skip

# Where the lines of each publisher were read, in the order of the table.
PUBLISHERS: dict[str, str] = {
    "torchvision": "torchvision 0.28, models/resnet.py",
    "timm": "timm 1.0.31, models/resnet.py and models/resnetv2.py",
    "transformers": "Hugging Face, microsoft/resnet-*: preprocessor_config.json and model card",
    "keras": "keras 3.15.1, src/applications/resnet.py",
    "keras_2017": "keras_applications before 1.0.8, resnet50.py",
    "kerascv": "keras-cv 0.9.0, presets of its classifiers and backbones",
    "kerashub": "keras-hub 0.32.0, src/models/resnet/resnet_presets.py",
    "slim": "tensorflow/models, research/slim: README.md and preprocessing",
    "tfhub": "tensorflow/tfhub.dev, docs/google/models/imagenet/resnet_v*/classification/5.md",
    "bit": "google-research/big_transfer, README.md; preprocess is that of timm's copies",
    "flax": "google/flax, examples/imagenet/README.md and input_pipeline.py",
    "akamaster": "akamaster/pytorch_resnet_cifar10: README.md, trainer.py",
    "mlperf": "mlcommons/tiny, benchmark/training/image_classification",
}

# Who measured the accuracies, by the word for it in the table.
ACCURACY_SOURCES: dict[str, str] = {
    "torchvision": "torchvision 0.28, models/resnet.py: meta",
    "timm": "huggingface/pytorch-image-models, results/results-imagenet.csv at commit 0173a139",
    "timm_card": "Hugging Face, model card of timm/mobilenetv4_conv_small.e2400_r224_in1k",
    "timm_notes": "timm's release notes of 27 July 2023, with one decimal",
    "keras": "keras-team/keras-applications, README.md: single center crop",
    "keras_2017": "keras-team/keras-applications, README.md at commit 05ff4705: center crop",
    "slim": "tensorflow/models, research/slim/README.md: single crop",
    "bit": "google-research/big_transfer, README.md: accuracy of the distilled models' paper",
    "flax": "google/flax, examples/imagenet/README.md: run v100_x8",
    "akamaster": "akamaster/pytorch_resnet_cifar10, README.md: error on the test set",
}

COLUMNS: tuple[str, ...] = (
    "name", "publisher", "address", "mirror", "digest", "size_mib", "dialect", "num_classes",
    "labels", "crop_px", "resize", "interpolation", "pixels", "top1", "top5", "accuracy_from",
    "licence", "note",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class PublishedWeights:
    """A published weight file, or folder; what its publisher does not say is None.

    Attributes:
        name: `arch.tag`: the architecture's name in `presets`, and the weight's own.
        publisher: Who published it there: a key of `PUBLISHERS`.
        address: https URL, `hf://owner/repository`, or
            `kaggle://owner/model/framework/variation/version`.
        mirror: Where else the same values are; not the same bytes, so `digest` is not of it.
        digest: `algorithm:hexadecimal` of the file at `address`. Of a SHA-256 there may be only the
            first eight digits, those in torchvision's and timm's file names.
        size_mib: Of the file at `address`, in 2^20 bytes.
        dialect: Whose names its arrays have (`dialects`).
        num_classes: Outputs of its head; 0 where it has none.
        labels: The set of classes that the outputs stand for.
        preprocess: What comes before the net, at the resolution at which `top1` was measured.
        top1: Accuracy in percent, on the validation set of ImageNet-1k or the test set of CIFAR-10.
        top5: As `top1`, for the five likeliest classes.
        accuracy_from: Who measured: a key of `ACCURACY_SOURCES`.
        licence: As an SPDX name in lower case.
        note: Where else it comes from, or what its publisher leaves open.
    """

    name: str
    publisher: str
    address: str
    dialect: str
    num_classes: int
    preprocess: Preprocess
    mirror: str | None = None
    digest: str | None = None
    size_mib: float | None = None
    labels: str | None = None
    top1: float | None = None
    top5: float | None = None
    accuracy_from: str | None = None
    licence: str | None = None
    note: str | None = None

    @property
    def arch(self) -> str:
        """The architecture, by its name in `presets`."""
        return self.name.partition(".")[0]

    @property
    def tag(self) -> str:
        """What tells it from the other weights of this architecture."""
        return self.name.partition(".")[2]

    @property
    def image_px(self) -> tuple[int, int]:
        """Height and width of the images on which its accuracy was measured."""
        return self.preprocess.crop_px


def find(name: str) -> PublishedWeights:
    """The published weight of this name.

    Raises:
        UnknownName: With the nearest names; for an architecture's name, with all of its weights.

    Example:
        >>> find("resnet50.tv2_in1k").digest
        'sha256:11ad3fa6'
    """
    if name in WEIGHTS:
        return WEIGHTS[name]
    arch, _, tag = name.partition(".")
    known = [f"{arch}.{tag}" for tag in tags(arch)]
    if known and not tag:
        raise UnknownName(
            f"{name!r} is an architecture; its published weights are {', '.join(known)} "
            f"(the first is the usual choice)"
        )
    near = difflib.get_close_matches(name, WEIGHTS, n=3, cutoff=0.5)
    hint = f": did you mean {', '.join(near)}?" if near else ""
    others = f" ({arch} has {', '.join(known)})" if known else ""
    raise UnknownName(f"no published weight is called {name!r}{hint}{others}")


def tags(arch: str) -> tuple[str, ...]:
    """The tags of an architecture's published weights, its default first; () where it has none.

    The default is torchvision's where it has one, and of several the publisher's own.

    Example:
        >>> tags("resnet34")[:2]
        ('tv_in1k', 'a1_in1k')
    """
    return tuple(name.partition(".")[2] for name in WEIGHTS if name.startswith(f"{arch}."))


def names(glob: str = "*") -> tuple[str, ...]:
    """The architectures and published weights whose name matches a shell pattern.

    Each architecture is followed by its weights, `arch.tag`, the usual choice first.

    Example:
        >>> names("resnet18*tv*")
        ('resnet18.tv_in1k',)
    """
    listed = (
        name
        for arch in presets.names()
        for name in (arch, *(f"{arch}.{tag}" for tag in tags(arch)))
    )
    return tuple(name for name in listed if fnmatch.fnmatchcase(name, glob))


def preprocess_from(cells: Mapping[str, str]) -> Preprocess:
    """What the cells `crop_px`, `resize`, `interpolation` and `pixels` of a line stand for.

    `resize` is "short_edge 256", "squash 224", "crop_to_aspect_ratio 224" or "none", and ends in
    "floor" where crops start at the pixel below, in "aliased" where nothing is antialiased.

    Raises:
        ConfigError: They make no valid `Preprocess`.
    """
    mode, *more = cells["resize"].split()
    resize_px = int(more[0]) if mode != "none" else None
    return Preprocess.from_json(
        {
            "crop_px": (int(cells["crop_px"]),) * 2,
            "resize_mode": mode,
            "resize_px": resize_px if mode in ("short_edge", "none") else (resize_px, resize_px),
            "interpolation": cells["interpolation"],
            "antialias": "aliased" not in more,
            "crop_rounding": "floor" if "floor" in more else "half_even",
            **PIXELS[cells["pixels"]],
        }
    )


class _Table(Mapping[str, PublishedWeights]):
    """Reads the file when it is first used, and parses a line when it is asked for."""

    @functools.cached_property
    def _lines(self) -> dict[str, str]:
        header, *lines = TABLE.read_text(encoding="utf-8").splitlines()
        assert header.split("\t") == list(COLUMNS), header
        return {line.partition("\t")[0]: line for line in lines}

    def __getitem__(self, name: str) -> PublishedWeights:
        return _parse(self._lines[name])

    def __contains__(self, name: object) -> bool:
        return name in self._lines

    def __iter__(self) -> Iterator[str]:
        return iter(self._lines)

    def __len__(self) -> int:
        return len(self._lines)


@functools.cache
def _parse(line: str) -> PublishedWeights:
    cells = dict(zip(COLUMNS, line.split("\t"), strict=True))
    values: dict[str, Any] = {name: cell or None for name, cell in cells.items()}
    for name in ("crop_px", "resize", "interpolation", "pixels"):
        del values[name]
    for name in ("size_mib", "top1", "top5"):
        values[name] = float(cells[name]) if cells[name] else None
    values["num_classes"] = int(cells["num_classes"])
    return PublishedWeights(preprocess=preprocess_from(cells), **values)


WEIGHTS: Mapping[str, PublishedWeights] = _Table()
"""Every published weight by its name, in the order of the table."""
