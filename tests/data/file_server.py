"""A real HTTP server of a folder, in a thread of the test, that misbehaves as it is told."""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit


@dataclass
class FileServer:
    """What the server does. Every kind of fault comes to the next `count` requests for files that match `pattern`."""

    folder: Path
    ranges: bool = True
    fault: str = ""  # a status as digits, stall, drip, cut, short, reset, flip
    pattern: str = ""
    count: int = 10**9
    requests: Counter[str] = field(default_factory=Counter)  # by name of the file
    sent: Counter[str] = field(default_factory=Counter)  # bytes of content
    url: str = ""
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _stop: threading.Event = field(default_factory=threading.Event)

    def misbehave(self, fault: str, pattern: str, count: int = 10**9) -> None:
        """Set a fault."""
        self.fault, self.pattern, self.count = fault, pattern, count

    def next_fault(self, name: str) -> str:
        """The fault of a request for this file."""
        with self._lock:
            self.requests[name] += 1
            if not self.fault or not re.search(self.pattern, name) or self.count <= 0:
                return ""
            self.count -= 1
            return self.fault


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    files: FileServer

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        path = self.files.folder / unquote(urlsplit(self.path).path).lstrip("/")
        fault = self.files.next_fault(path.name)
        if fault.isdigit():
            self._send(int(fault), b"refused")
        elif not path.is_file():
            self._send(404, b"")
        else:
            self._send_file(path.read_bytes(), path.name, fault)

    def _send_file(self, content: bytes, name: str, fault: str) -> None:
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        status = 200
        if wanted and self.files.ranges:
            begin = int(wanted[1])
            if begin >= len(content):
                self._send(416, b"")
                return
            content = content[begin : int(wanted[2]) + 1 if wanted[2] else None]
            status = 206
        if fault == "flip":
            content = content[:-1] + bytes([content[-1] ^ 1])
        elif fault == "short":
            content = content[: len(content) // 2]
        elif fault == "stall":
            self.files._stop.wait(20)
            self.close_connection = True
            return
        elif fault == "drip":
            self._drip(status, content)
            return
        elif fault == "reset":
            self.close_connection = True
            self.connection.close()
            return
        self._send(status, content, name, cut=len(content) // 2 if fault == "cut" else None)

    def _drip(self, status: int, content: bytes) -> None:
        """A byte now and then, without end."""
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.close_connection = True
        try:
            while not self.files._stop.wait(0.02):
                self.wfile.write(content[:1])
        except OSError:  # the reader has seen enough
            return

    def _send(self, status: int, content: bytes, name: str = "", cut: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        try:
            self.wfile.write(content[:cut])
            self.wfile.flush()
        except OSError:  # the reader has seen enough
            self.close_connection = True
        else:
            self.files.sent[name] += len(content[:cut])
        if cut is not None:
            self.close_connection = True


class _Server(ThreadingHTTPServer):
    daemon_threads, block_on_close = True, False

    def handle_error(self, *args: object) -> None:
        """A reader that is gone is no news."""


@contextmanager
def serve(folder: Path, ranges: bool = True) -> Iterator[FileServer]:
    """A server of the folder at `url` while the block lasts."""
    files = FileServer(folder, ranges)
    handler = type("Handler", (_Handler,), {"files": files})
    with _Server(("127.0.0.1", 0), handler) as server:
        files.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        try:
            yield files
        finally:
            files._stop.set()
            server.shutdown()
