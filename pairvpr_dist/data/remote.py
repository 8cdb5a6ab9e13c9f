"""Reading the files of a shard set that lies at a URL: http(s), s3 or gs, through fsspec.

Contract: bytes come back as the server holds them, or the run ends with one `UserError` line that names the URL, what
was tried and the remedy. A refused, broken, stalled, short or overloaded answer is tried again with growing pauses; a
file that is not there or not ours to read ends at once. An outage is never taken for a damaged image, as that would
change the order of samples. Credentials come from the environment and files that the libraries read themselves, and
no message holds a query string, where signed URLs keep theirs.

A connection belongs to one process: fsspec's event loop and its thread do not survive a fork, so that each process
makes its own at its first read.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
import random
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any, NoReturn, TypeVar

from fsspec.asyn import sync

from pairvpr_dist.errors import UserError
from pairvpr_dist.settings import RemoteConfig

PIECE = 8 * 2**20  # bytes of a long file that are asked for, or waited for, at a time
SLOWEST = 1024  # bytes a second; a server that gives less has failed
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0  # seconds before the second attempt and at most
LONGEST_MESSAGE = 300  # letters of what a library or server says
PARTIAL, BEYOND_END = 206, 416  # HTTP: a range as asked for; the file ends before it
RETRIED_STATUS = (408, 425, 429)  # of the answers 4xx those that may differ the next time
IDENTITY = {"Accept-Encoding": "identity"}  # ranges count the bytes of the file, not of a compressed form of it

T = TypeVar("T")


class RangesIgnored(Exception):  # noqa: N818 - named after what the server did
    """The server answers a request for a range with the whole file."""


class ShortAnswer(Exception):  # noqa: N818
    """The server sent less than it was asked for."""


class Remote:
    """The folder at a URL. Pickled and forked at will."""

    def __init__(self, url: str, config: RemoteConfig) -> None:
        self.scheme, _, rest = url.partition("://")
        self.url, self.config = f"{self.scheme}://{rest.rstrip('/')}", config

    def read_range(self, name: str, offset: int, length: int) -> bytes:
        """`length` bytes of a file from `offset` on, in one request."""
        attempts = _Attempts(f"{self.url}/{name}", self.config)
        while True:
            try:
                content = self._wait_for(lambda files: files.range_of(attempts.url, offset, length))
                if len(content) == length:
                    return content
                attempts.failed(ShortAnswer(f"{len(content)} of {length} bytes came"))
            except RangesIgnored:
                raise UserError(
                    f"{attempts.url}: the server sends whole files only; set data.remote.read=shards"
                ) from None
            except Exception as error:  # whatever kind the three libraries raise
                attempts.failed(error)

    def stream(self, name: str, size: int | None = None) -> Iterator[bytes]:
        """The whole file in pieces; when it breaks off, it goes on where it was. `size`: of the file, where known."""
        attempts = _Attempts(f"{self.url}/{name}", self.config)
        offset = 0
        while True:
            begin, came = time.monotonic(), 0
            try:
                for piece in self._pieces(attempts.url, offset):
                    offset, came = offset + len(piece), came + len(piece)
                    elapsed = time.monotonic() - begin
                    if elapsed > self.config.timeout and came < SLOWEST * elapsed:
                        raise ShortAnswer(f"only {came} bytes came in {elapsed:.0f} s")
                    yield piece
                if size is None or offset >= size:
                    return
                raise ShortAnswer(f"{offset} of {size} bytes came")
            except Exception as error:
                if came > SLOWEST * (time.monotonic() - begin):
                    attempts.restart()
                attempts.failed(error)

    def _pieces(self, url: str, offset: int) -> Iterator[bytes]:
        pieces = _connection(self.scheme, self.config.timeout).pieces(url, offset)
        try:
            while piece := self._wait_for(lambda _: _next(pieces)):
                yield piece
        finally:
            self._wait_for(lambda _: pieces.aclose())

    def _wait_for(self, request: Callable[[_Files], Awaitable[T]]) -> T:
        timeout = self.config.timeout
        files = _connection(self.scheme, timeout)

        async def bounded() -> T:
            try:
                return await asyncio.wait_for(request(files), timeout)
            except TimeoutError:
                raise ShortAnswer(f"no answer within data.remote.timeout={timeout:g} s") from None

        result: T = sync(files.loop, bounded)
        return result


class _Attempts:
    """Counts what failed for one file, and waits or ends the run."""

    def __init__(self, url: str, config: RemoteConfig) -> None:
        self.url, self.config = url, config
        self._random = random.SystemRandom()  # never the generators that samples are drawn from
        self.restart()

    def restart(self) -> None:
        """Something came: what fails from now on is a new fault."""
        self._failed, self._begin = 0, time.monotonic()

    def failed(self, error: Exception) -> None:
        """Wait before the next attempt. Raises `UserError` where there is none, or it would be in vain."""
        if isinstance(error, UserError):
            raise error
        self._failed += 1
        if _is_final(error):
            self._end("cannot be read", error, "check the URL, and the rights of the credentials in the environment")
        if self._failed >= self.config.attempts:
            tried = f"{self._failed} attempts in {time.monotonic() - self._begin:.0f} s failed"
            self._end(tried, error, "check server and network; data.remote.attempts and .timeout say how long to try")
        pause = min(FIRST_PAUSE * 2 ** (self._failed - 1), LONGEST_PAUSE)
        time.sleep(pause * self._random.uniform(0.5, 1.5))

    def _end(self, what: str, error: Exception, remedy: str) -> NoReturn:
        raise UserError(f"{self.url}: {what}: {describe(error)}; {remedy}") from None


class _Files:
    """The files of one protocol in this process, by whole URLs. Awaited in fsspec's event loop."""

    def __init__(self, filesystem: Any) -> None:
        self.filesystem = filesystem

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """Where the requests run."""
        loop: asyncio.AbstractEventLoop = self.filesystem.loop
        return loop

    async def range_of(self, url: str, offset: int, length: int) -> bytes:
        """At most `length` bytes from `offset` on."""
        content: bytes = await self.filesystem._cat_file(url, start=offset, end=offset + length)
        if len(content) > length:
            raise RangesIgnored
        return content

    async def pieces(self, url: str, offset: int) -> AsyncGenerator[bytes]:
        """The file from `offset` to its end."""
        size = (await self.filesystem._info(url))["size"]
        for begin in range(offset, size, PIECE):
            yield await self.range_of(url, begin, min(PIECE, size - begin))


class _HttpFiles(_Files):
    """Over HTTP, where a server may ignore ranges: its answer is looked at before its content is read."""

    async def range_of(self, url: str, offset: int, length: int) -> bytes:
        async with self._answer(url, f"bytes={offset}-{offset + length - 1}") as answer:
            if answer.status == BEYOND_END:
                return b""
            if answer.status != PARTIAL:
                raise RangesIgnored
            content: bytes = await answer.read()
            return content

    async def pieces(self, url: str, offset: int) -> AsyncGenerator[bytes]:
        async with self._answer(url, f"bytes={offset}-" if offset else None) as answer:
            if answer.status == BEYOND_END:
                return
            skip = 0 if answer.status == PARTIAL else offset
            while content := await answer.content.read(PIECE):
                yield content[skip:]
                skip = max(0, skip - len(content))

    @asynccontextmanager
    async def _answer(self, url: str, span: str | None) -> AsyncIterator[Any]:
        session = await self.filesystem.set_session()
        headers = IDENTITY | ({"Range": span} if span else {})
        async with session.get(self.filesystem.encode_url(url), headers=headers) as answer:
            if answer.status != BEYOND_END:
                answer.raise_for_status()
            yield answer


async def _next(pieces: AsyncIterator[bytes]) -> bytes:
    """The next piece that holds something, b"" at the end."""
    async for piece in pieces:
        if piece:
            return piece
    return b""


_connections: dict[tuple[int, str, float], _Files] = {}  # those of the parent stay: to close them would disturb it


def _connection(scheme: str, timeout: float) -> _Files:
    key = (os.getpid(), scheme, timeout)
    if key not in _connections:
        _connections[key] = _connect(scheme, timeout)
    return _connections[key]


def _connect(scheme: str, timeout: float) -> _Files:
    """A connection of our own: fsspec's cache of instances would hand out one that somebody else set up."""
    own = {"skip_instance_cache": True, "use_listings_cache": False}
    if scheme == "s3":
        config = {"connect_timeout": timeout, "read_timeout": timeout, "retries": {"total_max_attempts": 1}}
        filesystem = _imported("s3fs", "s3").S3FileSystem(config_kwargs=config, **own)
        filesystem.retries = 1
        return _Files(filesystem)
    if scheme == "gs":
        logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it logs a traceback for each failure
        return _Files(_imported("gcsfs.core", "gs").GCSFileSystem(**own))  # not its gRPC one, which survives no fork
    http, aiohttp = importlib.import_module("fsspec.implementations.http"), importlib.import_module("aiohttp")
    # Proxies and credentials from the environment and ~/.netrc; how long a request may take is our own matter.
    client = {"trust_env": True, "timeout": aiohttp.ClientTimeout(total=None)}
    return _HttpFiles(http.HTTPFileSystem(client_kwargs=client, **own))


def _imported(module: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        package = module.partition(".")[0]
        raise UserError(
            f"{extra}:// needs the package {package}, which is not installed: pip install 'pairvpr_dist[{extra}]'"
        ) from None


def _is_final(error: Exception) -> bool:
    """Whether the next attempt would fail alike: the server said so, there are no credentials, or that is no URL."""
    if (
        isinstance(error, (FileNotFoundError, PermissionError, ValueError))
        or type(error).__name__ == "NoCredentialsError"
    ):
        return True
    status = getattr(error, "status", None) or getattr(error, "code", None)  # of aiohttp; of gcsfs
    if isinstance(status, int):
        return 400 <= status < 500 and status not in RETRIED_STATUS
    return str(error).startswith("Forbidden:")  # of gcsfs


def describe(error: Exception) -> str:
    """The error in one short line, without what holds credentials in a URL: a query string, and what precedes an @."""
    text = re.sub(r"\?[^\s'\"<>]*|(?<=://)[^\s/@]*@", "", " ".join(str(error).split())) or "no answer"
    return f"{type(error).__name__}: {text[:LONGEST_MESSAGE]}"
