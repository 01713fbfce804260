"""How training images are varied, as one frozen dataclass that imports no JAX."""

from dataclasses import dataclass
from typing import Literal

from resnetjax.config import Interpolation
from resnetjax.fields import check_types, require


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """How training images are varied; the defaults are ImageNet's of Szegedy et al. 2014.

    Crop and flip happen on the host, where images still differ in size; all else on the device,
    on whole batches. Each is a function of the seed, the step and the example's place in the batch.

    Attributes:
        crop: "random_resized" (area and ratio drawn, then resized), "pad" (`crop_padding` zeros on
            each side, then a crop: CIFAR), or "none" (resized, centre-cropped as in evaluation).
        crop_area: Least and greatest share of the image's area in a random resized crop.
        crop_ratio: Least and greatest ratio of width to height.
        crop_padding: Pixels.
        interpolation: Of the resize.
        flip: Mirror every other image, left to right.
        repeats: Each image is shown this often in a batch (repeated augmentation, Hoffer 2019), and
            that many fewer images in an epoch.
        policy: "rand" (RandAugment as timm has it), "trivial" (TrivialAugment Wide as torchvision
            has it), or "none".
        policy_ops: RandAugment's operations an image.
        policy_magnitude: RandAugment's magnitude, of 10.
        policy_magnitude_std: Its standard deviation.
        policy_increasing: Use timm's operations whose strength only grows with the magnitude.
        mixup_alpha: Of the Beta distribution; 0 is off.
        cutmix_alpha: Likewise. With both, each batch takes one or the other.
        mix_probability: Share of the batches that are mixed.
        mix_switch_probability: With both, the share that takes CutMix.
        erase_probability: Share of the images of which a rectangle is erased (Zhong 2017).
        erase_value: What fills it: "zero" (the mean colour, after normalisation) or "noise".
        label_smoothing: Share of a target spread over all classes.
    """

    crop: Literal["random_resized", "pad", "none"] = "random_resized"
    crop_area: tuple[float, float] = (0.08, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    crop_padding: int = 4
    interpolation: Interpolation = "bilinear"
    flip: bool = True
    repeats: int = 1
    policy: Literal["none", "rand", "trivial"] = "none"
    policy_ops: int = 2
    policy_magnitude: float = 9.0
    policy_magnitude_std: float = 0.0
    policy_increasing: bool = False
    mixup_alpha: float = 0.0
    cutmix_alpha: float = 0.0
    mix_probability: float = 1.0
    mix_switch_probability: float = 0.5
    erase_probability: float = 0.0
    erase_value: Literal["zero", "noise"] = "zero"
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("crop_area", "crop_ratio"):
            low, high = getattr(self, name)
            require(self, name, 0 < low <= high, "two positive numbers, the smaller first")
        require(self, "crop_area", self.crop_area[1] <= 1, "shares of at most 1")
        for name in ("crop_padding", "policy_ops", "policy_magnitude", "policy_magnitude_std"):
            require(self, name, getattr(self, name) >= 0, "0 or more")
        for name in ("mixup_alpha", "cutmix_alpha"):
            require(self, name, getattr(self, name) >= 0, "0 (off) or more")
        for name in ("mix_probability", "mix_switch_probability", "erase_probability"):
            require(self, name, 0 <= getattr(self, name) <= 1, "0 to 1")
        require(self, "label_smoothing", 0 <= self.label_smoothing < 1, "0 to below 1")
        require(self, "repeats", self.repeats >= 1, "1 or more")
