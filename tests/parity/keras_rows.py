"""The nets of keras.applications, KerasHub and KerasCV, in every file that Keras writes."""

from collections.abc import Mapping
from typing import Any

from resnetjax.config import ResNetConfig
from resnetjax.presets import ARCHITECTURES
from tests.parity.row import Layout, Row

# Keras 3 writes weights alone in `.weights.h5` only.
KERAS_3: tuple[Layout, ...] = ("h5 model", "weights.h5", "keras")
TF_KERAS: tuple[Layout, ...] = ("h5 weights", *KERAS_3)

_FILES: Mapping[Layout, str] = {
    "h5 weights": "h5", "h5 model": "h5-model", "weights.h5": "weights-h5", "keras": "keras",
}  # fmt: skip
# Blocks a stage and widths in the small form. A stage of v2 has two blocks or more; bottlenecks of
# another width than the stem's have a projection at once; KerasHub wants 64 first.
_V1, _V2 = (2, 1, 2, 1), (2, 3, 2, 2)
_NARROW, _NARROW_64 = (24, 16, 32, 48), (64, 24, 32, 48)
_DEPTHS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3),
           152: (3, 8, 36, 3), 200: (3, 12, 48, 3)}  # fmt: skip


def _rows(
    name: str,
    layouts: tuple[Layout, ...],
    *,
    config: ResNetConfig | None = None,
    told: tuple[Layout, ...] = (),
    **fields: Any,
) -> tuple[Row, ...]:
    """One net in several files; `told` are those that do not tell the small form."""
    return tuple(
        Row(
            name=f"{name}-{_FILES[layout]}",
            layout=layout,
            told_small=config if layout in told else None,
            **fields,
        )
        for layout in layouts
    )


def _applications(
    framework: str, depth: int, layouts: tuple[Layout, ...], *, v2: bool, top: bool
) -> tuple[Row, ...]:
    net = f"ResNet{depth}{'V2' if v2 else ''}"
    return _rows(
        f"{framework}/{net}{'' if top else '-notop'}",
        layouts,
        framework=framework,
        net=net,
        arguments={} if top else {"include_top": False},
        arch=f"keras_{net.lower()}",
        config=ARCHITECTURES[f"keras_{net.lower()}"],
        told=("weights.h5",) if framework == "tf_keras" else (),
        short=_V2 if v2 else _V1,
        narrow=_NARROW,
        large=depth != 50,
    )


def _hub(
    preset: str,
    layouts: tuple[Layout, ...],
    *,
    arch: str | None = None,
    head: bool = True,
    large: bool = False,
    **arguments: Any,
) -> tuple[Row, ...]:
    """KerasHub's net as the preset of that name has it."""
    _, *kinds, depth = preset.split("_")
    basic = int(depth) < 50
    pre, deep = "v2" in kinds, "vd" in kinds
    name = f"keras_hub/{preset}{'' if head else '-backbone'}"
    return _rows(
        name,
        layouts,
        framework="keras_hub",
        net="ResNetBackbone",
        arguments={
            "block_type": f"{'basic' if basic else 'bottleneck'}_block{'_vd' if deep else ''}",
            "use_pre_activation": pre,
            "stackwise_num_blocks": _DEPTHS[int(depth)],
            "num_classes": 1000 if head else 0,
            **arguments,
        },
        arch=arch,
        short=_V2 if pre else _V1,
        narrow=_NARROW_64,
        large=large,
    )


def _cv(
    depth: int,
    layouts: tuple[Layout, ...],
    *,
    v2: bool = False,
    head: bool = False,
    suffix: str = "",
    dilations: tuple[int, ...] = (),
    told: bool = False,
    **fields: Any,
) -> tuple[Row, ...]:
    """KerasCV's net as the preset of that depth has it, but for pixels, which come prepared."""
    basic, arch = depth < 50, f"kerascv_resnet{depth}{'v2' if v2 else ''}"
    config = ARCHITECTURES[arch]
    if dilations:
        strides = tuple(1 if rate > 1 else 2 for rate in dilations[1:])
        config = config.replace(dilations=dilations, strides=(1, *strides))
    arguments = {
        "block_type": "basic_block" if basic else "block",
        "stackwise_blocks": _DEPTHS[depth],
        "num_classes": 1000 if head else 0,
        **({"stackwise_dilations": dilations} if dilations else {}),
        **fields.pop("arguments", {}),
    }
    return _rows(
        f"keras_cv/resnet{depth}{'_v2' if v2 else ''}{suffix}{'-classifier' if head else ''}",
        layouts,
        framework="keras_cv",
        net="ResNetV2Backbone" if v2 else "ResNetBackbone",
        arguments=arguments,
        arch=None if dilations else arch,
        load={} if not told else {"config": config} if dilations else {"arch": arch},
        config=config,
        told=tuple(layout for layout in TF_KERAS if layout != "h5 model"),  # it describes itself
        short=_V2 if v2 else _V1,
        narrow=_NARROW_64 if basic else _NARROW,
        **fields,
    )


ROWS: tuple[Row, ...] = (
    *(
        row
        for v2 in (False, True)
        for depth in (50, 101, 152)
        for framework, layouts in (("keras", KERAS_3), ("tf_keras", TF_KERAS))
        for top in (True, False)
        for row in _applications(framework, depth, layouts, v2=v2, top=top)
    ),
    # Its models hold code, which is refused: weights alone.
    *(
        Row(
            name=f"keras-applications/ResNeXt{depth}-h5",
            framework="keras-applications",
            net=f"ResNeXt{depth}",
            layout="h5 weights",
            arch=f"keras_resnext{depth}",
            short=_V1,
            large=depth != 50,
        )
        for depth in (50, 101)
    ),
    # KerasHub
    *_hub("resnet_18", KERAS_3, arch="resnet18"),
    *_hub("resnet_34", ("weights.h5",), arch="resnet34", large=True),
    *_hub("resnet_50", KERAS_3, arch="resnet50"),
    *_hub("resnet_50", KERAS_3, arch="resnet50", head=False),
    *_hub("resnet_101", ("keras",), arch="resnet101", large=True),
    *_hub("resnet_152", ("weights.h5",), arch="resnet152", large=True),
    *_hub("resnet_vd_18", KERAS_3, arch="kerashub_resnet18_vd"),
    *_hub("resnet_vd_34", ("h5 model",), arch="kerashub_resnet34_vd", large=True),
    *_hub("resnet_vd_50", KERAS_3, arch="resnet50d"),
    *_hub("resnet_vd_50", ("weights.h5",), arch="resnet50d", head=False, large=True),
    *_hub("resnet_vd_101", ("weights.h5",), arch="resnet101d", large=True),
    *_hub("resnet_vd_152", ("keras",), arch="resnet152d", large=True),
    *_hub("resnet_vd_200", ("weights.h5",), arch="kerashub_resnet200_vd", large=True),
    *_hub("resnet_v2_18", KERAS_3, arch="resnetv2_18"),
    *_hub("resnet_v2_34", ("keras",), arch="resnetv2_34", large=True),
    *_hub("resnet_v2_50", KERAS_3, arch="resnetv2_50"),
    *_hub("resnet_v2_50", ("weights.h5",), arch="resnetv2_50", head=False),
    *_hub("resnet_v2_101", ("weights.h5",), arch="resnetv2_101", large=True),
    # KerasCV
    *_cv(18, ("h5 weights", "keras")),
    *_cv(34, ("weights.h5",), large=True),
    *_cv(50, TF_KERAS),
    *_cv(50, ("h5 model", "keras"), head=True),
    *_cv(50, ("keras",), suffix="-rescaled", arguments={"include_rescaling": True}),
    *_cv(101, ("h5 weights",), large=True),
    *_cv(152, ("keras",), large=True),
    *_cv(18, ("h5 model", "weights.h5"), v2=True),
    *_cv(34, ("h5 weights",), v2=True, large=True),
    *_cv(50, ("h5 weights", "h5 model", "keras"), v2=True),
    # Without names, a file has the shapes of keras.applications' v2.
    *_cv(50, ("weights.h5",), v2=True, told=True),
    *_cv(50, ("h5 model", "keras"), v2=True, head=True),
    *_cv(50, ("h5 model",), v2=True, suffix="-rescaled", arguments={"include_rescaling": True}),
    *_cv(101, ("weights.h5",), v2=True, told=True, large=True),
    *_cv(152, ("h5 model",), v2=True, large=True),
    *_cv(18, ("keras",), v2=True, suffix="-dilated1124", dilations=(1, 1, 2, 4)),
    *_cv(50, ("h5 model", "keras"), v2=True, suffix="-dilated1112", dilations=(1, 1, 1, 2)),
    *_cv(50, ("weights.h5",), v2=True, suffix="-dilated1124", dilations=(1, 1, 2, 4), told=True),
)
