"""Project Wycheproof's vectors for JSON Web Signatures and Keys, each judged as it should be.

They are not ours to ship: set WYCHEPROOF_DIR to a copy of its ``testvectors_v1`` to run them.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec import Struct

from waypost.shared.contracts import IssuerKey
from waypost.shared.errors import TokenError
from waypost.shared.issuer_keys import key_from_jwk, public_key
from waypost.validator.jose import header_of, is_compact, signed_payload

FOLDER = os.environ.get("WYCHEPROOF_DIR")

# Valid signatures that we refuse all the same.
STRICTER = {
    "json_web_signature 259",  # an empty payload: it holds no claims
    "json_web_signature 345",  # an @ in the key's id
    "json_web_signature 349",  # likewise
}

pytestmark = pytest.mark.skipif(FOLDER is None, reason="WYCHEPROOF_DIR names no vectors")


class Vector(Struct, frozen=True):
    name: str
    comment: str
    jws: str
    keys: list[dict[str, Any]]
    is_valid: bool


def vectors(file: str) -> Iterator[Vector]:
    if FOLDER is None:
        return
    for group in json.loads((Path(FOLDER) / file).read_text())["testGroups"]:
        key = group.get("public") or group["private"]
        for test in group["tests"]:
            yield Vector(
                f"{file.removesuffix('_test.json')} {test['tcId']}",
                test["comment"],
                test["jws"] if isinstance(test["jws"], str) else json.dumps(test["jws"]),
                key.get("keys", [key]),
                test["result"] == "valid",
            )


def imported(keys: list[dict[str, Any]]) -> dict[str, IssuerKey]:
    """Load keys as an issuer's: all, or none if one of them is secret or an id occurs twice."""
    found: dict[str, IssuerKey] = {}
    for number, jwk in enumerate(keys):
        key = key_from_jwk({"kid": f"number-{number}", **jwk})
        if key.kid in found:
            raise ValueError("one id, two keys")
        found[key.kid] = key
    return found


def is_taken(vector: Vector) -> bool:
    """Whether our reader takes the signature: form, header, one key's one algorithm."""
    try:
        keys = imported(vector.keys)
        if not is_compact(vector.jws):
            return False
        header = header_of(vector.jws, code="token_json")
        if not header.keys() <= {"alg", "kid", "typ"}:
            return False
        key = keys[str(header.get("kid", next(iter(keys))))]
        if header.get("alg") != key.alg:
            return False
        signed_payload(vector.jws, public_key(key), key.alg, code="token_signature")
    except (KeyError, TokenError, ValueError):
        return False
    return True


def is_ours(vector: Vector) -> bool:
    """Whether the vector's keys are public ones, of algorithms that issuers may use."""
    return all(
        jwk.get("kty") != "oct" and jwk.get("alg") in {"EdDSA", "ES256", "RS256", None}
        for jwk in vector.keys
    )


@pytest.mark.parametrize(
    "vector",
    [*vectors("json_web_signature_test.json"), *vectors("json_web_key_test.json")],
    ids=lambda vector: vector.name,
)
def test_a_vector_is_judged_as_it_should_be(vector: Vector) -> None:
    should_be = vector.is_valid and is_ours(vector) and vector.name not in STRICTER

    assert is_taken(vector) == should_be, vector.comment
