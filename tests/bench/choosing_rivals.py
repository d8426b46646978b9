"""Other people's picks, timed in an environment of theirs. A program: imports nothing of ours.

Says which picks it has, then times a round of the one that each line of its input names.
"""

import json
import os
import sys
import time
from collections.abc import Callable

CALLS = 100
QUESTIONS = [
    f"What is the capital of country {i}, and how many people live there?" for i in range(CALLS)
]

Pick = Callable[[int], object]


def litellm_picks() -> dict[str, Pick]:
    """LiteLLM's Router: which deployment a request goes to."""
    os.environ.update(LITELLM_LOCAL_MODEL_COST_MAP="True", LITELLM_LOG="ERROR")
    from litellm import Router

    def pick(strategy: str, count: int) -> Pick:
        router = Router(
            model_list=[
                {
                    "model_name": "auto",
                    "litellm_params": {
                        "model": f"openai/m{i}",
                        "api_base": f"http://127.0.0.1:{i + 1}",
                        "api_key": "none",
                    },
                }
                for i in range(count)
            ],
            routing_strategy=strategy,
        )

        def choose(i: int) -> object:
            messages = [{"role": "user", "content": QUESTIONS[i]}]
            return router.get_available_deployment("auto", messages=messages)

        return choose

    return {
        f"{strategy}, {count}": pick(strategy, count)
        for strategy in ("simple-shuffle", "latency-based-routing")
        for count in (10, 100)
    }


def flag_picks() -> dict[str, Pick]:
    """One flag of four rules on a user's tier: no model list, no latency, no price."""
    from growthbook import GrowthBook
    from openfeature import api
    from openfeature.evaluation_context import EvaluationContext
    from openfeature.flag_evaluation import FlagResolutionDetails
    from openfeature.provider.in_memory_provider import (
        InMemoryFlag,
        InMemoryProvider,
    )

    tiers = ("free", "pro", "team", "max")
    rules = [{"condition": {"tier": tier}, "force": tier} for tier in reversed(tiers)]
    book = GrowthBook(
        attributes={"id": "1", "tier": "free"},
        features={"model": {"defaultValue": "none", "rules": rules}},
    )

    def evaluate(flag: object, context: EvaluationContext) -> FlagResolutionDetails[str]:
        tier = context.attributes["tier"]
        return FlagResolutionDetails(value=next(t for t in reversed(tiers) if t == tier))

    flag = InMemoryFlag("none", {"none": "none"}, context_evaluator=evaluate)
    api.set_provider(InMemoryProvider({"model": flag}))
    client, context = api.get_client(), EvaluationContext("1", {"tier": "free"})
    picks: dict[str, Pick] = {
        "growthbook": lambda i: book.get_feature_value("model", "none"),
        "openfeature": lambda i: client.get_string_value("model", "none", context),
    }
    if {pick(0) for pick in picks.values()} != {"free"}:
        raise RuntimeError("a flag is not evaluated")
    return picks


def main() -> None:
    picks = {"litellm": litellm_picks, "flags": flag_picks}[sys.argv[1]]()
    print(json.dumps(list(picks)), flush=True)
    for line in sys.stdin:
        pick, took = picks[line.strip()], list[int]()
        for i in range(CALLS):
            start = time.perf_counter_ns()
            pick(i)
            took.append(time.perf_counter_ns() - start)
        print(json.dumps(took), flush=True)


if __name__ == "__main__":
    main()
