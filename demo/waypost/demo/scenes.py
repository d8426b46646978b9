"""What is asked in a demonstration, by whom and how; and what came of it, row by row."""

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, nullcontext
from http import HTTPStatus
from typing import Any

import httpx
import openai
from msgspec import Struct
from msgspec.json import decode
from openai.types.chat import ChatCompletionMessageParam

from waypost.client import Waypost
from waypost.demo.processes import ServerError
from waypost.demo.stage import TRIAL_ACCOUNT, Persona, Stage
from waypost.shared.contracts import Declared, Proposal
from waypost.shared.decision.explain import Explanation
from waypost.shared.records import DecisionRecord
from waypost.shared.wire.headers import (
    DECISION,
    FACTS,
    PROPOSAL,
    format_facts,
    format_proposal,
    parse_decision,
)

__all__ = [
    "BOB",
    "OUTAGE_PROVIDER",
    "SCENES",
    "Row",
    "Scene",
    "Totals",
    "add_up",
    "play",
    "surprises",
]

MAX_TOKENS = 100
OUTAGE_PROVIDER = "groq"  # serves short questions, so its loss shows
RECORD_DEADLINE_S = 5.0  # records are written behind the answers, in groups

ALICE = Persona(name="alice", tier="free", account="alice")
BOB = Persona(name="bob", tier="pro", account="acme")
CLINIC = Persona(name="clinic", tier="pro", account="clinic")
EVA = Persona(name="eva", tier="pro", account="acme-eu", data_classes=("eu_personal",))
TRIAL = Persona(name="tim", tier="free", account=TRIAL_ACCOUNT)
MALLORY = Persona(name="mallory", tier="enterprise", account="acme")


class Scene(Struct, frozen=True, kw_only=True):
    """One request.

    Attributes:
        name: stable, for scripts.
        shows: what there is to see, in a few words.
        declared: what the client says of the request.
        raw_proposal: sent by a client without the SDK, which proposes what it likes.
        forged: the token is signed with the caller's own key.
        outage: this provider is down meanwhile.
        http_status: what should come of it.
    """

    name: str
    shows: str
    who: Persona
    prompt: str
    declared: Declared = Declared()
    stream: bool = True
    raw_proposal: str | None = None
    forged: bool = False
    outage: str | None = None
    http_status: int = 200


SCENES: tuple[Scene, ...] = (
    Scene(
        name="short",
        shows="a short question",
        who=ALICE,
        prompt="Say in one sentence why the sky is blue.",
    ),
    Scene(
        name="hard",
        shows="a hard question",
        who=BOB,
        prompt="Prove step by step that the square root of 2 is irrational.",
    ),
    Scene(
        name="background",
        shows="nobody is waiting: the cheapest that is good enough",
        who=BOB,
        prompt="Write one sentence for the newsletter about our new lighthouse museum.",
        declared=Declared(interactive=False),
        stream=False,
    ),
    Scene(
        name="cheat",
        shows="a modified client claims the best model",
        who=ALICE,
        prompt="Tell me a short story about a lighthouse.",
        raw_proposal="frontier",
    ),
    Scene(
        name="phi",
        shows="patient data, on its way to a provider without a BAA",
        who=CLINIC,
        prompt="Summarise: the patient was discharged on antibiotics, follow-up in two weeks.",
        declared=Declared(data_classes=("phi",)),
        raw_proposal="large",
    ),
    Scene(
        name="eu",
        shows="a token that binds data to the EU",
        who=EVA,
        prompt="Which clause of the contract says where our data may be kept?",
    ),
    Scene(
        name="budget",
        shows="a used-up budget: a millionth of a dollar is left",
        who=TRIAL,
        prompt="What does HTTP status 402 mean?",
        http_status=402,
    ),
    Scene(
        name="forged",
        shows="a token signed by a stranger",
        who=MALLORY,
        prompt="Hello?",
        raw_proposal="frontier",
        forged=True,
        http_status=401,
    ),
    Scene(
        name="outage",
        shows="the chosen model's provider is down",
        who=ALICE,
        prompt="What is photosynthesis?",
        outage=OUTAGE_PROVIDER,
    ),
)


class Row(Struct, frozen=True, kw_only=True):
    """One request and what came of it.

    Attributes:
        proposed: what the client wanted; ``None`` when it left the choice open.
        code: stable reason of verdict or error.
        model: that answered; ``None`` if none did.
        baseline_cost_nusd: on the best admissible model instead.
        ttft_ms: as the client saw it; of an answer that was not streamed, its whole time.
        reason: in plain words.
    """

    scene: str
    shows: str
    who: str
    tier: str
    prompt: str
    proposed: str | None
    verdict: str
    code: str
    http_status: int
    model: str | None
    provider: str | None
    cost_nusd: int
    baseline_cost_nusd: int | None
    ttft_ms: float | None
    streamed: bool
    answer: str
    reason: str
    decision_id: str


class Totals(Struct, frozen=True, kw_only=True):
    """Over all rows. ``saved_nusd`` is against the best admissible model each time."""

    requests: int
    spent_nusd: int
    saved_nusd: int
    overridden: int
    refused: int


def add_up(rows: Sequence[Row]) -> Totals:
    """Return the totals of ``rows``."""
    return Totals(
        requests=len(rows),
        spent_nusd=sum(row.cost_nusd for row in rows),
        saved_nusd=sum(
            row.baseline_cost_nusd - row.cost_nusd
            for row in rows
            if row.baseline_cost_nusd is not None
        ),
        overridden=sum(row.verdict == "overridden" for row in rows),
        refused=sum(row.verdict == "refused" for row in rows),
    )


def surprises(rows: Sequence[Row]) -> list[str]:
    """Return what came out otherwise than it must, one line each; empty when all went well."""
    expected = {scene.name: scene.http_status for scene in SCENES}
    return [
        f"request '{row.scene}' got HTTP {row.http_status} ({row.code}), not {expected[row.scene]}"
        for row in rows
        if row.http_status != expected[row.scene]
    ]


class _Error(Struct, frozen=True):
    code: str = ""
    message: str = ""


class _Envelope(Struct, frozen=True):
    error: _Error


class _Answered(Struct, kw_only=True):
    status: int
    headers: Any
    ttft_ms: float | None = None
    text: str = ""
    error: _Error = _Error()


class _Decided(Struct):
    record: DecisionRecord
    explanation: Explanation


def play(stage: Stage, scenes: Sequence[Scene] = SCENES) -> Iterator[Row]:
    """Yield one row per scene, as each is played.

    Raises:
        ServerError: a decision cannot be read back.
        TrustError: the SDK does not take the manifest.
    """
    with ExitStack() as stack:
        clients = _Clients(stage, stack)
        for scene in scenes:
            with stage.outage(scene.outage) if scene.outage else nullcontext():
                answered = clients.ask(scene)
            yield _row(stage, scene, answered)


class _Clients:
    """One client per persona, as each would have in an app of their own."""

    def __init__(self, stage: Stage, stack: ExitStack) -> None:
        self._stage = stage
        self._stack = stack
        self._apps: dict[str, tuple[Waypost, openai.OpenAI]] = {}

    def ask(self, scene: Scene) -> _Answered:
        if scene.raw_proposal is not None:
            headers = {PROPOSAL: format_proposal(Proposal(model=scene.raw_proposal))}
            facts = format_facts(scene.declared)
            if facts:
                headers[FACTS] = facts
            with openai.OpenAI(
                api_key=self._stage.token(scene.who, forged=scene.forged),
                base_url=f"{self._stage.validator_url}/v1",
                default_headers=headers,
                max_retries=0,
            ) as client:
                return _ask(client, scene)
        waypost, client = self._app(scene.who)
        declared = scene.declared
        with waypost.facts(interactive=declared.interactive, data=declared.data_classes):
            return _ask(client, scene)

    def _app(self, who: Persona) -> tuple[Waypost, openai.OpenAI]:
        if who.name not in self._apps:
            stage = self._stage
            waypost = self._stack.enter_context(
                Waypost(
                    token=lambda: stage.token(who),
                    manifest_url=stage.manifest_url,
                    root=stage.project.root,
                    cache_dir=stage.project.directory / "client-cache",
                )
            )
            if not waypost.refresh() and waypost.last_error is not None:
                raise waypost.last_error
            client = openai.OpenAI(
                base_url=waypost.base_url,
                api_key="the token takes its place",
                http_client=waypost.httpx2_client(),
                max_retries=0,
            )
            self._stack.callback(client.close)
            self._apps[who.name] = waypost, client
        return self._apps[who.name]


def _ask(client: openai.OpenAI, scene: Scene) -> _Answered:
    messages: list[ChatCompletionMessageParam] = [{"role": "user", "content": scene.prompt}]
    chat = client.chat.completions.with_raw_response
    started = time.perf_counter()

    def elapsed_ms() -> float:
        return round((time.perf_counter() - started) * 1_000, 1)

    try:
        if not scene.stream:
            whole = chat.create(model="auto", messages=messages, max_tokens=MAX_TOKENS)
            text = whole.parse().choices[0].message.content or ""
            return _Answered(
                status=whole.status_code, headers=whole.headers, ttft_ms=elapsed_ms(), text=text
            )
        streaming = chat.create(model="auto", messages=messages, max_tokens=MAX_TOKENS, stream=True)
        answered = _Answered(status=streaming.status_code, headers=streaming.headers)
        with streaming.parse() as stream:
            for chunk in stream:
                piece = chunk.choices[0].delta.content if chunk.choices else None
                if piece and answered.ttft_ms is None:
                    answered.ttft_ms = elapsed_ms()
                answered.text += piece or ""
        return answered
    except openai.APIStatusError as exc:
        return _Answered(
            status=exc.status_code,
            headers=exc.response.headers,
            error=decode(exc.response.content, type=_Envelope).error,
        )


def _row(stage: Stage, scene: Scene, answered: _Answered) -> Row:
    decision = parse_decision(answered.headers.get(DECISION, ""))
    decision_id = str(decision.get("id", ""))
    # Whoever holds no valid token can read no record, not even their own.
    decided = None if scene.forged else _look_up(stage, scene.who, decision_id)
    record = None if decided is None else decided.record
    answering = record.attempts[-1] if record is not None and record.attempts else None
    refused = answered.status != HTTPStatus.OK
    proposed = scene.raw_proposal
    if proposed is None and record is not None and record.proposal is not None:
        proposed = record.proposal.model
    return Row(
        scene=scene.name,
        shows=scene.shows,
        who=scene.who.name,
        tier=scene.who.tier,
        prompt=scene.prompt,
        proposed=proposed,
        verdict=str(decision.get("verdict", "refused")),
        code=answered.error.code or str(decision.get("reason", "")),
        http_status=answered.status,
        model=None if refused or record is None else record.model,
        provider=None if refused or answering is None else answering.provider,
        cost_nusd=0 if record is None else record.cost_nusd,
        baseline_cost_nusd=None if record is None else record.baseline_cost_nusd,
        ttft_ms=answered.ttft_ms,
        streamed=scene.stream,
        answer=answered.text,
        reason=answered.error.message if decided is None else decided.explanation.sentence,
        decision_id=decision_id,
    )


def _look_up(stage: Stage, who: Persona, decision_id: str) -> _Decided:
    """Return the caller's own record of a decision."""
    url = f"{stage.validator_url}/v1/decisions/{decision_id}"
    headers = {"authorization": f"Bearer {stage.token(who)}"}
    give_up_at = time.monotonic() + RECORD_DEADLINE_S
    while True:
        answer = httpx.get(url, headers=headers)
        if answer.status_code == HTTPStatus.OK:
            return decode(answer.content, type=_Decided)
        if answer.status_code != HTTPStatus.NOT_FOUND or time.monotonic() > give_up_at:
            raise ServerError(f"decision {decision_id!r} cannot be read: HTTP {answer.status_code}")
        time.sleep(0.02)
