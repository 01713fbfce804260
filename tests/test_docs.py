"""The commands and snippets of docs/, run as they stand, or parsed where they need much data."""

import json
import re
import runpy
import shlex
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import tyro
from PIL import Image

import resnetjax as rj
from resnetjax import cli
from resnetjax.data import labels
from resnetjax.train.command import EvaluateArguments, TrainArguments
from resnetjax.train.recipe import Recipe, read_recipe
from tests.train.tiny_finetune import write_images, write_weights

ROOT = Path(__file__).parents[1]
TRAIN = ROOT / "docs" / "train.md"
DEPLOY = ROOT / "docs" / "deploy.md"
FEATURES = ROOT / "docs" / "features.md"
TRANSFER = ROOT / "docs" / "transfer.md"


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of one language, in order."""
    fenced = re.findall(r"^```([\w ]*)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    return [text for named, text in fenced if named == language]


def lines(page: Path, language: str) -> list[str]:
    return [line for block in blocks(page, language) for line in block.splitlines()]


def run(command: str, capsys) -> str:
    """What a command prints."""
    program, *arguments = shlex.split(command, comments=True)
    assert program == "resnetjax"
    with warnings.catch_warnings(), pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    said = capsys.readouterr()
    assert ended.value.code == 0, f"{command}\n{said.err}"
    assert said.out, command
    return said.out


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("docs")
    (folder / "configs").symlink_to(ROOT / "configs")
    return folder


@pytest.mark.slow
def test_the_commands_of_a_first_run_run_in_order(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    for command in lines(TRAIN, "sh"):
        said = run(command, capsys)
        if " evaluate " in command:
            assert float(re.search(r"top-1 ([\d.]+)%", said)[1]) >= 98
    assert (folder / "runs/digits/curves.png").exists()
    assert (folder / "runs/dry/first_batch.png").exists()


@pytest.mark.slow
def test_the_snippets_run(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    for snippet in blocks(TRAIN, "python"):
        exec(compile(snippet, str(TRAIN), "exec"), {})
    assert "'loss': " in capsys.readouterr().out


@pytest.fixture(scope="module")
def images(folder):
    """What docs/transfer.md speaks of, made small."""
    write_weights(folder / "pretrained")
    write_images(folder / "photos")
    for name, columns in {"labelled": "bright,wide", "measured": "brightness,width"}.items():
        (folder / name).mkdir()
        rows = [f"file_name,{columns}"]
        for i in range(60):
            light, wide = i % 2, i % 3 == 0
            source = folder / "photos" / ("light" if light else "dark") / f"{i // 3:03}.png"
            shutil.copy(source, folder / name / f"{i:03}.png")
            values = (light, int(wide)) if name == "labelled" else (light - 0.5, i / 60)
            rows.append(f"{i:03}.png,{values[0]},{values[1]}")
        (folder / name / "metadata.csv").write_text("\n".join(rows))
    return folder


@pytest.mark.slow
def test_the_commands_of_transfer_learning_run_in_order(images, monkeypatch, capsys):
    monkeypatch.chdir(images)
    for command in lines(TRANSFER, "sh"):
        _, *arguments = shlex.split(command)
        with warnings.catch_warnings(), pytest.raises(SystemExit) as ended:
            cli.main(arguments)
        said = capsys.readouterr()
        assert ended.value.code == 0, f"{command}\n{said.err}"
        if arguments[0] == "predict":
            names = ("dark", "light", "bright", "wide", "brightness", "width")
            assert any(name in said.out for name in names), said.out
    for run in ("photos", "head", "late"):
        assert (images / "runs" / run / "confusion.png").exists()
    for run in ("labelled", "measured"):
        assert (images / "runs" / run / "report.txt").exists()


@pytest.mark.slow
def test_the_snippets_of_transfer_learning_run(images, monkeypatch, capsys):
    monkeypatch.chdir(images)
    for snippet in blocks(TRANSFER, "python"):
        exec(compile(snippet, str(TRANSFER), "exec"), {})
    assert "('dark', 'light') top-1 " in capsys.readouterr().out


def test_the_other_commands_parse():
    for command in lines(TRAIN, "text"):
        program, verb, *arguments = shlex.split(command)
        if program != "resnetjax":
            continue
        if verb == "evaluate":
            tyro.cli(EvaluateArguments, args=arguments)
            continue
        recipe = Recipe() if arguments[0] == "RECIPE.py" else read_recipe(ROOT / arguments[0])
        default = TrainArguments(workdir=Path(), recipe=recipe)
        tyro.cli(TrainArguments, args=arguments[1:], default=default)


def test_the_page_of_published_weights_is_what_the_table_gives():
    written = runpy.run_path(str(ROOT / "scripts" / "make_models.py"))["page"]()
    assert (ROOT / "docs" / "models.md").read_text() == written, "run scripts/make_models.py"


def test_the_tables_of_speed_are_what_the_results_give():
    page = ROOT / "docs" / "benchmarks.md"
    renewed = runpy.run_path(str(ROOT / "scripts" / "speed_tables.py"))["page"](page.read_text())
    assert page.read_text() == renewed, "run scripts/speed_tables.py"
    # Every result of these verbs has its table.
    results = {path.name for path in (ROOT / "benchmarks" / "results").glob("*.json")}
    told = {name for name in results if name.startswith(("infer-", "train-"))} - {
        "train-parity-cpu.json"
    }
    assert {name for name in told if f"<!-- {name}: by" not in renewed} == set()


def test_every_flag_and_recipe_that_is_named_exists(capsys):
    text = TRAIN.read_text() + TRANSFER.read_text()
    flags = set(re.findall(r"`(--[a-z.-]+)(?: [^`]*)?`", text))
    assert len(flags) > 10
    with pytest.raises(SystemExit):
        tyro.cli(TrainArguments, default=TrainArguments(workdir=Path()), args=["--help"])
    known = capsys.readouterr().out
    assert {flag for flag in flags if flag not in known} == set()
    listed = set(re.findall(r"((?:imagenet|cifar10|digits)_\w+|finetune)(?:\.py)?`", text))
    there = {path.stem for path in (ROOT / "configs").glob("*.py")}
    assert listed == there


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A directory with what docs/deploy.md names, the net a small one."""
    folder = tmp_path_factory.mktemp("deploy")
    model, variables = rj.create("cifar_resnet20", rng=0)
    net = rj.Pretrained(
        model=model,
        variables=variables,
        preprocess=rj.Preprocess(crop_px=(32, 32), resize_px=40),
        labels=labels.get("cifar10"),
    )
    rj.save(net, folder / "my-resnet50")
    (folder / "photos").mkdir()
    for seed, name in enumerate(("cat.jpg", "photos/dog.jpg", "photos/owl.jpg")):
        pixels = np.random.default_rng(seed).integers(0, 256, (60, 80, 3), np.uint8)
        Image.fromarray(pixels).save(folder / name)
    return folder


@pytest.mark.slow
def test_the_commands_and_snippets_of_deploying_run(served, monkeypatch, capsys):
    pytest.importorskip("onnxruntime", reason="needs onnx")
    monkeypatch.chdir(served)
    said = [run(command, capsys) for command in lines(DEPLOY, "sh")]
    assert len(json.loads(said[-1])) == 3
    snippets = blocks(DEPLOY, "python")
    assert len(snippets) >= 8
    for snippet in snippets:
        exec(compile(snippet, str(DEPLOY), "exec"), {})
    said = capsys.readouterr().out
    assert said.count("(2, 10)") == 5
    assert "photos/owl.jpg" in said
    command = re.search(r"`(resnetjax export [^`]*--calibration[^`]*)`", DEPLOY.read_text())[1]
    run(command, capsys)


@pytest.mark.slow
def test_the_snippets_for_tensorflow_run(served, monkeypatch, capsys):
    pytest.importorskip("tensorflow", reason="needs TensorFlow")
    monkeypatch.chdir(served)
    for snippet in blocks(DEPLOY, "python tensorflow"):
        exec(compile(snippet, str(DEPLOY), "exec"), {})
    assert "(2, 10)" in capsys.readouterr().out


def test_the_numbers_of_eight_bits_are_those_of_the_committed_result():
    result = json.loads((ROOT / "benchmarks" / "results" / "int8-cpu.json").read_text())
    text = " ".join(DEPLOY.read_text().split())
    one, eight = (result["resnet50"][f"batch_{n}"]["times_faster"]["median"] for n in (1, 8))
    assert f"{one:.1f} times as fast for one image and {eight:.1f} times for eight" in text
    top1 = result["cifar10"]["top1"]
    assert f"from {top1['float32']:.2%} to {top1['int8']:.2%}".replace("%", " %") in text
    sizes = result["resnet50"]["file_bytes"]
    assert 0.2 < sizes["int8"] / sizes["float32"] < 0.3  # "a quarter"


def test_the_numbers_of_eight_bits_by_xla_are_those_of_the_committed_result():
    result = json.loads((ROOT / "benchmarks" / "results" / "int8-xla-cpu.json").read_text())
    onnx = json.loads((ROOT / "benchmarks" / "results" / "int8-cpu.json").read_text())["resnet50"]
    text = " ".join(DEPLOY.read_text().split())
    one, eight = (result[f"batch_{n}"]["times_faster"] for n in (1, 8))
    all_of_it, mixed = (
        [f"{found[name]['median']:.1f}" for found in (one, eight)]
        for name in ("int8", "faster of both")
    )
    assert f"are {all_of_it[0]} times as fast from int8 to int8 as in float32" in text
    assert f"for one image and {all_of_it[1]} times for eight" in text
    assert f"and {mixed[0]} and {mixed[1]} times where each takes the faster" in text
    for n in (1, 8):  # "gains less"
        batch = f"batch_{n}"
        most = result[batch]["times_faster"]["faster of both"]["median"]
        assert most < onnx[batch]["times_faster"]["median"]
        stem = result[batch]["layers"][0]
        assert stem["layer"].startswith("7x7/2")
        assert stem["times_faster"]["median"] < 1  # "the stem float32"


@pytest.fixture
def with_a_net(tmp_path, monkeypatch):
    """The folder that docs/features.md begins in: a net, a picture and a folder of them."""
    monkeypatch.chdir(tmp_path)
    config = rj.ResNetConfig(
        block="basic", depths=(1, 1, 1, 1), widths=(8, 8, 16, 16), stem_width=8, num_classes=3
    )
    model, variables = rj.create(config, rng=0)
    small = rj.Preprocess(crop_px=(64, 64), resize_px=72)
    rj.save(rj.Pretrained(model=model, variables=variables, preprocess=small), "my-net")
    Path("photos").mkdir()
    for path in ("cat.jpg", "photos/a.jpg", "photos/b.png"):
        Image.effect_noise((96, 80), 50).convert("RGB").save(path)


@pytest.mark.slow
def test_the_commands_and_snippets_of_features_run_in_order(with_a_net, capsys):
    names: dict[str, object] = {}
    text = FEATURES.read_text()
    for language, block in re.findall(
        r"^```(sh|python)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL
    ):
        if language == "python":
            exec(compile(block, str(FEATURES), "exec"), names)
            continue
        for command in block.splitlines():
            with warnings.catch_warnings(), pytest.raises(SystemExit) as ended:
                cli.main(shlex.split(command)[1:])
            assert ended.value.code == 0, f"{command}\n{capsys.readouterr().err}"
    assert names["channels"] == {"P3": 8, "P4": 16, "P5": 16}
    assert names["strides"] == {"P3": 8, "P4": 16, "P5": 32}
    assert names["nearest"].tolist() == [[0, 1], [1, 0]]
    assert Path("cam.png").exists()
    assert "resnetjax.load('hf://me/my-net')" in capsys.readouterr().out


def test_the_push_that_is_shown_has_the_flags_there_are(capsys):
    (shown,) = (line for line in lines(FEATURES, "text") if "push" in line)
    with pytest.raises(SystemExit):
        cli.main(["push", "--help"])
    known = capsys.readouterr().out
    assert all(flag in known for flag in re.findall(r"--[a-z-]+", shown))
