"""A dialect's arrays as ours, and ours as a dialect's."""

import re
from collections.abc import Collection, Mapping

import numpy as np

from resnetjax.config import ResNetConfig
from resnetjax.errors import ConfigError, WeightsMismatch
from resnetjax.measure import leaves
from resnetjax.plan import plan
from resnetjax.weights.dialect import Dialect, entries
from resnetjax.weights.numbered import in_order
from resnetjax.weights.own_head import dense_layers, in_words, own_head

MAX_LISTED = 1000  # problems in one message: more arrays than ResNet-152 has


def strip_root(dialect: Dialect, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays by their names without the dialect's prefixes and without what is no weight."""
    return {name: arrays[theirs] for theirs, name in stripped(dialect, arrays).items()}


def stripped(dialect: Dialect, arrays: Mapping[str, np.ndarray]) -> dict[str, str]:
    """The arrays' names by those in the file, likewise."""
    counter = f".{dialect.counter}"
    kept = {
        name: name
        for name in arrays
        if not (dialect.counter and name.endswith(counter))
        and not (dialect.ignored and re.fullmatch(dialect.ignored, name))
    }
    if dialect.scope and len({name.partition("/")[0] for name in kept}) == 1:
        kept = {name: name.partition("/")[2] for name in kept}
    own = own_head(dialect, arrays)
    for theirs in kept:
        layer, separator, leaf = theirs.rpartition(dialect.separator)
        if layer in own:
            kept[theirs] = own[layer] + separator + leaf
    if dialect.numbered:
        numbers = dialect.numbered.renumber(kept.values())
        return {theirs: numbers[name] for theirs, name in kept.items()}
    # One that is there with and without the prefix keeps it, and so is unexpected.
    names = set(kept.values())
    plain = {name: name.removeprefix(dialect.root) for name in names}
    return {theirs: name if plain[name] in names else plain[name] for theirs, name in kept.items()}


def load_arrays(
    dialect: Dialect,
    arrays: Mapping[str, np.ndarray],
    config: ResNetConfig,
    *,
    source: str,
    new_head: bool = False,
    strict: bool = True,
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Our arrays by path, as views of theirs where the layout allows, and what was skipped.

    Args:
        dialect: Whose names the arrays have.
        arrays: By their names.
        config: The net to fill.
        source: Named in errors.
        new_head: Leave the head out: it is not looked for, and theirs is not unexpected.
        strict: Raise if anything does not fit, once all of it has been looked at.

    Raises:
        WeightsMismatch: Arrays are missing, unexpected or mis-shaped; all are listed, by both
            names, but for those beyond `MAX_LISTED`, which are counted.
    """
    expected = leaves(plan(config))
    named = entries(dialect, config)
    theirs = strip_root(dialect, arrays)
    loaded, problems = {}, []
    for path, leaf in expected.items():
        if new_head and path.startswith("head/"):
            continue
        name = named[path].name
        if name not in theirs:
            problems.append(f"  missing     {name} -> {path} {leaf.shape}")
            continue
        array = named[path].load(theirs[name])
        if array is None or array.shape != leaf.shape:
            problems.append(f"  shape       {name} {theirs[name].shape} -> {path} {leaf.shape}")
        elif not _is_real(array.dtype):
            problems.append(f"  dtype       {name} {array.dtype} -> {path} float32")
        else:
            loaded[path] = array
    known = {named[path].name for path in expected}
    if new_head and dialect.head:
        known |= {name for name in theirs if name.startswith(dialect.head + dialect.separator)}
    unexpected = [name for name in theirs if name not in known]
    problems += [f"  unexpected  {name} {theirs[name].shape}" for name in unexpected]
    if problems and strict:
        raise WeightsMismatch(
            f"{source} does not fit (dialect {dialect.name}):\n"
            + "\n".join(problems[:MAX_LISTED])
            + (f"\n  and {more} more" if (more := len(problems) - MAX_LISTED) > 0 else "")
            + _of_the_head(dialect, arrays, unexpected)
            + "\nPass arch= or config= for another architecture, "
            + "num_classes= for a new head, " * (not new_head)
            + "or strict=False to skip what does not fit (it lists what it skipped)."
        )
    return loaded, tuple(line.strip() for line in problems)


def _of_the_head(
    dialect: Dialect, arrays: Mapping[str, np.ndarray], unexpected: Collection[str]
) -> str:
    """What a message says of the dense layers, where they are not just the head.

    Args:
        dialect: Whose names the arrays have.
        arrays: By their names in the file.
        unexpected: The dialect's names of those that the net does not have.
    """
    if own := own_head(dialect, arrays):
        return f"\n{in_words(own)}."
    leaf = dialect.separator + dialect.leaf_names["dense"]
    dense = list(dense_layers(dialect, arrays))
    if len(dense) < 2 or not any(name + leaf in unexpected for name in dense):
        return ""
    return (
        f"\nThe file has {len(dense)} dense layers ({', '.join(dense):.300}), which do not follow "
        "one another as those of a head do: strict=False loads the net below them."
    )


def save_arrays(
    dialect: Dialect, ours: Mapping[str, np.ndarray], config: ResNetConfig
) -> dict[str, np.ndarray]:
    """Their arrays by their names, contiguous, ready to be written.

    Raises:
        ConfigError: An array of the config's is lacking, or of another shape.
    """
    for path, leaf in leaves(plan(config)).items():
        if path not in ours or ours[path].shape != leaf.shape:
            found = f"has {ours[path].shape}" if path in ours else "is lacking"
            raise ConfigError(f"variables: {path} {found}, where the config has {leaf.shape}")
    root = dialect.root if config.num_classes else ""
    scope = dialect.scope.format(layers=_layers(config))
    theirs: dict[str, np.ndarray] = {}
    found = entries(dialect, config)
    if dialect.listing:
        modules = in_order(config, dialect.listing)
        found = dict(sorted(found.items(), key=lambda x: modules.index(x[0].rpartition("/")[0])))
    for path, named in found.items():
        prefix = scope if path.startswith("head/") else scope + root
        theirs[prefix + named.name] = named.save(np.asarray(ours[path]))
        if dialect.counter and path.endswith("/var"):
            module = named.name.rpartition(".")[0]
            theirs[f"{prefix}{module}.{dialect.counter}"] = np.zeros((), np.int64)
    return theirs


def _layers(config: ResNetConfig) -> int:
    """How papers count: the stem, the convolutions on the main path of every block, the head."""
    kinds = zip(config.blocks, config.depths, strict=True)
    return 2 + sum(depth * (3 if kind == "bottleneck" else 2) for kind, depth in kinds)


def _is_real(dtype: np.dtype) -> bool:
    # bfloat16 and float8 come from ml_dtypes, whose kind is "V".
    return dtype.kind == "f" or (dtype.kind == "V" and "float" in dtype.name)
