"""What a verified manifest is, and that it is the one that was asked for."""

import hashlib
import subprocess
import sys
import time

import pytest

from support.publisher import Publisher
from support.worlds import a_model, a_policy
from waypost.shared.contracts import Hint, Hints, Issuer, IssuerKey, Issuers
from waypost.shared.errors import TrustError
from waypost.shared.trust import open_bundle

KEY = IssuerKey(kid="app-1", alg="EdDSA", x="A" * 43)


def code_of(publisher: Publisher, bundle: bytes, **options: object) -> str:
    with pytest.raises(TrustError) as caught:
        open_bundle(bundle, root=publisher.root, channel="prod", **options)  # type: ignore[arg-type]
    return caught.value.code


def some_hints(*models: Hint, **changes: object) -> Hints:
    fields = {"channel": "prod", "version": 1, "issued_at": 0, "models": models, **changes}
    return Hints(**fields)  # type: ignore[arg-type]


def test_a_published_manifest_opens_to_what_was_published(publisher: Publisher) -> None:
    issuers = Issuers(
        channel="prod", version=1, issued_at=0, issuers=(Issuer(iss="https://a", keys=(KEY,)),)
    )
    bundle = publisher.publish(issuers=issuers)
    trusted = open_bundle(bundle, root=publisher.root, channel="prod")
    assert trusted.policy.models == publisher.policy.models
    assert trusted.compiled.policy is trusted.policy
    assert trusted.issuers.issuers == issuers.issuers
    assert trusted.policy_digest == hashlib.sha256(trusted.policy_bytes).hexdigest()
    assert trusted.versions["root"] == trusted.versions["targets"] == 1
    assert trusted.bundle == bundle


def test_a_manifest_lapses_with_the_first_signature_behind_it(publisher: Publisher) -> None:
    now = int(time.time())
    hour = publisher.publish(expires=now + 3_600)
    assert open_bundle(hour, root=publisher.root, channel="prod").expires_at == now + 3_600
    lifetimes = {"root": 1, "timestamp": 9_000, "snapshot": 8_000, "targets": 500, "hints": 7_000}
    short = publisher.publish(lifetime_s={**lifetimes, "full": 100})
    expires_at = open_bundle(short, root=publisher.root, channel="prod").expires_at
    # Neither the hints' nor the other projection's lapse ends it.
    assert now + 500 <= expires_at <= now + 510


def test_a_manifest_opens_again_above_itself(publisher: Publisher) -> None:
    bundle = publisher.publish()
    later = open_bundle(bundle, root=publisher.root, channel="prod", previous=bundle)
    assert later.policy.version == 1


def test_hints_reorder_what_the_policy_contains(publisher: Publisher) -> None:
    hints = some_hints(Hint(model="small", ttft_ms=900), Hint(model="large", ttft_ms=300))
    trusted = open_bundle(publisher.publish(hints=hints), root=publisher.root, channel="prod")
    assert trusted.hints == hints
    assert trusted.compiled.ttft_ms["large"] == 300


def test_a_hint_about_a_model_that_the_policy_lacks_is_dropped(publisher: Publisher) -> None:
    hints = some_hints(Hint(model="evil", ttft_ms=1), Hint(model="small", ttft_ms=900))
    trusted = open_bundle(publisher.publish(hints=hints), root=publisher.root, channel="prod")
    assert trusted.hints is not None
    assert [hint.model for hint in trusted.hints.models] == ["small"]


def test_expired_hints_are_no_hints_and_the_policy_stays(publisher: Publisher) -> None:
    lifetimes = {"timestamp": 900, "snapshot": 900, "targets": 900, "full": 900, "hints": -1}
    trusted = open_bundle(
        publisher.publish(lifetime_s=lifetimes), root=publisher.root, channel="prod"
    )
    assert trusted.hints is None
    assert trusted.policy.version == 1


def test_each_projection_opens_as_itself_and_not_as_the_other(publisher: Publisher) -> None:
    secret = a_policy(models=(*a_policy().models, a_model("negotiated")))
    client = publisher.publish(full=secret)
    full = publisher.bundle("full")
    opened = open_bundle(full, root=publisher.root, channel="prod", projection="full")
    assert "negotiated" in opened.compiled.models
    assert (
        "negotiated" not in open_bundle(client, root=publisher.root, channel="prod").compiled.models
    )
    assert code_of(publisher, client, projection="full") == "unavailable"
    assert code_of(publisher, full) == "unavailable"


def test_nothing_private_leaves_a_trace_in_the_client_s_bundle(publisher: Publisher) -> None:
    secret = a_policy(models=(*a_policy().models, a_model("negotiated")))
    client = publisher.publish(full=secret)
    hidden = [
        data
        for path, data in publisher.files.items()
        if path.startswith("targets/full/") or path.endswith(".full.json")
    ]
    assert len(hidden) == 2
    for data in hidden:
        # Not even a hash, which would confirm a guess; a length would count what is hidden.
        assert hashlib.sha256(data).hexdigest().encode() not in client
    assert b"negotiated" not in client
    assert b'"full.json\\":{\\"version\\":1}' in client


def test_a_policy_that_makes_no_sense_is_refused_though_it_is_signed(publisher: Publisher) -> None:
    nonsense = a_policy(last_resort=("nowhere",))
    assert code_of(publisher, publisher.publish(policy=nonsense)) == "semantic"


def test_a_manifest_that_needs_a_newer_reader_is_refused(publisher: Publisher) -> None:
    newer = a_policy(must_understand=("quantum_routing",))
    assert code_of(publisher, publisher.publish(policy=newer)) == "semantic"


def test_another_channel_s_document_under_our_name_is_refused(publisher: Publisher) -> None:
    assert code_of(publisher, publisher.publish(policy=a_policy(channel="canary"))) == "semantic"


def test_a_channel_that_was_never_published_is_unavailable(publisher: Publisher) -> None:
    with pytest.raises(TrustError) as caught:
        open_bundle(publisher.publish(), root=publisher.root, channel="canary")
    assert caught.value.code == "unavailable"


def test_importing_the_package_loads_neither_tuf_nor_an_http_client() -> None:
    script = (
        "import sys, waypost.shared.trust; "
        "print(sorted({'tuf', 'httpx', 'urllib3', 'cryptography', 'anyio'} & sys.modules.keys()))"
    )
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert out.stdout.strip() == b"[]"
