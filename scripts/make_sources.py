"""Writes anew the lines of resnetjax/weights/published.tsv that follow from installed packages.

Run from the repository's root where torchvision and timm, keras, keras_hub or keras_cv can be
found. Every other line is kept: of packages that cannot be, and those collected by hand. So are
timm's accuracies where its results/results-imagenet.csv is not given or has none.

    PYTHONPATH=. python scripts/make_sources.py [--timm-results results-imagenet.csv]
"""

import argparse
import ast
import csv
import importlib.util
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from resnetjax import presets
from resnetjax.config import Preprocess
from resnetjax.data.preprocess_formats.timm import from_timm
from resnetjax.weights.sources import COLUMNS, PIXELS, PUBLISHERS, TABLE, preprocess_from

ACCURACY = ("top1", "top5", "accuracy_from")
LABELS = {0: "", 1000: "imagenet_1k", 11821: "imagenet_12k", 21843: "imagenet_21k"}
Row = dict[str, str]


def make_row(name: str, publisher: str, dialect: str, **fields: Any) -> Row:
    """A line of the table; by default of a net of 1000 classes at 224 of 256 pixels."""
    defaults = {"num_classes": 1000, "crop_px": 224, "resize": "short_edge 256",
                "interpolation": "bilinear", "pixels": "imagenet"}  # fmt: skip
    fields = {**defaults, **fields, "name": name, "publisher": publisher, "dialect": dialect}
    fields["labels"] = LABELS[fields["num_classes"]]
    unknown = set(fields) - set(COLUMNS)
    assert not unknown, unknown
    values = (fields.get(column) for column in COLUMNS)
    return {
        column: "" if value is None else str(value)
        for column, value in zip(COLUMNS, values, strict=True)
    }


def torchvision_rows(_: Mapping[str, Row]) -> Iterator[Row]:
    """The weights of torchvision, each architecture's default first; timm's copies are mirrors."""
    import timm
    from torchvision.models import get_model_builder, get_model_weights, list_models, resnet

    copies = set(timm.list_pretrained())
    for arch in list_models():
        if get_model_builder(arch).__module__ != resnet.__name__:
            continue
        weights: Any = get_model_weights(arch)
        for weight in sorted(weights, key=lambda weight: weight is not weights.DEFAULT):
            name = f"{arch}.{'tv' if weight.name == 'IMAGENET1K_V1' else 'tv2'}_in1k"
            transform = weight.transforms()
            accuracy = weight.meta["_metrics"]["ImageNet-1K"]
            yield make_row(
                name,
                "torchvision",
                "torchvision",
                address=weight.url,
                mirror=f"hf://timm/{name}" if name in copies else None,
                digest=digest_of(weight.url),
                size_mib=weight.meta["_file_size"],
                crop_px=transform.crop_size[0],
                resize=f"short_edge {transform.resize_size[0]}",
                interpolation=transform.interpolation.value,
                top1=accuracy["acc@1"],
                top5=accuracy["acc@5"],
                accuracy_from="torchvision",
                licence="bsd-3-clause",  # so timm's configs of its copies
            )


def timm_rows(accuracies: Mapping[str, Row]) -> Iterator[Row]:
    """The weights of timm's resnet.py and resnetv2.py, each architecture's default first."""
    import timm

    for module, dialect in (("resnet", "timm"), ("resnetv2", "timm_v2")):
        for arch in timm.list_models(module=module):
            names = [n for n in timm.list_pretrained(f"{arch}.*") if n.partition(".")[0] == arch]
            default: Any = timm.get_pretrained_cfg(arch)
            for name in sorted(names, key=lambda name: name != f"{arch}.{default.tag}"):
                config: Any = timm.get_pretrained_cfg(name)
                if config.tag in ("tv_in1k", "tv2_in1k"):
                    continue  # torchvision's own
                hub = f"hf://{config.hf_hub_id}"
                yield make_row(
                    name,
                    "timm",
                    dialect,
                    address=config.url or hub,
                    mirror=hub if config.url else None,
                    digest=digest_of(config.url) if config.url else None,
                    num_classes=config.num_classes,
                    licence=config.license,
                    **cells_of(from_timm(config.to_dict(), test_size=True)),
                    **accuracies.get(name, {}),
                )


# keras-team/keras-applications, README.md: edge of the images, top-1, top-5. It says "single center
# crop", and not of what: 0.875 of the edge is a guess.
KERAS_ACCURACIES = {
    "resnet50": (224, 74.928, 92.060),
    "resnet101": (224, 76.420, 92.786),
    "resnet152": (224, 76.604, 93.118),
    "resnet50v2": (299, 75.960, 93.034),
    "resnet101v2": (299, 77.234, 93.816),
    "resnet152v2": (299, 78.032, 94.162),
}
KERAS_SIZES = {"50": 98, "101": 171, "152": 232}  # keras.io/api/applications, with top


def keras_rows(_: Mapping[str, Row]) -> Iterator[Row]:
    """keras.applications, with and without top."""
    table = literals("keras", "src/applications/resnet.py")
    for net, (crop_px, top1, top5) in KERAS_ACCURACIES.items():
        is_v2 = net.endswith("v2")
        with_top, without_top = table["WEIGHTS_HASHES"][net]
        file = f"{table['BASE_WEIGHTS_PATH']}{net}_weights_tf_dim_ordering_tf_kernels"
        shared: dict[str, Any] = {
            "publisher": "keras",
            "dialect": "keras_v2" if is_v2 else "keras",
            "crop_px": crop_px,
            "resize": f"short_edge {int(crop_px / 0.875)}",
            "pixels": "half" if is_v2 else "caffe_bgr",
            "licence": "bsd" if is_v2 else "mit",  # keras.io/applications, in 2019
            "note": "resize is a guess",
        }
        yield make_row(
            f"keras_{net}.keras_in1k",
            address=f"{file}.h5",
            digest=f"md5:{with_top}",
            size_mib=KERAS_SIZES[net.removeprefix("resnet").removesuffix("v2")],
            top1=top1,
            top5=top5,
            accuracy_from="keras",
            **shared,
        )
        yield make_row(
            f"keras_{net}.keras_in1k_notop",
            address=f"{file}_notop.h5",
            digest=f"md5:{without_top}",
            num_classes=0,
            **shared,
        )


def kerascv_rows(_: Mapping[str, Row]) -> Iterator[Row]:
    """KerasCV's one classifier, and its two backbones that have weights."""
    backbones = "src/models/backbones/resnet_{0}/resnet_{0}_backbone_presets.py"
    found = {
        **literals("keras_cv", "src/models/classification/image_classifier_presets.py")[
            "classifier_presets"
        ],
        **literals("keras_cv", backbones.format("v1"))["backbone_presets_with_weights"],
        **literals("keras_cv", backbones.format("v2"))["backbone_presets_with_weights"],
    }
    for preset in filter(re.compile("resnet").match, found):
        net, head = preset.split("_imagenet")
        yield make_row(
            f"kerascv_{net.replace('_', '')}.kerascv_in1k{'' if head else '_notop'}",
            "kerascv",
            "kerascv_v2" if net.endswith("v2") else "kerascv",
            address=found[preset]["kaggle_handle"],
            num_classes=1000 if head else 0,
            resize="crop_to_aspect_ratio 224 aliased",
            pixels="unit",
            note="resize is a guess",
        )


# keras-hub, tools/checkpoint_conversion/convert_resnet_checkpoints.py: whose these are.
KERASHUB = {
    "resnet_18": "resnet18.a1_in1k",
    "resnet_50": "resnet50.a1_in1k",
    "resnet_101": "resnet101.a1_in1k",
    "resnet_152": "resnet152.a1_in1k",
    "resnet_v2_50": "resnetv2_50.a1h_in1k",
    "resnet_v2_101": "resnetv2_101.a1h_in1k",
}
# The others are PaddleClas's ResNet-vd. Its 18 and 34 project in every stage, its 200 has depths of
# its own: those are in `presets` as kerashub_resnet*_vd.
KERASHUB_VD = {"50": "resnet50d", "101": "resnet101d", "152": "resnet152d"}


def kerashub_rows(_: Mapping[str, Row]) -> Iterator[Row]:
    """KerasHub's presets, with the defaults of its image converter."""
    presets_of = literals("keras_hub", "src/models/resnet/resnet_presets.py")["backbone_presets"]
    for preset, values in presets_of.items():
        net = preset.removesuffix("_imagenet")
        if vd := re.fullmatch(r"resnet_vd_(\d+)(_\w+)?", net):
            arch = KERASHUB_VD.get(vd[1], f"kerashub_resnet{vd[1]}_vd")
            tag = f"kerashub_vd{vd[2] or ''}_in1k"
            fields = {"note": "PaddleClas's; preprocess is a guess"}
        else:
            arch, tag = KERASHUB[net].partition(".")[0], "kerashub_in1k"
            fields = {
                "interpolation": "bicubic",
                "pixels": "half" if net.startswith("resnet_v2") else "imagenet",
                "note": f"timm's {KERASHUB[net]}",
            }
        yield make_row(
            f"{arch}.{tag}",
            "kerashub",
            "kerashub",
            address=values["kaggle_handle"],
            resize="crop_to_aspect_ratio 224 aliased",
            **fields,
        )


ROWS: dict[str, Callable[[Mapping[str, Row]], Iterator[Row]]] = {
    "torchvision": torchvision_rows,
    "timm": timm_rows,
    "keras": keras_rows,
    "kerascv": kerascv_rows,
    "kerashub": kerashub_rows,
}
PACKAGES = {"kerascv": "keras_cv", "kerashub": "keras_hub"}  # of other names than the publisher


def cells_of(preprocess: Preprocess) -> dict[str, Any]:
    """The cells that stand for a transform.

    Raises:
        ValueError: The table has no cells for it.
    """
    for pixels in PIXELS:
        cells = {
            "crop_px": str(preprocess.crop_px[0]),
            "resize": f"{preprocess.resize_mode} {preprocess.resize_px}",
            "interpolation": preprocess.interpolation,
            "pixels": pixels,
        }
        if preprocess_from(cells) == preprocess:
            return cells
    raise ValueError(f"the table cannot say {preprocess}")


def digest_of(url: str) -> str:
    """The digits of a SHA-256 that torchvision and timm put into a file's name."""
    match = re.search(r"-([0-9a-f]{8})\.pth$", url)
    assert match, url
    return f"sha256:{match[1]}"


def literals(package: str, path: str) -> dict[str, Any]:
    """The literals that a file of a package assigns; it is read, not run."""
    specification = importlib.util.find_spec(package)
    assert specification
    assert specification.origin
    text = (Path(specification.origin).parent / path).read_text(encoding="utf-8")
    found = {}
    for node in ast.parse(text).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            try:
                found[node.targets[0].id] = ast.literal_eval(node.value)
            except ValueError:
                continue  # computed
    return found


def read(path: Path, **format_: Any) -> list[Row]:
    """The lines of a table with a header."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, **format_))


def main(timm_results: Path | None) -> None:
    """Rewrites the table and prints what is left out of it."""
    old = read(TABLE, delimiter="\t")
    accuracies = {row["name"]: {cell: row[cell] for cell in ACCURACY} for row in old}
    for result in read(timm_results) if timm_results else ():
        values = (str(float(result["top1"])), str(float(result["top5"])), "timm")
        accuracies[result["model"]] = dict(zip(ACCURACY, values, strict=True))
    if importlib.util.find_spec("torchvision"):
        from tests.parity import torchvision_shim

        torchvision_shim.install()
    with TABLE.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(
            file, COLUMNS, delimiter="\t", lineterminator="\n", quoting=csv.QUOTE_NONE
        )
        table.writeheader()
        for publisher in PUBLISHERS:
            rows: Any = [row for row in old if row["publisher"] == publisher]
            if publisher in ROWS and importlib.util.find_spec(PACKAGES.get(publisher, publisher)):
                rows = ROWS[publisher](accuracies)
            for row in rows:
                if row["name"].partition(".")[0] in presets.ARCHITECTURES:
                    table.writerow(row)
                else:
                    print(f"left out, no such architecture: {row['name']} ({row['address']})")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--timm-results", type=Path)
    main(parser.parse_args().timm_results)
