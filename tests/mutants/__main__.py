"""``make mutants``: do the tests notice a mistake in what decides, counts money and reserves it?

Name targets to run only those. Ends with 1 if fewer than 95 in 100 mutants are noticed, or if one
that is not noticed has no explanation in ``survivors.yaml``.
"""

import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from mutants.running import Found, Mutation

ROOT = Path(__file__).parents[2]
SURVIVORS = Path(__file__).with_name("survivors.yaml")
ENOUGH = 0.95


@dataclass(frozen=True)
class Target:
    """A module, and the tests that are to notice its mistakes."""

    module: str
    tests: tuple[str, ...]
    only: str = ""


# Stores on servers run the same arithmetic: SQLite's is enough.
_IN_PROCESS = "not redis and not postgres and not full and not cluster"
_LARGE = "validator/pipeline/test_large_bodies.py"
TARGETS = {
    "engine": Target(
        "waypost.shared.decision.engine",
        ("shared/decision", "agreement/test_vectors.py"),
    ),
    "accounting": Target(
        "waypost.validator.ledger.accounting",
        # Not the histories of test_ledger_model.py: they take seconds for each mutant.
        ("validator/ledger/test_ledger.py",),
        _IN_PROCESS,
    ),
    "reserve": Target(
        "waypost.validator.pipeline.reserve",
        (
            "validator/pipeline/test_reserve.py",
            "validator/pipeline/test_pipeline.py",
            f"{_LARGE}::test_a_large_body_of_who_has_no_budget_is_not_read",
            f"{_LARGE}::test_a_large_body_counts_as_one_request_and_asks_the_rate_before_it_is_read",
            "validator/pipeline/test_budget_regressions.py",
            "validator/pipeline/test_idempotency.py",
        ),
        _IN_PROCESS,
    ),
}


def run(target: Target) -> Found:
    """Return which mutants of the target its tests notice."""
    # In memory where there is such a folder: a ledger waits for its disk more than it computes.
    memory = Path("/dev/shm")  # noqa: S108 - it gets a folder of its own
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        mutation = Mutation(target.module, Path(folder))
        mutation.said = lambda line: print("  " + line, flush=True)
        tests = [str(ROOT / "tests" / test) for test in target.tests]
        options = ["-q", "-x", "-p", "no:cacheprovider", "--basetemp", f"{folder}/tests"]
        pytest.main([*options, *(["-k", target.only] if target.only else []), *tests], [mutation])
    return mutation.found


def main() -> int:
    os.environ.setdefault("HYPOTHESIS_PROFILE", "mutants")
    explained: dict[str, dict[str, str]] = yaml.safe_load(SURVIVORS.read_text("utf-8")) or {}
    status = 0
    for name in sys.argv[1:] or TARGETS:
        print(f"{name}:")
        found = run(TARGETS[name])
        reasons = explained.get(name) or {}
        killed, survived = len(found.killed), len(found.survived)
        share = killed / max(1, killed + survived)
        print(f"{name}: {killed} of {killed + survived} mutants were noticed ({share:.1%}).")
        unexplained = [one.name for one in found.survived if one.name not in reasons]
        stale = reasons.keys() - {one.name for one in found.survived}
        for one in unexplained:
            print(f"  Not noticed and not explained: {one}")
        for one in sorted(stale):
            print(f"  Explained, but noticed or gone: {one}")
        if share < ENOUGH or unexplained or stale:
            status = 1
    return status


sys.exit(main())
