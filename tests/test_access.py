"""Whom the server lets in: by the token, the cookie with its key, or a ticket; and the token and
the port that stay the same."""

import asyncio
import os
import re
import socket
import stat
import threading
from itertools import product
from pathlib import Path
from typing import Any

from smolvlm_mlx.cli import serve, token
from smolvlm_mlx.errors import ServerError
from smolvlm_mlx.files import write_all
from smolvlm_mlx.server import access
from smolvlm_mlx.server.assets import ASSETS, FOLDER
from smolvlm_mlx.server.security import Guard
from tests.support.cli import KEY, let_answer
from tests.support.http import DIRECT, TOKEN, Running
from tests.support.served import serving_alone

import httpx2
import pytest
from starlette.responses import Response

OTHER_KEY = "f" * 32


async def welcome(scope: Any, receive: Any, send: Any) -> None:
    await Response("welcome")(scope, receive, send)


def asked(guard: Guard, method: str = "GET", scheme: str = "http", **headers: str) -> Any:
    """What a guard answers, to http://a:1 unless a header says otherwise."""
    transport = httpx2.ASGITransport(guard)

    async def ask() -> Any:
        async with httpx2.AsyncClient(transport=transport, base_url=f"{scheme}://a:1") as client:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            return await client.request(method, "/closed", headers=named)

    return asyncio.run(ask())


def guarded(token: str | None = "right", ticket: str | None = None) -> Guard:
    return Guard(welcome, ["a:1", "a:2", "b", "b:443"], token, ["http://friend:1"], ["/"], ticket)


def cookie_of(guard: Guard, key: str = KEY["x-page-key"], **more: str) -> str:
    """NAME=VALUE, as a browser sends it back."""
    answer = asked(guard, authorization="Bearer right", x_page_key=key, **more)
    return str(answer.headers["set-cookie"]).partition(";")[0]


def test_cookie_and_key_let_in_as_the_token_does() -> None:
    """Both of them, of the same server and browser; a token that is wrong is no help."""
    guard, key = guarded(), KEY["x-page-key"]
    right = cookie_of(guard)
    cookies = {
        "": False,
        right: True,
        f"other=1; {right};more": True,
        f"{right.partition('=')[0]}=x; {right}": True,  # which another server of the host has set
        f"{right}0": False,
        right.replace("-1=", "-2="): False,
        cookie_of(guard, OTHER_KEY): False,
        cookie_of(guard, host="a:2").replace("-2=", "-1="): False,
        "smolvlm-mlx-1=right": False,
    }
    bearers = {"": None, "Bearer right": True, "bearer right": True, "Bearer wrong": False}
    bearers |= {"Bearer ": False, "Bearer rightt": False, "Basic right": None}
    for (cookie, is_right), (bearer, verdict), sent in product(
        cookies.items(), bearers.items(), ("", key, OTHER_KEY[:-1], key.upper())
    ):
        headers = {"cookie": cookie, "authorization": bearer, "x_page_key": sent}
        headers = {name: value for name, value in headers.items() if value}
        is_in = (is_right and sent == key) if verdict is None else verdict
        for method in ("GET", "POST", "DELETE"):
            answer = asked(guard, method, **headers)
            assert answer.status_code == (200 if is_in else 401), (method, headers)
            # It is for pages alone, and only where it is new.
            assert ("set-cookie" in answer.headers) == (bool(verdict) and sent == key)
            assert "right" not in answer.text


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "PUT", "HEAD"])
def test_a_cookie_opens_nothing_to_other_pages_and_names(method: str) -> None:
    """Its key would have to be known for that; Host and Origin go before it even then."""
    guard = guarded()
    cookie, key = cookie_of(guard), KEY["x-page-key"]
    ours = {"cookie": cookie, "x_page_key": key}
    assert asked(guard, method, **ours, origin="http://a:1").status_code == 200
    for origin in ("http://evil", "http://a:3", "https://a", "null", "http://a:1.evil"):
        assert asked(guard, method, **ours, origin=origin).status_code == 403
        assert asked(guard, method, cookie=cookie, origin=origin).status_code == 403
    for host in ("evil:1", "a:3", "a"):
        refused = asked(guard, method, **ours, host=host)
        assert refused.status_code == 403
        why = f"the host name '{host}' is not allowed; --allow-host adds it"
        assert why in refused.text or method == "HEAD"
    # What browsers send of themselves: a form's POST, a picture's GET, from another port or not.
    for headers in ({}, {"origin": "http://a:1"}, {"origin": "http://friend:1"}):
        assert asked(guard, method, cookie=cookie, **headers).status_code == 401
    preflight = asked(guard, "OPTIONS", origin="http://friend:1")
    assert "x-page-key" not in preflight.headers["access-control-allow-headers"]
    assert "access-control-allow-credentials" not in preflight.headers


def test_the_cookie_is_for_this_server_and_no_script() -> None:
    """Cookies know no ports: the name has it, as the browser sees it."""
    found = {}
    for scheme, host in (("http", "a:1"), ("http", "a:2"), ("http", "b"), ("https", "b")):
        headers = {"authorization": "Bearer right", "x_page_key": KEY["x-page-key"], "host": host}
        said = asked(guarded(), scheme=scheme, **headers).headers["set-cookie"]
        name, _, rest = said.partition("=")
        value, *attributes = rest.split("; ")
        assert re.fullmatch("[0-9a-f]{64}", value)
        found[scheme, host] = name, attributes
    kept = ["Path=/", "Max-Age=34560000", "HttpOnly", "SameSite=Strict"]
    assert found == {
        ("http", "a:1"): ("smolvlm-mlx-1", kept),
        ("http", "a:2"): ("smolvlm-mlx-2", kept),
        ("http", "b"): ("smolvlm-mlx-80", kept),
        ("https", "b"): ("smolvlm-mlx-443", [*kept, "Secure"]),
    }
    assert "right" not in str(found)


def test_a_cookie_is_of_one_token() -> None:
    cookie = cookie_of(guarded())
    ours = {"cookie": cookie, "x_page_key": KEY["x-page-key"]}
    assert asked(guarded(), **ours).status_code == 200  # also of a server that is started again
    assert asked(guarded("another"), **ours).status_code == 401
    assert asked(guarded(None)).status_code == 200


def test_a_page_is_let_in_behind_a_proxy_that_speaks_https() -> None:
    """At a name that is allowed with the port of https."""
    headers = {"authorization": "Bearer right", "host": "b", "origin": "https://b"}
    assert asked(guarded(), "POST", **headers).status_code == 200
    assert asked(guarded(), "POST", **{**headers, "origin": "https://a:1"}).status_code == 403


def test_a_ticket_lets_one_browser_in() -> None:
    guard, key = guarded(ticket="once"), KEY["x-page-key"]
    assert asked(guard, authorization="Bearer once").status_code == 401  # no page
    cookies = [cookie_of(guarded())]
    answer = asked(guard, authorization="Bearer once", x_page_key=key)
    cookies += [answer.headers["set-cookie"].partition(";")[0]]
    assert cookies[0] == cookies[1]
    assert asked(guard, authorization="Bearer once", x_page_key=key).status_code == 401
    assert asked(guard, cookie=cookies[1], x_page_key=key).status_code == 200
    assert asked(guard, authorization="Bearer right").status_code == 200


@pytest.mark.parametrize(("seconds", "status"), [(59, 200), (61, 401)])
def test_a_ticket_is_good_for_a_minute(
    monkeypatch: pytest.MonkeyPatch, seconds: int, status: int
) -> None:
    monkeypatch.setattr(access, "now", lambda: 1000.0)
    guard = guarded(ticket="once")
    monkeypatch.setattr(access, "now", lambda: 1000.0 + seconds)
    answer = asked(guard, authorization="Bearer once", x_page_key=KEY["x-page-key"])
    assert answer.status_code == status


def test_the_page_without_a_token_holds_nothing(server: Running) -> None:
    base = f"http://127.0.0.1:{server.port}"
    with httpx2.Client(base_url=base, headers=KEY, timeout=60, **DIRECT) as client:
        for path in ASSETS:
            page = client.get(path)
            assert (page.status_code, page.cookies.jar.__len__()) == (200, 0)
            assert TOKEN not in page.text
            assert page.headers["referrer-policy"] == "no-referrer"
        assert {client.get(path).status_code for path in ("/page/start", "/conversations")} == {401}


def test_what_secure_pages_alone_have_is_asked_for_in_one_place() -> None:
    """Over http from another machine there is none of it."""
    words = (
        r"navigator\.(clipboard|mediaDevices|serviceWorker|locks|share)|crypto\.(randomUUID|subtle)"
    )
    found = {path.name for path in FOLDER.glob("*.js") if re.search(words, path.read_text("utf-8"))}
    assert found == {"secure.js"}


# ---- the token that is kept


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "new folder" / "token"
    monkeypatch.setattr(token, "token_file", lambda: file)
    return file


def test_the_token_stays_for_this_user_alone(
    kept: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = token.kept_token()
    assert re.fullmatch("[A-Za-z0-9_-]{32}", first)
    assert kept.read_text() == f"{first}\n"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert stat.S_IMODE(kept.parent.stat().st_mode) == 0o700
    assert token.kept_token() == first
    kept.write_text("a" * 40)  # by hand
    assert token.kept_token() == "a" * 40
    second = token.kept_token(new=True)
    assert second not in (first, "a" * 40)
    assert token.kept_token() == second
    assert [*kept.parent.iterdir()] == [kept]
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("text", ["", "short", "a" * 129, "a" * 31 + "é", "a" * 32 + "\n\n"])
def test_a_damaged_token_is_replaced(
    text: str, kept: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    token.kept_token()
    kept.write_text(text)
    new = token.kept_token()
    why = f"{kept}: damaged; there is a new token, which browsers are to be given"
    assert capsys.readouterr().err == f"smolvlm-mlx: {why}\n"
    assert (len(new), token.kept_token(), capsys.readouterr().err) == (32, new, "")


@pytest.mark.parametrize("mode", [0o604, 0o640, 0o602, 0o620, 0o777])
def test_a_token_that_others_could_read_is_replaced(
    mode: int, kept: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = token.kept_token()
    kept.chmod(mode)
    assert token.kept_token() != first
    assert f"{kept}: others could read it; there is a new" in capsys.readouterr().err
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600


def test_two_first_starts_have_one_token(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = list[str]()
    other = threading.Thread(target=lambda: made.append(token.kept_token()))

    def slowly(*arguments: Any) -> None:
        if not other.ident:
            other.start()
            other.join(0.2)  # it waits
        write_all(*arguments)

    monkeypatch.setattr("smolvlm_mlx.cli.token.write_all", slowly)
    made.append(token.kept_token())
    other.join()
    assert made == [kept.read_text().strip()] * 2


def test_another_user_s_token_is_replaced(
    kept: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, user = token.kept_token(), os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: user + 1)
    assert token.kept_token() != first
    assert f"{kept}: another user's; there is a new token" in capsys.readouterr().err


def test_a_link_to_a_token_is_replaced(kept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What it leads to stays."""
    kept.parent.mkdir()
    theirs = kept.with_name("theirs")
    theirs.write_text("a" * 32)
    theirs.chmod(0o600)
    kept.symlink_to(theirs)
    new = token.kept_token()
    assert f"{kept}: Too many levels of symbolic links; there is" in capsys.readouterr().err
    assert (theirs.read_text(), kept.is_symlink()) == ("a" * 32, False)
    assert kept.read_text() == f"{new}\n"


def test_a_token_that_cannot_be_kept_is_for_one_run(
    kept: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept.parent.write_text("no folder")
    tokens = {token.kept_token() for _ in range(2)}
    assert [len(each) for each in tokens] == [32, 32]
    said = capsys.readouterr().err
    assert said.count(f"smolvlm-mlx: {kept}: cannot be written (") == 2
    assert said.count("; the token is for this run alone\n") == 2


@pytest.mark.parametrize("text", ["t", "right token", "~!#%&+"])
def test_a_token_that_can_be_sent(text: str) -> None:
    assert token.checked_token(text) == text


@pytest.mark.parametrize("text", ["", " ", "a ", " a", "ä", "a\nb", "\x7f"])
def test_a_token_that_cannot_be_sent(text: str) -> None:
    with pytest.raises(ServerError, match=r"^--token(:| is empty)"):
        token.checked_token(text)


# ---- servers that are started again


@pytest.mark.slow
def test_a_browser_comes_back_after_a_restart(tmp_path: Path) -> None:
    """By the kept token, until there is another."""
    with httpx2.Client(headers=KEY, timeout=60, **DIRECT) as browser:
        port, said = 0, list[str]()
        for flags, is_known in (((), False), ((), True), (("--new-token",), False)):
            options = ("serve", "-m", "tiny", "--dtype", "float32", "--port", str(port), *flags)
            with serving_alone(tmp_path, options=options) as served:
                port = served.port
                browser.base_url = httpx2.URL(f"http://127.0.0.1:{port}")
                assert browser.get("/conversations").status_code == (200 if is_known else 401)
                secret = served.page.partition("#token=")[2].strip()
                headers = {"authorization": f"Bearer {secret}"}
                assert browser.get("/v1/models", headers=headers).status_code == 200
                assert browser.get("/conversations").status_code == 200
                wrong = browser.get("/v1/models", headers={"authorization": f"Bearer {secret[1:]}"})
                assert (wrong.status_code, secret[1:] in wrong.text) == (401, False)
                served.process.terminate()
                assert served.process.wait(60) == 0
                assert served.process.stderr is not None
                assert served.process.stderr.read() == ""
            said.append(secret)
    assert said[0] == said[1] != said[2]
    (file,) = tmp_path.rglob("token")
    assert (file.read_text(), stat.S_IMODE(file.stat().st_mode)) == (f"{said[2]}\n", 0o600)


@pytest.mark.parametrize("command", ["serve --open --port 0", "chat --web --port 0"])
def test_a_page_that_is_opened_is_given_no_token(
    command: str, call: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other users see the arguments of the program that opens it."""
    found = list[int]()

    def ask(client: httpx2.Client) -> None:
        found.append(client.get("/v1/models").status_code)
        client.cookies.clear()
        ticket = opened[0].partition("#token=")[2]
        given = {"authorization": f"Bearer {ticket}"}
        found.append(client.get("/v1/models", headers=given).status_code)

    opened = let_answer(monkeypatch, ask)
    code, out, _ = call(*command.split(), "-m", "tiny", "--no-history")
    assert (code, found) == (0, [200, 401])
    assert opened[0].partition("#token=")[2] not in out
    assert token.token_file().read_text() in out


def test_the_page_has_a_port_of_its_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Or the next that is free, which is said; one that was wanted is that one."""
    with socket.create_server(("127.0.0.1", 0)) as one:
        port = one.getsockname()[1]
    monkeypatch.setattr(serve, "PAGE_PORT", port)
    with serve.listen_for_page(None) as first:
        assert first.getsockname() == ("127.0.0.1", port)
        assert capsys.readouterr().err == ""
        with serve.listen_for_page(None) as second:
            number = second.getsockname()[1]
        assert port < number < port + 20
        assert capsys.readouterr().err == (
            f"smolvlm-mlx: port {port} is taken, maybe by another page; this one is at {number}\n"
        )
        with pytest.raises(ServerError, match=f"{port}: cannot listen there .Address already in"):
            serve.listen_for_page(port)
        with serve.listen_for_page(0) as third:
            assert third.getsockname()[1] != port
    monkeypatch.undo()
    assert serve.PAGE_PORT == 7665


def test_other_names_of_the_page_are_printed(call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    let_answer(monkeypatch, lambda client: None)
    names = ["friend", "10.0.0.1:9", "desk.example:443", "plain:80", "0.0.0.0"]
    allowed = [word for name in names for word in ("--allow-host", name)]
    flags = ["--port", 0, "--open", "--no-history", "--token", "a+b"]
    code, out, _ = call("serve", "-m", "tiny", *flags, *allowed)
    port = out.partition("#")[0].rstrip("/").rpartition(":")[2]
    assert (code, out.splitlines()) == (
        0,
        [
            f"page: http://127.0.0.1:{port}/#token=a%2Bb",
            f"      http://friend:{port}/#token=a%2Bb",
            "      http://10.0.0.1:9/#token=a%2Bb",
            "      https://desk.example/#token=a%2Bb",
            "      http://plain/#token=a%2Bb",
            f"API:  http://127.0.0.1:{port}/v1  token: a+b",
        ],
    )
