"""A server on this machine that fails as it is told to, and remembers what it was asked."""

import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


@dataclass
class Page:
    """What the server answers to a path.

    Attributes:
        body: The whole file.
        status: For other than 200 and 206, with no body.
        headers: Beside those of the body.
        ranges: Whether parts are given.
        if_range: Whether parts are kept back from who has another ETag's.
        etag: As it is sent; None for none.
        cut_after: Bytes of the response after which the connection is closed.
        length: Whether Content-Length is sent.
        gate: Waited for in the middle of the body.
    """

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    ranges: bool = True
    if_range: bool = True
    etag: str | None = '"1"'
    cut_after: int | None = None
    length: bool = True
    gate: threading.Event | None = None


@dataclass
class Seen:
    method: str
    path: str
    headers: dict[str, str]
    status: int = 0
    sent_bytes: int = 0
    body: bytes = b""


class Server:
    """Answers by path from `pages`: with a page, or with each of a list in turn, then its last.

    What is sent to it (POST, PUT) is answered by what `actions` makes of the body.
    """

    def __init__(self) -> None:
        self.pages: dict[str, Page | list[Page]] = {}
        self.actions: dict[str, Callable[[bytes], Page]] = {}
        self.seen: list[Seen] = []
        self.half_sent = threading.Event()
        self._lock = threading.Lock()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._http.daemon_threads = True
        self._thread = threading.Thread(
            target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
        )
        self._thread.start()
        self.address = f"http://127.0.0.1:{self._http.server_address[1]}"

    def url(self, path: str) -> str:
        return self.address + path

    def page(self, path: str) -> Page:
        with self._lock:
            page = self.pages.get(path, Page(status=404))
            if isinstance(page, list):
                page = page.pop(0) if len(page) > 1 else page[0]
            return page

    def stop(self) -> None:
        if self._thread.is_alive():
            self._http.shutdown()
            self._thread.join()
        self._http.server_close()


@contextmanager
def running() -> Iterator[Server]:
    server = Server()
    try:
        yield server
    finally:
        server.stop()


def _handler(server: Server) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        # HTTP/1.0, the default: kept alive, a connection would outlive the server.
        def do_GET(self) -> None:
            self._answer(send=True)

        def do_HEAD(self) -> None:
            self._answer(send=False)

        def do_POST(self) -> None:
            path = unquote(urlsplit(self.path).path)
            body = self._read_body()
            page = server.actions[path](body) if path in server.actions else Page(status=404)
            server.seen.append(Seen(self.command, path, dict(self.headers), page.status, body=body))
            self.send_response(page.status)
            for name, value in {"Content-Length": str(len(page.body)), **page.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(page.body)

        do_PUT = do_POST  # noqa: N815

        def _read_body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body

        def _answer(self, *, send: bool) -> None:
            path = unquote(urlsplit(self.path).path)
            seen = Seen(self.command, path, dict(self.headers))
            server.seen.append(seen)
            page = server.page(path)
            asked = re.match(r"bytes=(\d+)-$", self.headers.get("Range", ""))
            same = not page.if_range or self.headers.get("If-Range") in (None, page.etag)
            status, start = page.status, 0
            if status == 200 and asked and page.ranges and same:
                status, start = 206, int(asked[1])
                if start >= len(page.body):
                    status = 416
            body = page.body[start:] if status in (200, 206) else b""
            seen.status = status
            self.send_response(status)
            if status == 206:
                self.send_header(
                    "Content-Range", f"bytes {start}-{len(page.body) - 1}/{len(page.body)}"
                )
            if page.length:
                self.send_header("Content-Length", str(len(body)))
            if page.etag:
                self.send_header("ETag", page.etag)
            for name, value in page.headers.items():
                self.send_header(name, value.replace("{address}", server.address))
            self.end_headers()
            if not send:
                return
            body = body[: page.cut_after]
            half = len(body) // 2
            self._write(seen, body[:half])
            if page.gate is not None:
                server.half_sent.set()
                page.gate.wait(20)
            self._write(seen, body[half:])

        def _write(self, seen: Seen, body: bytes) -> None:
            # Before it is sent: who has read it all may look at the count at once.
            seen.sent_bytes += len(body)
            try:
                self.wfile.write(body)
                self.wfile.flush()
            except (BrokenPipeError, ConnectionResetError):
                seen.sent_bytes -= len(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler


def serve_repository(
    server: Server, name: str, files: dict[str, bytes], *, commit: str, revision: str = "main"
) -> None:
    """Serves what huggingface_hub asks of a repository: its files with digests, and each file."""
    siblings = []
    for file, content in files.items():
        blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        sibling = {"rfilename": file, "size": len(content), "blobId": blob}
        etag = blob
        if file.endswith((".safetensors", ".bin")):
            etag = hashlib.sha256(content).hexdigest()
            sibling["lfs"] = {"sha256": etag, "size": len(content), "pointerSize": 100}
        siblings.append(sibling)
        page = Page(content, etag=f'"{etag}"', headers={"X-Repo-Commit": commit})
        server.pages[f"/{name}/resolve/{commit}/{file}"] = page
    info = {"id": name, "sha": commit, "siblings": siblings, "tags": [], "private": False}
    page = Page(json.dumps(info).encode(), headers={"Content-Type": "application/json"})
    for path in (f"/api/models/{name}", f"/api/models/{name}/revision/{revision}"):
        server.pages[path] = page
