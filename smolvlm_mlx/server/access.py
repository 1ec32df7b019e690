"""Whom the server lets in: who sends its token, and browsers that sent it once.

A browser is given a cookie for the token, which no script reads. But browsers send cookies to every
port of a host, so to servers of other people too: the cookie is good only beside a key, which the
page makes up, keeps in the storage of its origin, and sends in a header. A page of another origin
has no key, whatever its browser sends along with what it asks.
"""

import hmac
import re
from hashlib import sha256
from time import monotonic as now

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import Scope

TICKET_SECONDS = 60  # in which a browser has to come that is opened
COOKIE_SECONDS = 400 * 24 * 60 * 60  # browsers keep none longer
KEY = re.compile("[0-9a-f]{32}")  # in the header x-page-key
Added = list[tuple[bytes, bytes]]  # headers of a response


class Access:
    """The token of a server.

    Args:
        token: None lets everyone in.
        ticket: lets one browser in, once and soon: it stands in the arguments of the program that
            opens the page, which other users of this machine can read.
    """

    def __init__(self, token: str | None, ticket: str | None = None):
        self._token, self._ticket, self._until = token, ticket, now() + TICKET_SECONDS

    def admit(self, scope: Scope, headers: Headers) -> Added:
        """Return what the answer to a request has to say: the cookie, where a page is let in by the
        token.

        Raises:
            HTTPException: who asks has neither token nor cookie.
        """
        token, key = self._token, headers.get("x-page-key", "")
        if token is None:
            return []
        key = key if KEY.fullmatch(key) else ""
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            if is_same(given, token) or (key and self._is_ticket(given)):
                return [_set_cookie(scope, headers, _seal(token, headers, key))] if key else []
        elif key:
            seal = _seal(token, headers, key)
            if any(is_same(value, seal) for value in _cookies(scope, headers)):
                return []
        why = "no valid token; send the header: Authorization: Bearer TOKEN"
        raise HTTPException(401, why, {"www-authenticate": "Bearer"})

    def _is_ticket(self, given: str) -> bool:
        """Whether this is the ticket, which it is once."""
        if self._ticket is None or now() > self._until or not is_same(given, self._ticket):
            return False
        self._ticket = None
        return True


def is_same(given: str, secret: str) -> bool:
    """Compare them in a time that does not tell how much is the same."""
    return hmac.compare_digest(given.encode(), secret.encode())


def _seal(token: str, headers: Headers, key: str) -> str:
    """What the cookie beside a key holds, at one name and port: only who has the token can make it,
    and the token does not follow from it."""
    place = headers["host"].lower()
    return hmac.new(token.encode(), f"page {place} {key}".encode(), sha256).hexdigest()


def _name(scope: Scope, headers: Headers) -> str:
    """The cookie's name, with the port that the browser sees: another port has another server."""
    port = headers["host"].rpartition("]")[2].partition(":")[2]
    return f"smolvlm-mlx-{port or ('443' if scope.get('scheme') == 'https' else '80')}"


def _cookies(scope: Scope, headers: Headers) -> list[str]:
    """The values of all cookies of that name: others on this host may have set some, too."""
    parts = [part.strip().partition("=") for part in headers.get("cookie", "").split(";")]
    return [value for name, _, value in parts if name == _name(scope, headers)]


def _set_cookie(scope: Scope, headers: Headers, value: str) -> tuple[bytes, bytes]:
    cookie = f"{_name(scope, headers)}={value}; Path=/; Max-Age={COOKIE_SECONDS}"
    secure = "; Secure" if scope.get("scheme") == "https" else ""
    return b"set-cookie", f"{cookie}; HttpOnly; SameSite=Strict{secure}".encode()
