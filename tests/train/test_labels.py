"""What the labels of a recipe's data are, and which of them no net can learn."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from resnetjax.errors import ConfigError
from resnetjax.train.labels import check_classes, class_names
from resnetjax.train.setup import Setup
from tests.train.tiny import tiny_recipe


def recipe_of(path, **fields):
    recipe = tiny_recipe()
    data = dataclasses.replace(recipe.data, path=str(path), **fields)
    return dataclasses.replace(recipe, data=data)


def arrays(path, **labels):
    """An npz file with blank images of these labels, by the name of the split."""
    members = {}
    for split, values in labels.items():
        members[f"x_{split}"] = np.zeros((len(values), 8, 8), np.uint8)
        members[f"y_{split}"] = np.array(values)
    np.savez(path, **members)
    return path


@pytest.mark.parametrize(
    ("label", "cause"),
    [(10, "counted from 1"), (11, "are there more classes"), (-1, "an image without a label")],
)
def test_a_label_of_no_class_is_named_with_its_likely_cause(label, cause):
    with pytest.raises(ConfigError, match=rf"label {label} of them .* 0 to 9 \({cause}\?\)"):
        check_classes(np.array([3, label, 4]), 10, of="them")


def test_labels_of_every_class_and_rows_of_values_pass():
    check_classes(np.arange(10), 10, of="them")
    check_classes(np.full((2, 3), 99.0), 10, of="them")
    check_classes(np.zeros(0, int), 10, of="them")


TEN = list(range(10))


@pytest.mark.parametrize(("split", "named"), [("train", "split train"), ("test", "split test")])
def test_labels_counted_from_one_are_refused_before_a_run(tmp_path, split, named):
    labels = {"train": TEN, "test": TEN, split: [label + 1 for label in TEN]}
    recipe = recipe_of(arrays(tmp_path / "some.npz", **labels))
    recipe = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, num_classes=10))
    with pytest.raises(ConfigError, match=rf"label 10 of the {named} .*10 classes.*from 1\?"):
        Setup(recipe)


class Unread:
    """Data whose labels are known once its images are read."""

    def __init__(self, dataset) -> None:
        self.dataset, self.class_names = dataset, ()

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int):
        example = self.dataset[index]
        return dataclasses.replace(example, label=example.label + 1)


def test_labels_that_are_read_with_the_images_are_refused_then(monkeypatch):
    from resnetjax.train import setup as module

    opened = module.open_both
    monkeypatch.setattr(module, "open_both", lambda *a, **k: tuple(map(Unread, opened(*a, **k))))
    recipe = tiny_recipe()
    recipe = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, num_classes=10))
    with Setup(recipe) as setup:
        with pytest.raises(ConfigError, match=r"label 10 of the split train"):
            list(setup.batches(0))
        with pytest.raises(ConfigError, match=r"label 10 of the split test"):
            list(setup.test_batches())


def folders(root, **classes):
    """An image for each class, in a folder of the split's name."""
    for split, names in classes.items():
        for name in names:
            (root / split / name).mkdir(parents=True)
            Image.new("L", (8, 8)).save(root / split / name / "1.png")
    return root


def test_classes_that_only_one_split_has_are_named_with_it(tmp_path):
    root = folders(tmp_path, train=["ant", "bee", *"stuvwx"], val=["ant", "Bee"])
    with pytest.raises(ConfigError) as raised:
        Setup(recipe_of(root, test_split="validation"))
    assert str(raised.value) == (
        "the classes are not the same: 8 in the split train, 2 in the split val; "
        "only the split train has bee, s, t, u, v, ...; only the split val has Bee"
    )


def test_classes_in_another_order_are_said_to_be():
    data = [SimpleNamespace(class_names=names) for names in (("a", "b"), ("b", "a"))]
    with pytest.raises(ConfigError, match="2 in this, 2 in that; they have the same names, in an"):
        class_names(*data, tiny_recipe(), of=("this", "that"))


CASES = {
    "held out": (
        {"train": ["big cat", "frög", "ship", "tree"]},
        "training on 4 images of 4 classes (big cat, frög, ship, ...), evaluating on 4 held out "
        "of them",
    ),
    "a split": (
        {"train": "ab", "test": "ab"},
        "training on 2 images of 2 classes (a, b), evaluating on the split test, 2 images",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_run_says_what_it_trains_and_evaluates_on(tmp_path, case):
    classes, line = CASES[case]
    root = folders(tmp_path / "images", **classes)
    if case == "held out":
        for path in list(root.glob("*/*/1.png")):
            path.with_name("2.png").write_bytes(path.read_bytes())
    recipe = recipe_of(root, test_split="validation", held_out=0.5)
    recipe = dataclasses.replace(recipe, batch_size=2)
    with Setup(recipe) as setup:
        assert setup.data_line == line


def test_values_and_a_data_set_elsewhere_are_said_too(tmp_path):
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metadata.csv").write_text("file_name,x,y\na.png,1,2\n")
    recipe = recipe_of(tmp_path / "here", test_path=str(tmp_path / "there"))
    recipe = dataclasses.replace(
        recipe, problem_type="regression", loss="mean_squared_error", batch_size=1
    )
    assert Setup(recipe).data_line == (
        "training on 1 image with 2 values each (x, y), "
        f"evaluating on the data at {tmp_path}/there, 1 image"
    )
