"""A hub on loopback: a real HTTP server that serves folders as repositories, and misbehaves when told to."""

from __future__ import annotations

import hashlib
import json
import re
import socket
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from stub_repo import Repo

VALID = "hf_valid_0123456789"
"""A token that the stub knows; of an account that may not read what is gated."""
ACCEPTED = "hf_accepted_0123456789"
"""One whose account accepted the terms."""

_PIECE_BYTES = 16 * 1024
_API = re.compile(r"/api/models/(?P<name>[^/]+/[^/]+)(/(?P<kind>revision|tree)/(?P<revision>[^/]+))?/?$")
_RESOLVE = re.compile(r"/(?P<name>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>.+)")


@dataclass(frozen=True)
class Request:
    """What was asked for."""

    method: str
    path: str
    authorization: str | None
    range: str | None


class StubHub:
    """Serves until ``close``; ``requests`` are all that came."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.requests: list[Request] = []
        self.connections = 0
        self.silent = threading.Event()
        """Set once a client waits for something that will not come."""
        self._closing = threading.Event()
        hub = self

        class Handler(_Handler):
            stub = hub

        self._server = _Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def add(self, name: str, folder: Path, **wrong) -> Repo:
        """Serve a folder."""
        commit = hashlib.sha1(f"{name} {len(self.repos)}".encode()).hexdigest()
        self.repos[name] = Repo(folder, commit, **wrong)
        return self.repos[name]

    def asked(self, *, method: str = "GET", containing: str = "") -> list[str]:
        """The paths that were asked for."""
        return [one.path for one in self.requests if one.method == method and containing in one.path]

    def be_silent(self) -> None:
        """Hold the caller until the hub closes."""
        self.silent.set()
        self._closing.wait()

    def close(self) -> None:
        """End it and whoever still waits."""
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def unused_address() -> str:
    """An address nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address) -> None:
        """A client that hangs up is what some tests are about; anything else is a fault of the stub."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    stub: StubHub

    def setup(self) -> None:
        super().setup()
        self.stub.connections += 1

    def log_message(self, *_) -> None:
        pass

    def do_HEAD(self) -> None:
        self._serve()

    def do_GET(self) -> None:
        self._serve()

    def _serve(self) -> None:
        authorization, span = self.headers.get("Authorization"), self.headers.get("Range")
        self.stub.requests.append(Request(self.command, self.path, authorization, span))
        address = urlsplit(self.path)
        with suppress(ConnectionError):
            if api := _API.fullmatch(address.path):
                self._answer_api(api["name"], api["kind"], api["revision"], parse_qs(address.query))
            elif resolve := _RESOLVE.fullmatch(address.path):
                self._answer_file(resolve["name"], resolve["revision"], unquote(resolve["file"]))
            else:
                self._refuse(404)

    def _repo(self, name: str, revision: str | None) -> Repo | None:
        """The repository, or ``None`` when its refusal has been sent."""
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token and token not in {VALID, ACCEPTED}:
            return self._refuse(401, "Invalid credentials in Authorization header")
        repo = self.stub.repos.get(name)
        if repo is None or (repo.private and token != ACCEPTED):
            if token:
                return self._refuse(404, "Repository not found", "RepoNotFound")
            return self._refuse(401, "Invalid username or password.")
        if repo.status is not None:
            return self._refuse(repo.status, "as told")
        if revision not in {None, "main", repo.commit}:
            return self._refuse(404, "Invalid rev id", "RevisionNotFound")
        return repo

    def _answer_api(self, name: str, kind: str | None, revision: str | None, query: dict) -> None:
        repo = self._repo(name, revision)
        if repo is None:
            return
        if repo.silent_listing:
            self.stub.be_silent()
            return
        files = repo.files()
        if kind == "tree":
            answer = [
                {"type": "file", "path": path, "size": entry["size"], "oid": entry["blobId"]}
                | (
                    {"lfs": {"oid": lfs["sha256"], "size": lfs["size"], "pointerSize": 99}}
                    if (lfs := entry.get("lfs"))
                    else {}
                )
                for path, entry in files.items()
            ]
        else:
            detailed = "blobs" in query and not repo.names_alone
            siblings = [{"rfilename": path} | (entry if detailed else {}) for path, entry in files.items()]
            answer = {"id": name, "sha": repo.commit, "siblings": siblings + repo.extra_files}
        self._send(200, json.dumps(answer).encode() if repo.listing is None else repo.listing, cut=repo.cut_listing)

    def _answer_file(self, name: str, revision: str, file: str) -> None:
        repo = self._repo(name, revision)
        if repo is None:
            return
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if repo.gated and token != ACCEPTED:
            self._refuse(403 if token else 401, "Access to model is restricted", "GatedRepo")
            return
        entry = repo.files().get(file)
        if entry is None:
            self._refuse(404, "Entry not found", "EntryNotFound")
            return
        headers = {"X-Repo-Commit": repo.commit, "ETag": f'"{entry["blobId"]}"', "Accept-Ranges": "bytes"}
        if "lfs" in entry:
            headers |= {"ETag": f'"{entry["lfs"]["sha256"]}"', "X-Linked-Size": str(entry["lfs"]["size"])}
        if repo.redirect:
            self._send(302, b"", headers | {"Location": f"{repo.redirect}{self.path}"})
            return
        content = repo.replaced.get(file, (repo.folder / file).read_bytes())
        status, start, end = 200, 0, len(content)
        if not repo.ignores_ranges and (span := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")):
            start, end = int(span[1]), min(int(span[2]) + 1 if span[2] else end, end)
            if start >= len(content):
                self._refuse(416)
                return
            status, headers = 206, headers | {"Content-Range": f"bytes {start}-{end - 1}/{len(content)}"}
        cut, silent_after = None, None
        if self.command == "GET":
            cut, silent_after = repo.limits(file, start, is_part=status == 206 and bool(span[2]))
        self._send(status, content[start:end], headers, cut=cut, silent_after=silent_after)

    def _send(
        self, status: int, content: bytes, headers=(), *, cut: int | None = None, silent_after: int | None = None
    ) -> None:
        self.send_response(status)
        for name, value in dict(headers).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "HEAD":
            return
        for place in range(0, len(content), _PIECE_BYTES):
            piece = content[place : place + _PIECE_BYTES]
            for limit in (cut, silent_after):
                if limit is not None and place + len(piece) > limit:
                    self.wfile.write(piece[: max(limit - place, 0)])
                    self.wfile.flush()
                    if limit != cut:
                        self.stub.be_silent()
                    self.close_connection = True
                    return
            self.wfile.write(piece)

    def _refuse(self, status: int, message: str = "no", code: str | None = None) -> None:
        headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        self._send(status, json.dumps({"error": message}).encode(), headers)
