"""Real nets, saved by their own frameworks, side by side with ours: `rows.py` lists them."""

import itertools
import shutil
from collections.abc import Callable
from dataclasses import dataclass

import jax
import numpy as np
import pytest
import torch
from timm.models import adapt_input_conv

import resnetjax as rj
from resnetjax.weights import files
from tests.disturbed import spread_error, varied_images
from tests.parity import engine, nets, table, torch_side
from tests.parity.engine import TOLERANCE
from tests.parity.rows import ROWS, case_id, cases

pytestmark = pytest.mark.parity

CASES = [
    pytest.param((row, size), id=case_id(row, size), marks=[pytest.mark.slow] if slow else [])
    for row, size, slow in cases()
]
EVERY_CASE = pytest.mark.parametrize("compared", CASES, indirect=True)


@dataclass
class Compared:
    """A real net, what `load` made of its file, and what both compute."""

    original: engine.Original
    pretrained: rj.Pretrained
    run: Callable[..., engine.Features]
    ours: engine.Features
    entry: table.Entry


@pytest.fixture(scope="module")
def compared(request, samples, parity_table, tmp_path_factory):
    row, size = request.param
    folder = tmp_path_factory.mktemp("net")
    original = engine.make(row, size, samples, folder)
    pretrained = engine.load(original)
    run = engine.runner(pretrained)
    ours = run(pretrained.variables, original.images)
    source = pretrained.source
    entry = table.Entry(
        name=row.name,
        layout=row.layout,
        size_px=original.images.shape[1:3],
        short=bool(row.depths(size)),
        detected=f"{source.dialect}: {source.arch or 'no name'}" + " (told)" * bool(row.told(size)),
        errors=engine.errors(ours, original.outputs),
    )
    parity_table.entries.append(entry)
    yield Compared(original, pretrained, run, ours, entry)
    shutil.rmtree(folder)  # pytest would keep the files of three runs: 100 GB


@EVERY_CASE
def test_logits_and_every_feature_agree(compared):
    assert set(compared.ours) == set(compared.original.outputs)
    wrong = {name: error for name, error in compared.entry.errors.items() if not error < TOLERANCE}
    assert not wrong


@EVERY_CASE
def test_the_architecture_is_detected(compared):
    original = compared.original
    assert compared.pretrained.source.arch == original.row.expected(original.size)


@EVERY_CASE
def test_a_wrong_epsilon_would_show(compared):
    pretrained, images = compared.pretrained, compared.original.images
    if pretrained.config.norm == "batch":
        # The same as another epsilon in the config, without compiling again (F3).
        shift = np.float32(1e-6 - pretrained.config.norm_eps)
        shifted = jax.tree_util.tree_map_with_path(
            lambda path, array: array + shift if path[-1].key == "var" else array,
            pretrained.variables,
        )
        wrong = compared.run(shifted, images)
    else:
        run = engine.runner(engine.reconfigured(pretrained, norm_eps=1e-6))
        wrong = run(pretrained.variables, images)
    error = max(engine.errors(wrong, compared.original.outputs).values())
    compared.entry.wrong_epsilon = error
    assert error > 10 * TOLERANCE


@EVERY_CASE
def test_saved_back_it_is_bit_equal(compared):
    assert not engine.differences(compared.original, compared.pretrained)


def test_no_two_rows_have_one_name_and_there_are_enough():
    assert len({row.name for row in ROWS}) == len(ROWS) >= 60
    assert len({row.net for row in ROWS}) >= 40
    assert sum(row.full and row.full_px == (224, 224) for row in ROWS) >= 10
    beside = [row for row, _, _ in cases() if engine.SIDES[row.framework] is not torch_side]
    assert len(beside) >= 130


@pytest.mark.parametrize("name", ["timm/resnet50", "keras/ResNet50-keras", "slim/resnet_v1_50"])
def test_each_norm_has_channels_with_variances_of_epsilons_size(samples, tmp_path, name):
    original = engine.make(_row(name), "small", samples, tmp_path)
    for path, array in jax.tree.leaves_with_path(engine.load(original).variables["batch_stats"]):
        if path[-1].key == "var":
            share = ((array > 1e-6) & (array < 1e-4)).mean()
            assert 0.1 < share < 0.2


def test_timm_and_transformers_name_the_same_feature_maps(samples):
    timm_row, other_row = _row("timm/resnet18"), _row("transformers/backbone")
    images = torch.from_numpy(engine.pictures(samples, (64, 64), 3).transpose(0, 3, 1, 2).copy())
    with torch.no_grad():
        model = nets.build(timm_row.framework, timm_row.net, {}, ())
        own = [x.clone() for x in model.forward_intermediates(images, intermediates_only=True)]
        hooked = torch_side.run_theirs(model, images)
        for name, x in zip(("stem_conv", "stage1", "stage2", "stage3", "stage4"), own, strict=True):
            np.testing.assert_array_equal(hooked[name], x.permute(0, 2, 3, 1))
        model = nets.build(other_row.framework, other_row.net, other_row.arguments, ())
        maps = model(images).feature_maps
        hooked = torch_side.run_theirs(model, images)
        for name, x in zip(other_row.arguments["out_features"], maps, strict=True):
            np.testing.assert_array_equal(hooked[name], x.permute(0, 2, 3, 1))


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("name", ["torchvision/resnet18", "timm/resnet10t", "timm/resnetv2_18"])
def test_in_channels_folds_the_stem_as_timm_does(samples, tmp_path, name, channels):
    original = engine.make(_row(name), "small", samples, tmp_path)
    with pytest.warns(UserWarning, match="assumed"):
        pretrained = rj.load(original.path, in_channels=channels)
    modules = original.model.modules()
    first = next(module for module in modules if isinstance(module, torch.nn.Conv2d))
    theirs = adapt_input_conv(channels, first.weight.detach().clone()).permute(2, 3, 1, 0)
    ours = pretrained.variables["params"]["stem"]["conv1"]["kernel"]
    # Three numbers are added in another order.
    np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6)
    assert pretrained.preprocess.channels == channels


@pytest.mark.parametrize("name", ["torchvision/resnet18", "timm/resnetv2_18", "akamaster/resnet20"])
def test_a_new_head_leaves_the_rest_bit_equal(samples, tmp_path, name):
    original = engine.make(_row(name), "small", samples, tmp_path)
    with pytest.warns(UserWarning, match="assumed"):
        whole = rj.load(original.path)
    with pytest.warns(UserWarning, match="assumed"):
        changed = rj.load(original.path, num_classes=7)
    assert changed.variables["params"]["head"]["kernel"].shape[1] == 7
    for variables in (whole.variables, changed.variables):
        del variables["params"]["head"]
    assert jax.tree.all(jax.tree.map(np.array_equal, whole.variables, changed.variables))


@pytest.mark.parametrize("hidden", [(), (40,), (40, 40)])
@pytest.mark.parametrize("name", ["torchvision/resnet18", "timm/resnet18d"])
def test_a_sequential_in_the_heads_place_is_the_head(tmp_path, name, hidden):
    row = _row(name)
    model = nets.build(row.framework, row.net, row.arguments, row.depths("full"))
    layers: list[torch.nn.Module] = [torch.nn.Dropout(0.3)]
    for before, after in itertools.pairwise((model.fc.in_features, *hidden)):
        layers += [torch.nn.Linear(before, after), torch.nn.ReLU(), torch.nn.Dropout(0.3)]
    model.fc = torch.nn.Sequential(*layers, torch.nn.Linear((512, *hidden)[-1], 7))
    torch.save(model.eval().state_dict(), tmp_path / "net.pth")
    with pytest.warns(UserWarning, match="taken for the head"):
        pre = rj.load(tmp_path / "net.pth")
    assert (pre.config.head_widths, pre.config.num_classes) == (hidden, 7)
    images = varied_images(2, 64, 64)
    with torch.no_grad():
        theirs = model(torch.from_numpy(images.transpose(0, 3, 1, 2))).numpy()
    ours = jax.jit(pre.model.apply)(pre.variables, images)
    assert spread_error(ours, theirs) < TOLERANCE
    rj.save(pre, tmp_path / "back.pth", dialect=pre.source.dialect)
    if hidden:
        model.fc = torch.nn.Sequential(
            *(layer for layer in model.fc if not isinstance(layer, torch.nn.Dropout))
        )
    else:
        model.fc = model.fc[-1]
    before = {name: array.clone() for name, array in model.state_dict().items()}
    after = torch.load(tmp_path / "back.pth")
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_every_layout_is_a_file_of_its_own_kind(samples, tmp_path):
    formats = set()
    for layout in ("zip", "legacy", "checkpoint", "safetensors"):
        row = next(row for row in ROWS if row.layout == layout)
        (tmp_path / layout).mkdir()
        model = nets.build("timm", "test_resnet", {}, ())
        path = torch_side.LAYOUTS[layout](model, row, tmp_path / layout)
        formats.add(files.read(path).format)
    assert len(formats) == 3


def _row(name: str):
    return next(row for row in ROWS if row.name == name)
