"""Bytes from paths, URLs and base64: what is fetched, what is refused, and that it ends in time."""

import base64
import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from smolvlm_mlx.errors import FetchError
from smolvlm_mlx.inputs.fetch import MAX_IMAGE_BYTES, FetchLimits, decode_base64, fetch, fetch_url, is_public, read_path

import pytest

SMALL = FetchLimits(max_bytes=1000, timeout=60)
Script = Callable[[socket.socket, bytes], None]


@contextlib.contextmanager
def server(script: Script) -> Iterator[int]:
    """A port of 127.0.0.1 that hands each connection and its request to the script."""

    def serve() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:  # closed
                return
            with client:
                request = client.recv(65536)
                if request:
                    with contextlib.suppress(OSError):  # the other side hung up, as it should
                        script(client, request)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(60)
            assert not thread.is_alive()


def answer(body: bytes, *headers: str, status: str = "200 OK") -> Script:
    head = "\r\n".join([f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", ""]).encode()
    return lambda client, _: client.sendall(head + body)


def get(port: int, limits: FetchLimits = SMALL, path: str = "/") -> bytes:
    return fetch_url(f"http://localhost:{port}{path}", limits, allow_address=lambda address: True)


def resolver(*answers: list[str]) -> Callable[..., list[tuple[Any, ...]]]:
    """Answers like socket.getaddrinfo, another list of addresses each time."""
    remaining = iter(answers)
    return lambda host, port, **_: [(2, 1, 6, "", (address, port)) for address in next(remaining)]


# --- addresses


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "127.9.9.9", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.1.1", "100.64.0.1"),
        *("169.254.169.254", "224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255", "198.18.0.1", "192.0.2.1"),
        *("::", "::1", "fe80::1", "fe80::1%eth0", "fc00::1", "fd00:ec2::254", "ff02::1", "2001:db8::1"),
        *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "::127.0.0.1"),
        *("64:ff9b::7f00:1", "64:ff9b::808:808", "2002:7f00:1::", "2002:a00:1::1", "192.88.99.1", "fec0::1"),
    ],
)
def test_address_that_is_not_public(address: str) -> None:
    assert not is_public(address)
    with pytest.raises(FetchError, match="not on the public internet"):
        fetch_url("http://example.com/a.png", resolve=resolver([address]))


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "2606:4700:4700::1111", "::ffff:8.8.8.8"])
def test_address_that_is_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1/", "http://localhost:80/", "http://[::1]/", "http://2130706433/", "http://0x7f.1/", "http://0/"],
)
def test_loopback_in_disguise(url: str) -> None:
    with pytest.raises(FetchError, match=r"not on the public internet|cannot be found"):
        fetch_url(url)


def test_one_private_address_among_public_ones() -> None:
    with pytest.raises(FetchError, match=r"not on the public internet \(10\.0\.0\.1\)"):
        fetch_url("https://example.com/", resolve=resolver(["8.8.8.8", "10.0.0.1"]))


def test_the_checked_address_is_dialled() -> None:
    """A resolver that answers differently the second time (DNS rebinding) is not asked a second time."""
    with server(answer(b"picture")) as port:
        checked: list[str] = []

        def allow(address: str) -> bool:
            checked.append(address)
            return True

        body = fetch_url(
            f"http://example.com:{port}/",
            SMALL,
            resolve=resolver(["127.0.0.1"]),  # asked twice, it raises StopIteration
            allow_address=allow,
        )
    assert body == b"picture"
    assert checked == ["127.0.0.1"]


def test_redirect_to_a_private_address() -> None:
    found = resolver(["127.0.0.1"], ["169.254.169.254"])
    reply = answer(b"", "Location: http://inside.example/secret", status="302 Found")
    with server(reply) as port, pytest.raises(FetchError, match=r"not on the public internet \(169\.254\.169\.254\)"):
        fetch_url(f"http://example.com:{port}/", SMALL, resolve=found, allow_address=lambda ip: ip == "127.0.0.1")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("ftp://example.com/a", "only http and https"),
        ("http://user:secret@example.com/", "user name or password"),
        ("http://user@example.com/", "user name or password"),
        ("http:///a.png", "names no host"),
        ("http://example.com:0/", "names no port"),
        ("http://example.com:99999/", "is not a URL"),
        ("http://[::1/", "is not a URL"),
        ("http://exam ple.com/", "white space"),
        ("http://example.com/a\r\nHost: b", "white space"),
        (f"http://{'a' * 70}.com/", "is not a URL"),
    ],
)
def test_url_that_is_refused(url: str, message: str) -> None:
    with pytest.raises(FetchError, match=message) as caught:
        fetch_url(url, resolve=resolver())
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_host() -> None:
    def unknown(host: str, port: int, **_: Any) -> list[tuple[Any, ...]]:
        raise socket.gaierror(-2, "Name or service not known")

    with pytest.raises(FetchError, match=r"host 'nowhere\.example' cannot be found"):
        fetch_url("http://nowhere.example/", resolve=unknown)


# --- bodies


def test_body_and_request() -> None:
    requests: list[bytes] = []

    def script(client: socket.socket, request: bytes) -> None:
        requests.append(request)
        answer(b"x" * 1000)(client, request)

    with server(script) as port:
        assert get(port, path="/é?q=1#part") == b"x" * 1000  # max_bytes itself is allowed
    head = requests[0].decode()
    assert head.startswith("GET /%C3%A9?q=1 HTTP/1.1\r\n")
    assert f"Host: localhost:{port}\r\n" in head
    assert "Accept-Encoding: identity\r\n" in head


def test_body_too_large() -> None:
    with server(answer(b"x" * 1001)) as port, pytest.raises(FetchError, match="holds 1001 bytes; the limit is 1000"):
        get(port)


def test_body_too_large_without_a_length() -> None:
    def script(client: socket.socket, _: bytes) -> None:
        client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            client.sendall(b"x" * 1000)

    with server(script) as port, pytest.raises(FetchError, match="holds at least"):
        get(port)


def test_chunked_body() -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    with server(lambda client, _: client.sendall(head + b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n")) as port:
        assert get(port) == b"abcde"


def test_body_that_ends_early() -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n"
    with server(lambda client, _: client.sendall(head + b"abc")) as port, pytest.raises(FetchError, match=r"early|abc"):
        get(port)


@pytest.mark.parametrize("start", [b"", b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n"])
def test_drip_of_bytes_ends_at_the_deadline(start: bytes) -> None:
    def script(client: socket.socket, _: bytes) -> None:
        client.sendall(start)
        while True:  # until the other side hangs up
            client.sendall(b"x")
            time.sleep(0.05)

    with server(script) as port, pytest.raises(FetchError, match=r"no complete answer within 0\.4 s"):
        get(port, FetchLimits(timeout=0.4))


def test_drip_without_a_length_is_not_taken_for_a_short_body() -> None:
    def script(client: socket.socket, _: bytes) -> None:
        client.sendall(b"HTTP/1.1 200 OK\r\n\r\nabc")
        client.recv(1)  # until the other side hangs up

    with server(script) as port, pytest.raises(FetchError, match="no complete answer"):
        get(port, FetchLimits(timeout=0.3))


def test_redirects_are_followed_three_times() -> None:
    def script(client: socket.socket, request: bytes) -> None:
        count = int(request.split(b" ")[1].strip(b"/"))
        if count == 0:
            answer(b"there")(client, request)
        answer(b"", f"Location: /{count - 1}", status="301 Moved")(client, request)

    with server(script) as port:
        assert get(port, path="/3") == b"there"
        with pytest.raises(FetchError, match="more than 3 redirects"):
            get(port, path="/4")


def test_content_encoding_is_refused() -> None:
    with server(answer(b"x", "Content-Encoding: gzip")) as port, pytest.raises(FetchError, match="'gzip'"):
        get(port)


def test_status() -> None:
    with server(answer(b"x", status="404 Not Found")) as port, pytest.raises(FetchError, match="404 'Not Found'"):
        get(port)


@pytest.mark.parametrize("reply", [b"", b"garbage\r\n\r\n", b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n"])
def test_answer_that_is_not_http(reply: bytes) -> None:
    with server(lambda client, _: client.sendall(reply)) as port, pytest.raises(FetchError, match="cannot fetch"):
        get(port)


def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(FetchError, match="cannot fetch"):
        get(port)


def test_tls_checks_the_certificate() -> None:
    with server(lambda client, _: client.sendall(b"not TLS")) as port, pytest.raises(FetchError, match="cannot fetch"):
        fetch_url(f"https://localhost:{port}/", SMALL, allow_address=lambda address: True)


# --- paths


def test_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a picture.png"
    file.write_bytes(b"picture")
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in (str(file), "~/a picture.png", file.as_uri(), f"file://localhost{file.as_uri()[7:]}"):
        assert fetch(name) == read_path(name) == b"picture"
    assert read_path(file) == b"picture"


def test_path_size(tmp_path: Path) -> None:
    file = tmp_path / "large"
    with file.open("wb") as out:
        out.truncate(MAX_IMAGE_BYTES)  # sparse
    assert len(read_path(file)) == MAX_IMAGE_BYTES
    with file.open("ab") as out:
        out.write(b"x")
    with pytest.raises(FetchError, match="holds 20971521 bytes; the limit is 20971520"):
        read_path(file)


def test_path_that_is_not_a_regular_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path, message in ((tmp_path / "fifo", "regular"), (Path("/dev/zero"), "regular"), (tmp_path, "director")):
        with pytest.raises(FetchError, match=message):
            read_path(path)


@pytest.mark.parametrize(
    "name", ["missing.png", "missing", "/no/such/folder/picture.jpeg", "a\0b.png", "file://host/a"]
)
def test_path_that_cannot_be_read(name: str) -> None:
    for read in (fetch, read_path):
        with pytest.raises(FetchError, match=r"no such file|cannot read|another machine"):
            read(name)


def test_sources_can_be_switched_off(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"picture")
    limits = FetchLimits(allow_paths=False, allow_urls=False)
    for source in (str(tmp_path / "a"), (tmp_path / "a").as_uri(), "missing.png"):
        with pytest.raises(FetchError, match="local files are not read here"):
            fetch(source, limits)
    with pytest.raises(FetchError, match="URLs are not fetched here"):
        fetch("http://example.com/", limits)
    assert fetch("data:image/png;base64,YWJj", limits) == b"abc"


# --- base64


@pytest.mark.parametrize(
    "text",
    [
        "YWJjZA==",
        " YWJj\nZA==\n",
        "data:image/png;base64,YWJjZA==",
        "data:;base64,YWJjZA==",
        "DATA:a/b;BASE64,YWJjZA==",
    ],
)
def test_base64(text: str) -> None:
    assert decode_base64(text) == b"abcd"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("YWJjZA", "not valid base64"),
        ("YWJj*A==", "not valid base64"),
        ("YWJj-_8=", "not valid base64"),
        ("é" * 8, "not valid base64"),
        ("", "is empty"),
        ("data:image/png;base64,", "is empty"),
        ("data:image/png,abc", "is not base64; write data:"),
        ("data:image/png;base64", "is not base64; write data:"),
    ],
)
def test_base64_that_is_refused(text: str, message: str) -> None:
    with pytest.raises(FetchError, match=message):
        decode_base64(text)


@pytest.mark.parametrize("size", [998, 999, 1000])
def test_base64_size(size: int) -> None:
    assert len(decode_base64(base64.b64encode(b"x" * size).decode(), SMALL)) == size
    with pytest.raises(FetchError, match="'base64 text' holds 1001 bytes; the limit is 1000"):
        decode_base64(base64.b64encode(b"x" * 1001).decode(), SMALL)


def test_text_without_a_scheme() -> None:
    data = bytes(range(60))
    assert fetch(base64.b64encode(data).decode()) == data
    with pytest.raises(FetchError, match="nor is it the path of an existing file"):
        fetch("a long name of a picture that is not there at all")


def test_messages_are_short_and_hold_no_base64() -> None:
    text = base64.b64encode(bytes(range(256)) * 40).decode()
    for source in (text + "*", f"data:image/png;base64,{text}*", "/".join(["folder"] * 300) + ".png"):
        with pytest.raises(FetchError) as caught:
            fetch(source)
        assert len(str(caught.value)) < 200
        assert text[:40] not in str(caught.value)
