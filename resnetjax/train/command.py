"""`resnetjax train` and `resnetjax evaluate`, from their arguments to their last lines."""

import dataclasses
import functools
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import jax
import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from resnetjax import zoo
from resnetjax.data.datasets import open_dataset
from resnetjax.errors import ConfigError, DataStalled
from resnetjax.train.evaluate import evaluate_pretrained, read_real_labels
from resnetjax.train.loop import train
from resnetjax.train.preview import preview
from resnetjax.train.recipe import Recipe, read_recipe
from resnetjax.train.run_folder import RunFolder
from resnetjax.train.setup import Setup
from resnetjax.train.sharding import join_processes
from resnetjax.train.transfer import starting_from


@dataclass(frozen=True, kw_only=True)
class TrainArguments:
    """Train a net as a recipe says; in a folder that holds the run already, go on with it.

    Attributes:
        workdir: Folder of the run; runs/NAME by default, after the recipe's file.
        model: Start from this pretrained net, with its architecture, preprocessing and image size:
            anything that `resnetjax.load` reads. Other flags go before what it says.
        data: The images; the same as --data.path.
        dry_run: Print sizes and memory, draw the first batch, and train nothing.
        allow_changes: Go on in a folder whose run had another recipe.
        profile: Write a trace of ten steps into the folder.
        tensorboard: Write TensorBoard's files into the folder.
        coordinator: Address and port of process 0, where nothing tells (Slurm, Kubernetes, TPU).
        processes: How many processes there are.
        process: Which of them this is, from 0.
        recipe: The recipe's own fields.
    """

    workdir: Path
    model: str | None = None
    data: str | None = None
    dry_run: bool = False
    allow_changes: bool = False
    profile: bool = False
    tensorboard: bool = False
    coordinator: str | None = None
    processes: int | None = None
    process: int | None = None
    recipe: Annotated[Recipe, tyro.conf.arg(name="")] = field(default_factory=Recipe)


def train_command(arguments: Sequence[str], *, prog: str) -> int:
    """Trains; the first argument is the recipe's file, the others override its fields.

    Returns:
        0, or 128 and the number of the signal that ended the run.
    """
    arguments = list(arguments) or ["--help"]
    path = None if arguments[0].startswith("-") else arguments.pop(0)
    if path is None and not {"-h", "--help"} & set(arguments):
        raise ConfigError(f"name a recipe before all flags: {prog} configs/NAME.py --workdir DIR")
    recipe = read_recipe(path) if path else Recipe()
    parse = functools.partial(
        tyro.cli,
        TrainArguments,
        prog=f"{prog} {path or 'RECIPE.py'}",
        args=arguments,
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    defaults = TrainArguments(workdir=Path("runs") / Path(path or "recipe").stem, recipe=recipe)
    chosen = parse(default=defaults)
    if chosen.model is not None:  # what it says are defaults for the other flags
        recipe = starting_from(recipe, chosen.model)
        chosen = parse(default=dataclasses.replace(defaults, recipe=recipe))
    if chosen.data is not None:
        data = dataclasses.replace(chosen.recipe.data, path=chosen.data)
        recipe = dataclasses.replace(chosen.recipe, data=data)
        chosen = dataclasses.replace(chosen, recipe=recipe)
    join_processes(
        coordinator=chosen.coordinator, processes=chosen.processes, process=chosen.process
    )
    RunFolder(chosen.workdir).check()  # before the data is looked through
    if chosen.dry_run:
        with Setup(chosen.recipe) as setup:
            print("\n".join(preview(setup, RunFolder(chosen.workdir).first_batch)))
        return 0
    try:
        outcome = train(
            chosen.recipe,
            chosen.workdir,
            allow_changes=chosen.allow_changes,
            profile=chosen.profile,
            tensorboard=chosen.tensorboard,
        )
    except DataStalled as error:
        print(f"resnetjax: error: {error}", file=sys.stderr, flush=True)
        os._exit(2)  # a thread that hangs in the file system would keep the interpreter waiting
    if outcome.signal:
        print(f"stopped by signal {outcome.signal} after step {outcome.step}; the same command "
              "goes on from there", file=sys.stderr)  # fmt: skip
        return 128 + outcome.signal
    if jax.process_index() == 0:
        print(f"state sha256 {outcome.digest}")
    return 0


@dataclass(frozen=True, kw_only=True)
class EvaluateArguments:
    """Score a net on a data set: top-1 and top-5, every image counted once.

    Attributes:
        model: A weight file, a directory, or the folder of a training run.
        data: A data set in any layout that training reads.
        split: Of the data.
        batch_size: Images run at once, over all devices.
        workers: Processes that read and decode; 0 reads in threads.
        real_labels: ImageNet-ReaL's real.json, in place of the data's labels.
        arch: Name of the architecture, where the file cannot tell.
        json: Print one JSON object.
    """

    model: Annotated[str, tyro.conf.Positional]
    data: Annotated[str, tyro.conf.Positional]
    split: str | None = None
    batch_size: int = 128
    workers: int = 0
    real_labels: Path | None = None
    arch: str | None = None
    json: bool = False


def evaluate_command(arguments: Sequence[str], *, prog: str) -> int:
    """Prints a net's score on a data set; 0, or 2 where images could not be read."""
    chosen = tyro.cli(
        EvaluateArguments, prog=prog, args=arguments, config=(tyro.conf.FlagCreatePairsOff,)
    )
    pretrained = zoo.load(chosen.model, arch=chosen.arch)
    dataset = open_dataset(chosen.data, split=chosen.split)
    classes = len(dataset.class_names) or pretrained.config.num_classes
    right = chosen.real_labels and read_real_labels(chosen.real_labels, num_classes=classes)
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    )  # fmt: skip
    hidden = not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=hidden) as bar:
        task = bar.add_task("evaluating", total=len(dataset))
        score = evaluate_pretrained(
            pretrained,
            dataset,
            batch_size=chosen.batch_size,
            workers=chosen.workers,
            labels=right,
            name=f"the split {chosen.split}" if chosen.split else chosen.data,
            progress=lambda done: bar.update(task, completed=done),
        )
    for line in score.bad:
        print(f"resnetjax: error: {line}", file=sys.stderr)
    if chosen.json:
        facts = {"model": chosen.model, "data": chosen.data, **score.to_json()}
        print(json.dumps(facts, indent=1))
    else:
        print(f"{score.text} of {score.examples:,} images")
    return 2 if score.bad else 0
