"""Where what can be made or fetched again is kept."""

import os
import sys
from pathlib import Path


def cache_folder() -> Path:
    """The folder for what can be made again: `$RESNETJAX_HOME`, or the platform's."""
    if home := os.environ.get("RESNETJAX_HOME"):
        return Path(home).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "resnetjax"
    base = os.environ.get("LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "resnetjax"


def keep_compiled() -> None:
    """What takes JAX long to compile is kept for the next run, where its own settings say nothing.

    `JAX_COMPILATION_CACHE_DIR` names another folder, `JAX_ENABLE_COMPILATION_CACHE=0` keeps none.
    """
    import jax

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "compiled"))
