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


def side(**measured):
    return {
        "seconds": {"median": 2.0, "min": 1.5, "max": 4.0}, "images_per_second": 4.0,
        "flops_per_second": 31.6e9, "share_of_matmul": 0.25,
        "ours_to_theirs": {"median": 1.0, "min": 0.5, "max": 1.25, "runs": 3},
        "ready_s": 2.5, **measured,
    }  # fmt: skip


def test_a_table_gives_what_was_measured_and_who_was_absent():
    case = {
        "net": "resnet50", "batch": 8, "dtype": "float32",
        "peers": {
            "resnetjax": side(compile_s=1.5, memory_bytes=3 * 2**20),
            "eager": side(compile_s=None, memory_bytes=None),
            "of old": side(peak_extra_bytes=5),
            "other": {"absent": "other not installed"},
        },
    }  # fmt: skip
    result = {
        "environment": {"python": "3.11.7", "cpu": "a processor", "cores": 2, "jax": "0.10.2"},
        "device": "cpu",
        "load_average": {"before": [0.5, 1, 1], "after": [2.25, 1, 1]},
        "cases": [case],
        "left_out": ["resnet50, batch 512"],
    }
    lines = runpy.run_path(str(SCRIPTS / "speed_tables.py"))["table"](result).splitlines()
    assert "Load average before and after: 0.5, 2.2." in "\n".join(lines)
    head = "| resnet50, 8, float32 |"
    same = "2000.0 (1500.0–4000.0) | 4 | 32 | 25% | 1.00 (0.50–1.25)"
    assert f"{head} resnetjax | {same} | 1.5 s | 2.5 s | 3 MiB |" in lines
    for name in ("eager", "of old"):
        assert f"{head} {name} | {same} | – | 2.5 s | – |" in lines
    assert "| resnet50, batch 512 | left out for time | | | | | | | | |" in lines
    assert f"{head} other | – | | | | | | | other not installed |" in lines
    assert len({line.count("|") for line in lines if line.startswith("|")}) == 1


def test_a_grid_ends_in_its_time_and_says_what_it_left_out(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    import speed

    now, batches = [0.0], []

    def measured(case, chosen, limit_s):
        now[0] += 150.0
        batches.append(case.batch)
        return {"batch": case.batch}

    monkeypatch.setattr(speed, "_measured", measured)
    monkeypatch.setattr(speed.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(speed.jax, "default_backend", lambda: "gpu")
    *_, result = speed.compare("infer", "default", ())
    assert batches == [1, 512, 32]
    assert result["left_out"] == ["resnet50, batch 128", "resnet50, batch 8"]
    assert [case["batch"] for case in result["cases"]] == batches
    assert now[0] < 540
    *_, result = speed.compare("infer", "full", ())
    assert result["left_out"] == []


@pytest.mark.slow
def test_a_side_says_what_it_took_and_runs_when_it_is_asked(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    from speed_cases import Case
    from speed_sides import Side

    case = Case("infer", "cifar_resnet20", 64)
    with Side("resnetjax", case) as side:
        assert 0.1 < side.found["compile_s"] < side.found["ready_s"]
        # One layer's activations alone: 64 images of 32 x 32 with 16 channels.
        assert side.found["memory_bytes"] > 64 * 32 * 32 * 16 * 4
        assert 0 < side.run() < side.found["ready_s"]
    assert side._process.exitcode == 0  # though it was stopped


@pytest.mark.slow
def test_a_side_that_cannot_be_made_says_why(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    from speed_cases import Case
    from speed_sides import Side

    with pytest.raises(RuntimeError, match="KeyError: 'resnetv2_50'"):
        Side("plain Flax", Case("infer", "resnetv2_50", 1))
