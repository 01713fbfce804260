"""Figures class by class, beside scikit-learn's, and losses and sums of the three problems."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from sklearn import metrics

from resnetjax.data.augmentation import Augmentation
from resnetjax.data.held_out import Subset
from resnetjax.data.readers.arrays import ArrayDataset
from resnetjax.data.readers.example import Example
from resnetjax.errors import ConfigError
from resnetjax.train.eval_step import make_eval_step
from resnetjax.train.labels import class_weights, output_count
from resnetjax.train.recipe import Recipe
from resnetjax.train.scores import (
    Confusion,
    LabelCounts,
    Score,
    draw_confusion,
    make_details,
    table,
)
from resnetjax.train.scores import to_json as as_json
from resnetjax.train.step import losses
from tests.train.test_evaluate import PIXELS

RNG = np.random.default_rng(0)
TRUE, FOUND = RNG.integers(0, 4, 60), RNG.integers(0, 5, 60)  # nothing is of the last class
MULTI = Recipe(problem_type="multi_label_classification", loss="binary_cross_entropy")


class AsTheyAre:
    """A net whose logits are the first pixels of an image, less 1."""

    def __init__(self, outputs: int) -> None:
        self.outputs = outputs

    def apply(self, variables, images, *, train):
        return images[:, 0, : self.outputs, 0] - 1


class Rows:
    """Images with a row of values each."""

    class_names = ("a", "b", "c")

    def __init__(self, labels: np.ndarray) -> None:
        self.labels = labels.astype(np.float32)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Example:
        return Example(np.zeros((8, 8, 1), np.uint8), self.labels[index], str(index))


def summed(problem: str, images, labels, weights, *, outputs: int) -> dict[str, np.ndarray]:
    step = make_eval_step(AsTheyAre(outputs), PIXELS, problem_type=problem)
    batch = {"images": images, "labels": jnp.asarray(labels), "weights": jnp.asarray(weights)}
    return jax.device_get(jax.jit(step)({}, batch))


def assert_rows(rows, expected) -> None:
    precision, recall, f1, support = expected
    for i, row in enumerate(rows):
        figures = precision[i], recall[i], f1[i], support[i]
        found = row["precision"], row["recall"], row["f1"], row["support"]
        assert found == pytest.approx(figures)


def test_figures_of_classes_are_those_of_scikit_learn():
    found = Confusion(metrics.confusion_matrix(TRUE, FOUND, labels=range(5)))
    expected = metrics.precision_recall_fscore_support(
        TRUE, FOUND, labels=range(5), zero_division=0
    )
    assert_rows(found.rows(list("abcde")), expected)
    assert found.figures["macro_f1"] == pytest.approx(np.mean(expected[2]))
    assert found.figures["accuracy"] == pytest.approx(metrics.accuracy_score(TRUE, FOUND))


def test_figures_of_labels_are_those_of_scikit_learn():
    images = RNG.integers(0, 40, (9, 8, 8, 1), np.uint8)
    labels = RNG.integers(0, 2, (9, 3)).astype(np.float32)
    weights = np.array([1.0] * 7 + [0.0] * 2, np.float32)
    sums = summed("multi_label_classification", images, labels, weights, outputs=3)
    found = images[:7, 0, :3, 0] / 16 - 1 > 0
    details = make_details(sums)
    assert isinstance(details, LabelCounts)
    expected = metrics.precision_recall_fscore_support(labels[:7], found, zero_division=0)
    assert_rows(details.rows(list("abc")), expected)
    assert details.figures["exact"] == metrics.accuracy_score(labels[:7], found)
    logits = images[:7, 0, :3, 0] / 16 - 1
    loss = np.log1p(np.exp(-logits)) + (1 - labels[:7]) * logits
    assert sums["loss"] / 7 == pytest.approx(loss.mean(), rel=1e-5)


def test_figures_of_a_regression_are_those_of_scikit_learn():
    images = RNG.integers(0, 64, (11, 8, 8, 1), np.uint8)
    targets = RNG.normal(size=(11, 2)).astype(np.float32)
    sums = summed("regression", images, targets, np.ones(11, np.float32), outputs=2)
    outputs = images[:, 0, :2, 0] / 16 - 1
    details = make_details(sums)
    assert details is not None
    rows = details.rows(["x", "y"])
    for name, measure in (
        ("r2", metrics.r2_score),
        ("mean_error", metrics.mean_absolute_error),
        ("rms_error", metrics.root_mean_squared_error),
    ):
        expected = measure(targets, outputs, multioutput="raw_values")
        assert [row[name] for row in rows] == pytest.approx(expected, rel=1e-5)
    assert sums["loss"] / 11 == pytest.approx(
        metrics.mean_squared_error(targets, outputs), rel=1e-5
    )


def test_the_confusion_counts_every_example_once_with_true_classes_down():
    images = RNG.integers(0, 64, (8, 8, 8, 1), np.uint8)
    labels, weights = RNG.integers(0, 3, 8), np.array([1] * 6 + [0] * 2, np.float32)
    found = images[:, 0, :3, 0].argmax(1)
    sums = summed("single_label_classification", images, labels, weights, outputs=3)
    expected = metrics.confusion_matrix(labels[:6], found[:6], labels=range(3))
    np.testing.assert_array_equal(sums["confusion"], expected)


def test_a_report_is_json_and_a_table_and_a_picture(tmp_path):
    matrix = metrics.confusion_matrix(TRUE, FOUND, labels=range(5))
    score = Score(loss=float("nan"), examples=60, top1=0.5, top5=1.0, details=Confusion(matrix))
    report = json.loads(json.dumps(as_json(score, list("abcde"))))
    assert (report["loss"], report["top1"], report["confusion"]) == (None, 0.5, matrix.tolist())
    lines = table(report["classes"])
    assert len(lines) == 6
    assert len({len(line) for line in lines}) == 1
    draw_confusion(report["confusion"], list("abcde"), tmp_path / "confusion.png")
    with Image.open(tmp_path / "confusion.png") as picture:
        assert len(picture.convert("L").getcolors()) > 10


# ---- Losses.


def test_class_weights_multiply_the_loss_of_an_example():
    logits, targets = jnp.asarray(RNG.normal(size=(5, 3))), jnp.eye(3)[jnp.array([0, 2, 1, 1, 0])]
    plain = losses(logits, targets, Recipe())
    weighted = losses(logits, targets, Recipe(), class_weights=(1.0, 0.5, 3.0))
    np.testing.assert_allclose(weighted, plain * np.array([1, 3, 0.5, 0.5, 1]), rtol=1e-6)


def test_of_several_labels_the_weights_are_torchs_pos_weight():
    logits, targets = RNG.normal(size=(5, 3)), RNG.integers(0, 2, (5, 3))
    weights = np.array([1.0, 0.5, 3.0])
    found = losses(jnp.asarray(logits), jnp.asarray(targets), MULTI, class_weights=(1.0, 0.5, 3.0))
    # torch.nn.BCEWithLogitsLoss: -(w y log s(x) + (1 - y) log(1 - s(x)))
    s = 1 / (1 + np.exp(-logits))
    expected = -(weights * targets * np.log(s) + (1 - targets) * np.log(1 - s)).mean(1)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_balanced_weights_are_those_of_scikit_learn():
    from sklearn.utils.class_weight import compute_class_weight

    data = ArrayDataset(np.zeros((60, 8, 8), np.uint8), TRUE, name="some")
    found = class_weights(Recipe(class_weights="balanced"), data, 4)
    assert found == pytest.approx(compute_class_weight("balanced", classes=np.arange(4), y=TRUE))
    with pytest.raises(ConfigError, match="class 4 has no examples"):
        class_weights(Recipe(class_weights="balanced"), data, 5)
    with pytest.raises(ConfigError, match="class_weights has 2 values: use 4"):
        class_weights(Recipe(class_weights=(1.0, 2.0)), data, 4)


def test_a_label_that_is_rare_weighs_by_how_often_it_is_absent():
    labels = np.zeros((10, 3))
    labels[:5, 0] = labels[:2, 1] = labels[:8, 2] = 1
    balanced = Recipe(
        problem_type="multi_label_classification",
        loss="binary_cross_entropy",
        class_weights="balanced",
    )
    assert class_weights(balanced, Rows(labels), 3) == pytest.approx((1, 4, 0.25))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "'single_label_classification' is not allowed: the data has 3 values an image"),
        (
            {"problem_type": "multi_label_classification", "loss": "binary_cross_entropy"},
            "values other than 0 and 1",
        ),
    ],
)
def test_data_of_another_problem_is_refused(fields, message):
    data = Rows(RNG.normal(size=(4, 3)))
    with pytest.raises(ConfigError, match=message):
        output_count(data, data, Recipe(augmentation=Augmentation(flip=False), **fields))


def test_data_of_classes_is_refused_for_a_regression():
    data = ArrayDataset(np.zeros((60, 8, 8), np.uint8), TRUE, name="some")
    recipe = Recipe(problem_type="regression", loss="mean_squared_error")
    with pytest.raises(ConfigError, match=r"a class for each image, not a row of values"):
        output_count(Subset(data, np.arange(3)), data, recipe)
