"""The README's own commands and snippets, run as they stand."""

import json
import re
import shlex
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import resnetjax as rj
from resnetjax import presets
from resnetjax.errors import AssumptionWarning

README = Path(__file__).parents[1] / "README.md"
TRAINING = ("train", "evaluate")  # those commands are docs/train.md's too, and run by test_docs.py


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A directory with the files that the README names: random weights, and a picture."""
    folder = tmp_path_factory.mktemp("readme")
    model, variables = rj.create("resnet50", rng=0)
    net = rj.Pretrained(model=model, variables=variables)
    rj.save(net, folder / "weights.safetensors", dialect="torchvision")
    (folder / "weights.safetensors").rename(folder / "resnet50-0676ba61.pth")  # content decides
    (folder / "photos").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (240, 320, 3), np.uint8)
    for name in ("cat.jpg", "photos/dog.jpg"):
        Image.fromarray(pixels).save(folder / name)
    return folder


def blocks(language: str) -> list[str]:
    """The fenced blocks of one language, in order; "" is the plain ones."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", README.read_text(), re.MULTILINE | re.DOTALL)
    return [text for named, text in fenced if named == language]


def test_python_snippets_run_in_order(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    scope: dict[str, object] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AssumptionWarning)
        for snippet in blocks("python"):
            exec(compile(snippet, str(README), "exec"), scope)
    assert "(8, 1000)" in capsys.readouterr().out


@pytest.mark.slow
def test_commands_run_in_order(folder):
    commands = [
        line
        for block in blocks("")
        for line in block.splitlines()
        if line.startswith("resnetjax") and line.split()[1] not in TRAINING
    ]
    assert len(commands) >= 6
    for command in commands:
        arguments = shlex.split(command, comments=True)[1:]
        done = subprocess.run(
            [sys.executable, "-m", "resnetjax", *arguments],
            cwd=folder,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{command}\n{done.stderr}"
        assert done.stdout, command
    shutil.rmtree(folder / "my-resnet50")


def test_the_commands_of_training_are_those_of_its_page():
    page = (README.parent / "docs" / "train.md").read_text()
    commands = [
        line.split("#")[0].strip()
        for block in blocks("")
        for line in block.splitlines()
        if line.split()[1] in TRAINING
    ]
    assert len(commands) == 2
    assert [command for command in commands if f"\n{command}\n" not in page] == []


def test_the_number_of_architectures_is_true():
    assert f"{len(presets.names())} architectures" in README.read_text()


def test_every_architecture_and_dialect_that_is_named_exists():
    from resnetjax.weights.dialects import DIALECTS

    table = README.read_text().split("## What is in it")[1].split("A net of your own")[0]
    rows = [line.split("|")[2:4] for line in table.splitlines() if line.startswith("| ")][1:]
    for names, dialects in rows:
        for name in re.findall(r"`(\w+)`", names):
            assert name in rj.names(), name
        for dialect in re.findall(r"`(\w+)`", dialects):
            assert dialect in DIALECTS, dialect


def test_the_measured_numbers_are_those_of_the_committed_results():
    measured = README.read_text().split("## Measured")[1].split("## What it does not")[0]
    result = json.loads((README.parent / "benchmarks/results/load-cpu.json").read_text())
    assert f"{result['time_ratio']['median']:.2f} of its time" in measured
    assert f"{result['h5_time_ratio']['median']:.2f} of its time" in measured
    pipeline = json.loads((README.parent / "benchmarks/results/pipeline-cpu.json").read_text())
    assert f"{pipeline['ratio']['median']:.2f} times its images a second" in measured
    digits = json.loads((README.parent / "benchmarks/results/finetune-digits.json").read_text())
    scratch = max(digits["from_scratch_top1"].values())
    assert f"{100 * digits['fine_tuned_top1']:.1f} % against {100 * scratch:.1f} %" in measured
    infer = json.loads((README.parent / "benchmarks/results/infer-cpu.json").read_text())
    peers = [case["peers"]["plain Flax"] for case in infer["cases"]]
    one, eight, many = (f"{peer['ours_to_theirs']['median']:.1f}" for peer in peers)
    assert f"{one}, {eight} and {many} times its images a second" in measured
    int8 = json.loads((README.parent / "benchmarks/results/int8-cpu.json").read_text())
    assert f"{int8['resnet50']['batch_1']['times_faster']['median']:.1f} times as fast" in measured
    loop = json.loads((README.parent / "benchmarks/results/loop-cpu.json").read_text())
    assert f"| {loop['outside_xla']:.1%} |".replace("%", " %") in measured
    steps = json.loads((README.parent / "benchmarks/results/train-parity-cpu.json").read_text())
    assert f"parameters within {steps['float64_trajectory']['parameters']:.1e} |" in measured
    gradients = steps["float32_gradients_relu_signs_shared"]["resnetjax_to_torch"]
    own = steps["float32_gradients_relu"]["resnetjax_to_torch"]["whole"]
    worst = f"{gradients['array']:.1e}; with those of each side's own, {own:.1e} |"
    assert f"| {gradients['whole']:.1e} apart as a whole, the worst array {worst}" in measured
    ours, theirs = (100 * steps["float32_runs"]["mean_top1"][x] for x in ("resnetjax", "torch"))
    assert f"{ours:.1f} % and {theirs:.1f} % of CIFAR-10's" in measured
    assert f"{result['extra_peak_over_file']['resnetjax']:.2f} times the file" in measured
    assert f"{result['import_added_s']['median'] * 1e3:.1f} ms" in measured
    parity = (README.parent / "docs/parity.md").read_text()
    nets, logits = re.search(r"(\d+) nets in \d+ forms; worst logits (\S+)", parity).groups()
    assert f"{nets}, logits within {logits} of their spread" in measured
