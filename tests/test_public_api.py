"""What `import resnetjax` offers, and what each part of it costs."""

import ast
import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path

import pytest

import resnetjax as rj
from tests.weights.torch_bytes import mapping, tensor, zip_bytes

HEAVY = {
    "PIL", "array_record", "beartype", "flax", "grain", "h5py", "jax", "jaxlib", "jaxtyping",
    "keras", "kagglehub", "matplotlib", "numpy", "onnx", "onnxruntime", "optax", "orbax", "pyfive",
    "rich", "safetensors", "simplejpeg", "sklearn", "tensorboardX", "tensorflow", "torch", "tyro",
}  # fmt: skip
# Of training, of other frameworks and of the command line.
FOREIGN = {"grain", "keras", "onnx", "onnxruntime", "optax", "orbax", "tensorflow", "torch", "tyro"}


def imported_by(code: str) -> set[str]:
    """The packages that a fresh interpreter holds after running the code."""
    script = f"import sys\n{code}\nimport json; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    return {name.partition(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}


def imports_for_the_type_checker() -> dict[str, str]:
    """Each public name and its module, as written under `if TYPE_CHECKING`."""
    tree = ast.parse(Path(rj.__file__).read_text())
    guarded = [node for node in tree.body if isinstance(node, ast.If)]
    return {
        alias.name: node.module
        for block in guarded
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


def test_all_is_sorted_and_holds_what_the_type_checker_sees():
    assert list(rj.__all__) == sorted(set(rj.__all__))
    assert set(rj.__all__) == set(imports_for_the_type_checker())


@pytest.mark.parametrize("name", rj.__all__)
def test_a_public_name_is_what_the_type_checker_sees(name):
    module = __import__(imports_for_the_type_checker()[name], fromlist=[name])
    assert getattr(rj, name) is getattr(module, name)


@pytest.mark.parametrize("name", rj.__all__)
def test_a_public_name_says_what_it_is(name):
    value = getattr(rj, name)
    first, *_ = (value.__doc__ or "").splitlines()
    assert first.endswith(".")
    assert not first.startswith(f"{name}(")  # as dataclasses make them up


def test_dir_lists_the_public_names():
    assert dir(rj) == sorted([*rj.__all__, "__version__"])


def test_a_star_import_brings_all_public_names_and_no_others():
    names: dict[str, object] = {}
    exec("from resnetjax import *", names)
    assert set(names) - {"__builtins__"} == set(rj.__all__)


@pytest.mark.parametrize("name", ["lode", "_private", "__path_to__", ""])
def test_an_unknown_name_is_an_attribute_error_that_names_it(name):
    with pytest.raises(AttributeError, match=f"'resnetjax' has no attribute {name!r}"):
        getattr(rj, name)
    assert not hasattr(rj, name)


def test_an_unknown_name_is_an_import_error_where_it_is_imported():
    with pytest.raises(ImportError, match="lode"):
        exec("from resnetjax import lode")


def test_the_version_is_the_distributions():
    assert rj.__version__ == importlib.metadata.version("resnetjax")


def test_the_bare_import_imports_nothing_else():
    assert imported_by("import resnetjax; dir(resnetjax)") & HEAVY == set()


def test_names_and_configs_need_no_jax():
    code = (
        "import resnetjax as rj\n"
        "from resnetjax import presets, plan, measure, specs, errors\n"
        "assert 'resnet50' in rj.names()\n"
        "net = plan.plan(rj.ResNetConfig(depths=(3, 4, 6, 3)))\n"
        "assert measure.parameter_count(net) == 25_557_032\n"
        "rj.Preprocess(), rj.Labels(names=('cat',))"
    )
    assert imported_by(code) & HEAVY == set()


def test_loading_and_predicting_need_neither_training_nor_another_framework():
    code = (
        "import resnetjax as rj\n"
        "rj.load, rj.save, rj.create, rj.predict, rj.features, rj.Pretrained, rj.ResNet"
    )
    found = imported_by(code)
    assert found & FOREIGN == set()
    assert "flax" in found  # else the test would see nothing


def test_reading_weights_imports_no_framework_at_all(tmp_path):
    path = tmp_path / "weights.pth"
    path.write_bytes(zip_bytes(mapping(w=tensor())))
    code = (
        "from resnetjax.weights import files\n"
        f"assert files.read({str(path)!r}).arrays['w'].shape == (2, 3)"
    )
    assert imported_by(code) & (FOREIGN | {"flax", "jax"}) == set()


def test_the_command_lists_names_without_jax():
    code = (
        "from resnetjax import cli\n"
        "sys.argv = ['resnetjax', 'names', 'resnet18']\n"
        "try: cli.main()\n"
        "except SystemExit as stopped: assert not stopped.code"
    )
    assert imported_by(code) & {"flax", "jax", "optax", "orbax", "torch", "PIL"} == set()


def test_a_net_prints_on_a_few_lines_though_it_holds_many_arrays():
    model, variables = rj.create("cifar_resnet20")
    pre = rj.Pretrained(
        model=model,
        variables=variables,
        labels=rj.Labels(names=tuple(f"class number {i}" for i in range(10))),
    )
    assert "class number 7" not in repr(pre)
    assert len(repr(pre)) < 5000
