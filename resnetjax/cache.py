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
