"""Random boxes against torchvision's: the same distribution, and the same fallback."""

import math

import numpy as np
import pytest
import torch
from torchvision.transforms import RandomResizedCrop

from resnetjax.data.augmentation import Augmentation
from resnetjax.data.crops import random_box

pytestmark = pytest.mark.parity

COUNT = 6000


def distance(one: np.ndarray, other: np.ndarray) -> float:
    """Of Kolmogorov and Smirnov, between two samples."""
    values = np.sort(np.concatenate([one, other]))
    shares = [np.searchsorted(np.sort(sample), values, "right") / COUNT for sample in (one, other)]
    return np.abs(shares[0] - shares[1]).max()


@pytest.mark.parametrize(
    ("size", "area", "ratio"),
    [
        ((375, 500), (0.08, 1.0), (3 / 4, 4 / 3)),
        ((500, 333), (0.35, 1.0), (3 / 4, 4 / 3)),
        ((32, 32), (0.08, 1.0), (3 / 4, 4 / 3)),
        ((100, 640), (0.5, 1.0), (3 / 4, 4 / 3)),  # nothing fits
        ((640, 90), (0.5, 1.0), (3 / 4, 4 / 3)),
        ((224, 224), (0.9, 1.0), (1.0, 1.0)),
        ((50, 300), (0.1, 0.6), (0.2, 5.0)),
    ],
    ids=str,
)
def test_boxes_are_drawn_as_torchvision_draws_them(size, area, ratio):
    torch.manual_seed(0)
    generator = np.random.default_rng(0)
    chosen = Augmentation(crop_area=area, crop_ratio=ratio)
    image = torch.empty((1, *size))
    theirs = np.array(
        [RandomResizedCrop.get_params(image, list(area), list(ratio)) for _ in range(COUNT)]
    )
    boxes = np.array([random_box(generator, *size, augmentation=chosen) for _ in range(COUNT)])
    left, top, right, bottom = boxes.T
    ours = np.stack([top, left, bottom - top, right - left], axis=1)
    limit = 1.95 * math.sqrt(2 / COUNT)  # exceeded once in a thousand
    for name, one, other in zip(("top", "left", "height", "width"), ours.T, theirs.T, strict=True):
        assert distance(one, other) < limit, name
    assert distance(ours[:, 2] * ours[:, 3], theirs[:, 2] * theirs[:, 3]) < limit
    assert distance(ours[:, 3] / ours[:, 2], theirs[:, 3] / theirs[:, 2]) < limit
