"""The log of a run, and its curves."""

import errno
import json
import math
import os
import sys

import pytest
from PIL import Image

from resnetjax.errors import MissingExtra
from resnetjax.train import metrics_log
from resnetjax.train.metrics_log import MetricsLog, draw_curves, read_metrics, scalars


def step_line(step: int, loss: float = 1.0) -> dict:
    return {"step": step, "loss": loss, "accuracy": 0.5, "learning_rate": 0.1, "grad_norm": 2.0}


def test_line(step: int) -> dict:
    return {"step": step, "top1": 0.5, "top5": 0.9, "test_loss": 1.1}


test_line.__test__ = False


def write(path, *lines, step=0) -> None:
    log = MetricsLog(path, step=step)
    for line in lines:
        log.write(line)
    log.close()


# ---- The log.


def test_a_run_that_resumes_cuts_off_what_came_after_the_step_it_resumes_from(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(path, step_line(1), step_line(2), test_line(2), step_line(3), test_line(3))
    write(path, step_line(3, loss=7.0), step=2)
    steps, evaluations = read_metrics(path)
    assert [(line["step"], line["loss"]) for line in steps] == [(1, 1), (2, 1), (3, 7)]
    assert [line["step"] for line in evaluations] == [2]
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_killed_run_leaves_the_same_log_as_one_that_was_not(tmp_path):
    whole, killed = tmp_path / "whole.jsonl", tmp_path / "killed.jsonl"
    lines = [step_line(step, loss=1 / step) for step in range(1, 6)]
    write(whole, *lines)
    write(killed, *lines[:4])
    killed.write_bytes(killed.read_bytes()[:-9])
    write(killed, *lines[3:], step=3)
    assert killed.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("torn", ['{"step": 3, "lo', '{"step"', "\0\0\0", "null", "[3]", "{}"])
def test_a_torn_last_line_is_not_a_step(tmp_path, torn):
    path = tmp_path / "metrics.jsonl"
    write(path, step_line(1), step_line(2))
    with path.open("a") as file:
        file.write(torn)
    assert [line["step"] for line in read_metrics(path)[0]] == [1, 2]
    write(path, step_line(3), step=2)
    assert [line["step"] for line in read_metrics(path)[0]] == [1, 2, 3]


def test_what_a_full_disk_took_half_of_is_a_whole_line_once_there_is_room(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path, step=0)

    class Full:
        """A file on a disk that has room for nine more bytes."""

        def __init__(self, file, room=9):
            self.file, self.room = file, room

        def write(self, content):
            if not self.room:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            taken, self.room = self.file.write(content[: self.room]), 0
            return taken

    with monkeypatch.context() as patch:
        patch.setattr(log, "_file", Full(log._file))
        for step in range(1, 200):
            log.write(step_line(step))
        with pytest.raises(OSError, match="No space left"):
            log.flush()
    assert path.stat().st_size == 9
    log.flush()
    assert [line["step"] for line in read_metrics(path)[0]] == [*range(1, 200)]
    log.close()


def test_every_line_is_json_even_if_a_number_is_not_finite(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(path, step_line(1, loss=math.nan), step_line(2, loss=-math.inf))

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    lines = [json.loads(text, parse_constant=refuse) for text in path.read_text().splitlines()]
    assert [line["loss"] for line in lines] == [None, None]


def test_a_process_that_is_not_the_first_writes_no_log(tmp_path):
    write(None, step_line(1))
    assert read_metrics(tmp_path / "metrics.jsonl") == ([], [])


# ---- Curves and TensorBoard.


def test_curves_are_drawn_of_steps_and_evaluations(tmp_path):
    log = tmp_path / "metrics.jsonl"
    spoilt = step_line(30) | {"loss": math.nan, "grad_norm": math.inf}
    write(log, *(step_line(i, 9 / i) for i in range(1, 30)), spoilt, test_line(30))
    draw_curves(log, tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as image:
        image.load()
        assert image.size == (1200, 480)
        assert len(image.convert("RGB").getcolors(2**20)) > 100


def test_curves_of_a_run_without_a_single_step_are_empty(tmp_path):
    draw_curves(tmp_path / "metrics.jsonl", tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as image:
        assert image.size == (1200, 480)


def test_without_matplotlib_or_tensorboardx_the_extra_is_named(tmp_path, monkeypatch):
    for module in ("matplotlib", "matplotlib.figure", "tensorboardX"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtra, match=r"resnetjax\[plots\]"):
        draw_curves(tmp_path / "metrics.jsonl", tmp_path / "curves.png")
    with pytest.raises(MissingExtra, match=r"resnetjax\[tensorboard\]"), scalars(tmp_path):
        pass


def test_smoothing_keeps_a_constant_and_widens_with_the_run():
    assert metrics_log._smoothed([2.0] * 100) == pytest.approx([2.0] * 100)
    jump = [0.0] * 10_000 + [1.0] * 10_000
    after = metrics_log._smoothed(jump)
    assert after[10_400] == pytest.approx(1 - 1 / math.e, abs=0.01)  # a fiftieth later
    assert metrics_log._smoothed([]) == []
