"""The two clients. All they do differently is to wait."""

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from copy import copy
from types import TracebackType
from typing import TYPE_CHECKING, Generic, Self, TypeVar, Unpack

import msgspec

from waypost.client._binding import bind
from waypost.client._choose import Choice, Freshness
from waypost.client._core import Core
from waypost.client._facts import Names, names, said, saying
from waypost.client._feedback import Rating, check_heard, feedback, unheard
from waypost.client._named import named
from waypost.client._network import Network
from waypost.client._options import Options, check_options, source_of
from waypost.client._token import (
    AsyncTokens,
    AsyncTokenSource,
    Tokens,
    TokenSource,
)
from waypost.client._transport import in_thread
from waypost.shared.contracts import AUTO, Measured
from waypost.shared.decision.explain import Explanation
from waypost.shared.errors import TrustError
from waypost.shared.requests.measure import decode_chat

if TYPE_CHECKING:
    import httpx
    import httpx2

    from waypost.client.dpop import Prover

__all__ = ["AsyncWaypost", "Waypost"]

REFRESH_INTERVAL_S = 30.0

# As the official SDKs wait: long answers take minutes.
TIMEOUT_S = 600.0
FEEDBACK_TIMEOUT_S = 10.0

TokensT = TypeVar("TokensT", Tokens, AsyncTokens)


class _Client(Generic[TokensT]):
    """Everything but the line that awaits."""

    _tokens: TokensT

    def __init__(self, **options: Unpack[Options]) -> None:
        check_options(options)
        self._core = Core(
            source_of(options),
            base_url=options.get("base_url"),
            declared=said(
                interactive=options.get("interactive"),
                data=(*names(options.get("data", ())), *names(options.get("default_data", ()))),
                task=options.get("task"),
                tags=options.get("tags", ()),
            ),
            refresh_interval_s=options.get("refresh_interval_s", REFRESH_INTERVAL_S),
            network=Network(proxy=options.get("proxy"), verify=options.get("verify")),
            on_event=options.get("on_event"),
        )

    def _token_at_hand(self) -> str | None:
        raise NotImplementedError

    def _prover(self, options: Options) -> "Prover | None":
        key = options.get("dpop")
        if key is None:
            return None
        from waypost.client.dpop import Prover

        return Prover(key, self._core.now)

    @property
    def base_url(self) -> str:
        """Where to point an API client that sends through ``http_client()``; ends in ``/v1``."""
        return self._core.base_url

    @property
    def freshness(self) -> Freshness:
        """How current the manifest is; see ``Choice``."""
        return self._core.freshness

    @property
    def manifest_version(self) -> int | None:
        """Version of the manifest in use."""
        return self._core.manifest_version

    @property
    def manifest_expires_in_s(self) -> dict[str, float]:
        """Signing role → for how long its signature still holds, in seconds; below 0 it has ended.

        ``root`` and ``targets`` are signed by people, who should be told a week ahead; the rest an
        edge signs anew every few minutes. Empty while there is no manifest.
        """
        return self._core.expires_in_s()

    @property
    def last_error(self) -> TrustError | None:
        """Why the last refresh failed; ``None`` if it did not."""
        return self._core.last_error

    @named
    def measure(
        self,
        messages: str | Sequence[object],
        *,
        tools: Sequence[object] = (),
        max_tokens: int | None = None,
        response_format: object = None,
        models: Sequence[str] = (),
        provider: Mapping[str, object] | None = None,
    ) -> Measured:
        """Return what a decision sees of a chat request; to choose for it more than once.

        Args:
            messages: a prompt, or chat messages as for the ``openai`` SDK.
            models, provider: what the body demands of whoever serves it, as in its ``extra_body``.

        Raises:
            InvalidRequestError: ``invalid_body``, naming the field at fault;
                ``parameter_unsupported``, for ``require_parameters``.
        """
        body: dict[str, object] = {
            "model": AUTO,
            "messages": (
                [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
            ),
        }
        if tools:
            body["tools"] = tools
        if max_tokens is not None:
            body["max_completion_tokens"] = max_tokens
        if response_format is not None:
            body["response_format"] = response_format
        if models:
            body["models"] = models
        if provider is not None:
            body["provider"] = provider
        data = msgspec.json.encode(body, enc_hook=_plain)
        return self._core.measure(decode_chat(data), data)

    @named
    def choose(
        self,
        messages: str | Sequence[object] | Measured,
        *,
        tools: Sequence[object] = (),
        max_tokens: int | None = None,
        response_format: object = None,
        models: Sequence[str] = (),
        provider: Mapping[str, object] | None = None,
        interactive: bool | None = None,
        data: Names = (),
        task: str | None = None,
        tags: Names = (),
        expected_output_tokens: int | None = None,
        session: str | None = None,
    ) -> Choice:
        """Return what would be proposed for a request, and why. Sends nothing.

        Without a valid manifest or token there is still an answer: no model, and the reason.

        Args:
            messages: a prompt, chat messages, or what ``measure`` returned, which then has seen
                all that belongs to the body.
            models, provider: as for ``measure``.
            interactive: as the rest, declared for this choice on top of what holds anyway.
            session: the conversation that the request goes on with, by any name. It stays with
                the model that has its beginning cached, where the policy finds that cheapest.
                What is chosen is taken to be sent.

        Raises:
            InvalidRequestError: ``messages`` are not chat messages.
        """
        if not isinstance(messages, Measured):
            messages = self.measure(
                messages,
                tools=tools,
                max_tokens=max_tokens,
                response_format=response_format,
                models=models,
                provider=provider,
            )
        elif models or provider is not None:
            # A demand that is dropped in silence would be a breach.
            raise TypeError("models and provider belong to the body: give them to measure()")
        more = None
        if interactive is not None or data or task or tags or expected_output_tokens:
            more = said(
                interactive=interactive,
                data=data,
                task=task,
                tags=tags,
                expected_output_tokens=expected_output_tokens,
            )
        token = self._token_at_hand()
        choice = self._core.choose(
            messages,
            self._core.declared(more, session=session),
            None if token is None else self._tokens.claims(token),
            without_claims="no_token" if token is None else "token_unreadable",
        )
        if session is not None and choice.model is not None:
            self._core.note_session(session, choice.model, messages.input_tokens)
        return choice

    def network_changed(self) -> None:
        """Say that the device is on another network, if the platform tells you.

        Not needed: answers and failures show it too, a few requests later.
        """
        self._core.network_changed()

    @named
    def explain(self, choice: Choice) -> Explanation:
        """Return why ``choice`` came out as it did: sentence, trace, exclusions."""
        return choice.explain()

    @named
    @contextmanager
    def facts(
        self,
        *,
        interactive: bool | None = None,
        data: Names = (),
        task: str | None = None,
        tags: Names = (),
        expected_output_tokens: int | None = None,
        session: str | None = None,
    ) -> Generator[None]:
        """Declare facts about the requests made in a ``with`` block.

        They go to the validator with each request and count in each choice. They may add duties
        and steer preference, never widen what is allowed.

        Args:
            session: the conversation that the requests belong to, by any name, which stays here;
                see ``choose``.

        Raises:
            InvalidRequestError: a name is not printable ASCII.
        """
        more = said(
            interactive=interactive,
            data=data,
            task=task,
            tags=tags,
            expected_output_tokens=expected_output_tokens,
        )
        with self._core.open_block(more.data_classes), saying(more, session=session):
            yield

    @named
    def bound(
        self,
        *,
        interactive: bool | None = None,
        data: Names = (),
        task: str | None = None,
        tags: Names = (),
        expected_output_tokens: int | None = None,
        session: str | None = None,
    ) -> Self:
        """Return a client whose every request declares this, in whatever thread, task or loop.

        It shares manifest, token and all that is learned with this one, which is the one to
        close. Blocks and headers may add to it; no block takes a class of data away.

        Args:
            session: the conversation that all its requests belong to; see ``choose``.

        Raises:
            InvalidRequestError: a name is not printable ASCII.
        """
        made = copy(self)
        made._core = self._core.bound(
            said(
                interactive=interactive,
                data=data,
                task=task,
                tags=tags,
                expected_output_tokens=expected_output_tokens,
            ),
            session,
        )
        return made


class Waypost(_Client[Tokens]):
    """Proposes a model for each request, and sends it to a validator with the proposal.

    Made without touching the network: a manifest kept from an earlier run is verified and used.
    Safe to share between threads.
    """

    def __init__(self, *, token: TokenSource | None = None, **options: Unpack[Options]) -> None:
        """Args:
        token: access token, or a function returning one, which is asked again when the token
            is about to lapse or was refused. ``None``: requests bring their own.
        options: see ``Options``.
        """
        super().__init__(**options)
        self._tokens = Tokens(token, self._core.now, self._prover(options))
        self._core.after_fork.append(self._tokens.after_fork)

    def _token_at_hand(self) -> str | None:
        with suppress(Exception):  # choices are always answered; a request says what is wrong
            return self._tokens.get()
        return None

    @named
    def http_client(
        self,
        *,
        transport: "httpx.BaseTransport | None" = None,
        timeout: "httpx.Timeout | float | None" = TIMEOUT_S,
    ) -> "httpx.Client":
        """Return a client to hand to an SDK that takes an ``httpx.Client``.

        Requests to ``base_url`` get token, proposal, facts and trace context, and go to the
        best endpoint; all others pass unchanged. Close it when done; the SDKs do.

        Args:
            transport: sends the requests, instead of sockets with ``proxy`` and ``verify``.
        """
        import httpx

        binding = bind(httpx)
        return httpx.Client(
            transport=binding.transport(self._core, self._tokens, transport),
            timeout=binding.timeout(timeout),
        )

    @named
    def httpx2_client(
        self,
        *,
        transport: "httpx2.BaseTransport | None" = None,
        timeout: "httpx2.Timeout | float | None" = TIMEOUT_S,
    ) -> "httpx2.Client":
        """Return the same for httpx2, which ``openai`` ≥ 3 and ``anthropic`` ≥ 2 are built on."""
        import httpx2

        binding = bind(httpx2)
        return httpx2.Client(
            transport=binding.transport(self._core, self._tokens, transport),
            timeout=binding.timeout(timeout),
        )

    @named
    def feedback(self, decision_id: str, rating: Rating, *, cause: str | None = None) -> None:
        """Tell the validator what an answer was worth; the newest word counts.

        Args:
            decision_id: from the answer, by ``decision_id`` or an ``Answered`` event.
            cause: a short code of your own, as ``incomplete``; no free text.

        Raises:
            InvalidRequestError: with the validator's code, as ``decision_not_found``.
            UpstreamError: ``validator_unreachable``.
        """
        import httpx

        with self.http_client(timeout=FEEDBACK_TIMEOUT_S) as http:
            try:
                answer = http.post(
                    f"{self.base_url}/feedback", json=feedback(decision_id, rating, cause)
                )
            except httpx.HTTPError as exc:
                raise unheard(exc) from exc
        check_heard(answer)

    def refresh(self) -> bool:
        """Fetch and verify the manifest now; whether that went well (else see ``last_error``).

        Not needed but to wait for it: the first use starts refreshing in the background.
        """
        return self._core.refresh()

    def close(self) -> None:
        """Stop refreshing. Choosing goes on until the manifest expires."""
        self._core.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class AsyncWaypost(_Client[AsyncTokens]):
    """Like ``Waypost``, for async programs: what waits for the network is awaited.

    ``choose`` is not: it computes. It uses the token at hand, which a token function is asked
    for on entering ``async with`` and by each request that needs a new one.
    """

    def __init__(
        self, *, token: AsyncTokenSource | None = None, **options: Unpack[Options]
    ) -> None:
        """Args:
        token: as for ``Waypost``, and the function may be a coroutine function.
        options: see ``Options``.
        """
        super().__init__(**options)
        self._tokens = AsyncTokens(token, self._core.now, self._prover(options))
        self._core.after_fork.append(self._tokens.after_fork)

    def _token_at_hand(self) -> str | None:
        return self._tokens.token

    @named
    def http_client(
        self,
        *,
        transport: "httpx.AsyncBaseTransport | None" = None,
        timeout: "httpx.Timeout | float | None" = TIMEOUT_S,
    ) -> "httpx.AsyncClient":
        """Return a client to hand to an SDK that takes an ``httpx.AsyncClient``."""
        import httpx

        binding = bind(httpx)
        return httpx.AsyncClient(
            transport=binding.async_transport(self._core, self._tokens, transport),
            timeout=binding.timeout(timeout),
        )

    @named
    def httpx2_client(
        self,
        *,
        transport: "httpx2.AsyncBaseTransport | None" = None,
        timeout: "httpx2.Timeout | float | None" = TIMEOUT_S,
    ) -> "httpx2.AsyncClient":
        """Return the same for httpx2, which ``openai`` ≥ 3 and ``anthropic`` ≥ 2 are built on."""
        import httpx2

        binding = bind(httpx2)
        return httpx2.AsyncClient(
            transport=binding.async_transport(self._core, self._tokens, transport),
            timeout=binding.timeout(timeout),
        )

    @named
    async def feedback(self, decision_id: str, rating: Rating, *, cause: str | None = None) -> None:
        """Tell the validator what an answer was worth; see ``Waypost.feedback``."""
        import httpx

        async with self.http_client(timeout=FEEDBACK_TIMEOUT_S) as http:
            try:
                answer = await http.post(
                    f"{self.base_url}/feedback", json=feedback(decision_id, rating, cause)
                )
            except httpx.HTTPError as exc:
                raise unheard(exc) from exc
        check_heard(answer)

    async def refresh(self) -> bool:
        """Fetch and verify the manifest now; see ``Waypost.refresh``."""
        return await in_thread(self._core.refresh)

    async def aclose(self) -> None:
        """Stop refreshing. Choosing goes on until the manifest expires."""
        await in_thread(self._core.close)

    async def __aenter__(self) -> Self:
        with suppress(Exception):  # a request will say what is wrong with the token
            await self._tokens.get()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()


def _plain(value: object) -> object:
    """Return an SDK's message object as a dict, so that an answer can be sent back as is."""
    dump = getattr(value, "model_dump", None)
    if dump is None:
        raise TypeError(f"a message must be a dict or an SDK's message, not {type(value).__name__}")
    return dump(exclude_none=True)
