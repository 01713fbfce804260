"""A fingerprint is of what a net computes, on any machine and under any spelling."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnetjax.config import Preprocess, ResNetConfig
from resnetjax.infer.verify import fingerprint
from resnetjax.pretrained import Pretrained
from resnetjax.weights.passes import absorb_epsilon
from resnetjax.zoo import create

CONFIG = ResNetConfig(
    block="basic", depths=(1, 1), widths=(8, 16), strides=(1, 2), dilations=(1, 1), stem_width=8,
    num_classes=10, norm_eps=1e-3,
)  # fmt: skip


def net(config: ResNetConfig = CONFIG, **changes) -> Pretrained:
    model, variables = create(config, rng=0)
    return Pretrained(model=model, variables={**variables, **changes}, preprocess=Preprocess())


def test_the_same_net_has_the_same_fingerprint_and_float64_stays_off():
    found = fingerprint(net())
    assert found == fingerprint(net())
    assert found.shape == (2, 96, 97, 3)
    assert len(found.digest) == 64
    assert not jax.config.jax_enable_x64
    assert jnp.zeros(1).dtype == np.float32


def test_the_logits_are_the_nets():
    pre = net()
    found = fingerprint(pre)
    raw = np.random.PCG64(20261).random_raw(2 * 96 * 97 * 3)
    probe = (4.0 * (raw >> np.uint64(11)) * 2.0**-53 - 2.0).reshape(found.shape)
    assert (probe.min(), probe.max()) == (pytest.approx(-2, abs=1e-3), pytest.approx(2, abs=1e-3))
    logits = np.asarray(pre.model.apply(pre.variables, jnp.asarray(probe, jnp.float32)))
    np.testing.assert_allclose(found.first, logits[0, :8], rtol=0, atol=1e-5 * found.largest)
    assert found.largest == pytest.approx(np.abs(logits).max(), rel=1e-5)


@pytest.mark.parametrize(
    "fields",
    [{"padding": "same"}, {"norm_eps": 1.001e-5}, {"activation": "gelu"},
     {"stem_pool_padding": "same"}],
)  # fmt: skip
def test_what_arrays_do_not_tell_does(fields):
    assert fingerprint(net(CONFIG.replace(**fields))).digest != fingerprint(net()).digest


def test_one_weight_tells():
    pre = net()
    kernel = pre.variables["params"]["head"]["kernel"]
    head = {**pre.variables["params"]["head"], "kernel": kernel.at[3, 4].add(1e-3)}
    other = net(params={**pre.variables["params"], "head": head})
    assert fingerprint(other).digest != fingerprint(pre).digest


def test_a_rewritten_net_agrees_to_six_digits():
    pre = net()
    stats = jax.tree.map_with_path(
        lambda path, x: (
            absorb_epsilon({"norm/var": np.asarray(x)}, CONFIG, 1e-5)[0]["norm/var"]
            if path[-1].key == "var"
            else x
        ),
        pre.variables["batch_stats"],
    )
    other = dataclasses.replace(
        net(CONFIG.replace(norm_eps=1e-5)), variables={**pre.variables, "batch_stats": stats}
    )
    ours, theirs = fingerprint(other), fingerprint(pre)
    np.testing.assert_allclose(ours.first, theirs.first, rtol=0, atol=1e-6 * theirs.largest)
