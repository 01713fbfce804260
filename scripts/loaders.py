"""Training's input, ours and PyTorch's, for `scripts/benchmark.py pipeline`."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.utils.data
import torchvision.transforms
from PIL import Image

from resnetjax.config import Preprocess
from resnetjax.data.augmentation import Augmentation
from resnetjax.data.datasets import Example
from resnetjax.data.host_batch import Reader
from resnetjax.data.loader import Loader, Order

BATCH, EDGE_PX = 128, 224


@dataclass(frozen=True)
class Files:
    """Files as a data set of ours."""

    paths: list[Path]
    class_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Example:
        path = self.paths[index]
        return Example(image=path.read_bytes(), label=0, name=str(path))


@contextlib.contextmanager
def ours(paths: list[Path], cores: int) -> Iterator[Callable[[], None]]:
    """A function that reads all images once, on threads."""
    reader = Reader(
        dataset=Files(paths),
        preprocess=Preprocess(),
        augmentation=Augmentation(),
        edge_px=EDGE_PX,
    )
    order = Order(len(paths), BATCH, seed=0)
    with Loader(reader, threads=cores) as loader:

        def read() -> None:
            batches = loader.training_batches(order, start=0, stop=order.steps_per_epoch)
            count = sum(len(batch.images) for batch in batches)
            assert count == order.steps_per_epoch * BATCH

        yield read


class _TorchFiles(torch.utils.data.Dataset[Any]):
    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths
        self.transform = torchvision.transforms.Compose(
            [
                torchvision.transforms.RandomResizedCrop(EDGE_PX, antialias=True),
                torchvision.transforms.RandomHorizontalFlip(),
                torchvision.transforms.PILToTensor(),
            ]
        )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        with open(self.paths[index], "rb") as file:  # as torchvision's ImageFolder reads
            return self.transform(Image.open(file).convert("RGB")), 0


@contextlib.contextmanager
def theirs(paths: list[Path], cores: int) -> Iterator[Callable[[], None]]:
    """The same by PyTorch's DataLoader, whose workers are started once."""
    loader = torch.utils.data.DataLoader(
        _TorchFiles(paths),
        batch_size=BATCH,
        shuffle=True,
        num_workers=cores,
        drop_last=True,
        persistent_workers=True,
        prefetch_factor=4,
    )

    def read() -> None:
        count = sum(len(images) for images, _ in loader)
        assert count == len(paths) // BATCH * BATCH

    yield read
