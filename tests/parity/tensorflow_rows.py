"""Nets in the files of TensorFlow 1 and of Flax: slim's, Big Transfer's, Transformers 4's."""

from typing import Any, Literal

from resnetjax.presets import ARCHITECTURES
from tests.parity.row import Layout, Row

_SMALL = {"short": (2, 2, 1, 2), "narrow": (16, 24, 32, 48)}


def _slim(
    version: Literal[1, 2],
    depth: int,
    layout: Layout = "bundle",
    *,
    stride: Literal[8, 16] | None = None,
    head: bool = True,
    **fields: Any,
) -> Row:
    net = f"resnet_v{version}_{depth}"
    arch = f"slim_{net}"
    config = ARCHITECTURES[arch].replace(output_stride=stride)
    classes = ARCHITECTURES[arch].num_classes if head else 0
    name = f"{net}{f'-os{stride}' if stride else ''}{'' if head else '-backbone'}"
    return Row(
        name=f"slim/{name}{'-npz' if layout == 'npz' else ''}",
        framework="slim",
        net=net,
        arguments={"num_classes": classes, "output_stride": stride},
        layout=layout,
        arch=None if stride else arch,
        load={"config": config} if stride else {},
        **{**_SMALL, **({"small_px": (40, 57)} if stride else {}), **fields},
    )


def _bit(net: str, **fields: Any) -> Row:
    return Row(name=f"bit/{net}", framework="bit", net=net, layout="npz", arch=net, **fields)


def _flax(name: str, arch: str, depths: tuple[int, ...], **fields: Any) -> Row:
    basic = {"layer_type": "basic", "hidden_sizes": (64, 128, 256, 512)}
    return Row(
        name=f"transformers-flax/{name}",
        framework="transformers_flax",
        net="ResNetForImageClassification",
        arguments={
            "num_labels": 1000, "depths": depths,
            **(basic if ARCHITECTURES[arch].block == "basic" else {}),
        },
        layout="msgpack",
        arch=arch,
        **fields,
    )  # fmt: skip


ROWS: tuple[Row, ...] = (
    *(
        row
        for version in (1, 2)
        for row in (
            _slim(version, 50),
            _slim(version, 50, "npz"),
            _slim(version, 50, head=False),
            _slim(version, 50, stride=8),
            _slim(version, 50, stride=16),
            _slim(version, 101, large=True),
            _slim(version, 101, stride=16, large=True),
            _slim(version, 152, large=True),
            _slim(version, 200, large=True),
        )
    ),
    _bit("resnetv2_50x1_bit", short=(1, 2, 1, 1)),
    _bit("resnetv2_101x1_bit", large=True),
    _bit("resnetv2_50x3_bit", large=True),
    _flax("resnet-18", "resnet18", (2, 2, 2, 2)),
    _flax("resnet-50", "resnet50", (3, 4, 6, 3)),
    _flax("resnet-101", "resnet101", (3, 4, 23, 3), large=True),
    _flax("resnet-152", "resnet152", (3, 8, 36, 3), large=True),
)
