"""Requests at random, a thousand in the time in which hypothesis draws ten.

Known to the policy or not, whole or not, with demands and sessions or without.
"""

from collections.abc import Sequence
from random import Random
from typing import TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from msgspec import UNSET

from support.worlds import CLASSES, MODELS, NOW, TAGS, TASKS, TIERS, WORD_SETS, WORDS
from waypost.shared.contracts import Declared, Demands, Extra, Facts, Measured, Session, Signed
from waypost.shared.pictures import Picture

T = TypeVar("T")

# Drawing a policy takes as long as deciding a thousand requests, so each is asked many.
few_policies = settings(
    max_examples=settings().max_examples // 4, suppress_health_check=[HealthCheck.too_slow]
)
seeds = st.integers(0, 2**32)


def random_facts(count: int, *, seed: int) -> list[Facts]:
    """Return facts like those of ``worlds.facts``: known to the policy or not, whole or not."""
    random = Random(seed)
    return [_facts(random) for _ in range(count)]


def _some(random: Random, values: Sequence[T]) -> tuple[T, ...]:
    return tuple(value for value in values if random.random() < 0.3)


def _facts(random: Random) -> Facts:
    classes = (*CLASSES, "unheard_of") if random.random() < 0.05 else CLASSES
    seldom = random.random() < 0.05

    def data() -> tuple[str, ...]:
        return _some(random, classes) if random.random() < 0.4 else ()

    return Facts(
        now=NOW + random.randrange(7 * 86_400),
        signed=Signed(
            tier=random.choice((*TIERS, *TIERS, "root")),
            cohort=random.randrange(2**20),
            tenant=random.choice((None, "acme", "other")),
            region=random.choice((None, "eu", "us")),
            data_classes=data(),
            models=_some(random, MODELS) if random.random() < 0.3 else None,
        ),
        measured=Measured(
            endpoint=random.choice(("chat.completions", "embeddings")),
            input_tokens=random.choice((random.randrange(300), random.randrange(1_100))),
            max_input_tokens=random.randrange(300, 2_000),
            max_output_tokens=random.choice((None, random.randrange(600))),
            choices=random.choice((1, 1, 2)),
            messages=random.randrange(300),
            needs=_some(random, WORD_SETS["needs"]) if random.random() < 0.5 else (),
            keywords=_some(random, WORDS),
            input_bytes=random.randrange(300),
            patterns=None if seldom else _some(random, WORD_SETS["patterns"]),
            complexity=None if seldom else random.randrange(300),
            semantic=random.choice(("", "billing", "returns")),
            language=random.choice(("", "de", "en")),
            data_classes=data(),
            affordable_nusd=random.choice((None, random.randrange(50_000_000))),
            out_of_service=_some(random, MODELS) if random.random() < 0.3 else (),
            untranslatable=_some(random, MODELS) if random.random() < 0.1 else (),
            demands=_demands(random) if random.random() < 0.3 else None,
            pictures=(Picture(random.randrange(3_000), 900),) if random.random() < 0.2 else UNSET,
            extras=_extras(random) if random.random() < 0.2 else UNSET,
            reasoning_tokens=random.randrange(600) if random.random() < 0.2 else UNSET,
        ),
        declared=Declared(
            interactive=random.random() < 0.5,
            task=random.choice((None, *TASKS)),
            tags=_some(random, TAGS),
            data_classes=data(),
            session=Session(random.choice(MODELS), random.randrange(400))
            if random.random() < 0.3
            else None,
            expected_output_tokens=random.choice((None, None, random.randrange(1, 900))),
        ),
    )


_EXTRAS = (
    Extra(kind="part", name="pdf", at="messages[0].content[0]"),
    Extra(kind="part", name="video_url", at="messages[0].content[1]"),
    Extra(kind="tool", name="web_search", at="tools[0]"),
    Extra(kind="tool", name="web_search", at="tools[1]", calls=2),
    Extra(kind="tool", name="unheard_of", at="tools[2]"),
    Extra(kind="price", name="service_tier=flex", at="service_tier"),
)


def _extras(random: Random) -> tuple[Extra, ...]:
    return tuple(random.sample(_EXTRAS, random.randrange(1, 3)))


def _demands(random: Random) -> Demands:
    def price(most: int) -> int | None:
        return random.randrange(most) if random.random() < 0.3 else None

    return Demands(
        models=tuple(random.sample(MODELS[:4], 3)) if random.random() < 0.3 else (),
        providers=random.choice((None, None, None, ("acme",), ("nobody",))),
        not_providers=random.choice(((), (), ("zeta",))),
        provider_order=random.choice(((), ("zeta",), ("acme",))),
        promises=_some(random, ("no_training", "zero_retention")),
        max_input_nusd_per_mtok=price(20_000_000_000),
        max_output_nusd_per_mtok=price(80_000_000_000),
        max_request_nusd=price(2),
        sort=random.choice((None, None, "price", "latency", "throughput")),
        may_fall_back=random.random() < 0.7,
    )
