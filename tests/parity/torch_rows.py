"""The nets of torchvision, timm and Transformers, and those for CIFAR."""

from collections.abc import Mapping
from typing import Any, Literal

from resnetjax.presets import ARCHITECTURES
from tests.parity.row import Layout, Row


def _torchvision(net: str, **fields: Any) -> Row:
    given = {"name": f"torchvision/{net}", "framework": "torchvision", "net": net, "arch": net}
    return Row(**{**given, **fields})


def _dilated(net: str, stride: Literal[8, 16], **fields: Any) -> Row:
    """Nets as torchvision's segmentation has them, which no file tells from the plain ones."""
    replaced = [False, stride == 8, True]
    config = ARCHITECTURES[net].replace(output_stride=stride)
    return _torchvision(
        net, name=f"torchvision/{net}-os{stride}", arch=None,
        arguments={"replace_stride_with_dilation": replaced}, load={"config": config},
        **{"small_px": (40, 57), **fields},
    )  # fmt: skip


def _timm(
    net: str, *, suffix: str = "", arguments: Mapping[str, Any] | None = None, **fields: Any
) -> Row:
    """A timm net; one with arguments is saved as the directory that records them."""
    changed = {"arguments": arguments, "layout": "directory"} if arguments else {}
    name = f"timm/{net}{suffix}"
    return Row(**{"name": name, "framework": "timm", "net": net, "arch": net, **changed, **fields})


def _strided(net: str, stride: Literal[8, 16], **fields: Any) -> Row:
    """A timm net for segmentation; small, for its last stages are large."""
    given = {"arguments": {"output_stride": stride}, "small_px": (40, 57), **fields}
    return _timm(net, suffix=f"-os{stride}", **given)


def _hidden(net: str, **fields: Any) -> Row:
    """A timm net that its arrays do not tell from a plainer one."""
    return _timm(net, load={"arch": net}, **fields)


def _transformers(
    name: str, *, arch: str | None = None, layout: Layout = "directory", **fields: Any
) -> Row:
    arguments = {"num_labels": 1000, **fields.pop("arguments", {})}
    return Row(**{
        "name": f"transformers/{name}", "framework": "transformers",
        "net": "ResNetForImageClassification", "layout": layout, "arch": arch,
        "arguments": arguments, **fields,
    })  # fmt: skip


def _akamaster(net: str, option: Literal["A", "B"] = "A", **fields: Any) -> Row:
    name = f"{net}{'b' if option == 'B' else ''}"
    return Row(
        name=f"akamaster/{name}", framework="akamaster", net=net, arguments={"option": option},
        arch=f"cifar_{name}", full_px=(32, 32), full=True, **{"layout": "checkpoint", **fields},
    )  # fmt: skip


_SHORT = (1, 2, 1, 1)
_BASIC = {"layer_type": "basic", "depths": (2, 2, 2, 2), "hidden_sizes": (64, 128, 256, 512)}
_TINY = {"depths": (1, 2, 1, 1), "num_labels": 10}

ROWS: tuple[Row, ...] = (
    _torchvision("resnet18", full=True),
    _torchvision("resnet34", full=True, layout="legacy"),
    _torchvision("resnet50", full=True),
    _torchvision("resnet101", full=True, layout="safetensors"),
    _torchvision("resnet152", short=_SHORT),
    _torchvision("resnext50_32x4d", full=True, layout="checkpoint"),
    _torchvision("resnext101_32x8d", short=_SHORT),
    _torchvision("resnext101_64x4d", short=_SHORT, layout="legacy"),
    _torchvision("wide_resnet50_2", full=True),
    _torchvision("wide_resnet101_2", short=_SHORT),
    _dilated("resnet50", 8),
    _dilated("resnet50", 16, layout="checkpoint"),
    _dilated("resnet101", 8, short=_SHORT),
    # timm: plain, and with other stems and shortcuts
    _timm("resnet10t"),
    _timm("resnet14t", small_px=(71, 71)),
    _timm("resnet18", layout="checkpoint"),
    _timm("resnet18d", small_px=(65, 97)),
    _timm("resnet26", layout="safetensors"),
    _timm("resnet26d"),
    _timm("resnet26t", small_px=(71, 71)),
    _timm("resnet34d"),
    _timm("resnet50", arguments={"num_classes": 10}),
    _timm("resnet50c"),
    _timm("resnet50d", full=True, layout="safetensors"),
    _timm("resnet50s"),
    _timm("resnet50t", small_px=(71, 71)),
    _timm("resnet50_gn"),
    _timm("resnet101d", short=_SHORT),
    _timm("resnet152d", short=_SHORT),
    _timm("resnet200", short=_SHORT, load={"config": ARCHITECTURES["resnet200"]}),
    _timm("resnet200d", short=_SHORT),
    _timm("resnext50d_32x4d"),
    _timm("resnext101_32x4d", short=_SHORT),
    # timm: channel attention
    _timm("seresnet18", layout="legacy"),
    _timm("seresnet50", full=True),
    _timm("seresnet50t", small_px=(71, 71)),
    _timm("seresnet152d", short=_SHORT),
    _timm("seresnext26d_32x4d"),
    _timm("seresnext50_32x4d"),
    _timm("seresnext101d_32x8d", short=_SHORT),
    _timm("senet154", short=_SHORT),
    _timm("ecaresnet26t"),
    _timm("ecaresnet50d"),
    _timm("ecaresnet50t", small_px=(71, 71)),
    _timm("ecaresnet101d", short=_SHORT),
    _timm("ecaresnet50d_pruned"),
    _timm("ecaresnet50d_pruned", suffix="-grey", arguments={"in_chans": 1, "num_classes": 10}),
    _timm("ecaresnet101d_pruned", short=_SHORT, layout="safetensors"),
    _timm("ecaresnetlight"),
    _timm("ecaresnext26t_32x4d"),
    # timm: anti-aliased; where an average replaces the stride, timm's shortcuts fit even sizes only
    _timm("resnetblur18", layout="checkpoint"),
    _hidden("resnetblur50"),
    _hidden("resnetblur50d", small_px=(71, 71)),
    _hidden("resnetaa34d", small_px=(64, 96)),
    _hidden("resnetaa50", small_px=(65, 97)),
    _timm("resnetaa50d", layout="checkpoint", small_px=(64, 96)),
    _hidden("seresnetaa50d", small_px=(64, 96)),
    _hidden("seresnextaa101d_32x8d", short=_SHORT, small_px=(64, 96)),
    # timm: ResNet-RS, and its test net
    _timm("resnetrs50"),
    _timm("resnetrs101", short=_SHORT),
    _timm("test_resnet"),
    # timm: dilated, with other activations, with other inputs
    _strided("resnet18", 8),
    _strided("resnet26", 16),
    _strided("resnet50", 8, small_px=(47, 47)),
    _strided("resnet50d", 8),
    _strided("resnet50d", 16, small_px=(47, 47)),
    _strided("ecaresnet50d_pruned", 16),
    _strided("resnetblur50d", 8, small_px=(47, 47)),
    _strided("resnetblur18", 16),
    _strided("resnetaa50", 16, small_px=(32, 64)),
    _strided("seresnet50", 8),
    _timm("resnet18", suffix="-gelu", arguments={"act_layer": "gelu"}),
    _timm("resnet26d", suffix="-silu", arguments={"act_layer": "silu"}),
    _timm("resnet18d", suffix="-grey", arguments={"in_chans": 1, "num_classes": 10}),
    _timm("resnet26", suffix="-4channels", arguments={"in_chans": 4, "num_classes": 10}),
    _timm("resnet18", suffix="-max", arguments={"global_pool": "max"}),
    # timm: v2
    _timm("resnetv2_18", layout="legacy"),
    _timm("resnetv2_18d"),
    _timm("resnetv2_34", small_px=(71, 71)),
    _timm("resnetv2_34d"),
    _timm("resnetv2_50", full=True),
    _timm("resnetv2_50d", arguments={"num_classes": 10}),
    _timm("resnetv2_50t", small_px=(71, 71)),
    _timm("resnetv2_50d_gn", layout="safetensors"),
    _timm("resnetv2_101", short=_SHORT),
    _timm("resnetv2_101d", short=_SHORT, load={"arch": "resnetv2_101d"}),
    _timm("resnetv2_152", short=_SHORT),
    _strided("resnetv2_18d", 16),
    _strided("resnetv2_50", 8),
    _strided("resnetv2_50", 16, small_px=(47, 47)),
    _strided("resnetv2_50d", 8, small_px=(47, 47)),
    _timm("resnetv2_50", suffix="-gelu", arguments={"act_layer": "gelu"}),
    _timm("resnetv2_18", suffix="-max", arguments={"global_pool": "max"}),
    _timm("resnetv2_50x1_bit", full=True),
    _timm("resnetv2_50x3_bit", short=(1, 1, 1, 1), load={"arch": "resnetv2_50x3_bit"}),
    _timm("resnetv2_101x1_bit", short=_SHORT, load={"arch": "resnetv2_101x1_bit"}),
    _strided("resnetv2_50x1_bit", 16),
    # Transformers
    _transformers("resnet-50", arch="resnet50", full=True),
    _transformers("resnet-50-file", arch="resnet50", layout="safetensors"),
    _transformers("resnet-50-legacy", arch="resnet50", layout="legacy", small_px=(71, 71)),
    _transformers("resnet-18", arch="resnet18", arguments=_BASIC),
    _transformers("resnet-101", arch="resnet101", short=_SHORT, arguments={
        "depths": (3, 4, 23, 3)}),
    _transformers("resnet-50-v1", arch="resnet50_v1", arguments={"downsample_in_bottleneck": True}),
    _transformers("first-stage", arguments={**_TINY, "downsample_in_first_stage": True}),
    _transformers("both-flags", arguments={
        **_TINY, "downsample_in_first_stage": True, "downsample_in_bottleneck": True}),
    _transformers("basic-first-stage", arguments={**_BASIC, "downsample_in_first_stage": True}),
    _transformers("gelu", arguments={**_TINY, "hidden_act": "gelu"}),
    _transformers("gelu-new", arguments={**_TINY, "hidden_act": "gelu_new"}),
    _transformers("basic-silu", arguments={**_BASIC, "hidden_act": "silu"}),
    _transformers("narrow-grey", arguments={
        **_TINY, "embedding_size": 32, "hidden_sizes": (64, 128, 192, 256), "num_channels": 1}),
    _transformers("three-stages", arguments={
        "depths": (2, 1, 2), "hidden_sizes": (64, 128, 256), "num_channels": 4, "num_labels": 7}),
    _transformers("backbone", net="ResNetBackbone", arch="resnet50", arguments={
        "out_features": ["stem", "stage1", "stage2", "stage3", "stage4"]}),
    _transformers("no-head", net="ResNetModel", arch="resnet18", arguments=_BASIC),
    # CIFAR
    _akamaster("resnet20"),
    _akamaster("resnet32", layout="legacy"),
    _akamaster("resnet44"),
    _akamaster("resnet56"),
    _akamaster("resnet20", "B"),
    _akamaster("resnet56", "B", layout="zip"),
)  # fmt: skip
