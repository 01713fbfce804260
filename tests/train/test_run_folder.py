"""The folder of a run: whose it is, and what could not be read."""

import dataclasses
import json

import pytest

from resnetjax.errors import ConfigError, CorruptFile
from resnetjax.train.checkpoint import Checkpoints
from resnetjax.train.recipe import Checkpointing, Data, Recipe
from resnetjax.train.run_folder import RunFolder, run_digest

FACTS = {"training examples": 100, "test examples": 10, "classes": 3}


@pytest.fixture
def folder(tmp_path):
    folder = RunFolder(tmp_path / "new" / "run")
    folder.claim(Recipe(), FACTS, allow_changes=False)
    return folder


def test_a_new_run_notes_its_recipe_and_its_data(folder):
    noted = json.loads((folder.root / "recipe.json").read_text())
    assert noted["data"] == FACTS
    assert Recipe.from_json(noted["recipe"]) == Recipe()
    assert [path.name for path in folder.root.iterdir()] == ["recipe.json"]


def test_a_run_goes_on_with_the_same_recipe_and_what_is_free_in_it(folder):
    recipe = Recipe(data=Data(path="elsewhere", workers=7), checkpoint=Checkpointing(keep=9))
    folder.claim(recipe, FACTS, allow_changes=False)
    noted = json.loads((folder.root / "recipe.json").read_text())
    assert Recipe.from_json(noted["recipe"]) == recipe


def test_another_recipe_or_other_data_is_refused_with_all_differences(folder):
    before = (folder.root / "recipe.json").read_bytes()
    with pytest.raises(ConfigError) as raised:
        folder.claim(Recipe(batch_size=8, seed=1), {**FACTS, "classes": 4}, allow_changes=False)
    assert str(raised.value).splitlines() == [
        f"{folder.root} holds a run with another recipe:",
        "  batch_size: 1024 -> 8",
        "  seed: 0 -> 1",
        "  classes: 3 -> 4",
        "Take another --workdir, or --allow-changes to go on with the new values.",
    ]
    assert (folder.root / "recipe.json").read_bytes() == before
    folder.claim(Recipe(batch_size=8, seed=1), FACTS, allow_changes=True)
    folder.claim(Recipe(batch_size=8, seed=1), FACTS, allow_changes=False)


def test_a_run_whose_recipe_is_lost_goes_on_with_no_other(folder):
    digest = run_digest(Recipe(), FACTS)
    with Checkpoints(folder.checkpoints, config_digest=digest) as checkpoints:
        checkpoints.save(1, {"step": 1})
    path = folder.root / "recipe.json"
    path.unlink()
    for recipe, facts in ((Recipe(seed=1), FACTS), (Recipe(), {**FACTS, "classes": 4})):
        with pytest.raises(ConfigError, match="are of another recipe\nTake another --workdir"):
            folder.claim(recipe, facts, allow_changes=False)
        assert not path.exists()
    folder.claim(Recipe(), FACTS, allow_changes=False)
    path.unlink()
    folder.claim(Recipe(seed=1), FACTS, allow_changes=True)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "pytorch_model.bin"])
def test_a_folder_that_holds_a_model_is_no_runs(tmp_path, name):
    (tmp_path / name).write_text("{}")
    folder = RunFolder(tmp_path)
    with pytest.raises(
        ConfigError, match=rf"workdir='{tmp_path}' .* a model \({name}\).*--workdir"
    ):
        folder.claim(Recipe(), FACTS, allow_changes=True)
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("below", ["", "run"])
def test_a_file_is_no_folder_of_a_run(tmp_path, below):
    (tmp_path / "notes").write_text("mine")
    folder = RunFolder(tmp_path / "notes" / below)
    with pytest.raises(
        ConfigError, match=rf"workdir='{folder.root}' .* {tmp_path}/notes is a file"
    ):
        folder.claim(Recipe(), FACTS, allow_changes=True)
    assert (tmp_path / "notes").read_text() == "mine"


def test_a_run_that_was_begun_beside_a_model_goes_on(folder):
    (folder.root / "config.json").write_text("{}")
    folder.claim(Recipe(), FACTS, allow_changes=False)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "3",
        "{}",
        '{"recipe": {}}',
        '{"recipe": {"learning": 1}, "data": {}}',
        '{"recipe": {"seed": "x"}, "data": {}}',
        '{"recipe": {"data": null}, "data": {}}',
        '{"recipe": [], "data": {}}',
        '{"recipe": {}, "data": 3}',
        "\udcff",
    ],
)
def test_a_damaged_recipe_is_said_to_be_one(folder, text):
    (folder.root / "recipe.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(CorruptFile, match=r"recipe\.json: not the recipe of a run"):
        folder.claim(Recipe(), FACTS, allow_changes=True)


def test_each_image_that_cannot_be_read_is_listed_once_on_one_line(folder):
    folder.note_bad([])
    assert not folder.bad_images.exists()
    folder.note_bad(["a.jpg: cut off", "b.jpg: no\nimage", "a.jpg: cut off"])
    folder.note_bad(["b.jpg: no\nimage", "c.jpg: empty"])
    assert folder.bad_images.read_text().splitlines() == [
        "a.jpg: cut off",
        "b.jpg: no image",
        "c.jpg: empty",
    ]


def test_everything_lies_in_the_folder(folder):
    paths = [getattr(folder, name) for name in ("checkpoints", "metrics", "curves", "first_batch")]
    assert {path.parent for path in (*paths, folder.model("best"))} == {folder.root}
    assert dataclasses.replace(folder, root=folder.root) == folder
