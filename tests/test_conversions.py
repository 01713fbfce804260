"""From any of the common systems to any other and back, nothing is lost to the bit."""

import itertools
import shutil
from typing import Any

import pytest

from resnetjax import saving, zoo
from resnetjax.config import ResNetConfig
from resnetjax.data import labels as label_sets
from resnetjax.errors import ConfigError
from resnetjax.presets import get
from resnetjax.weights import dialects
from tests.disturbed import disturbed

ENDINGS = {
    "torchvision": ".pth",
    "timm": ".safetensors",
    "timm_v2": ".safetensors",
    "transformers": ".bin",
    "kerashub": ".weights.h5",
    "transformers_flax": ".msgpack",
    "jax_resnet": ".msgpack",
    "flaxmodels": ".h5",
    "flaxmodels_tree": ".msgpack",
}
NARROW: dict[str, Any] = {"widths": (64, 12, 16, 24)}
COMMON = ("torchvision", "timm", "transformers", "kerashub")
# A net, what makes it narrow, the systems that have it.
NETS: dict[str, tuple[ResNetConfig, dict[str, Any], tuple[str, ...]]] = {
    "resnet18": (get("resnet18"), NARROW, COMMON),
    "resnet50": (get("resnet50"), NARROW, COMMON),
    "resnet50 of stride 16": (
        get("resnet50").replace(output_stride=16), NARROW, ("torchvision", "timm")),
    "resnet50 with a strided first stage": (
        get("resnet50").replace(strides=(2, 2, 2, 2)), NARROW,
        ("transformers", "transformers_flax", "kerashub")),
    "resnext50_32x4d": (
        get("resnext50_32x4d"), {**NARROW, "groups": 4, "group_width": 16},
        ("torchvision", "timm", "jax_resnet")),
    "wide_resnet50_2": (get("wide_resnet50_2"), NARROW, ("torchvision", "timm", "jax_resnet")),
    "resnet18d": (get("resnet18d"), NARROW, ("timm", "jax_resnet")),
    "resnet50d": (get("resnet50d"), NARROW, ("timm", "kerashub", "jax_resnet")),
    "resnetv2_18": (get("resnetv2_18"), NARROW, ("timm_v2", "kerashub")),
    "resnetv2_50": (get("resnetv2_50"), NARROW, ("timm_v2", "kerashub")),
    "resnet34 of Flax's": (
        get("resnet34"), {}, ("torchvision", "flaxmodels", "flaxmodels_tree", "jax_resnet")),
}  # fmt: skip
FORMS = [(name, "narrow") for name, (_, narrow, _) in NETS.items() if narrow]
FORMS += [(name, "full") for name in NETS]
CASES = [
    pytest.param(
        form, *pair, id="-".join((*form, *pair)), marks=[pytest.mark.slow] * (form[1] == "full")
    )
    for form in FORMS  # the fixture is kept for what is the same object
    for pair in itertools.permutations(NETS[form[0]][2], 2)
]


@pytest.fixture(scope="module")
def written(request, tmp_path_factory):
    """A net's config, and its file in each system, written from one net."""
    name, size = request.param
    config, narrow, systems = NETS[name]
    config = config.replace(**narrow) if size == "narrow" else config
    folder = tmp_path_factory.mktemp("written")
    pre = disturbed(config)
    paths = {system: folder / f"{system}{ENDINGS[system]}" for system in systems}
    for system, path in paths.items():
        saving.save(pre, path, dialect=system)
    yield config, paths
    shutil.rmtree(folder)  # up to a gigabyte a net


def as_is(path, config: ResNetConfig, dialect: str):
    """The net of a file, of which nothing has to be assumed."""
    prepared = dialects.get(dialect).preprocess
    labels = label_sets.get("imagenet_1k")
    return zoo.load(path, config=config, preprocess=prepared, labels=labels)


@pytest.mark.parametrize(("written", "source", "target"), CASES, indirect=["written"])
def test_a_conversion_gives_the_file_that_the_target_has_of_the_same_net(
    written, tmp_path, source, target
):
    # Both ways for every pair: what goes there and back is what it was.
    config, paths = written
    path = tmp_path / paths[target].name
    saving.save(as_is(paths[source], config, source), path, dialect=target)
    assert path.read_bytes() == paths[target].read_bytes()


@pytest.mark.parametrize(
    ("source", "arch", "target", "field"),
    [
        ("transformers", "resnet50_v1", "torchvision", "stride_on='reduce'"),
        ("transformers", "resnet50", "torchvision", "strides=(2, 2, 2, 2)"),
        ("transformers", "resnet50", "timm", "strides=(2, 2, 2, 2)"),
        ("timm", "resnet18", "torchvision", "output_stride=8"),
        ("kerashub", "kerashub_resnet18_vd", "timm", "projections=(True, True, True, True)"),
        ("keras_v2", "keras_resnet50v2", "timm_v2", "stride_block='last'"),
        ("timm", "resnet50d", "transformers", "stem='deep'"),
        ("torchvision", "resnext50_32x4d", "kerashub", "groups=32"),
        ("transformers", "resnet50_v1", "transformers_flax", "stride_on='reduce'"),
        ("torchvision", "resnet50", "flax_example", "padding='torch'"),
        ("timm", "resnet50t", "jax_resnet", "stem='tiered'"),
        ("torchvision", "wide_resnet50_2", "flaxmodels", "group_width=128"),
        ("torchvision", "resnext50_32x4d", "flaxmodels_tree", "groups=32"),
        ("torchvision", "resnet50", "keras", "stride_on='spatial'"),
        ("kerashub", "resnetv2_50", "kerascv_v2", "stride_block='first'"),
        ("timm", "resnet50", "slim_v1", "stride_block='first'"),
        ("timm_v2", "resnetv2_50", "bit", "norm='batch'"),
    ],
)
def test_a_system_that_has_no_such_net_is_told_by_its_field(tmp_path, source, arch, target, field):
    config = get(arch).replace(widths=(64, 64, 64, 64), depths=(1, 1, 1, 1))
    if field.startswith("strides="):  # Transformers' downsample_in_first_stage
        config = config.replace(strides=(2, 2, 2, 2))
    if field == "output_stride=8":
        config = config.replace(output_stride=8)
    before = disturbed(config, preprocess=dialects.get(source).preprocess)
    ending = {"keras_v2": ".h5", **ENDINGS}[source]
    saving.save(before, tmp_path / f"net{ending}", dialect=source)
    pre = as_is(tmp_path / f"net{ending}", config, source)
    with pytest.raises(ConfigError) as refused:
        saving.save(pre, tmp_path / "out.npz", dialect=target)
    assert field in str(refused.value)
    assert not (tmp_path / "out.npz").exists()
