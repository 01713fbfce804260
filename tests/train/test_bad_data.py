"""Images that cannot be read: counted, listed once, and of no consequence for the others."""

import io
import os
import re
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from resnetjax.config import Preprocess
from resnetjax.data.augmentation import Augmentation
from resnetjax.data.datasets import open_dataset
from resnetjax.data.host_batch import HostBatch, Reader
from resnetjax.data.loader import Loader, Order
from resnetjax.errors import DataCorrupt
from resnetjax.train.loop import train
from resnetjax.train.metrics_log import read_metrics
from tests.train.lives import Life, Nursery
from tests.train.tiny import of_files

COUNT = 64  # images that are all right


def encoded(number: int, *, mode: str = "RGB", format: str = "JPEG", **options) -> bytes:
    # Smooth, for JPEG to change it little: a gradient whose direction says which it is.
    x, y = np.meshgrid(np.linspace(0, 200, 23), np.linspace(0, 200, 17))
    shade = 20 + (x * (number % 7) + y * (number % 5)) / 12
    pixels = np.stack([shade, shade[::-1], shade[:, ::-1]], axis=-1).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, format, **options)
    return file.getvalue()


def png(width: int, height: int) -> bytes:
    """A header that promises pixels, and hardly any."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 9))


def jpeg(width: int, height: int) -> bytes:
    """A small file whose header says another size."""
    content = bytearray(encoded(0))
    frame = content.index(b"\xff\xc0") + 5
    content[frame : frame + 4] = struct.pack(">HH", height, width)
    return bytes(content)


def deep_png() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.arange(400, dtype=np.uint16).reshape(20, 20) * 160).save(file, "PNG")
    return file.getvalue()


GOOD = {
    "png.jpg": encoded(1, format="PNG"),
    "cmyk.jpg": encoded(2, mode="CMYK"),
    "grey.jpg": encoded(3, mode="L"),
    "deep.png": deep_png(),
    "progressive.jpg": encoded(4, progressive=True),
    "palette.png": encoded(5, mode="P", format="PNG"),
}
BAD = {
    "truncated.jpg": encoded(6)[:-200],
    "empty.jpg": b"",
    "page.jpg": b"<!DOCTYPE html><title>404</title>",
    "bomb.png": png(60_000, 60_000),
    "bomb.jpg": jpeg(60_000, 60_000),
    "long.jpg": jpeg(65_000, 2_800),  # of which simplejpeg would make half a gigabyte
    "cut.png": encoded(7, format="PNG")[:-40],
    "noise.jpg": b"\xff\xd8\xff" + bytes(range(256)) * 4,
    "gif.jpg": encoded(8, mode="P", format="GIF"),
    "missing.jpg": encoded(9),
    "unreadable.jpg": encoded(10),
    "folder.jpg": encoded(11),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two classes: all right in every fault's place, so that only the faults differ."""
    root = tmp_path_factory.mktemp("images")
    for number in range(COUNT):
        path = root / f"train/{number % 2}/{number:03d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(number))
    for name in (*GOOD, *BAD):
        (root / "train/0" / name).write_bytes(encoded(0))
    for split in ("train", "val"):
        (root / split / "0/folder.jpg.d").mkdir(parents=True, exist_ok=True)
        (root / split / "1/is-a-folder.jpg").mkdir(parents=True, exist_ok=True)  # and no image
        (root / split / "1/last.jpg").write_bytes(encoded(1))
    (root / "val/0/first.jpg").write_bytes(encoded(2))
    return root


def break_files(root: Path, names: dict[str, bytes]) -> None:
    for name, content in names.items():
        (root / name).write_bytes(content)


def break_after_indexing(root: Path) -> None:
    (root / "missing.jpg").unlink()
    (root / "folder.jpg").unlink()
    (root / "folder.jpg").mkdir()
    (root / "unreadable.jpg").unlink()  # root reads whatever its mode, but no link to itself
    (root / "unreadable.jpg").symlink_to("unreadable.jpg")


def batches(dataset, *, augmentation: Augmentation | None, workers: int) -> list[HostBatch]:
    reader = Reader(
        dataset=dataset,
        preprocess=Preprocess(crop_px=(8, 8), resize_px=8),
        augmentation=augmentation,
        edge_px=8,
    )
    with Loader(reader, workers=workers) as opened:
        if augmentation is None:
            return list(opened.evaluation_batches(16))
        return list(opened.training_batches(Order(len(dataset), 16, 0), start=0, stop=9))


@pytest.mark.parametrize("augmentation", [Augmentation(), None], ids=["train", "evaluate"])
@pytest.mark.parametrize("workers", [0, 1])
def test_bad_images_are_zero_weigh_nothing_and_leave_the_others_as_they_are(
    folder, tmp_path, augmentation, workers
):
    root = shutil.copytree(folder, tmp_path / "images")
    break_files(root / "train/0", GOOD)
    dataset = open_dataset(root, split="train")
    names = [os.path.basename(dataset[index].name) for index in range(len(dataset))]
    assert sorted(names) == sorted(
        [f"{number:03d}.jpg" for number in range(COUNT)] + [*GOOD, *BAD, "last.jpg"]
    )
    whole = batches(dataset, augmentation=augmentation, workers=0)
    assert not any(batch.bad for batch in whole)
    assert all(batch.weights[batch.indices >= 0].all() for batch in whole)

    break_files(root / "train/0", BAD)
    break_after_indexing(root / "train/0")
    broken = [index for index, name in enumerate(names) if name in BAD]
    seen = []
    for batch, other in zip(
        batches(dataset, augmentation=augmentation, workers=workers), whole, strict=True
    ):
        np.testing.assert_array_equal(batch.indices, other.indices)
        bad = np.isin(batch.indices, broken)
        np.testing.assert_array_equal(batch.weights, other.weights * ~bad)
        assert not batch.images[bad].any()
        for name in ("images", "labels"):
            np.testing.assert_array_equal(
                getattr(batch, name)[~bad], getattr(other, name)[~bad], err_msg=name
            )
        assert len(batch.bad) == bad.sum()
        seen += batch.bad
    for name in BAD:
        lines = {line for line in seen if f"/{name}: " in line}
        assert len(lines) == 1, (name, lines)  # always for the same reason
    assert len(set(seen)) == len(BAD)
    assert "\n" not in "".join(seen)


@pytest.fixture(scope="module")
def many(tmp_path_factory) -> Path:
    """A thousand images, of which five can be broken."""
    root = tmp_path_factory.mktemp("many")
    for number in range(1000):
        path = root / f"train/{number % 2}/{number:04d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(number))
    shutil.copytree(root / "train", root / "val", ignore=lambda _, names: sorted(names)[40:])
    return root


BROKEN = {"0000.jpg": b"", "0010.jpg": b"<html>", "0100.jpg": encoded(0)[:-200],
          "0200.jpg": png(60_000, 60_000), "0300.jpg": jpeg(60_000, 60_000)}  # fmt: skip


def start(nursery: Nursery, data: Path, run: Path, *arguments: object, **options) -> Life:
    recipe = run.with_suffix(".py")
    recipe.write_text(f"from tests.train.tiny import of_files\nRECIPE = of_files({str(data)!r})\n")
    return nursery.start("--workdir", run, *arguments, recipe=recipe, **options)


def test_a_run_goes_on_at_half_a_percent_and_lists_each_bad_image_once(nursery, many, tmp_path):
    root = shutil.copytree(many, tmp_path / "images")
    sound = tmp_path / "sound"
    start(nursery, root, sound).finish()
    assert not (sound / "bad_images.txt").exists()
    break_files(root / "train/0", BROKEN)
    break_files(root / "val/0", {"0000.jpg": b""})
    broken = tmp_path / "broken"
    life = start(nursery, root, broken)
    life.finish()
    assert f"6 images of 1,080 could not be read: {broken}/bad_images.txt lists" in life.said()
    listed = (broken / "bad_images.txt").read_text().splitlines()
    assert len(listed) == len(set(listed)) == len(BROKEN) + 1
    for name in BROKEN:
        assert sum(f"train/0/{name}: " in line for line in listed) == 1
    assert sum("val/0/0000.jpg: " in line for line in listed) == 1
    steps, others = (read_metrics(run / "metrics.jsonl")[0] for run in (sound, broken))
    assert [line["examples"] for line in steps] == [line["examples"] for line in others]
    assert all(np.isfinite(line["loss"]) for line in others)
    scores, others = (read_metrics(run / "metrics.jsonl")[1] for run in (sound, broken))
    assert [line["examples"] - 1 for line in scores] == [line["examples"] for line in others]


def test_a_run_stops_above_the_rate_and_names_what_it_could_not_read(nursery, many, tmp_path):
    root = shutil.copytree(many, tmp_path / "images")
    break_files(root / "train/0", {f"{number:04d}.jpg": b"" for number in range(0, 200, 2)})
    life = start(nursery, root, tmp_path / "run")
    assert life.wait() == 2
    assert re.search(
        r"error: 1[1-9] images could not be read, [\d.]+% of what was read, more than "
        r"--data.bad-rate 0.01 allows",
        life.said(),
    )
    assert "train/0/0" in life.said()
    assert "Traceback" not in life.said()
    listed = (tmp_path / "run/bad_images.txt").read_text().splitlines()
    assert 10 < len(listed) < 30
    assert all(line.endswith("there are no bytes in it") for line in listed)


def test_a_run_stops_when_its_test_images_cannot_be_read(nursery, many, tmp_path):
    root = shutil.copytree(many, tmp_path / "images")
    break_files(root / "val/0", {path.name: b"" for path in (root / "val/0").iterdir()})
    life = start(nursery, root, tmp_path / "run")
    assert life.wait() == 2
    assert "error: 40 images could not be read, 50.0% of what was read" in life.said()


def test_an_image_that_is_read_again_and_again_counts_once(tmp_path, many):
    for split, names in (("train", range(40)), ("val", range(20))):
        for number in names:
            path = tmp_path / f"images/{split}/{number % 2}/{number:04d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(many / f"train/{number % 2}/{number:04d}.jpg", path)
    break_files(tmp_path / "images/train/0", {"0000.jpg": b"", "0002.jpg": b""})
    recipe = of_files(tmp_path / "images", batch_size=8, epochs=9.0)
    with pytest.raises(DataCorrupt, match=r"^2 images could not be read, 5\.\d% of what was read"):
        train(recipe, tmp_path / "run")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_never_opens_ends_the_run_with_a_message(nursery, many, tmp_path, workers):
    root = shutil.copytree(many, tmp_path / "images")
    (root / "train/0/0000.jpg").unlink()
    os.mkfifo(root / "train/0/0000.jpg")
    stalled = {"resnetjax.data.loader.STALL_SECONDS": 2.0}
    life = start(nursery, root, tmp_path / "run", "--data.workers", workers, patches=stalled)
    assert life.wait() == 2, life.said()
    assert life.said().splitlines()[-1:] == [
        "resnetjax: error: no batch within 2 s: a worker or the file system hangs"
    ]
    assert "Traceback" not in life.said()
