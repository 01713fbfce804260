"""The commands and snippets of docs/, run as they stand, or parsed where they need much data."""

import re
import runpy
import shlex
import warnings
from pathlib import Path

import pytest
import tyro

from resnetjax import cli
from resnetjax.train.command import EvaluateArguments, TrainArguments
from resnetjax.train.recipe import Recipe, read_recipe

ROOT = Path(__file__).parents[1]
TRAIN = ROOT / "docs" / "train.md"


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of one language, in order."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    return [text for named, text in fenced if named == language]


def lines(page: Path, language: str) -> list[str]:
    return [line for block in blocks(page, language) for line in block.splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("docs")
    (folder / "configs").symlink_to(ROOT / "configs")
    return folder


@pytest.mark.slow
def test_the_commands_of_a_first_run_run_in_order(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    for command in lines(TRAIN, "sh"):
        program, *arguments = shlex.split(command, comments=True)
        assert program == "resnetjax"
        with warnings.catch_warnings(), pytest.raises(SystemExit) as ended:
            cli.main(arguments)
        said = capsys.readouterr()
        assert ended.value.code == 0, f"{command}\n{said.err}"
        assert said.out, command
        if arguments[0] == "evaluate":
            assert float(re.search(r"top-1 ([\d.]+)%", said.out)[1]) >= 98
    assert (folder / "runs/digits/curves.png").exists()
    assert (folder / "runs/dry/first_batch.png").exists()


@pytest.mark.slow
def test_the_snippets_run(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    for snippet in blocks(TRAIN, "python"):
        exec(compile(snippet, str(TRAIN), "exec"), {})
    assert "'loss': " in capsys.readouterr().out


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


def test_every_flag_and_recipe_that_is_named_exists(capsys):
    text = TRAIN.read_text()
    flags = set(re.findall(r"`(--[a-z.-]+)(?: [^`]*)?`", text))
    assert len(flags) > 10
    with pytest.raises(SystemExit):
        tyro.cli(TrainArguments, default=TrainArguments(workdir=Path()), args=["--help"])
    known = capsys.readouterr().out
    assert {flag for flag in flags if flag not in known} == set()
    listed = set(re.findall(r"((?:imagenet|cifar10|digits)_\w+)(?:\.py)?`", text))
    there = {path.stem for path in (ROOT / "configs").glob("*.py")}
    assert listed == there
