"""What the speed benchmarks compare with, and the tables made of their results."""

import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

SCRIPTS = Path(__file__).parents[1] / "scripts"


@pytest.mark.parametrize(
    ("net", "edge", "count"),
    # torchvision's; of CIFAR ResNet-20 akamaster's 269,722 (option A) and two projections with
    # their norms: 16 * 32 + 64 and 32 * 64 + 128.
    [("resnet18", 64, 11_689_512), ("resnet50", 64, 25_557_032), ("cifar_resnet20", 32, 272_474)],
)
def test_the_plain_flax_nets_have_the_sizes_of_those_that_they_stand_for(net, edge, count):
    model = runpy.run_path(str(SCRIPTS / "plain_flax.py"))["NETS"][net]
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, edge, edge, 3)))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == count


def test_a_table_gives_rates_ratios_and_who_was_absent():
    ours = {
        "seconds": {"median": 2.0}, "images_per_second": 4.0, "share_of_matmul": 0.25,
        "ours_to_theirs": {"median": 1.0, "min": 1.0, "max": 1.0, "runs": 3},
        "ready_s": 1.5, "peak_extra_bytes": 3 * 2**20,
    }  # fmt: skip
    case = {
        "net": "resnet50", "batch": 8, "dtype": "float32",
        "peers": {"resnetjax": ours, "other": {"absent": "other not installed"}},
    }  # fmt: skip
    result = {
        "environment": {"python": "3.11.7", "cpu": "a processor", "cores": 2, "jax": "0.10.2"},
        "device": "cpu",
        "load_average": {"before": [0.5, 1, 1], "after": [2.25, 1, 1]},
        "cases": [case],
    }
    lines = runpy.run_path(str(SCRIPTS / "speed_tables.py"))["table"](result).splitlines()
    assert "Load average before and after: 0.5, 2.2." in "\n".join(lines)
    assert (
        "| resnet50, 8, float32 | resnetjax | 4 | 25% | 1.00 (1.00–1.00) | 1.5 s | 3 MiB |" in lines
    )
    assert "| resnet50, 8, float32 | other | – | | | | other not installed |" in lines
