"""Test cases of a policy: requests in its own words, and what is to become of them. Pure."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Struct, structs
from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from waypost.cli.yamlfile import FileError, FileModel, YAMLFile, read_yaml
from waypost.edge.authoring.conditions import EndpointName
from waypost.edge.authoring.fields import (
    Dollars,
    Instant,
    Keyword,
    Name,
    Some,
    Unique,
    among,
    known,
    listed,
    wrong,
)
from waypost.shared.contracts import (
    CAPABILITIES,
    Declared,
    Facts,
    Measured,
    Policy,
    Proposal,
    Signed,
    TextHas,
)
from waypost.shared.decision.compiled import CompiledPolicy
from waypost.shared.decision.engine import Decision, decide, exclusion
from waypost.shared.decision.explain import explain
from waypost.shared.decision.rules import cohort, describe, holds
from waypost.shared.errors import InvalidRequestError
from waypost.shared.records import Verdict
from waypost.shared.requests.measure import decode_chat, measure_chat
from waypost.shared.scoring.language import LANGUAGES

__all__ = ["Case", "Coverage", "Outcome", "Result", "load_cases", "run_cases"]

MONDAY_NOON = 1_767_614_400  # 2026-01-05 12:00 UTC: the same today as when the case was written

Whole = Annotated[int, Field(ge=0, le=2**31)]
Words = Annotated[Unique[Name], BeforeValidator(listed)]
ModelName = Annotated[str, known("model")]


class _Caller(FileModel):
    iss: Annotated[str, Field(min_length=1, max_length=300)]
    sub: Annotated[str, Field(min_length=1, max_length=200)]


class _Message(FileModel):
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str


# By what was written, so that a mistake in one message is not also "no number".
Messages = Annotated[
    Annotated[Whole, Tag("(count)")]
    | Annotated[list[_Message], Field(min_length=1), Tag("(each)")],
    Discriminator(lambda value: "(each)" if isinstance(value, list) else "(count)"),
]


class _Demand(FileModel):
    """What the request's body demands of whoever serves it, as the body says it."""

    models: list[str] | None = None
    provider: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _can_be_read(self) -> "_Demand":
        try:
            decode_chat(msgspec.json.encode({"messages": [{"role": "user"}], **self.body()}))
        except InvalidRequestError as exc:
            raise wrong(f"is no demand that a body can make: {exc}") from None
        return self

    def body(self) -> dict[str, Any]:
        """Return the fields of the body that say it."""
        return self.model_dump(exclude_none=True)


class _Request(FileModel):
    """A request. What nobody says is as in a short chat on a Monday noon."""

    tier: Name | None = None
    tenant: Name | None = None
    region: Name | None = None
    caller: _Caller | None = None
    models: Some[ModelName] | None = None
    data: Words = []
    demand: _Demand = _Demand()
    text: str | None = None
    messages: Messages | None = None
    input_tokens: Whole | None = None
    input_bytes: Whole | None = None
    output_tokens: Whole | None = None
    complexity: Annotated[int, Field(ge=0, le=1_000)] | None = None
    language: Annotated[str, among("language", LANGUAGES)] | None = None
    semantic: Annotated[str, known("route with utterances")] | None = None
    needs: Some[Annotated[str, among("capability", CAPABILITIES)]] | None = None
    keywords: Some[Annotated[Keyword, known("keyword in the policy")]] | None = None
    patterns: Some[Annotated[str, known("pattern in the policy")]] | None = None
    endpoint: EndpointName = "chat.completions"
    interactive: bool = True
    task: Name | None = None
    tags: Words = []
    at: Instant = MONDAY_NOON
    propose: Name | None = None
    budget: Dollars | None = None
    out_of_service: Some[ModelName] | None = None

    @model_validator(mode="after")
    def _says_it_once(self) -> "_Request":
        if self.text is not None and isinstance(self.messages, list):
            raise wrong("has 'text' and 'messages'; put the text into the last of them")
        return self

    def facts(self, policy: CompiledPolicy) -> Facts:
        """Return what client and validator would find out about it."""
        return Facts(
            now=self.at,
            signed=Signed(
                tier=self.tier or policy.policy.tiers[0],
                cohort=0 if self.caller is None else cohort(self.caller.iss, self.caller.sub),
                tenant=self.tenant,
                region=self.region,
                models=None if self.models is None else tuple(self.models),
            ),
            measured=self._measured(policy),
            declared=Declared(
                interactive=self.interactive,
                task=self.task,
                tags=tuple(self.tags),
                data_classes=tuple(self.data),
                expected_output_tokens=self.output_tokens,
            ),
        )

    def _measured(self, policy: CompiledPolicy) -> Measured:
        chat = [{"role": "user", "content": self.text or ""}]
        if isinstance(self.messages, list):
            chat = [{"role": each.role, "content": each.content} for each in self.messages]
        body = msgspec.json.encode({"messages": chat, **self.demand.body()})
        measured = measure_chat(decode_chat(body), body=body, reader=policy.reader)
        said: dict[str, Any] = {
            "endpoint": self.endpoint,
            "affordable_nusd": self.budget,
            "out_of_service": tuple(self.out_of_service or ()),
        }
        for field in ("input_tokens", "input_bytes", "complexity", "language", "semantic"):
            if getattr(self, field) is not None:
                said[field] = getattr(self, field)
        for field in ("needs", "keywords", "patterns"):
            if getattr(self, field) is not None:
                said[field] = tuple(sorted(getattr(self, field)))
        if isinstance(self.messages, int):
            said["messages"] = self.messages
        if self.input_tokens is not None:
            said["max_input_tokens"] = self.input_tokens
        return structs.replace(measured, **said)


class _Expected(FileModel):
    model: ModelName | None = None
    route: Annotated[str, known("route")] | None = None
    verdict: Verdict | None = None
    reason: str | None = None
    admissible: Some[ModelName] | None = None
    not_admissible: Some[ModelName] | None = None

    @model_validator(mode="after")
    def _is_said(self) -> "_Expected":
        if not self.model_fields_set:
            raise wrong(
                "expects nothing; say model, route, verdict, reason, admissible or not_admissible"
            )
        return self


class Case(FileModel):
    """One request, and what is to become of it."""

    name: Annotated[str, Field(min_length=1, max_length=200)]
    request: _Request = _Request()
    expect: _Expected


class _CasesFile(FileModel):
    cases: Annotated[list[Case], Field(min_length=1)]


class Result(Struct, frozen=True, kw_only=True):
    """What became of a case.

    Attributes:
        differences: what is not as expected, each as ``field: expected …, got …``.
        sentence: the engine's own explanation.
    """

    name: str
    file: str
    line: int
    differences: tuple[str, ...]
    sentence: str
    facts: Facts
    decision: Decision


class Outcome(Struct, frozen=True, kw_only=True):
    """A condition of a rule that cases reached, and how often it came out which way."""

    condition: str
    held: int
    failed: int


class Coverage(Struct, frozen=True, kw_only=True):
    """What the cases had to do with.

    Attributes:
        rules: rule → how many cases it decided.
        outcomes: rule → its conditions, as far as a case got to them.
    """

    rules: dict[str, int]
    outcomes: dict[str, tuple[Outcome, ...]]

    @property
    def seen(self) -> int:
        """How many outcomes of conditions were seen, of two each."""
        return sum(
            bool(each.held) + bool(each.failed) for some in self.outcomes.values() for each in some
        )

    @property
    def possible(self) -> int:
        """How many there are."""
        return sum(2 * len(some) for some in self.outcomes.values())


def load_cases(path: Path, policy: Policy) -> tuple[YAMLFile, tuple[Case, ...]]:
    """Return the cases written in ``path``, and the file, which knows their lines.

    Raises:
        FileError: all that is wrong with it, each with line, path and mend. A model, route,
            keyword or pattern that the policy does not have is wrong, too: such a case would
            test nothing.
    """
    file = read_yaml(path)
    words: dict[str, set[str]] = {"keywords": set(), "patterns": set()}
    for route in policy.routes:
        for each in route.when:
            if isinstance(each, TextHas) and each.field in words:
                words[each.field] |= {*each.any_of, *each.all_of, *each.none_of}
    context = {
        "model": {model.id for model in policy.models},
        "route": {route.name for route in policy.routes},
        "route with utterances": set(policy.semantic.routes if policy.semantic else ()),
        "keyword in the policy": words["keywords"],
        "pattern in the policy": words["patterns"],
    }
    written = file.read(_CasesFile, context=context)
    seen: dict[str, int] = {}
    for place, row in file.rows("cases"):
        name = row.get("name")
        if isinstance(name, str) and seen.setdefault(name, place) != place:
            file.find(("cases", place, "name"), f"cases[{seen[name]}] is named so too; rename one")
    if written is None or file.findings:
        raise FileError(file.findings)
    return file, tuple(written.cases)


def run_cases(
    policy: CompiledPolicy, file: YAMLFile, cases: Sequence[Case]
) -> tuple[tuple[Result, ...], Coverage]:
    """Return what becomes of each case, and what of the policy they had to do with."""
    results: list[Result] = []
    for place, case in enumerate(cases):
        facts, proposed = case.request.facts(policy), case.request.propose
        decision = decide(policy, facts, Proposal(model=proposed) if proposed else None)
        found = file.finding(("cases", place), "")
        results.append(
            Result(
                name=case.name,
                file=found.file,
                line=found.line,
                differences=tuple(_differences(policy, case.expect, facts, decision)),
                sentence=explain(policy, facts, decision).sentence,
                facts=facts,
                decision=decision,
            )
        )
    return tuple(results), _coverage(policy, results)


def _differences(
    policy: CompiledPolicy, expected: _Expected, facts: Facts, decision: Decision
) -> Iterator[str]:
    for field in ("verdict", "reason", "model", "route"):
        wanted, got = getattr(expected, field), getattr(decision, field)
        if wanted is not None and wanted != got:
            yield f"{field}: expected {wanted}, got {got or 'none'}"
    for name in expected.admissible or ():
        why = exclusion(policy, name, facts)
        if decision.verdict == "refused" or why is not None:
            yield f"admissible: expected {name}, but {why.detail if why else 'all is refused'}"
    for name in expected.not_admissible or ():
        if decision.verdict != "refused" and exclusion(policy, name, facts) is None:
            yield f"not_admissible: expected {name}, but it may serve the request"


def _coverage(policy: CompiledPolicy, results: Sequence[Result]) -> Coverage:
    routes = policy.policy.routes
    decided = {route.name: 0 for route in routes}
    counts: Mapping[str, list[list[int]]] = {r.name: [[0, 0] for _ in r.when] for r in routes}
    for result in results:
        # Who is refused before the rules are looked at exercises none of them.
        if result.decision.route is None:
            continue
        decided[result.decision.route] += 1
        for route in routes:
            for count, condition in zip(counts[route.name], route.when, strict=True):
                count[holds(condition, result.facts)] += 1
            if route.name == result.decision.route:
                break
    return Coverage(
        rules=decided,
        outcomes={
            route.name: tuple(
                Outcome(condition=describe(condition), held=held, failed=failed)
                for condition, (failed, held) in zip(route.when, counts[route.name], strict=True)
            )
            for route in routes
        },
    )
