"""Scikit-learn's 1,797 handwritten digits, which need no download."""

from collections.abc import Callable, Mapping

import numpy as np

from resnetjax.data.readers.arrays import ArrayDataset
from resnetjax.data.readers.example import Dataset
from resnetjax.errors import MissingExtra


def digits_splits() -> Mapping[str, Callable[[], Dataset]]:
    """What opens "train", four fifths of each digit's images, and "test", the fifth held out.

    The images are uint8[8, 8, 1], where scikit-learn's 0..16 become 0..255. Which are held out
    depends on nothing but NumPy's PCG64.

    Raises:
        MissingExtra: scikit-learn is not installed (once one is opened).

    Example:
        >>> digits = digits_splits()
        >>> len(digits["train"]()), len(digits["test"]())
        (1438, 359)
    """
    return {"train": lambda: _digits(held_out=False), "test": lambda: _digits(held_out=True)}


def _digits(*, held_out: bool) -> ArrayDataset:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingExtra('digits come with scikit-learn: pip install "resnetjax[demo]"'
                           ) from error  # fmt: skip
    images, labels = load_digits(return_X_y=True)
    pixels = np.rint(images.reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)  # from 0..16
    random = np.random.Generator(np.random.PCG64(0))
    is_test = np.zeros(len(labels), bool)
    for digit in range(10):
        of_digit = random.permutation(np.flatnonzero(labels == digit))
        is_test[of_digit[: round(len(of_digit) / 5)]] = True
    chosen = is_test if held_out else ~is_test
    names = tuple(map(str, range(10)))
    return ArrayDataset(pixels[chosen], labels[chosen], name="digits", class_names=names)
