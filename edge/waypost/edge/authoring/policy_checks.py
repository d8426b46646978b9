"""What makes no sense in ``policy.yaml`` though each field on its own does.

What could surprise in production is a finding here, with the place and how to mend it: a row that
is never reached, a rule that a client could steer around, a promise that the region breaks.
"""

from collections.abc import Mapping
from typing import cast

from waypost.cli.yamlfile import YAMLFile
from waypost.edge.authoring.policy_file import PolicyFile, Preference, WrittenRoute
from waypost.shared.decision.rules import DECLARED_FIELDS, SHARES

__all__ = ["check_rows", "check_sense"]

MAX_NAME = 64
MAX_PATTERNS = 64  # each request is searched for all of them


def check_rows(file: YAMLFile) -> None:
    """Find what is wrong with the order of the routes, even while some of them do not hold."""
    seen: dict[str, int] = {}
    steered = ""
    rows = file.rows("routes")
    for place, route in rows:
        path = ("routes", place)
        named = route.get("name")
        name = named if isinstance(named, str) else f"routes[{place}]"
        if seen.setdefault(name, place) != place:
            file.find((*path, "name"), f"routes[{seen[name]}] is named '{name}' too; rename one")
        when = route.get("when")
        said = cast("dict[str, object]", when) if isinstance(when, dict) else {}
        fields = {field for field, value in said.items() if value is not None}
        fields |= {"utterances"} & route.keys()
        declared = sorted(fields & DECLARED_FIELDS)
        if route.get("enforce") is True and (declared or steered):
            file.find(
                (*path, "enforce"),
                f"clients only declare '{declared[0]}', so they could escape this route;"
                " enforce on signed or measured facts"
                if declared
                else f"clients could escape by way of '{steered}' above, which matches on what"
                " they declare; move this route before it",
            )
        if declared and not steered:
            steered = name
        last = place == rows[-1][0]
        if not fields and not last:
            file.find(
                path,
                f"'{name}' matches everything, so no route below it is ever reached;"
                " move it to the end",
            )
        if fields and last:
            file.find(
                path,
                f"'{name}' is the last route and has conditions; end with one that has no 'when',"
                " so that every request finds a route",
            )


def check_sense(file: YAMLFile, written: PolicyFile) -> None:
    """Find what holds field by field and makes no sense together."""
    used = {tier for model in written.models.values() for tier in model.tiers}
    for place, tier in enumerate(written.tiers):
        if tier not in used:
            file.find(("tiers", place), f"no model is open to tier '{tier}'; open one or delete it")
    for name, model in written.models.items():
        promised = {p for p in written.promises(model) if p.startswith("region:")}
        region = written.region(model)
        if promised and f"region:{region}" not in promised:
            file.find(
                ("models", name),
                f"promises {min(promised)}, but its region is '{region}'; correct one of them",
            )
    for place, route in enumerate(written.routes):
        _check_route(file, ("routes", place), written, route)
    _check_names(file, written)
    _check_patterns(file, written)


def _check_route(
    file: YAMLFile, path: tuple[str | int, ...], written: PolicyFile, route: WrittenRoute
) -> None:
    if route.tiers and route.split is not None:
        file.find(
            (*path, "split"),
            "a route has 'tiers' or 'split', not both; write two routes, the narrower one first",
        )
    for tier in route.tiers:
        if route.when.tier is not None and tier not in route.when.tier:
            file.find(
                (*path, "tiers", tier), f"'{route.name}' is not for tier '{tier}'; see its 'when'"
            )
    variants = route.split or {}
    total = sum(variant.share for variant in variants.values())
    if variants and total != SHARES:
        file.find((*path, "split"), f"the shares are {total / 100:g}% together; make them 100%")
    for name, variant in variants.items():
        if not variant.share:
            file.find((*path, "split", name, "share"), "is nobody; delete the variant")
    own: list[tuple[tuple[str | int, ...], Preference]] = [(path, route)]
    own += [((*path, "tiers", name), each) for name, each in route.tiers.items()]
    own += [((*path, "split", name), each) for name, each in variants.items()]
    for where, each in own:
        said = each.model_fields_set
        objective = each.optimize if each is route or "optimize" in said else route.optimize
        if each.weights is not None and objective != "balanced":
            file.find((*where, "weights"), "are only looked at with 'optimize: balanced'")
        if each.cascade is not None or (route.cascade is not None and each is not route):
            _check_cascade(file, where, written, each if each is route else route.with_(each))


def _check_cascade(
    file: YAMLFile, path: tuple[str | int, ...], written: PolicyFile, prefers: Preference
) -> None:
    cascade = prefers.cascade
    if cascade is None:
        return
    if "optimize" in prefers.model_fields_set:
        file.find(
            (*path, "optimize"),
            "is not looked at in a cascade, which asks the models in the order written; delete"
            " one of the two",
        )
    if len(written.plain(prefers.models)) < 2:
        file.find((*path, "cascade"), "needs two models at least, cheapest first")
    if cascade.signal == "judge" and written.judge_model is None:
        file.find(
            (*path, "cascade", "signal"),
            "needs a judge_model, which 'waypost policy calibrate --out' writes",
        )
    if cascade.signal != "self_consistency" and "samples" in cascade.model_fields_set:
        file.find(
            (*path, "cascade", "samples"),
            "is only looked at with 'signal: self_consistency'; delete it",
        )


def _check_names(file: YAMLFile, written: PolicyFile) -> None:
    named = {route.name for route in written.routes}
    for place, route in enumerate(written.routes):
        for section, parts in (("tiers", route.tiers), ("split", route.split or {})):
            for part in cast("Mapping[str, object]", parts):
                name, path = f"{route.name}/{part}", ("routes", place, section, part)
                if len(name) > MAX_NAME:
                    file.find(path, f"makes the name '{name}', longer than {MAX_NAME}; shorten it")
                if name in named:
                    file.find(path, f"makes a route '{name}', and there is one; rename one")
                named.add(name)


def _check_patterns(file: YAMLFile, written: PolicyFile) -> None:
    patterns: set[str] = set()
    for place, route in enumerate(written.routes):
        has = route.when.patterns
        if has is not None:
            patterns.update((*has.any, *has.all, *has.none))
        if len(patterns) > MAX_PATTERNS:
            return file.find(
                ("routes", place, "when", "patterns"),
                f"brings the policy to {len(patterns)} patterns, and {MAX_PATTERNS} are the most;"
                " join some with '|'",
            )
    return None
