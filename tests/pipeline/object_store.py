"""An S3 server on loopback, and a proxy in front of it that fails in the ways that networks and services do."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import logging
import socket
import struct
import threading
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal

import pytest

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing"}
ELSEWHERE = (
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_ENDPOINT",
    "AWS_PROFILE",
    "AWS_SESSION_TOKEN",
    "AWS_REGION",
)
_numbers = itertools.count()

# later: 503. reset: the connection is cut before the request goes on. hang: no answer. lost: the request goes through,
# the connection is reset instead of an answer. cut: the answer ends halfway. denied: 403. skewed: 403 of a clock
# that is off.
Fault = Literal["", "later", "reset", "hang", "lost", "cut", "denied", "skewed"]
Rule = Callable[[str, str], Fault]  # of the method and the path with its query

ANSWERS = {
    "later": (503, "SlowDown", "Please reduce your request rate."),
    "denied": (403, "InvalidAccessKeyId", "The AWS Access Key Id you provided does not exist in our records."),
    "skewed": (
        403,
        "RequestTimeTooSkewed",
        "The difference between the request time and the current time is too large.",
    ),
}


@dataclass(frozen=True)
class Bucket:
    """An empty bucket of the server.

    Attributes:
        name: of the bucket.
        endpoint: HOST:PORT of the server, or of a proxy in front of it.
    """

    name: str
    endpoint: str

    @property
    def url(self) -> str:
        return f"s3://{self.name}"

    @property
    def options(self) -> dict[str, str]:
        """Options of a place in it."""
        return {"endpoint": self.endpoint, "region": "us-east-1"}

    def behind(self, proxy: FaultyProxy) -> Bucket:
        """The same bucket by way of a proxy."""
        return replace(self, endpoint=proxy.endpoint)


@contextlib.contextmanager
def s3_server() -> Iterator[str]:
    """A moto server in this process; its endpoint."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # it writes a line for each request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield f"http://{host}:{port}"
    finally:
        server.stop()


def make_bucket(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """A bucket of a test's own, and credentials for it in the environment."""
    for name in ELSEWHERE:
        monkeypatch.delenv(name, raising=False)
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    bucket = Bucket(f"bucket-{next(_numbers)}", endpoint)
    with urllib.request.urlopen(urllib.request.Request(f"{endpoint}/{bucket.name}", method="PUT"), timeout=30):
        return bucket


def fill(bucket: Bucket, keys: Iterable[str]) -> None:
    """Empty objects, put there without a request for each."""
    from moto.core import DEFAULT_ACCOUNT_ID
    from moto.s3.models import s3_backends

    for key in keys:
        s3_backends[DEFAULT_ACCOUNT_ID]["aws"].put_object(bucket.name, key, b"")


@dataclass
class FaultyProxy:
    """An HTTP proxy that hands requests on to an endpoint, or fails as its rule says.

    Attributes:
        upstream: host:port that requests go to.
        requests: method and path of each one, as they came.
        done: how often each fault was met; "" counts what went through.
        rule: what to do with a request; set by the methods below, or by a test.
        endpoint: HOST:PORT of the proxy.
    """

    upstream: str
    requests: list[tuple[str, str]] = field(default_factory=list)
    done: Counter[Fault] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.rule: Rule = lambda method, path: ""
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._server = _Server(self)
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def always(self, fault: Fault, method: str = "", path: str = "") -> None:
        """Fail every request of this method (any, when empty) that has this text in its path."""
        self.rule = lambda its_method, its_path: fault if method in ("", its_method) and path in its_path else ""

    def every(self, n: int, fault: Fault) -> None:
        """Fail every n-th request, the first one among them."""
        numbers = itertools.count()
        self.rule = lambda method, path: fault if next(numbers) % n == 0 else ""

    def times(self, n: int, fault: Fault, method: str = "", path: str = "") -> None:
        """Fail the next n requests of this method that have this text in their path."""
        left = itertools.repeat(fault, n)
        self.rule = lambda its_method, its_path: (
            next(left, "") if method in ("", its_method) and path in its_path else ""
        )

    def decide(self, method: str, path: str) -> Fault:
        with self._lock:
            fault = self.rule(method, path)
            self.requests.append((method, path))
            self.done[fault] += 1
            return fault

    def wait_for_close(self) -> None:
        self._closing.wait()

    def close(self) -> None:
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()


@contextlib.contextmanager
def faulty_proxy(endpoint: str) -> Iterator[FaultyProxy]:
    proxy = FaultyProxy(endpoint.removeprefix("http://"))
    try:
        yield proxy
    finally:
        proxy.close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, proxy: FaultyProxy) -> None:
        self.proxy = proxy
        super().__init__(("127.0.0.1", 0), _Handler)

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that gave up is what the tests are about; it is no error here."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def handle_one_request(self) -> None:
        with contextlib.suppress(ConnectionError):
            super().handle_one_request()
            return
        self.close_connection = True

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fault = self.server.proxy.decide(self.command, self.path)
        if fault in ("", "lost", "cut"):
            status, headers, content = self._hand_on(body)
        if fault == "hang":
            self.server.proxy.wait_for_close()
        if fault in ("reset", "lost", "hang"):
            # Closing with a linger time of 0 sends a reset.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            self.connection.close()
            return
        if fault in ANSWERS:
            status, code, message = ANSWERS[fault]
            content = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()
            headers = [("Content-Length", str(len(content)))]
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[: len(content) // 2] if fault == "cut" else content)
        self.close_connection = self.close_connection or fault == "cut"

    def _hand_on(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        with contextlib.closing(http.client.HTTPConnection(self.server.proxy.upstream, timeout=60)) as upstream:
            upstream.request(self.command, self.path, body, dict(self.headers))
            answer = upstream.getresponse()
            content = answer.read()
            kept = [(n, v) for n, v in answer.getheaders() if n.lower() not in ("connection", "transfer-encoding")]
            if answer.getheader("Content-Length") is None:
                kept.append(("Content-Length", str(len(content))))
            return answer.status, kept, content

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _answer  # noqa: N815 - the names http.server looks for

    def log_message(self, format: str, *args: object) -> None:
        """Nothing on the terminal."""
