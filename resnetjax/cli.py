"""The `resnetjax` command: each verb imports what it needs when it runs."""

import io
import json
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tyro

from resnetjax import __version__
from resnetjax.cache import keep_compiled
from resnetjax.errors import AssumptionWarning, ConfigError, ResNetJAXError, UnknownName
from resnetjax.infer.command import (
    Images,
    Model,
    Name,
    explain,
    features,
    image_files,
    push,
    say,
    with_progress,
)  # fmt: skip

EXPORTED = (".stablehlo", ".onnx")


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line: exit code 2 and one message on stderr for bad input."""
    arguments = sys.argv[1:] if arguments is None else arguments
    warnings.showwarning = _show_warning
    warnings.simplefilter("always", AssumptionWarning)
    _make_streams_safe()
    verbs = {
        "names": names, "info": info, "convert": convert, "predict": predict, "verify": verify,
        "export": export, "features": features, "explain": explain, "push": push,
    }  # fmt: skip
    try:
        if list(arguments) == ["--version"]:
            print(f"resnetjax {__version__}")
            code = 0
        elif arguments[:1] in (["train"], ["evaluate"]):
            code = _run_training(arguments)
        else:
            code = tyro.extras.subcommand_cli_from_dict(
                {**verbs, "train": train, "evaluate": evaluate},
                prog="resnetjax",
                description=_ABOUT,
                args=arguments,
                config=(tyro.conf.FlagCreatePairsOff,),
            )
        sys.stdout.flush()
    except BrokenPipeError:  # the reader has seen enough: `resnetjax names | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except (ResNetJAXError, OSError) as error:
        say(f"error: {error}")
        code = 2
    except KeyboardInterrupt:
        code = 130
    sys.exit(code)


_ABOUT = (
    "ResNets in JAX: read PyTorch weights, convert them, and put them to use. "
    "With --version alone, print which release this is."
)


def train() -> int:
    """Train a net as a recipe says, or go on with a run: `resnetjax train RECIPE.py --help`."""
    raise AssertionError("the recipe's fields are flags, so it is parsed on its own")


def evaluate() -> int:
    """Score a net on a data set: `resnetjax evaluate --help`."""
    raise AssertionError("it is parsed with training")


def _run_training(arguments: Sequence[str]) -> int:
    from resnetjax.train import command

    keep_compiled()
    verbs = {"train": command.train_command, "evaluate": command.evaluate_command}
    return verbs[arguments[0]](arguments[1:], prog=f"resnetjax {arguments[0]}")


def names(glob: tyro.conf.Positional[str] = "*") -> int:
    """List the architectures and the published weights.

    Args:
        glob: Shell pattern, such as 'resnet*d' or 'resnet50.*'.
    """
    from resnetjax import presets
    from resnetjax.measure import flops, parameter_count
    from resnetjax.plan import plan
    from resnetjax.weights import sources

    found = sources.names(glob)
    if not found:
        raise UnknownName(f"no architecture and no published weight matches {glob!r}")
    width = max(map(len, (*found, "name")))
    print(f"{'name':<{width}} {'parameters':>12} {'GFLOPs':>8} {'top-1':>7} {'pixels':>7}  licence")
    for name in found:
        if name in sources.WEIGHTS:
            weights = sources.WEIGHTS[name]
            top1 = "" if weights.top1 is None else f"{weights.top1:.2f} %"
            row = f"{name:<{width}} {'':>12} {'':>8} {top1:>7} {weights.image_px[0]:>7}"
            print(f"{row}  {weights.licence or ''}".rstrip())
            continue
        net = plan(presets.get(name))
        side = 32 if presets.get(name).stem == "conv3" else 224
        operations = flops(net, height=side, width=side)
        print(f"{name:<{width}} {parameter_count(net):>12,} {operations / 1e9:>8.2f}")
    return 0


def info(model: Model, *, arch: Name = None, tree: bool = False, json: bool = False) -> int:
    """Say what a net is: configuration, size, features, where it came from.

    Args:
        model: A weight file, a directory, or the name of an architecture.
        arch: Name of the architecture, where the file cannot tell.
        tree: List every array too.
        json: Print one JSON object.
    """
    from resnetjax import facts

    found = facts.of_net(model, arch=arch, tree=tree)
    if json:
        _print_json(found)
    else:
        facts.print_net(found)
    return 0


def convert(
    source: Model,
    destination: tyro.conf.Positional[Path],
    *,
    dialect: Name = None,
    arch: Name = None,
) -> int:
    """Rewrite weights: as a directory, or as a file under another system's names.

    Args:
        source: A weight file or a directory.
        destination: A directory (of resnetjax, transformers, timm, timm_v2 or kerashub), or a file
            ending in .safetensors, .pth, .npz, .h5, .weights.h5, .keras or .msgpack.
        dialect: Whose names the arrays get: torchvision, timm, timm_v2, transformers, akamaster,
            keras, keras_v2, keras_resnext, keras_2017, kerascv, kerascv_v2, kerashub,
            keras_numbered, keras_numbered_first, keras_order, slim_v1, slim_v2, bit,
            transformers_flax, flax_example, jax_resnet, flaxmodels, flaxmodels_tree,
            resnetjax.
        arch: Name of the architecture, where the file cannot tell.
    """
    from resnetjax import saving, zoo
    from resnetjax.data.preprocess_formats.words import in_words

    saving.target_of(destination, dialect=dialect)  # before the work, not after it
    pretrained = zoo.load(source, arch=arch)
    saving.save(pretrained, destination, dialect=dialect)
    found = pretrained.source
    print(f"{source}: {found.arch or 'a net without a name'} ({found.dialect}, {found.format})")
    print(f"{destination}: written as {dialect or 'resnetjax'}")
    if images := saving.images_of(pretrained, destination, dialect=dialect):
        print(f"it does not say how images are prepared: {in_words(images)}")
    return 0


def predict(
    model: Model,
    images: Images,
    *,
    top: int = 5,
    json: bool = False,
    batch_size: int = 32,
    arch: Name = None,
) -> int:
    """Print the likeliest labels of images.

    Args:
        model: A weight file or a directory, or what `resnetjax export` wrote.
        images: JPEG, PNG, WEBP, BMP, TIFF, PPM or PGM files, or directories of them.
        top: Number of labels an image.
        json: Print a list with one object an image.
        batch_size: Images run at once.
        arch: Name of the architecture, where the file cannot tell.
    """
    from resnetjax.infer.predict import predict_each

    if top < 1:
        raise ConfigError(f"--top {top} is not allowed: use 1 or more")
    paths = image_files(images)
    net = _exported(model, arch) if model.endswith(EXPORTED) else _loaded(model, arch)
    rows: list[dict[str, Any]] = []
    failed = 0
    results = with_progress(
        predict_each(net, paths, top=top, batch_size=batch_size), len(paths), doing="predicting"
    )
    for path, result in zip(paths, results, strict=True):
        row: dict[str, Any] = {"image": str(path), "predictions": []}
        if not isinstance(result, list):
            failed += 1
            row["error"] = str(result)
            say(f"error: {result}")
        else:
            row["predictions"] = [vars(prediction) for prediction in result]
        rows.append(row)
        if not json:
            _print_row(row)
    if json:
        _print_json(rows)
    return 2 if failed else 0


def verify(model: Model, *, arch: Name = None, json: bool = False) -> int:
    """Print what a net computes on a fixed probe, so that two conversions can be compared.

    Args:
        model: A weight file, a directory, an address, or a published weight's name.
        arch: Name of the architecture, where the file cannot tell.
        json: Print one JSON object.
    """
    from resnetjax import facts

    keep_compiled()
    found = facts.of_outputs(model, arch=arch)
    if json:
        _print_json(found)
    else:
        facts.print_outputs(found)
    return 0


def export(
    model: Model,
    destination: tyro.conf.Positional[Path],
    *,
    arch: Name = None,
    calibration: Path | None = None,
) -> int:
    """Write a net as a file that runs without its code, preprocessing and labels inside.

    Args:
        model: A weight file or a directory.
        destination: A path ending in .stablehlo, .onnx or .savedmodel (TensorFlow's folder).
        arch: Name of the architecture, where the file cannot tell.
        calibration: Directory of some hundreds of images: an .onnx file then computes in
            eight-bit integers.
    """
    import resnetjax

    images = calibration and image_files((calibration,))
    resnetjax.export(_loaded(model, arch), destination, calibration=images)
    print(f"{destination}: written")
    return 0


def _loaded(model: str, arch: str | None) -> Any:
    from resnetjax import zoo

    keep_compiled()
    return zoo.load(model, arch=arch)


def _exported(model: str, arch: str | None) -> Any:
    from resnetjax.infer import artifact

    if arch is not None:
        raise ConfigError(f"--arch {arch} is not allowed: {model} is exported, and says what it is")
    if not model.endswith(".onnx"):  # which runs without JAX
        keep_compiled()
    return artifact.load(model)


def _print_row(row: dict[str, Any]) -> None:
    if row["predictions"]:
        print(row["image"])
    for prediction in row["predictions"]:
        print(f"  {prediction['probability']:8.4f}  {prediction['label']} ({prediction['index']})")


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=1))


def _make_streams_safe() -> None:
    """Replaces closed ones, and lets through what the output's encoding has no letters for."""
    sys.stdout = sys.stdout or io.StringIO()  # None after `>&-`
    sys.stderr = sys.stderr or io.StringIO()  # else print would take stdout in its place
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    say(f"note: {message}")
