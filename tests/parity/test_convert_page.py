"""docs/convert.md, run as it stands: the real frameworks make the files, in the page's order."""

import os
import re
import shlex
import subprocess
import warnings
from pathlib import Path

import jax
import pytest

from resnetjax import cli
from tests.parity.tensorflow_side import interpreter

pytestmark = [
    pytest.mark.parity,
    # Of Keras and PyTorch: the legacy format, and arrays that are not writable.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning"),
]

PAGE = Path(__file__).parents[2] / "docs" / "convert.md"


def sections() -> list[tuple[str, list[tuple[str, str]]]]:
    """Titles with their fenced blocks: what they are in, and their text."""
    parts = re.split(r"^## (.+)$", PAGE.read_text(), flags=re.MULTILINE)[1:]
    fence = re.compile(r"^```(.*?)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    return [
        (title, fence.findall(text)) for title, text in zip(parts[::2], parts[1::2], strict=True)
    ]


def run_command(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Ends as the comment behind it says: with an error that names a field, or well."""
    command, _, comment = line.partition("#")
    with warnings.catch_warnings(), pytest.raises(SystemExit) as ended:
        cli.main(shlex.split(command)[1:])
    said = capsys.readouterr()
    if field := comment.strip().removeprefix("error: "):
        assert ended.value.code == 2, command
        assert field in said.err
    else:
        assert ended.value.code == 0, f"{command}\n{said.err}"
        assert said.out


def test_the_page_runs_in_order(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    scope: dict[str, object] = {}
    for title, blocks in sections():
        assert blocks, title
        for language, text in blocks:
            if language == "sh":
                for line in text.splitlines():
                    run_command(line, capsys)
            elif language == "python tensorflow":
                python = [interpreter(), "-c", text]
                others = {k: v for k, v in os.environ.items() if k != "KERAS_BACKEND"}
                done = subprocess.run(python, capture_output=True, text=True, env=others)
                assert done.returncode == 0, f"{title}\n{done.stderr}"
            else:
                assert language == "python", title
                # Ranks as JAX's default has them, and packages here need: they may broadcast.
                with warnings.catch_warnings(), jax.numpy_rank_promotion("allow"):
                    warnings.simplefilter("ignore")
                    exec(compile(text, f"{PAGE}: {title}", "exec"), scope)
