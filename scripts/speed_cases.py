"""What `scripts/benchmark.py infer` and `train` run, whoever runs it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from resnetjax import presets
from resnetjax.measure import flops
from resnetjax.plan import plan

LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 0.1, 0.9, 1e-4


@dataclass(frozen=True)
class Net:
    """One architecture under the names that the peers have for it; None where one has it not."""

    ours: str
    plain: str | None
    torch: tuple[str, str, dict[str, Any]]
    keras: str | None
    edge_px: int = 224
    classes: int = 1000


NETS = {
    "resnet18": Net("resnet18", "resnet18", ("torchvision", "resnet18", {}), None),
    "resnet50": Net("resnet50", "resnet50", ("torchvision", "resnet50", {}), "ResNet50"),
    "resnet101": Net("resnet101", "resnet101", ("torchvision", "resnet101", {}), "ResNet101"),
    "resnetv2_50": Net("resnetv2_50", None, ("timm", "resnetv2_50", {}), "ResNet50V2"),
    "cifar_resnet20": Net("cifar_resnet20", "cifar_resnet20",
                          ("akamaster", "resnet20", {"option": "A"}), None, 32, 10),
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """What is run: a net, the images of a batch, the dtype of the arithmetic, and where."""

    kind: Literal["infer", "train"]
    net: str
    batch: int
    dtype: Literal["float32", "bfloat16"] = "float32"
    gpu: bool = False

    @property
    def names(self) -> Net:
        """The net's names and sizes."""
        return NETS[self.net]

    @property
    def flops(self) -> int:
        """Floating-point operations of one call; a backward pass is twice a forward one."""
        edge = self.names.edge_px
        forward = flops(plan(presets.get(self.names.ours)), height=edge, width=edge)
        return forward * self.batch * (3 if self.kind == "train" else 1)

    def images(self) -> np.ndarray:
        """Noise, float32[batch, height, width, 3]."""
        edge = self.names.edge_px
        rng = np.random.default_rng(0)
        return rng.standard_normal((self.batch, edge, edge, 3), np.float32)

    def labels(self) -> np.ndarray:
        """One class an image."""
        return np.random.default_rng(1).integers(0, self.names.classes, self.batch)


@dataclass(frozen=True)
class Ready:
    """The function that is timed, and how long compiling it took; None where nothing is compiled.

    Who compiles within the first call says so; what that takes longer than a later one is the time.
    """

    call: Callable[[], Any]
    compile_s: float | Literal["first call"] | None
