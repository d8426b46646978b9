"""``waypost policy check``, ``prove``, ``diff`` and ``prices``: a policy before it is signed.

A thin shell: what takes long to import is imported by the command that needs it.
"""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from waypost.cli.output import fail, print_json
from waypost.edge.commands.common import JSON, load_unsigned, say

if TYPE_CHECKING:
    from waypost.cli.yamlfile import YAMLFile
    from waypost.edge.analysis.diff import Change
    from waypost.edge.analysis.findings import Problem
    from waypost.edge.analysis.prove import Broken, Proof
    from waypost.edge.authoring.load_policy import Authored

__all__ = ["add_commands"]

POLICY = Path("policy.yaml")

PolicyFile = Annotated[Path, typer.Argument(help="The policy, as written.")]


def add_commands(policy: typer.Typer) -> None:
    """Add the commands to the group ``policy``."""
    policy.command("check")(_check)
    policy.command("prove")(_prove)
    policy.command("diff")(_diff)
    policy.command("prices")(_prices)


def _check(
    policy: PolicyFile = POLICY,
    strict: Annotated[bool, typer.Option("--strict", help="Warnings fail as well.")] = False,
    notes: Annotated[bool, typer.Option("--notes", help="Also say what is worth knowing.")] = False,
    as_json: JSON = False,
) -> None:
    """Say all that is wrong or doubtful, each with line and mend. Exit 1 if anything is wrong."""
    findings = _findings(policy)
    count = {
        severity: sum(finding["severity"] == severity for finding in findings)
        for severity in ("error", "warning", "note")
    }
    if as_json:
        print_json({"findings": findings})
    else:
        for finding in findings:
            if finding["severity"] != "note" or notes:
                where = ":".join(str(part) for part in (finding["file"], finding["line"]) if part)
                path = f"{finding['path']}: " if finding["path"] else ""
                severity = "" if finding["severity"] == "error" else f"{finding['severity']}: "
                say(f"{where}: {severity}{path}{finding['message']}")
        if not count["error"]:
            said = [f"{n} {name}{'s' * (n > 1)}" for name, n in count.items() if n]
            hidden = "" if notes or not count["note"] else " (--notes shows them)"
            say(f"{policy}: {', '.join(['good', *said])}{hidden}")
    if count["error"] or (strict and count["warning"]):
        raise typer.Exit(1)


def _findings(path: Path) -> list[dict[str, object]]:
    """Return what is to be said of the file, as a script reads it."""
    from msgspec import structs

    from waypost.cli.yamlfile import FileError, Finding
    from waypost.shared.errors import PolicyError

    code = "file_invalid"
    try:
        authored = load_unsigned(path)
    except FileError as exc:
        wrong: Sequence[Finding] = exc.findings
    except PolicyError as exc:
        code = exc.code
        wrong = (Finding(file=path.name, line=0, path="", message=exc.message),)
    else:
        from waypost.edge.analysis.findings import find_problems
        from waypost.edge.authoring.layers import read_layers

        problems = find_problems(authored, now=int(time.time()))
        file = read_layers(path)
        return [_located(file, authored, problem) for problem in problems]
    return [{"severity": "error", "code": code, **structs.asdict(finding)} for finding in wrong]


def _located(file: "YAMLFile", authored: "Authored", problem: "Problem") -> dict[str, object]:
    section, *rest = problem.place
    path: tuple[str | int, ...] = (section,)
    if rest and section in {"routes", "invariants"}:
        # Several rows may have been made of one that was written.
        places = authored.places
        if section == "invariants":
            places = {str(row["name"]): place for place, row in file.rows(section)}
        path = (section, places[rest[0]], *rest[1:])
    else:
        path = (section, *rest)
    found = file.finding(path, problem.message)
    return {
        "severity": problem.severity,
        "code": problem.code,
        "file": found.file,
        "line": found.line,
        "path": found.path,
        "message": found.message,
        "facts": problem.facts,
    }


def _prices(
    policy: PolicyFile = POLICY,
    out: Annotated[Path | None, typer.Option(help="Write the file here, to be extended.")] = None,
) -> None:
    """Look up what the policy's models cost by genai-prices, as a file that it can extend."""
    from datetime import UTC, datetime

    from waypost.cli.yamlfile import FileError, read_yaml
    from waypost.edge.analysis.prices import imported
    from waypost.edge.authoring.layers import read_layers
    from waypost.edge.project.atomic_write import write_file

    try:
        models = read_layers(policy).value.get("models")
    except FileError:
        # Of what it extends, this may be what is to be written.
        models = read_yaml(policy).value.get("models")
    if not isinstance(models, dict):
        fail(f"{policy} has no models to look up")
    named = cast("dict[str, object]", models)
    text = imported(named, at=datetime.fromtimestamp(time.time(), UTC))
    if out is None:
        print(text, end="")
        return
    write_file(out, text.encode())
    say(f"wrote {out}; lay {policy} over it: extends: {out.name}")


def _prove(policy: PolicyFile = POLICY, as_json: JSON = False) -> None:
    """Prove each invariant for every request there can be, or show one that breaks it."""
    from waypost.edge.analysis.prove import prove_all

    proofs = prove_all(load_unsigned(policy))
    if as_json:
        print_json({"proofs": [{**_asdict(proof), "holds": not proof.broken} for proof in proofs]})
    else:
        for proof in proofs:
            for line in _proof_lines(proof):
                say(line)
        if not proofs:
            say(f"{policy}: states no invariants; write what must hold under 'invariants'")
    if any(proof.broken for proof in proofs):
        raise typer.Exit(1)


def _proof_lines(proof: "Proof") -> Iterator[str]:
    if proof.broken is None:
        void = "" if proof.applies else "; but no such request is ever served"
        yield f"holds   {proof.name} (in all of {proof.cells:,} cells{void})"
        return
    yield f"BROKEN  {proof.name}"
    yield from (f"        {line}" for line in _counter_example(proof.broken))


def _counter_example(broken: "Broken") -> Iterator[str]:
    from waypost.edge.analysis.requests import as_curl

    yield f"{broken.because}."
    yield broken.sentence
    yield from as_curl(broken.facts, broken.proposal).splitlines()


def _diff(
    before: Annotated[Path, typer.Argument(help="A policy as it is.")],
    after: Annotated[Path, typer.Argument(help="As it would be.")],
    as_json: JSON = False,
) -> None:
    """Say what changes for requests from one policy to another. Exit 1 if anything does."""
    from waypost.edge.analysis.diff import diff_authored

    changes = diff_authored(load_unsigned(before), load_unsigned(after))
    if as_json:
        print_json({"changes": changes})
    else:
        for change in changes:
            for line in _change_lines(change):
                say(line)
        if not changes:
            say("no change in meaning")
    if changes:
        raise typer.Exit(1)


def _change_lines(change: "Change") -> Iterator[str]:
    from waypost.edge.analysis.requests import as_curl

    under = f" (under {', '.join(change.routes)})" if change.routes else ""
    yield f"{change.kind}: {change.message}{under}"
    if change.example is None:
        return
    for said, decision in (("before", change.example.before), ("after", change.example.after)):
        result = (
            f"refused, {decision.reason}"
            if decision.model is None
            else f"{decision.verdict}, {', '.join(decision.chain)} by route '{decision.route}'"
        )
        yield f"    {said}: {result}"
    for line in as_curl(change.example.facts, change.example.proposal).splitlines():
        yield f"    {line}"


def _asdict(proof: "Proof") -> dict[str, object]:
    from msgspec import structs

    return structs.asdict(proof)
