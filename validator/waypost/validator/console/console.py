"""The console over HTTP: who gets in, which page answers, and how each response is fenced.

The rule: without a valid session nothing is told but the login page. Nothing is taken from
another site: a POST must come from a page of ours, and a page may load and run only what this
server hands out as a file.
"""

import logging
import re
import secrets
from http.cookies import CookieError, SimpleCookie
from typing import cast
from urllib.parse import SplitResult, urlencode, urlsplit

from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from waypost.shared.errors import (
    ForbiddenError,
    InvalidRequestError,
    RefusalError,
    StoreError,
    TokenError,
    WaypostError,
)
from waypost.validator.console import decisions, live, playground, status
from waypost.validator.console.pages import form_of, is_over, page, services_of
from waypost.validator.console.render import assets
from waypost.validator.console.session import (
    ALL_SESSIONS,
    COOKIE,
    SESSION_S,
    LoginLimiter,
    Session,
    is_token,
    new_session,
    session_of,
)
from waypost.validator.http.problems import INTERNAL, SEE_OTHER, describe
from waypost.validator.services import Services

__all__ = ["Console"]

logger = logging.getLogger(__name__)

LOGIN = "/console/login"

HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self';"
    " img-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none';"
    " frame-ancestors 'none'",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    # Not no-referrer: the Origin of our own forms would then be null.
    "referrer-policy": "same-origin",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}

# Where a login may lead on to: our own pages, never another host.
_OWN_PAGE = re.compile(r"/console(?:/[A-Za-z0-9._~/-]*)?(?:\?[A-Za-z0-9._~%&=:+-]*)?")
_PASSING = frozenset({"console_busy", "internal_error", "manifest_missing"})
_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


class Console:
    """The application to mount at ``/console``. Give it its ``services`` before it serves."""

    def __init__(self) -> None:
        self.services: Services | None = None
        self._logins = LoginLimiter()
        self._viewers: set[object] = set()
        self._pages = Starlette(
            routes=[
                Route("/login", _login_page, methods=["GET"]),
                Route("/login", _login, methods=["POST"]),
                Route("/logout", _logout, methods=["POST"]),
                Route("/static/{name}", _static, methods=["GET"]),
                Route("/", _home, methods=["GET"]),
                Route("/decisions", decisions.listing, methods=["GET"]),
                Route("/decisions.csv", decisions.export, methods=["GET"]),
                Route("/decisions/live", live.follow, methods=["GET"]),
                Route("/decisions/{id}", decisions.one, methods=["GET"]),
                Route("/routes", status.routes, methods=["GET"]),
                Route("/budgets", status.budgets, methods=["GET"]),
                Route("/providers", status.providers, methods=["GET"]),
                Route("/manifest", status.manifest, methods=["GET"]),
                Route("/playground", playground.form, methods=["GET"]),
                Route("/playground", playground.ask, methods=["POST"]),
            ],
            exception_handlers={
                WaypostError: _problem,
                HTTPException: _http_problem,
                Exception: _internal,
            },
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_fenced(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                headers.setdefault("cache-control", "no-store")
            await send(message)

        scope.update(services=self.services, logins=self._logins, viewers=self._viewers)
        turned_away = await _turned_away(Request(scope, receive))
        await (turned_away or self._pages)(scope, receive, send_fenced)


async def _turned_away(request: Request) -> Response | None:
    """Return why a request goes no further; ``None`` if it may."""
    services = services_of(request)
    if services.operators.console is None:
        return _bare(InvalidRequestError("There is nothing at this path.", code="not_found"))
    if request.method == "POST" and not _is_from_own_page(request):
        return _bare(
            ForbiddenError("This was not sent by a page of this console.", code="cross_origin")
        )
    try:
        session = await _session(request, services)
    except StoreError as error:
        logger.error("whether a session of the console has ended cannot be told: %s", error)
        return _bare(
            StoreError("Sessions cannot be looked up; the log says more.", code=error.code)
        )
    request.scope.update(session=session, is_operator=session is not None)
    path = _path(request)
    if session is not None or path == LOGIN or path.startswith("/console/static/"):
        return None
    if request.method == "GET" and "text/html" in request.headers.get("accept", ""):
        query = f"?{request.url.query}" if request.url.query else ""
        aim = urlencode({"next": path + query})
        return RedirectResponse(f"{LOGIN}?{aim}", SEE_OTHER)
    return _bare(TokenError("Log in first; the session may have expired.", code="console_login"))


def _bare(refusal: WaypostError) -> Response:
    """Return a refusal for whoever may not even see a page's frame."""
    problem = describe(refusal)
    return Response(problem.body, problem.status, media_type="application/json")


def _path(request: Request) -> str:
    path: str = request.scope["path"]
    return path


async def _session(request: Request, services: Services) -> Session | None:
    """Return the session that the request belongs to, unless it has lapsed or was ended."""
    jar = SimpleCookie()
    try:
        jar.load(request.headers.get("cookie", ""))
    except CookieError:
        return None
    if COOKIE not in jar:
        return None
    session = session_of(
        jar[COOKIE].value, services.operators.console or "", now=int(services.clock())
    )
    if session is None or await is_over(services, session):
        return None
    return session


def _is_from_own_page(request: Request) -> bool:
    """Whether a browser says so. SameSite alone takes another port of this host for us."""
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        return site == "same-origin"
    return _origin(request).netloc == request.headers.get("host")


def _origin(request: Request) -> SplitResult:
    """Return where the page came from; empty if that is not said, or is no address."""
    try:
        return urlsplit(request.headers.get("origin", ""))
    except ValueError:
        return urlsplit("")


# ── in and out ─────────────────────────────────────────────────────────────────────────────────


def _next(text: str | None) -> str:
    return text if text is not None and _OWN_PAGE.fullmatch(text) else "/console/"


async def _login_page(request: Request) -> Response:
    aim = _next(request.query_params.get("next"))
    return await page(request, "login.html", next=aim, refusal=None)


async def _login(request: Request) -> Response:
    services = services_of(request)
    limiter: LoginLimiter = request.scope["logins"]
    address = request.client.host if request.client is not None else ""
    form = await form_of(request)
    given, aim = form.get("token", [""])[0], _next(form.get("next", [""])[0])
    is_local = (request.url.hostname or "") in _LOOPBACK
    refusal: RefusalError | None = None
    if not is_local and _origin(request).scheme == "http":
        refusal = ForbiddenError(
            "This page came without encryption, so its session would be for anyone on the way to"
            " take. Put TLS in front of the validator, or use a tunnel: ssh -L 8080:127.0.0.1:8080"
            " and then http://127.0.0.1:8080/console.",
            code="console_needs_https",
        )
    elif wait_s := limiter.wait_s(address, services.monotonic()):
        refusal = RefusalError(
            f"Too many wrong tokens came from your address; try again in {wait_s} s.",
            code="too_many_logins",
        )
    elif not is_token(given.strip(), services.operators.console or ""):
        limiter.failed(address, services.monotonic())
        logger.warning("a login to the console failed, from %s", address)
        refusal = TokenError(
            "This is not the operator's token. It is in the environment variable that"
            " validator.yaml names under console.",
            code="console_login",
        )
    if refusal is not None:
        return await page(
            request, "login.html", next=aim, refusal=refusal, status=describe(refusal).status
        )
    response = RedirectResponse(aim, SEE_OTHER)
    response.set_cookie(
        COOKIE,
        new_session(
            services.operators.console or "", name=secrets.token_hex(16), now=int(services.clock())
        ),
        max_age=SESSION_S,
        path="/console",
        secure=not is_local,
        httponly=True,
        samesite="strict",
    )
    return response


async def _logout(request: Request) -> Response:
    """End this session, or all there are."""
    services = services_of(request)
    session: Session = request.scope["session"]
    if "everywhere" in await form_of(request):
        await services.access.seen.end(ALL_SESSIONS, until=int(services.clock()) + SESSION_S)
    else:
        await services.access.seen.end(session.mark, until=session.expires_at)
    response = RedirectResponse(LOGIN, SEE_OTHER)
    response.delete_cookie(COOKIE, path="/console", httponly=True, samesite="strict")
    return response


async def _home(_: Request) -> Response:
    return RedirectResponse("/console/decisions", SEE_OTHER)


async def _static(request: Request) -> Response:
    found = assets().get(request.path_params["name"])
    if found is None:
        raise InvalidRequestError("There is no such file.", code="not_found")
    return Response(
        found.body,
        media_type=found.media_type,
        headers={"cache-control": "public, max-age=31536000, immutable"},
    )


# ── errors ─────────────────────────────────────────────────────────────────────────────────────


_TITLES = {401: "Log in first", 403: "Not allowed", 404: "Not found", 429: "Too many", 503: "Down"}


async def _told(request: Request, error: WaypostError) -> Response:
    """Return a page that says what went wrong, and what can be done."""
    status = describe(error).status
    message = error.message
    if isinstance(error, StoreError):
        # Its own words name files; they are in the log, where an operator has them too.
        logger.error("%s: %s", error.code, error)
        message = (
            "A store does not answer, so this page has nothing to show. Other pages may work, and"
            " requests are served as far as they can be. The validator's log says more."
        )
    return await page(
        request,
        "problem.html",
        error=error,
        message=message,
        title=_TITLES.get(status, "Something went wrong"),
        is_passing=isinstance(error, StoreError) or error.code in _PASSING,
        status=status,
    )


async def _problem(request: Request, error: Exception) -> Response:
    return await _told(request, cast("WaypostError", error))


async def _http_problem(request: Request, error: Exception) -> Response:
    allow = (cast("HTTPException", error).headers or {}).get("Allow")
    code, text = ("method_not_allowed", f"Use {allow} here.") if allow else ("not_found", "")
    return await _told(request, InvalidRequestError(text or "There is no such page.", code=code))


async def _internal(request: Request, error: Exception) -> Response:
    logger.error("the console failed at %s", _path(request), exc_info=error)
    return await _told(request, INTERNAL)
