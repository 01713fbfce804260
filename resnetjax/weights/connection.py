"""Connections to where published files are: https, with a timeout, and no redirect elsewhere."""

import http.client
import ipaddress
import os
import re
import urllib.request
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit

from resnetjax.errors import ConfigError, DownloadFailed

MAX_TIMEOUT_SECONDS = 86_400  # sockets take no infinity
_PASSING = (408, 425, 429, 500, 502, 503, 504)


class Fault(Exception):
    """A fault that may pass: worth another attempt."""


class NoSuchPart(Fault):
    """The file that the server has does not go on where a part of it ends."""


def timeout_seconds() -> float:
    """How long a connection may stay silent: `$RESNETJAX_TIMEOUT`, or 30 seconds.

    Raises:
        ConfigError: The variable holds no such number.
    """
    text = os.environ.get("RESNETJAX_TIMEOUT") or "30"
    try:
        if 0 < (seconds := float(text)) <= MAX_TIMEOUT_SECONDS:
            return seconds
    except ValueError:
        pass
    raise ConfigError(
        f"RESNETJAX_TIMEOUT={text!r} is not allowed: use seconds, above 0 and at "
        f"most {MAX_TIMEOUT_SECONDS:,}"
    )


def check_address(address: str, *, plain: bool) -> None:
    """Refuses what is no address of a file, or what anyone on the way could change.

    Args:
        address: To be checked.
        plain: Whether http is as good as https: where a full digest is known. From this machine
            itself, it always is.

    Raises:
        ConfigError: The address is refused.
    """
    try:
        parts = urlsplit(address)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise ConfigError(f"address {address!r} is not allowed: {error}") from error
    if not host or re.search(r"[\s\0-\x1f]", address):
        raise ConfigError(f"address {address!r} is not allowed: use https://host/path")
    if parts.username is not None:
        raise ConfigError("addresses with a user's name or password are not allowed")
    if parts.scheme != "https" and not plain and not _is_local(host):
        raise ConfigError(f"address {address!r} is not allowed: use https, or a full sha256 digest")


def _is_local(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects from https to https only, and from http to either."""

    def redirect_request(self, req: Any, fp: Any, code: Any, msg: Any, headers: Any, newurl: Any):
        """The request to make in place of one that was redirected."""
        old, new = urlsplit(req.full_url).scheme, urlsplit(newurl).scheme
        if new not in ("https", old) or new not in ("https", "http"):
            raise HTTPError(newurl, code, f"it leads from {old} to {new}", headers, fp)
        fp.close()  # else its body is read whole, whatever its size
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def connect(address: str, headers: dict[str, str]) -> http.client.HTTPResponse:
    """The response to a GET, whatever success it reports; to be closed.

    Raises:
        Fault: For what may pass.
        DownloadFailed: For what does not.
    """
    # Not build_opener: it opens file:, ftp: and data: too.
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPErrorProcessor,
        urllib.request.UnknownHandler,
        _Redirects,
    ):
        opener.add_handler(handler())
    agent = {"User-Agent": "resnetjax", "Accept-Encoding": "identity"}
    request = urllib.request.Request(address, headers={**agent, **headers})
    try:
        return opener.open(request, timeout=timeout_seconds())
    except HTTPError as error:
        error.close()
        text = f"the server answers {error.code} {error.msg}"
        if error.code in _PASSING:
            raise Fault(text) from error
        if error.code == 416:
            raise NoSuchPart(text) from error
        if 300 <= error.code < 400:
            text = f"a redirect is not followed: {error.msg.strip()}"
            text = "it is redirected too often" if "infinite loop" in error.msg else text
        raise DownloadFailed(f"{address} cannot be fetched: {text}") from error
    except http.client.InvalidURL as error:
        raise DownloadFailed(f"{address} cannot be fetched: {error}") from error
    except URLError as error:
        text = f"no connection to {urlsplit(address).hostname}: {reason_of(error.reason)}"
        if isinstance(error.reason, (ConnectionResetError, ConnectionAbortedError)):
            raise Fault(text) from error
        # Not tried again: without a network, one wants to know at once.
        raise DownloadFailed(f"{address} cannot be fetched: {text}") from error
    except (OSError, http.client.HTTPException) as error:
        raise Fault(f"no answer: {reason_of(error)}") from error


def reason_of(error: object) -> str:
    """The short text of an error."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
