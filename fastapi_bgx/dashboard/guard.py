"""What holds for every route of the router: headers, no requests forged by other sites, problems.

The dependencies of the router decide who gets in; here is what they need not think of.
"""

from collections.abc import Callable, Collection, Coroutine, Mapping
from typing import Any
from urllib.parse import urlsplit

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.datastructures import MutableHeaders
from starlette.types import Message, Receive, Scope, Send

from fastapi_bgx.dashboard.problems import ProblemRaised, flaws_of, unprocessable
from fastapi_bgx.errors import StoreUnavailable

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
"""Those that change nothing."""
DEFAULT_PORTS = {"http": 80, "https": 443}
STORE_RETRY_S = 5.0
CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "font-src 'self'",
        "form-action 'self'",
        "frame-ancestors 'none'",
        "base-uri 'none'",
    )
)
HEADERS: Mapping[str, str] = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}
"""On every answer, unless a route has set another value."""

Handler = Callable[[Request], Coroutine[Any, Any, Response]]
Authority = tuple[str, int | None]
"""A host, and a port unless it is the default."""


def guarded_route(trusted_origins: Collection[str] = ()) -> type[APIRoute]:
    """The class of the routes of one router.

    A class, because FastAPI keeps the class of a route, and nothing else of ours, when a router is
    included in another.

    Raises:
        ValueError: a trusted origin that is not one.
    """
    trusted = frozenset(_checked_origin(origin) for origin in trusted_origins)

    class GuardedRoute(APIRoute):
        """A route with the headers, the check and the problems of this module."""

        def get_route_handler(self) -> Handler:
            """What answers a request."""
            return _guarded(super().get_route_handler(), trusted)

        async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
            """Answer a request; whoever answers (also the application, for a guard's error)."""
            await super().handle(scope, receive, _with_headers(send))

    return GuardedRoute


def _guarded(handler: Handler, trusted: Collection[str]) -> Handler:
    async def guarded(request: Request) -> Response:
        try:
            refuse_forgery(request, trusted)
            return await handler(request)
        except ProblemRaised as raised:
            return raised.answer()
        except RequestValidationError as error:
            return unprocessable(flaws_of(error.errors())).answer()
        except StoreUnavailable as error:
            return ProblemRaised(503, str(error), retry_after=STORE_RETRY_S).answer()

    return guarded


def _with_headers(send: Send) -> Send:
    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(raw=list(message["headers"]))
            for name, value in HEADERS.items():
                headers.setdefault(name, value)
            message = {**message, "headers": headers.raw}
        await send(message)

    return send_with_headers


def refuse_forgery(request: Request, trusted: Collection[str]) -> None:
    """Refuse what a page of another origin has a browser send, whatever authenticates the user.

    Raises:
        ProblemRaised: 403.
    """
    if request.method not in SAFE_METHODS and is_forged(request, trusted):
        raise ProblemRaised(
            403,
            "the request comes from a page of another origin; if the page is yours, add its origin "
            "to bgx.router(trusted_origins=[...])",
        )


def is_forged(request: Request, trusted: Collection[str]) -> bool:
    """True for a request that a browser sends for a page of another origin.

    Browsers say where a request comes from in headers that no page can set: `Sec-Fetch-Site`,
    which older ones do not know and none sends over plain HTTP, and `Origin`. What has neither
    comes from no browser, and nobody's cookies are in it.
    """
    origin = request.headers.get("origin")
    if origin is not None and origin.lower() in trusted:
        return False
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        return site not in ("same-origin", "none")
    return origin is not None and not _is_own(origin, request)


def _is_own(origin: str, request: Request) -> bool:
    """True when a page of `origin` was served where the request is sent to.

    The scheme counts as far as it is known: behind a proxy that speaks HTTPS, HTTP is what the
    server sees. No `X-Forwarded-Host` is read: anybody could send one.
    """
    scheme, _, rest = origin.lower().partition("://")
    if scheme not in DEFAULT_PORTS or (scheme == "http" and request.url.scheme == "https"):
        return False
    host = _authority(request.headers.get("host", ""), scheme)
    return host is not None and host == _authority(rest, scheme)


def _authority(text: str, scheme: str) -> Authority | None:
    """Host and port; `None` when it is neither."""
    try:
        parts = urlsplit(f"//{text}")
        host, port = parts.hostname, parts.port
    except ValueError:
        return None
    if not host or parts.path or parts.query or parts.fragment or "@" in parts.netloc:
        return None
    return host, None if port == DEFAULT_PORTS[scheme] else port


def _checked_origin(origin: str) -> str:
    """The origin as browsers write it.

    Raises:
        ValueError: it is not one.
    """
    scheme, _, rest = origin.lower().partition("://")
    authority = _authority(rest, scheme) if scheme in DEFAULT_PORTS else None
    if authority is None:
        raise ValueError(
            f"trusted_origins: {origin!r} is no origin; it is written https://ops.example.org"
        )
    host, port = authority
    shown = f"[{host}]" if ":" in host else host
    return f"{scheme}://{shown}" if port is None else f"{scheme}://{shown}:{port}"
