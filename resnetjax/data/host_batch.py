"""A batch on the host, and what fills its rows: images read, decoded, cropped and flipped."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int32, Int64, UInt8

from resnetjax.config import Preprocess
from resnetjax.data.augmentation import Augmentation
from resnetjax.data.crops import training_view
from resnetjax.data.datasets import Dataset
from resnetjax.data.preprocess import crop, decode
from resnetjax.errors import ResNetJAXError


@dataclass(frozen=True, kw_only=True)
class HostBatch:
    """Some rows of a global batch, on the host.

    Attributes:
        images: Red first.
        labels: Indices of classes, or rows of values.
        weights: 1, or 0 for an image that could not be read (its pixels are zero) and for padding.
        indices: Of the examples, in the data set; -1 for padding.
        bad: What could not be read, as "name: reason".
    """

    images: UInt8[np.ndarray, "rows height width channels"]
    labels: Int32[np.ndarray, " rows"] | Float32[np.ndarray, "rows outputs"]
    weights: Float32[np.ndarray, " rows"]
    indices: Int64[np.ndarray, " rows"]
    bad: tuple[str, ...] = ()

    def rows(self, part: slice) -> "HostBatch":
        """A view of some rows."""
        return HostBatch(
            images=self.images[part],
            labels=self.labels[part],
            weights=self.weights[part],
            indices=self.indices[part],
        )


@dataclass(frozen=True, kw_only=True)
class Reader:
    """Rows of a data set as pixels; it goes to worker processes as it is.

    Attributes:
        dataset: Where the images are.
        preprocess: Evaluation's transform, and training's number of channels.
        augmentation: Training's transform; None for evaluation.
        edge_px: Edge of training images.
        seed: Of boxes and flips.
        outputs: Values that the data set has for each image; 0 where it has a class.
    """

    dataset: Dataset
    preprocess: Preprocess
    augmentation: Augmentation | None = None
    edge_px: int = 0
    seed: int = 0
    outputs: int = 0

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels of every image."""
        size = (self.edge_px, self.edge_px) if self.augmentation else self.preprocess.crop_px
        return (*size, self.preprocess.channels)

    def empty(self, indices: np.ndarray) -> HostBatch:
        """A batch of the examples `indices` whose images are still to be read."""
        return HostBatch(
            images=np.empty((len(indices), *self.shape), np.uint8),
            labels=np.zeros((len(indices), self.outputs), np.float32)
            if self.outputs
            else np.zeros(len(indices), np.int32),
            weights=np.zeros(len(indices), np.float32),
            indices=np.asarray(indices, np.int64),
        )

    def read(self, positions: np.ndarray, batch: HostBatch) -> tuple[str, ...]:
        """Fills a batch; what is random in it follows from `positions`. Gives what is bad."""
        bad = []
        for row, (position, index) in enumerate(zip(positions, batch.indices, strict=True)):
            if index < 0:
                batch.images[row] = 0
                continue
            name = f"example {index}"
            try:
                example = self.dataset[int(index)]
                name, batch.labels[row] = example.name, example.label
                batch.images[row] = self._view(example.image, position)
                batch.weights[row] = 1
            except MemoryError:
                raise  # says nothing of the image: the same run might read it another time
            except Exception as error:  # whatever a decoder stumbles over, the epoch goes on
                batch.images[row] = 0
                bad.append(_reason(name, error))
        return tuple(bad)

    def _view(self, image: bytes | np.ndarray, position: int) -> UInt8[np.ndarray, "h w c"]:
        if self.augmentation is None:
            return crop(decode(image, channels=self.preprocess.channels), self.preprocess)
        # A generator of its own for every position: what one image draws leaves the next alone.
        # The position is not in the counter's lowest word, which counts the draws.
        bits = np.random.Philox(key=[self.seed, 1 << 63], counter=[0, position, 0, 0])
        return training_view(
            image,
            np.random.Generator(bits),
            augmentation=self.augmentation,
            preprocess=self.preprocess,
            edge_px=self.edge_px,
        )


def _reason(name: str, error: Exception) -> str:
    known = isinstance(error, ResNetJAXError | OSError | ValueError)
    text = str(error) if known else f"{type(error).__name__}: {error}"
    return text if name in text else f"{name}: {text}"
