"""The `resnetjax` command: each verb imports what it needs when it runs."""

import io
import json
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from resnetjax.errors import AssumptionWarning, BadImage, ConfigError, ResNetJAXError, UnknownName

if TYPE_CHECKING:
    from resnetjax.config import ResNetConfig
    from resnetjax.pretrained import Pretrained

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
Model = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
Images = Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="IMAGE...")]
Name = Annotated[str | None, tyro.conf.arg(metavar="NAME")]


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line: exit code 2 and one message on stderr for bad input."""
    arguments = sys.argv[1:] if arguments is None else arguments
    warnings.showwarning = _show_warning
    warnings.simplefilter("always", AssumptionWarning)
    _make_streams_safe()
    verbs = {
        "names": names, "info": info, "convert": convert, "predict": predict, "verify": verify,
    }  # fmt: skip
    try:
        if arguments[:1] in (["train"], ["evaluate"]):
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
        _say(f"error: {error}")
        code = 2
    except KeyboardInterrupt:
        code = 130
    sys.exit(code)


_ABOUT = "ResNets in JAX: read PyTorch weights, convert them, and put them to use."


def train() -> int:
    """Train a net as a recipe says, or go on with a run: `resnetjax train RECIPE.py --help`."""
    raise AssertionError("the recipe's fields are flags, so it is parsed on its own")


def evaluate() -> int:
    """Score a net on a data set: `resnetjax evaluate --help`."""
    raise AssertionError("it is parsed with training")


def _run_training(arguments: Sequence[str]) -> int:
    from resnetjax.train import command

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


def info(model: Model, *, tree: bool = False, json: bool = False) -> int:
    """Say what a net is: configuration, size, features, where it came from.

    Args:
        model: A weight file, a directory, or the name of an architecture.
        tree: List every array too.
        json: Print one JSON object.
    """
    return _print_info(model, tree=tree, as_json=json)


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
        destination: A directory (of resnetjax, transformers, timm or timm_v2), or a file ending in
            .safetensors, .pth, .npz, .h5, .weights.h5, .keras or .msgpack.
        dialect: Whose names the arrays get: torchvision, timm, timm_v2, transformers, akamaster,
            keras, keras_v2, keras_resnext, keras_2017, kerascv, kerascv_v2, kerashub,
            keras_numbered, keras_numbered_first, keras_order, slim_v1, slim_v2, bit,
            transformers_flax, flax_example, jax_resnet, flaxmodels, resnetjax.
        arch: Name of the architecture, where the file cannot tell.
    """
    from resnetjax import saving, zoo
    from resnetjax.data import preprocess_formats

    saving.target_of(destination, dialect=dialect)  # before the work, not after it
    pretrained = zoo.load(source, arch=arch)
    saving.save(pretrained, destination, dialect=dialect)
    found = pretrained.source
    print(f"{source}: {found.arch or 'a net without a name'} ({found.dialect}, {found.format})")
    print(f"{destination}: written as {dialect or 'resnetjax'}")
    if images := saving.images_of(pretrained, destination, dialect=dialect):
        print(f"it does not say how images are prepared: {preprocess_formats.in_words(images)}")
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
        model: A weight file or a directory.
        images: JPEG, PNG or WEBP files, or directories of them.
        top: Number of labels an image.
        json: Print a list with one object an image.
        batch_size: Images run at once.
        arch: Name of the architecture, where the file cannot tell.
    """
    from resnetjax import zoo
    from resnetjax.infer.predict import predict_each

    if top < 1:
        raise ConfigError(f"--top {top} is not allowed: use 1 or more")
    if not images:
        raise BadImage("no images are given: name files or directories after the model")
    paths = [path for given in images for path in _image_files(given)]
    pretrained = zoo.load(model, arch=arch)
    rows: list[dict[str, Any]] = []
    failed = 0
    results = predict_each(pretrained, paths, top=top, batch_size=batch_size)
    for path, result in zip(paths, _with_progress(results, len(paths)), strict=True):
        row: dict[str, Any] = {"image": str(path), "predictions": []}
        if isinstance(result, BadImage):
            failed += 1
            row["error"] = str(result)
            _say(f"error: {result}")
        else:
            row["predictions"] = [vars(prediction) for prediction in result]
        rows.append(row)
        if not json:
            _print_row(row)
    if json:
        _print_json(rows)
    return 2 if failed else 0


# What two systems mean by the same names and shapes differs in these.
_CLAIMS = (
    "padding", "stem_pool_padding", "stem_pool_value", "stride_on", "stride_block", "strides",
    "dilations", "norm", "norm_eps", "activation",
)  # fmt: skip


def verify(model: Model, *, json: bool = False) -> int:
    """Print what a net computes on a fixed probe, so that two conversions can be compared.

    Args:
        model: A weight file, a directory, an address, or a published weight's name.
        json: Print one JSON object.
    """
    from resnetjax import zoo
    from resnetjax.infer.verify import fingerprint

    pretrained = zoo.load(model)
    found = fingerprint(pretrained)
    config = pretrained.config.to_json()
    facts = {
        "probe": list(found.shape),
        "logits_sha256": found.digest,
        "largest": found.largest,
        "first": list(found.first),
        "claims": {name: config[name] for name in _CLAIMS},
        "preprocess": pretrained.preprocess.to_json(),
    }
    if json:
        _print_json(facts)
        return 0
    print(f"logits sha256 {found.digest}")
    print(f"  of a probe of {'x'.join(map(str, found.shape))}, in float64, to six digits")
    print(f"  first       {' '.join(f'{value:.6g}' for value in found.first)}")
    print(f"  largest     {found.largest:.6g}")
    for part in ("claims", "preprocess"):
        print(f"  {part}")
        for key, value in facts[part].items():
            print(f"    {key:<26} {value}")
    return 0


def _image_files(given: Path) -> list[Path]:
    """The file itself, or the images of a directory and those below it, sorted."""
    if not given.exists():
        raise BadImage(f"there is no file or directory {str(given)!r}")
    if not given.is_dir():
        return [given]
    found = sorted(
        path
        for path in given.rglob("*")
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.is_dir()
    )
    if not found:
        raise BadImage(f"{given}: no images in it (looked for {', '.join(IMAGE_SUFFIXES)})")
    return found


def _with_progress(results: Iterator[Any], total: int) -> Iterator[Any]:
    """The results, with a bar on stderr while there are many and somebody looks."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    if total < 2 or not console.is_terminal:
        yield from results
        return
    # Redirected, what is printed goes where the bar is, to stderr, and `> labels.txt` stays empty.
    redirect = sys.stdout.isatty()
    with Progress(console=console, transient=True, redirect_stdout=redirect) as bar:
        yield from bar.track(results, total=total, description="predicting")


def _print_row(row: dict[str, Any]) -> None:
    if row["predictions"]:
        print(row["image"])
    for prediction in row["predictions"]:
        print(f"  {prediction['probability']:8.4f}  {prediction['label']} ({prediction['index']})")


def _print_info(model: str, *, tree: bool, as_json: bool) -> int:
    from resnetjax.measure import feature_info, flops, leaves, parameter_count, statistics_count
    from resnetjax.plan import plan

    config, pretrained = _open(model)
    net = plan(config)
    height, width = pretrained.preprocess.crop_px if pretrained else _default_side(config)
    facts: dict[str, Any] = {
        "architecture": pretrained.source.arch if pretrained else model,
        "parameters": parameter_count(net),
        "statistics": statistics_count(net),
        "flops": flops(net, height=height, width=width),
        "image": [height, width, config.in_channels],
        "features": [vars(feature) for feature in feature_info(net)],
        "config": config.to_json(),
    }
    if pretrained:
        labels = pretrained.labels
        facts["source"] = vars(pretrained.source)
        facts["preprocess"] = pretrained.preprocess.to_json()
        facts["labels"] = (
            {"classes": len(labels.names), "activation": labels.activation} if labels else None
        )
    if tree:
        facts["tree"] = {path: list(leaf.shape) for path, leaf in leaves(net).items()}
    if as_json:
        _print_json(facts)
    else:
        _print_facts(facts)
    return 0


def _open(model: str) -> "tuple[ResNetConfig, Pretrained | None]":
    """A file or directory, loaded, or an architecture by name."""
    from resnetjax import presets, zoo
    from resnetjax.weights.sources import WEIGHTS

    if Path(model).exists() or "://" in model or model in WEIGHTS:
        pretrained = zoo.load(model)
        return pretrained.config, pretrained
    return presets.get(model), None


def _default_side(config: "ResNetConfig") -> tuple[int, int]:
    return (32, 32) if config.stem == "conv3" else (224, 224)


def _print_facts(facts: dict[str, Any]) -> None:
    height, width, channels = facts["image"]
    print(f"{facts['architecture'] or 'a net without a name'}")
    print(f"  parameters  {facts['parameters']:,} and {facts['statistics']:,} running statistics")
    print(f"  arithmetic  {facts['flops'] / 1e9:.2f} GFLOPs for {height}x{width}x{channels}")
    for name in ("source", "preprocess", "labels", "config"):
        if facts.get(name):
            print(f"  {name}")
            for key, value in facts[name].items():
                print(f"    {key:<26} {value}")
    print("  features                     channels  stride")
    for feature in facts["features"]:
        print(f"    {feature['name']:<24} {feature['channels']:>10} {feature['stride']:>7}")
    if "tree" in facts:
        print("  arrays")
        for path, shape in facts["tree"].items():
            print(f"    {path:<44} {tuple(shape)}")


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=1))


def _make_streams_safe() -> None:
    """Replaces closed ones, and lets through what the output's encoding has no letters for."""
    sys.stdout = sys.stdout or io.StringIO()  # None after `>&-`
    sys.stderr = sys.stderr or io.StringIO()  # else print would take stdout in its place
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")


def _say(message: str) -> None:
    print(f"resnetjax: {message}", file=sys.stderr)


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    _say(f"note: {message}")
