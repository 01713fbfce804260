"""A net onto Hugging Face: the native directory, with a model card."""

import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from resnetjax import saving
from resnetjax.errors import ConfigError, MissingExtra, UploadFailed
from resnetjax.infer.model_card import card
from resnetjax.pretrained import Pretrained


def push(
    pretrained: Pretrained,
    repository: str,
    *,
    private: bool = False,
    origin: str | None = None,
    metrics: Mapping[str, str] | None = None,
    message: str | None = None,
    token: str | None = None,
) -> str:
    """The address of a repository that has got a net, for `load("hf://owner/name")`.

    It is made where it is absent; what it holds under other names stays.

    Args:
        pretrained: The net: `config.json` and `model.safetensors`, as `save` writes them.
        repository: `owner/name`.
        private: For one that is made: only its owner sees it.
        origin: For the card, as `model_card.card` takes it.
        metrics: The same.
        message: Of the commit.
        token: Of an account that may write there; None is `$HF_TOKEN`, or that of `hf auth login`.

    Raises:
        ConfigError: The name is not allowed, or there is no token.
        MissingExtra: huggingface_hub is not installed.
        UploadFailed: The hub refuses, or there is no connection to it.
    """
    check_name(repository)
    hub, faults = _hub()
    token = token or find_token()
    with tempfile.TemporaryDirectory(prefix="resnetjax-") as folder:
        saving.save(pretrained, folder)
        text = card(pretrained, repository, origin=origin, metrics=metrics)
        (Path(folder) / "README.md").write_text(text, encoding="utf-8")
        api = hub.HfApi(token=token)
        try:
            # Only True is passed on: where nothing is said, an organisation's own default holds.
            api.create_repo(repository, private=private or None, exist_ok=True)
            api.upload_folder(
                repo_id=repository,
                folder_path=folder,
                commit_message=message or "Upload a net by resnetjax",
            )
        except faults as error:
            reason = _reason(error)
            raise UploadFailed(
                f"{repository} cannot be pushed to {hub.constants.ENDPOINT}: {reason:.400}\n"
                "$HF_TOKEN must be of an account that may write there ($HF_ENDPOINT names another "
                "hub)."
            ) from error
    return f"{hub.constants.ENDPOINT}/{repository}"


def check_name(repository: str) -> None:
    """Refuses what is no `owner/name`.

    Raises:
        ConfigError: It is none.
    """
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", repository, re.ASCII):
        raise ConfigError(f"repository {repository!r} is not allowed: use owner/name")


def find_token() -> str:
    """The token of `$HF_TOKEN`, or of `hf auth login`.

    Raises:
        ConfigError: There is none.
        MissingExtra: huggingface_hub is not installed.
    """
    if token := _hub()[0].get_token():
        return token
    raise ConfigError(
        "no token to push with: set HF_TOKEN to one with write access "
        "(https://huggingface.co/settings/tokens), or run `hf auth login`"
    )


def _reason(error: BaseException) -> str:
    """What an error says, and the one that it comes from."""
    text = " ".join(str(error).split()) or type(error).__name__
    return f"{text} {_reason(error.__cause__)}" if error.__cause__ else text


def _hub() -> tuple[Any, tuple[type[Exception], ...]]:
    """The library, and what it raises for a connection or a request that fails."""
    try:
        import huggingface_hub
        from huggingface_hub.errors import HfHubHTTPError
    except ImportError as error:
        text = 'push needs huggingface_hub: pip install "resnetjax[hub]"'
        raise MissingExtra(text) from error
    # As in weights/hugging_face.py: the HTTPError of httpx or httpx2, and hf_xet's RuntimeError.
    return huggingface_hub, (HfHubHTTPError.__bases__[0], OSError, ValueError, RuntimeError)
