"""Project Wycheproof's vectors for JSON Web Signatures and Keys, each judged as it should be.

The two files beside this one in ``wycheproof/`` are theirs, unchanged; its README says which.
"""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from msgspec import Struct, structs

from support.tokens import AUDIENCE, CHANNEL, NOW, App
from waypost.edge.tokens.jwks import JWKSError, import_keys
from waypost.shared.contracts import ALGORITHMS, Issuer, IssuerKey, Issuers
from waypost.shared.errors import TokenError
from waypost.validator.access.jose import header_of, is_compact, signed_payload
from waypost.validator.access.tokens import HEADER_FIELDS, TokenVerifier

FOLDER = Path(__file__).parent / "wycheproof"

# Valid signatures that we refuse all the same.
STRICTER = {
    "signature 259",  # an empty payload: it holds no claims
    "signature 345",  # an @ in the key's id
    "signature 349",  # likewise
}

# Spelt otherwise than base64url; two are valid to Wycheproof, for readers that skip what they do not
# know. Numbers 367 and 370 are missing since their texts are spelt right, like that of 357.
MISSPELT = {f"signature {number}" for number in range(360, 376) if number not in {367, 370}}


class Vector(Struct, frozen=True):
    name: str
    comment: str
    jws: str
    keys: list[dict[str, Any]]
    is_valid: bool


def vectors(subject: str) -> Iterator[Vector]:
    path = FOLDER / f"json_web_{subject}_test.json"
    for group in json.loads(path.read_text())["testGroups"]:
        key = group.get("public") or group["private"]
        for test in group["tests"]:
            yield Vector(
                f"{subject} {test['tcId']}",
                test["comment"],
                test["jws"] if isinstance(test["jws"], str) else json.dumps(test["jws"]),
                key.get("keys", [key]),
                test["result"] == "valid",
            )


VECTORS = [*vectors("signature"), *vectors("key")]


def judged(jws: str, keys: tuple[IssuerKey, ...]) -> str:
    """Return ``taken``, or the code with which a token that reads ``jws`` is refused.

    All that a validator does up to the signature, but that ``typ`` may be missing: Wycheproof's
    are tokens of no particular kind.
    """
    verifier = TokenVerifier(
        Issuers(channel=CHANNEL, version=1, issued_at=NOW, issuers=(Issuer(iss="any", keys=keys),)),
        audience=AUDIENCE,
    )
    if not is_compact(jws):
        return "token_format"
    try:
        header = header_of(jws, code="token_json")
        if not header.keys() <= HEADER_FIELDS:
            return "token_header"
        key = verifier._key(str(header.get("alg")), str(header.get("kid", keys[0].kid)), NOW)
        signed_payload(jws, key.public, key.meta.alg, code="token_signature")
    except TokenError as exc:
        return exc.code
    return "taken"


def by_its_own_keys(vector: Vector) -> str:
    """Return how the vector is judged once an operator has imported its keys, or tried to."""
    document = json.dumps({"keys": vector.keys}).encode()
    try:
        imported = import_keys(document, algorithms=ALGORITHMS)
    except JWKSError as exc:
        return exc.code
    return judged(vector.jws, tuple(imported.keys.values()))


def is_ours(vector: Vector) -> bool:
    """Whether the vector's keys are public ones, of algorithms that issuers may use."""
    return all(jwk["kty"] != "oct" and jwk.get("alg") in ALGORITHMS for jwk in vector.keys)


def test_every_vector_is_judged_as_it_should_be() -> None:
    misjudged = {
        vector.name: vector.comment
        for vector in VECTORS
        if (by_its_own_keys(vector) == "taken")
        != (vector.is_valid and is_ours(vector) and vector.name not in STRICTER)
    }

    assert misjudged == {}


def test_every_vector_is_there_and_refused_for_what_is_wrong_with_it() -> None:
    ours = Counter(by_its_own_keys(one) for one in VECTORS if is_ours(one))
    others = Counter(by_its_own_keys(one) for one in VECTORS if not is_ours(one))

    assert ours == {
        "taken": 8,
        "token_signature": 240,
        "token_format": 19,
        "token_unknown_kid": 2,
        "token_alg": 1,
        "token_header": 1,
        # Weak, forged or broken keys, one for encryption, and the two ids that are none of ours.
        "jwks_invalid": 9,
    }
    # Keys for encryption, or of algorithms that issuers cannot use, never reach a validator.
    assert others == {"jwks_invalid": 147}
    assert sum(ours.values()) + sum(others.values()) == 401 + 26


def test_a_token_of_another_algorithm_gets_none_from_a_key_of_ours() -> None:
    # As if one of our keys had the id that the vector names.
    key = App().public_key()

    def code(vector: Vector) -> str:
        kids = {str(jwk["kid"]).replace("@", ".") for jwk in vector.keys}
        return judged(vector.jws, tuple(structs.replace(key, kid=kid) for kid in kids))

    codes = {vector.name: code(vector) for vector in VECTORS if not is_ours(vector)}

    assert Counter(codes.values()) == {
        "token_alg": 106,
        "token_format": 36,
        "token_kid": 4,  # with an @, as above
        "token_unknown_kid": 1,
    }
    assert {codes[name] for name in MISSPELT} == {"token_format"}
