"""The main job from end to end, offline: a PyTorch-style file and pictures in, labels out.

    make demo

The weights are random, so the labels mean nothing yet; each step is the one that real weights take.
"""

import tempfile
import textwrap
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np
from PIL import Image

import resnetjax as rj
from resnetjax.errors import AssumptionWarning


def main() -> None:
    """Builds, saves, detects, loads and predicts, and says how long each took."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "resnet50.safetensors"
        pictures = draw_pictures(Path(folder))
        with step("build resnet50 with random weights"):
            model, variables = rj.create("resnet50", rng=0)
            net = rj.Pretrained(model=model, variables=variables)
        with step("save it under torchvision's names"):
            rj.save(net, path, dialect="torchvision")
        with warnings.catch_warnings(record=True) as notes, step("detect and load that file"):
            warnings.simplefilter("always", AssumptionWarning)
            loaded = rj.load(path)
        source = loaded.source
        said = f"{source.format}, sha256 {str(source.sha256)[:12]}..."
        print(f"          it is {source.arch} with the names of {source.dialect} ({said})")
        for note in notes:
            print(textwrap.indent(str(note.message).replace(f"{folder}/", ""), " " * 10))
        same = jax.tree.all(jax.tree.map(np.array_equal, variables, loaded.variables))
        print(f"          every array is bit for bit what was saved: {same}")
        with step("compile, and predict 3 pictures"):
            found = rj.predict(loaded, pictures, top=3)
        with step("predict them again"):
            rj.predict(loaded, pictures, top=3)
        for picture, predictions in zip(pictures, found, strict=True):
            names = ", ".join(f"{p.label.split(',')[0]} {p.probability:.1%}" for p in predictions)
            print(f"          {picture.name:<14} {names}")
    print("The weights are random, and so are the labels. With real ones:\n"
          "  resnetjax predict resnet50-0676ba61.pth cat.jpg")  # fmt: skip


def draw_pictures(folder: Path) -> list[Path]:
    """Three JPEGs of 320 x 240 pixels."""
    y, x = np.mgrid[:240, :320]
    pictures = {
        "sunset.jpg": np.stack([255 - y // 3, 200 - y // 2, 80 + y // 2], axis=-1),
        "board.jpg": np.repeat((x // 40 + y // 40)[..., None] % 2 * 255, 3, axis=-1),
        "rings.jpg": 127 + 127 * np.sin(np.hypot(x - 160, y - 120)[..., None] / (6.0, 9.0, 12.0)),
    }
    for name, pixels in pictures.items():
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / name, quality=90)
    return [folder / name for name in pictures]


@contextmanager
def step(what: str) -> Iterator[None]:
    """Prints what was done and how long it took."""
    start = time.perf_counter()
    yield
    print(f"{time.perf_counter() - start:7.2f} s  {what}", flush=True)


if __name__ == "__main__":
    main()
