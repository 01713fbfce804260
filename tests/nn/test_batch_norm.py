"""Batch norm of parts of a batch: what `norm_batch` of a net does to logits and statistics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnetjax.errors import ConfigError
from resnetjax.nn.resnet import ResNet
from tests.train import tiny

CONFIG = tiny.CONFIG.replace(num_classes=3)
# Parts of unlike scale, so that statistics of the wrong ones show.
IMAGES = np.random.default_rng(0).standard_normal((8, 8, 8, 1)) * np.repeat([1, 5], 4).reshape(
    8, 1, 1, 1
)


@pytest.fixture(scope="module")
def variables():
    return jax.jit(ResNet(CONFIG).init)(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))


def train(variables, images, **fields):
    def apply(variables, images):
        model = ResNet(CONFIG, **fields)
        return model.apply(variables, images, train=True, mutable=["batch_stats"])

    logits, updates = jax.jit(apply)(variables, jnp.asarray(images, jnp.float32))
    return np.asarray(logits), updates["batch_stats"]


@pytest.fixture(scope="module")
def halves(variables):
    return train(variables, IMAGES[:4]), train(variables, IMAGES[4:])


def test_each_part_is_normalised_by_its_own_statistics(variables, halves):
    logits, _ = train(variables, IMAGES, norm_batch=4)
    # float32 in another order of additions
    np.testing.assert_allclose(logits, np.concatenate([halves[0][0], halves[1][0]]), atol=1e-5)
    whole, _ = train(variables, IMAGES)
    assert np.abs(whole - logits).max() > 0.1


def test_running_statistics_move_by_the_mean_over_the_parts(variables, halves):
    _, moved = train(variables, IMAGES, norm_batch=4)
    expected = jax.tree.map(lambda a, b: (a + b) / 2, halves[0][1], halves[1][1])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), moved, expected)


def test_one_part_is_the_whole_batch(variables):
    found, expected = train(variables, IMAGES, norm_batch=8), train(variables, IMAGES)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize("norm_batch", [3, 16])
def test_parts_must_divide_the_batch(variables, norm_batch):
    with pytest.raises(ConfigError, match=f"norm_batch={norm_batch} .*divisor.* which is 8"):
        train(variables, IMAGES, norm_batch=norm_batch)


def test_parts_do_not_matter_outside_training(variables):
    images = jnp.asarray(IMAGES[:5], jnp.float32)
    found, expected = (
        ResNet(CONFIG, norm_batch=parts).apply(variables, images, train=False)
        for parts in (4, None)
    )
    np.testing.assert_array_equal(found, expected)
