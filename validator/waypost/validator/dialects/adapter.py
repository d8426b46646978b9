"""How one API of ours is spoken to one provider: the seam between pipeline and wire formats.

A provider that speaks the API itself is asked in it (``Passthrough``): bytes pass untouched. Others
are spoken to by translation (``waypost.validator.dialects.translation``). Either way an ``Adapter``
is pure: bytes in, bytes out. Connections, time-outs and status codes are
``waypost.validator.upstream.provider``'s.
"""

from collections.abc import Callable, Set
from typing import Any, ParamSpec, Protocol, TypeVar

import msgspec
from msgspec import Struct

from waypost.shared.errors import InvalidRequestError
from waypost.shared.requests.apis import Request
from waypost.validator.dialects.passthrough import APIS, StreamReader
from waypost.validator.dialects.usage import Told, UsageReport, read_anthropic, read_openai

__all__ = [
    "Adapter",
    "InboundRequest",
    "Passthrough",
    "ProviderRequest",
    "Reply",
    "UnreadableError",
    "UntranslatableError",
    "heard",
]

P = ParamSpec("P")
T = TypeVar("T")


class UntranslatableError(InvalidRequestError):
    """A request says something that another API has no words for; ``param`` is what."""

    code = "untranslatable"


class UnreadableError(ValueError):
    """What a provider sent cannot be read."""


def heard(read: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Return what ``read`` makes of what a provider sent.

    All that providers send is read by way of this, or of ``EventReader``, which does the same: a
    thousand brackets, half a character or a field that is not there must be that provider's
    failure, and never this program's.

    Raises:
        UnreadableError: whatever ``read`` raised.
    """
    try:
        return read(*args, **kwargs)
    except MemoryError:
        raise
    except Exception as exc:
        raise UnreadableError(type(exc).__name__) from exc


class InboundRequest:
    """A request as it came, and as it was read.

    Attributes:
        id, now: of the call, for answers that are written anew.
        version: of the API, where callers send one (``anthropic-version``).
        betas: what a caller asks for beyond it (``anthropic-beta``).
        kept: what translations made of it, each once.
    """

    __slots__ = ("betas", "body", "endpoint", "id", "kept", "now", "request", "version")

    def __init__(
        self,
        endpoint: str,
        request: Request,
        body: bytes,
        *,
        id: str = "",
        now: int = 0,
        version: str | None = None,
        betas: tuple[str, ...] = (),
    ) -> None:
        self.endpoint = endpoint
        self.request = request
        self.body = body
        self.id = id
        self.now = now
        self.version = version
        self.betas = betas
        self.kept: dict[str, Any] = {}


class ProviderRequest(Struct, frozen=True):
    """What is sent to a provider.

    Attributes:
        path: appended to the provider's base URL.
        headers: lines beyond the provider's own, each with its line end.
    """

    path: str
    body: bytes
    headers: str = ""


class Reply(Struct, frozen=True):
    """An unstreamed answer, as the caller is to see it, and what the provider says it used."""

    body: bytes
    report: UsageReport


class Adapter(Protocol):
    """One API, spoken to one provider."""

    @property
    def kind(self) -> str:
        """The same for those that ``check`` alike."""
        ...

    def path(self, model: str, *, streamed: bool) -> str:
        """Return where it is asked, below the provider's base URL."""
        ...

    def check(self, inbound: InboundRequest) -> None:
        """Raise UntranslatableError if the provider cannot be asked this."""
        ...

    def request(
        self, inbound: InboundRequest, *, model: str, output_tokens: int
    ) -> ProviderRequest:
        """Return what to send. ``check`` has passed.

        Args:
            model: the provider's name for it.
            output_tokens: bound of the answer.
        """
        ...

    def reply(self, inbound: InboundRequest, body: bytes) -> Reply:
        """Return the provider's unstreamed answer as the caller is to see it.

        Raises:
            ValueError: it is not an answer.
        """
        ...

    def report(self, body: bytes) -> UsageReport:
        """Return what an answer says it used that ``reply`` can make nothing of.

        Raises:
            ValueError: it is not even JSON.
        """
        ...

    def rejection(self, inbound: InboundRequest, body: bytes) -> bytes | None:
        """Return the provider's error as the caller is to see it; ``None`` if it is not one."""
        ...

    def reader(self, inbound: InboundRequest) -> StreamReader:
        """Return a reader of the provider's stream that gives what the caller is to see."""
        ...


_decode_told = msgspec.json.Decoder(Told).decode


class Passthrough:
    """An API that the provider speaks itself: bytes pass through."""

    __slots__ = ("_api", "_betas", "_max_tokens_field", "_path", "_read_usage", "_version")

    kind = "native"

    def __init__(
        self,
        endpoint: str,
        path: str,
        *,
        max_tokens_field: str,
        version: str | None,
        betas: Set[str] = frozenset(),
    ) -> None:
        """Args:
        version: what the provider is told where the caller does not say; ``None``: nothing.
        betas: what the operator lets callers ask for.
        """
        self._api = APIS[endpoint]
        self._read_usage = read_anthropic if endpoint == "messages" else read_openai
        self._path = path
        self._max_tokens_field = max_tokens_field
        self._version = version
        self._betas = betas

    def path(self, model: str, *, streamed: bool) -> str:
        """See ``Adapter``."""
        return self._path

    def check(self, inbound: InboundRequest) -> None:
        """See ``Adapter``. All can be said."""

    def request(
        self, inbound: InboundRequest, *, model: str, output_tokens: int
    ) -> ProviderRequest:
        """See ``Adapter``."""
        body = self._api.bounded(
            inbound.body,
            model=model,
            output_tokens=output_tokens,
            streamed=inbound.request.stream is True,
            max_tokens_field=self._max_tokens_field,
        )
        if self._version is None:
            return ProviderRequest(self._path, body)
        # The body means what it means in the version that it was written for.
        lines = f"anthropic-version: {inbound.version or self._version}\r\n"
        betas = [beta for beta in inbound.betas if beta in self._betas]
        if betas:
            lines += f"anthropic-beta: {','.join(betas)}\r\n"
        return ProviderRequest(self._path, body, lines)

    def reply(self, inbound: InboundRequest, body: bytes) -> Reply:
        """See ``Adapter``."""
        if not body.isascii():
            body.decode()  # RFC 8259 §8.1; what is passed over here nobody could read either
        return Reply(body, self._api.report(body))

    def report(self, body: bytes) -> UsageReport:
        """See ``Adapter``."""
        return self._read_usage(_decode_told(body).usage)

    def rejection(self, inbound: InboundRequest, body: bytes) -> bytes | None:
        """See ``Adapter``."""
        return body if self._api.is_error(body) else None

    def reader(self, inbound: InboundRequest) -> StreamReader:
        """See ``Adapter``."""
        return self._api.reader(inbound.request)
