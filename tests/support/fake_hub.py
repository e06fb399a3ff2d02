"""A model hub in a thread: what huggingface_hub asks for, answered from memory."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

_INFO = re.compile(r"/api/models/(?P<repository>[^/]+/[^/]+)(/revision/(?P<revision>.+))?")
_FILE = re.compile(r"/(?P<repository>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<name>.+)")


class Request(NamedTuple):
    """What a client asked for."""

    method: str
    path: str
    range: str | None


class Refusal(NamedTuple):
    """An answer other than success."""

    status: int
    code: str = ""  # of the hub's own error header


class FakeHub:
    """Repositories by id, their commits, and how the hub is to misbehave."""

    def __init__(self) -> None:
        self.url = ""
        self.requests: list[Request] = []
        self.refusals: dict[str, Refusal] = {}  # by the end of the path that is asked for
        self.cut_after: dict[str, int] = {}  # bytes of a file, by name, after which its next transfer breaks off
        self._files: dict[tuple[str, str], dict[str, bytes]] = {}  # by repository and commit
        self._commits: dict[tuple[str, str], str] = {}  # by repository and revision

    def publish(self, repository: str, source: Path | Mapping[str, bytes], revision: str = "main") -> str:
        """Make a folder, or files by name, the newest commit of a branch or tag; returns the commit."""
        if isinstance(source, Path):
            found = (file for file in source.rglob("*") if file.is_file())
            files = {file.relative_to(source).as_posix(): file.read_bytes() for file in found}
        else:
            files = dict(source)
        names_and_digests = sorted((name, hashlib.sha256(content).hexdigest()) for name, content in files.items())
        commit = hashlib.sha1(repr(names_and_digests).encode(), usedforsecurity=False).hexdigest()
        self._files[repository, commit] = files
        self._commits[repository, commit] = self._commits[repository, revision] = commit
        return commit

    def downloads(self) -> list[str]:
        """Names of the files that were downloaded, wholly or in part."""
        found = (_FILE.fullmatch(request.path) for request in self.requests if request.method == "GET")
        return sorted({file["name"] for file in found if file})

    def answer(self, request: Request) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body."""
        for path, refusal in self.refusals.items():
            if request.path.endswith(path):
                return refusal.status, {"X-Error-Code": refusal.code}, b""
        matches = (pattern.fullmatch(request.path) for pattern in (_INFO, _FILE))
        asked = next((match.groupdict() for match in matches if match), None)
        repository = asked["repository"] if asked else ""
        if asked is None or (repository, "main") not in self._commits:
            return 404, {"X-Error-Code": "RepoNotFound"}, b""
        commit = self._commits.get((repository, asked["revision"] or "main"))
        if commit is None:
            return 404, {"X-Error-Code": "RevisionNotFound"}, b""
        files = self._files[repository, commit]
        if "name" in asked:
            return _file(files, asked["name"], commit, request.range)
        siblings = [{"rfilename": name} for name in files]
        return 200, {}, json.dumps({"id": repository, "sha": commit, "siblings": siblings}).encode()


@contextmanager
def running_hub() -> Iterator[FakeHub]:
    """A hub that answers at its `url` until the block ends."""
    hub = FakeHub()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            request = Request(self.command, path, self.headers["Range"])
            hub.requests.append(request)
            status, headers, body = hub.answer(request)
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body[: hub.cut_after.pop(path.rpartition("/")[2], None)])

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _file(files: Mapping[str, bytes], name: str, commit: str, wanted: str | None) -> tuple[int, dict[str, str], bytes]:
    if name not in files:
        return 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit}, b""
    content = files[name]
    headers = {
        "ETag": f'"{_etag(content)}"',
        "X-Repo-Commit": commit,
        "X-Linked-Size": str(len(content)),
        "Accept-Ranges": "bytes",
    }
    if wanted is None:
        return 200, headers, content
    start = int(wanted.removeprefix("bytes=").removesuffix("-"))
    if start >= len(content):
        return 416, {"Content-Range": f"bytes */{len(content)}"}, b""
    headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
    return 206, headers, content[start:]


def _etag(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
