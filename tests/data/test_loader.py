"""The order of the examples, and batches that come whatever happens to those who read them."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resnetjax.config import Preprocess
from resnetjax.data import loader
from resnetjax.data.augmentation import Augmentation
from resnetjax.data.datasets import Example
from resnetjax.data.host_batch import HostBatch, Reader
from resnetjax.data.loader import Loader, Order
from resnetjax.data.readers.arrays import ArrayDataset
from resnetjax.errors import ConfigError, DataStalled

DEADLINE_S = 60
GREY = Preprocess(crop_px=(8, 8), resize_mode="none", resize_px=None, mean=(0.5,), std=(0.5,))
PADDED = Augmentation(crop="pad", crop_padding=2)


def noise(count: int) -> ArrayDataset:
    pixels = np.random.default_rng(0).integers(0, 256, (count, 8, 8, 1), np.uint8)
    return ArrayDataset(pixels, np.arange(count) % 10, name="noise")


def reader(dataset, *, train: bool = True) -> Reader:
    augmentation = PADDED if train else None
    return Reader(dataset=dataset, preprocess=GREY, augmentation=augmentation, edge_px=8, seed=3)


def assert_same(one: HostBatch, other: HostBatch) -> None:
    for name in ("images", "labels", "weights", "indices"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    assert one.bad == other.bad


# The order


@given(
    length=st.integers(1, 60),
    batch_size=st.integers(1, 12),
    seed=st.integers(0, 2**63 - 1),
    epoch=st.integers(0, 10**6),
)
def test_every_epoch_shows_no_example_twice_and_leaves_out_less_than_a_batch(
    length, batch_size, seed, epoch
):
    if length < batch_size:
        with pytest.raises(ConfigError, match=f"--batch-size {length}$"):
            Order(length, batch_size, seed)
        return
    order = Order(length, batch_size, seed)
    first = epoch * order.steps_per_epoch
    seen = np.concatenate([order.indices(first + i) for i in range(order.steps_per_epoch)])
    assert len(set(seen)) == len(seen) > length - batch_size
    assert set(seen) <= set(range(length))


def test_epochs_and_seeds_have_orders_of_their_own_that_take_no_history():
    order = Order(length=100, batch_size=10, seed=7)
    forward = [order.indices(step).tolist() for step in range(30)]
    backward = [Order(100, 10, 7).indices(step).tolist() for step in reversed(range(30))]
    assert forward == backward[::-1]
    other = [Order(100, 10, 8).indices(step).tolist() for step in range(10)]
    assert len({str(e) for e in (forward[:10], forward[10:20], forward[20:], other)}) == 4


def test_what_an_epoch_leaves_out_is_drawn_anew():
    order = Order(length=10, batch_size=4, seed=0)
    left_out = [
        frozenset(range(10)) - {*order.indices(2 * epoch), *order.indices(2 * epoch + 1)}
        for epoch in range(200)
    ]
    times = np.bincount([index for pair in left_out for index in pair], minlength=10)
    # 40 expected of each; six standard deviations of a binomial.
    assert np.all(np.abs(times - 40) < 6 * np.sqrt(200 * 0.2 * 0.8))


def test_a_batch_repeats_its_images_as_often_as_asked_for():
    order = Order(length=60, batch_size=12, seed=1, repeats=3)
    batches = [order.indices(step) for step in range(order.steps_per_epoch)]
    assert all(set(np.bincount(batch)) == {0, 3} for batch in batches)
    assert len({image for batch in batches for image in batch}) == 20


@pytest.mark.parametrize("accumulate", [1, 2, 4])
@pytest.mark.parametrize(("batch_size", "repeats", "part"), [(2048, 3, 512), (1024, 4, 128)])
def test_no_part_of_a_batch_sees_an_image_twice(batch_size, repeats, part, accumulate):
    # As on the devices of timm (A1) and torchvision (V2), over which the repeats are dealt out.
    order = Order(5000, batch_size, seed=1, repeats=repeats, parts=accumulate)
    for step in range(order.steps_per_epoch):
        indices = order.indices(step)
        for first in range(accumulate):
            groups = indices[first::accumulate].reshape(-1, part)
            assert all(len(set(images)) == part for images in groups.tolist())


def test_the_parts_of_a_step_do_not_change_which_images_it_sees():
    whole, parts = (Order(60, 12, seed=1, repeats=3, parts=parts) for parts in (1, 4))
    for step in range(5):
        assert sorted(whole.indices(step)) == sorted(parts.indices(step))


def test_repeated_images_are_cropped_each_in_its_own_way():
    with Loader(reader(noise(60))) as opened:
        order = Order(length=60, batch_size=60, seed=1, repeats=6)
        (batch,) = opened.training_batches(order, start=0, stop=1)
    views = batch.images.reshape(6, 10, -1).swapaxes(0, 1)
    # Of 2 x 25 views of an image, six draws give 5.7 on average.
    assert np.mean([len({view.tobytes() for view in image}) for image in views]) > 4


# Evaluation


@given(length=st.integers(1, 40), batch_size=st.integers(1, 50))
def test_an_evaluation_reads_every_example_once(length, batch_size):
    data = noise(length)
    with Loader(reader(data, train=False), threads=1) as opened:
        batches = list(opened.evaluation_batches(batch_size))
    assert all(len(batch.images) == batch_size for batch in batches)
    weights = np.concatenate([batch.weights for batch in batches])
    indices = np.concatenate([batch.indices for batch in batches])
    images = np.concatenate([batch.images for batch in batches])
    np.testing.assert_array_equal(indices[weights == 1], np.arange(length))
    assert set(indices[weights == 0]) <= {-1}
    assert len(weights) - length < batch_size
    assert not images[weights == 0].any()
    for index, image in enumerate(images[:length]):
        np.testing.assert_array_equal(image, data[index].image)


@given(
    batch_size=st.integers(1, 24),
    hosts=st.integers(1, 4),
    repeats=st.integers(1, 3),
    start=st.integers(0, 5),
    draw=st.randoms(use_true_random=False),
)
def test_the_rows_of_several_hosts_make_the_batch_of_one(batch_size, hosts, repeats, start, draw):
    rows = list(range(batch_size))
    draw.shuffle(rows)
    order = Order(length=30, batch_size=batch_size, seed=0, repeats=repeats)
    with Loader(reader(noise(30)), threads=1) as opened:
        (whole,) = opened.training_batches(order, start=start, stop=start + 1)
        for host in range(hosts):
            own = np.array(sorted(rows[host::hosts]), int)
            if not len(own):
                continue
            (part,) = opened.training_batches(order, start=start, stop=start + 1, rows=own)
            for name in ("images", "labels", "weights", "indices"):
                np.testing.assert_array_equal(getattr(part, name), getattr(whole, name)[own])


# Those who read


ORDER = Order(length=100, batch_size=40, seed=5)  # three tasks a batch


def batches_of(opened: Loader) -> list[HostBatch]:
    return list(opened.training_batches(ORDER, start=1, stop=6))


@pytest.fixture(scope="module")
def expected() -> list[HostBatch]:
    with Loader(reader(noise(100))) as opened:
        return batches_of(opened)


def assert_as_expected(batches: list[HostBatch], expected: list[HostBatch]) -> None:
    for one, other in zip(batches, expected, strict=True):
        assert_same(one, other)


def children() -> set[int]:
    """Of this process, without multiprocessing's tracker, which stays."""
    found = set()
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = (path / "stat").read_text().rpartition(")")[2].split()[1]
            if int(parent) == os.getpid() and b"spawn_main" in (path / "cmdline").read_bytes():
                found.add(int(path.name))
        except OSError:  # it has ended meanwhile
            continue
    return found


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("prefetch", [1, 9])
def test_batches_do_not_depend_on_who_reads_them(expected, workers, prefetch):
    with Loader(reader(noise(100)), workers=workers, prefetch=prefetch) as opened:
        assert_as_expected(batches_of(opened), expected)
        assert len(children()) <= workers
    assert not children()


def test_batches_come_when_workers_are_killed_at_any_time(expected):
    with Loader(reader(noise(100)), workers=2, prefetch=2) as opened:
        batches = opened.training_batches(ORDER, start=1, stop=6)
        for i, (batch, other) in enumerate(zip(batches, expected, strict=True)):
            assert_same(batch, other)
            if i % 2:
                continue  # images are read ahead for two batches, and three deaths over them end it
            for child in children():  # busy ones, idle ones, and those that have just begun
                with contextlib.suppress(ProcessLookupError):  # it ended meanwhile
                    os.kill(child, signal.SIGKILL)
    assert not children()


@dataclass(frozen=True)
class Faulty:
    """Noise, but where its folder says otherwise."""

    folder: Path
    fault: str = ""

    class_names = ()

    def __len__(self) -> int:
        return 100

    def __getitem__(self, index: int) -> Example:
        if index == 7:
            if self.fault == "dies once" and not (self.folder / "died").exists():
                (self.folder / "died").touch()
                os.kill(os.getpid(), signal.SIGKILL)
            if self.fault == "dies":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.fault == "hangs":
                os.mkfifo(self.folder / f"{os.getpid()}")
                with (self.folder / f"{os.getpid()}").open():  # until somebody writes
                    pass
            if self.fault == "RuntimeError":
                raise RuntimeError("the decoder met a state that cannot be")
            if self.fault == "MemoryError":
                raise MemoryError("no room for it")
        return noise(100)[index]


def test_what_a_dying_worker_was_reading_is_read_again(expected, tmp_path):
    with Loader(reader(Faulty(tmp_path, "dies once")), workers=1) as opened:
        assert_as_expected(batches_of(opened), expected)
    assert (tmp_path / "died").exists()


def test_images_that_kill_every_worker_end_the_run_by_their_numbers(tmp_path):
    with (
        Loader(reader(Faulty(tmp_path, "dies")), workers=1) as opened,
        pytest.raises(DataStalled, match=r"3 worker processes died over the same images.*\b7\b"),
    ):
        batches_of(opened)
    assert not children()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_reader_that_hangs_ends_the_run(monkeypatch, tmp_path, workers):
    monkeypatch.setattr(loader, "STALL_SECONDS", 2.0)
    with (
        Loader(reader(Faulty(tmp_path, "hangs")), workers=workers) as opened,
        pytest.raises(DataStalled, match=r"no batch within 2 s: a worker or the file system hangs"),
    ):
        batches_of(opened)
    assert not children()
    for pipe in tmp_path.iterdir():  # lets a thread of this process go
        if workers == 0:
            os.close(os.open(pipe, os.O_WRONLY))
    join_readers()


def join_readers() -> None:
    deadline = time.monotonic() + DEADLINE_S
    for thread in threading.enumerate():
        if thread.name.startswith("resnetjax-read"):
            thread.join(deadline - time.monotonic())
            assert not thread.is_alive()


@pytest.mark.parametrize("workers", [0, 1])
def test_an_exception_of_any_kind_makes_a_bad_example_and_ends_no_epoch(
    expected, tmp_path, workers
):
    with Loader(reader(Faulty(tmp_path, "RuntimeError")), workers=workers) as opened:
        batches = batches_of(opened)
    found = [text for batch in batches for text in batch.bad]
    times = sum((batch.indices == 7).sum() for batch in expected)
    assert found == ["example 7: RuntimeError: the decoder met a state that cannot be"] * times
    assert times > 1
    for batch, other in zip(batches, expected, strict=True):
        np.testing.assert_array_equal(batch.weights, other.indices != 7)
        np.testing.assert_array_equal(batch.images[batch.indices != 7],
                                      other.images[batch.indices != 7])  # fmt: skip
        assert not batch.images[batch.indices == 7].any()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_lack_of_memory_is_no_bad_example(tmp_path, workers):
    with (
        Loader(reader(Faulty(tmp_path, "MemoryError")), workers=workers) as opened,
        pytest.raises(MemoryError, match="no room for it"),
    ):
        batches_of(opened)
    assert not children()


def test_two_streams_share_workers_that_die(expected):
    with Loader(reader(noise(100)), workers=2, prefetch=1) as opened:
        one = opened.training_batches(ORDER, start=1, stop=6)
        two = opened.training_batches(ORDER, start=1, stop=6)
        for first, second, other in zip(one, two, expected, strict=True):
            assert_same(first, other)
            assert_same(second, other)
            for child in children():
                os.kill(child, signal.SIGKILL)


def test_workers_end_when_their_parent_is_killed(tmp_path):
    parent = tmp_path / "parent.py"
    parent.write_text(ORPHANS)
    with subprocess.Popen(
        [sys.executable, str(parent)], cwd=Path(__file__).parents[2], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout
        worker = int(process.stdout.readline())
        process.kill()
    deadline = time.monotonic() + DEADLINE_S
    while Path(f"/proc/{worker}").exists():
        assert time.monotonic() < deadline, "the worker lives on"
        time.sleep(0.01)


ORPHANS = """
import sys
sys.path.insert(0, ".")
from tests.data.test_loader import ORDER, children, noise, reader
from resnetjax.data.loader import Loader

if __name__ == "__main__":
    with Loader(reader(noise(100)), workers=1) as opened:
        batches = opened.training_batches(ORDER, start=0, stop=100)
        next(batches)
        print(*children(), flush=True)
        for _ in batches:
            sys.stdin.read()
"""
