"""Who may look: the browser that was given the link, and no page of anybody else's.

The link in the terminal carries a token that works once and becomes a cookie. Requests must name this
server by a loopback name (no foreign name was pointed at it) and come from its own page.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Callable

from tools.viewer.http import Request, Response

_AGAIN = "This link was used already, or is not the newest one. The terminal shows the link that works now.\n"


class Door:
    """``admit`` is asked before anything else about a request is looked at.

    ``announce`` is called with each new link, the first one and whenever one was used up.
    """

    def __init__(self, announce: Callable[[str], None]) -> None:
        self._announce = announce
        self._sessions: list[str] = []
        self._token = ""
        self._port = 0

    def open(self, port: int) -> None:
        """Make the first link."""
        self._port = port
        self._renew()

    @property
    def cookie(self) -> str:
        """Name of the cookie; cookies do not know ports, so the name does."""
        return f"ratchet_view_{self._port}"

    def admit(self, request: Request) -> Response | None:
        """None to let it pass; else what to answer."""
        if request.headers.get("host", "").lower() not in (
            f"127.0.0.1:{self._port}",
            f"localhost:{self._port}",
        ):
            return _refuse(f"open this page as http://127.0.0.1:{self._port}/\n")
        if request.method not in ("GET", "HEAD"):
            return Response(b"this server is only looked at\n", "text/plain", 405)
        if request.path == "/" and "token" in request.query:
            return self._enter(request)
        origin = request.headers.get("origin")
        site = request.headers.get("sec-fetch-site", "same-origin")
        foreign = origin is not None and origin.lower() != f"http://{request.headers['host'].lower()}"
        # "none" is the person typing the address; "same-site" would be another port of this machine.
        if foreign or site not in ("same-origin", "none"):
            return _refuse("not for pages of other origins\n")
        given = request.cookie(self.cookie).encode()
        if not any(hmac.compare_digest(given, held.encode()) for held in self._sessions):
            return _refuse("Open the link that the terminal shows.\n")
        return None

    def _enter(self, request: Request) -> Response:
        if not hmac.compare_digest(request.query["token"].encode(), self._token.encode()):
            return _refuse(_AGAIN)
        if request.method == "HEAD":  # a preview must not use the link up
            return Response(b"", "text/plain")
        session = secrets.token_urlsafe(32)
        self._sessions = [*self._sessions[-7:], session]
        self._renew()
        cookie = f"{self.cookie}={session}; HttpOnly; SameSite=Strict; Path=/"
        return Response(b"", "text/plain", 303, {"Location": "/", "Set-Cookie": cookie})

    def _renew(self) -> None:
        self._token = secrets.token_urlsafe(24)
        self._announce(f"http://127.0.0.1:{self._port}/?token={self._token}")


def _refuse(why: str) -> Response:
    return Response(why.encode(), "text/plain", 403)
