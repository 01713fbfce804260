"""A folder of images for each class, in the order of torchvision's `ImageFolder`."""

import os
from pathlib import Path

import numpy as np

from resnetjax.data.readers.example import Example, checked_index, image_bytes
from resnetjax.errors import UnsupportedFile

# torchvision/datasets/folder.py: IMG_EXTENSIONS.
EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


def is_image(name: str) -> bool:
    """Whether a file of this name counts as an image: not one of macOS's `._*` beside each file."""
    return name.lower().endswith(EXTENSIONS) and not name.startswith("._")


def is_hidden(name: str) -> bool:
    """Whether a folder of this name is no one's data: `.git`, or what macOS puts into archives."""
    return name.startswith(".") or name == "__MACOSX"


class ImageFolder:
    """The images below each sub-folder of a folder; the sub-folders are the classes.

    Hidden ones are none, nor is `__MACOSX`.

    Classes and files have the order of torchvision/datasets/folder.py (`find_classes` and
    `make_dataset`): sorted by code point, files of sub-folders after those of the folder itself.

    The tree is walked whenever it is opened: ImageNet's names take seconds on a local disk. That an
    index which was kept is stale could be known by the folders' times of modification alone, which
    not every network file system, and hardly any mounted object store, keeps up to date.

    Raises:
        UnsupportedFile: There are no class folders, or some have no images or cannot be listed.
    """

    def __init__(self, root: Path) -> None:
        with os.scandir(root) as entries:
            self.class_names = tuple(
                sorted(e.name for e in entries if e.is_dir() and not is_hidden(e.name))
            )
        if not self.class_names:
            raise UnsupportedFile(f"{root} has no sub-folders, which would be the classes")
        self._root = os.fspath(root)
        files, labels, empty = [], [], []
        for label, name in enumerate(self.class_names):
            found = _images_below(os.path.join(self._root, name))
            files += found
            labels += [label] * len(found)
            if not found:
                empty.append(name)
        if empty:
            listed = ", ".join(empty[:10]) + (", ..." if len(empty) > 10 else "")
            raise UnsupportedFile(
                f"{root}: there are no images in {listed}, of {len(self.class_names)} class "
                f"folders: an image ends with {' '.join(EXTENSIONS)}"
            )
        # One array for all: a million strings would be copied into every forked worker.
        start = len(os.fsencode(os.path.join(self._root, "")))
        self._files = np.array([os.fsencode(file)[start:] for file in files])
        self.labels = np.array(labels, np.int32)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Example:
        index = checked_index(index, len(self))
        path = os.path.join(self._root, os.fsdecode(bytes(self._files[index])))
        return Example(image=image_bytes(path), label=int(self.labels[index]), name=path)


def _images_below(folder: str) -> list[str]:
    return [
        os.path.join(parent, name)
        for parent, _, names in sorted(os.walk(folder, followlinks=True, onerror=_refuse))
        for name in sorted(names)
        if is_image(name)
    ]


def _refuse(error: OSError) -> None:
    """Without it, `os.walk` passes over what it cannot list."""
    raise UnsupportedFile(f"{error.filename} cannot be listed: {error.strerror}") from error
