"""What a row of the table is: a net, whose code builds it, how it is saved, what `load` is told."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from resnetjax.config import ResNetConfig
from resnetjax.presets import ARCHITECTURES
from tests.cut import cut

Layout = Literal[
    "zip", "legacy", "checkpoint", "safetensors", "directory",
    "h5 weights", "h5 model", "weights.h5", "keras", "bundle", "npz", "msgpack",
]  # fmt: skip
Size = Literal["small", "full"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One net in one file.

    Attributes:
        name: Unique in the table.
        framework: Whose code builds it.
        net: The framework's name for it.
        arguments: What the framework's constructor is given beside.
        layout: How it is saved. PyTorch's: by torch.save in a new or an old container, as the
            dictionary of a training script (`module.` names, beside the name of the architecture),
            as safetensors, or as the directory that the framework writes. Keras's: its legacy
            `.h5` of the weights or of the model, `.weights.h5`, `.keras`. A TensorFlow bundle, an
            npz, Flax's msgpack.
        arch: What `load` must say that it is, in its real size.
        load: What `load` is told, where names and shapes cannot tell.
        short: Blocks a stage in the small form, where the real net would take long.
        narrow: Widths of the stages in the small form, where the framework can build it so.
        told_small: The net's config, where `load` is told that of the small form: the file names no
            layers, or what it leaves open is read as the framework's real nets have it.
        small_px: Height and width in the small form. 68 halves to odd and even sizes, 97 to odd
            ones: paddings differ at even sizes, average pools at odd ones.
        full_px: Height and width in the full form.
        full: Whether the default run has the full form rather than the small one.
        large: Whether there is the full form only, left out of the default run: in the small form
            it would be another row's net.
    """

    name: str
    framework: str
    net: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    layout: Layout = "zip"
    arch: str | None = None
    load: Mapping[str, Any] = field(default_factory=dict)
    short: tuple[int, ...] = ()
    narrow: tuple[int, ...] = ()
    told_small: ResNetConfig | None = None
    small_px: tuple[int, int] = (68, 97)
    full_px: tuple[int, int] = (224, 224)
    full: bool = False
    large: bool = False

    def depths(self, size: Size) -> tuple[int, ...]:
        """Blocks a stage where they are not the real net's, else ()."""
        return self.short if size == "small" else ()

    def widths(self, size: Size) -> tuple[int, ...]:
        """Widths of the stages where they are not the real net's, else ()."""
        return self.narrow if size == "small" else ()

    def sized(self, config: ResNetConfig, size: Size) -> ResNetConfig:
        """A config of the real size in this form's."""
        widths = self.widths(size) or config.widths
        return cut(config, self.depths(size) or config.depths, widths=widths)

    def told(self, size: Size) -> dict[str, Any]:
        """What `load` is told of this form."""
        if size == "full" or not self.short or not (self.load or self.told_small):
            return dict(self.load)
        config = self.load.get("config") or self.told_small or ARCHITECTURES[self.load["arch"]]
        return {"config": self.sized(config, size)}

    def expected(self, size: Size) -> str | None:
        """The architecture that `load` must find."""
        return None if self.depths(size) else self.arch
