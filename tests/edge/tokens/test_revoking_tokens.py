"""What issuers.yaml takes back, a validator refuses once it is published: from file to verdict."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from support.projects import a_project, publish_project
from support.tokens import AUDIENCE, NOW, App
from waypost.edge.project.project import Project
from waypost.shared.errors import TokenError, TrustError
from waypost.shared.trust import open_bundle
from waypost.validator.access.tokens import TokenVerifier

APP = App()
OTHER = App(kid="app-2")
LATER = datetime.fromtimestamp(NOW + 1, UTC).isoformat().replace("+00:00", "Z")


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return a_project(tmp_path / "project")


def published(
    project: Project, *, issuer: str = "", key: str = "", rest: str = ""
) -> TokenVerifier:
    """Publish issuers with two keys, ``app-1`` as ``key`` says, and open them as a validator."""
    project.issuers.write_text(
        f"""issuers:
  - iss: {APP.iss}
    {issuer or "max_lifetime_s: 3600"}
    keys:
      - {{kid: app-1, alg: EdDSA, x: "{APP.public_key().x}"{key}}}
      - {{kid: app-2, alg: EdDSA, x: "{OTHER.public_key().x}"}}
{rest}
"""
    )
    publish_project(project)
    bundle = (project.private / "v1/prod/bundle.json").read_bytes()
    root = project.root.read_bytes()
    opened = open_bundle(bundle, root=root, channel="prod", projection="full")
    return TokenVerifier(opened.issuers, audience=AUDIENCE)


def code(verifier: TokenVerifier, bearer: str, *, now: int = NOW) -> str:
    """Return why a token is refused; empty if it holds."""
    try:
        verifier.verify(bearer, now=now)
    except TokenError as exc:
        return exc.code
    return ""


def test_nothing_taken_back_refuses_nothing(project: Project) -> None:
    verifier = published(project)
    assert [code(verifier, app.bearer()) for app in (APP, OTHER)] == ["", ""]


def test_a_revoked_token_is_refused_and_no_other(project: Project) -> None:
    revoked = f"revoked_tokens: [{{iss: {APP.iss}, jti: stolen-0123456789}}]"
    verifier = published(project, rest=revoked)
    assert code(verifier, APP.bearer(jti="stolen-0123456789")) == "token_revoked"
    assert code(verifier, APP.bearer()) == ""


def test_a_subject_s_older_tokens_are_refused_and_nobody_else_s(project: Project) -> None:
    floor = f"subjects: [{{iss: {APP.iss}, sub: alice, min_iat: {LATER}}}]"
    verifier = published(project, rest=floor)
    assert code(verifier, APP.bearer(sub="alice")) == "token_superseded"
    assert code(verifier, APP.bearer(sub="alice", now=NOW + 1), now=NOW + 1) == ""
    assert code(verifier, APP.bearer(sub="bob")) == ""


def test_an_issuer_s_older_tokens_are_refused(project: Project) -> None:
    verifier = published(project, issuer=f"min_iat: {LATER}")
    assert code(verifier, APP.bearer()) == "token_superseded"
    assert code(verifier, APP.bearer(now=NOW + 1), now=NOW + 1) == ""


@pytest.mark.parametrize(
    ("key", "why"),
    [
        (", status: revoked", "token_key_revoked"),
        (f", not_before: {NOW + 31}", "token_key_inactive"),
        (f", expires_at: {NOW}", "token_key_inactive"),
        (", status: retiring", ""),
    ],
)
def test_a_key_counts_as_its_line_says_and_others_are_untouched(
    project: Project, key: str, why: str
) -> None:
    verifier = published(project, key=key)
    assert code(verifier, APP.bearer()) == why
    assert code(verifier, OTHER.bearer()) == ""


def test_an_issuer_s_tokens_may_live_as_long_as_its_line_says(project: Project) -> None:
    verifier = published(project, issuer="max_lifetime_s: 60")
    assert code(verifier, APP.bearer(lifetime_s=61)) == "token_lifetime"
    assert code(verifier, APP.bearer(lifetime_s=60)) == ""


def test_what_is_taken_back_cannot_be_brought_back_by_an_older_bundle(project: Project) -> None:
    def bundle() -> bytes:
        return (project.public / "v1/prod/bundle.json").read_bytes()

    published(project)
    before = bundle()
    published(project, key=", status: revoked")
    with pytest.raises(TrustError) as caught:
        open_bundle(before, root=project.root.read_bytes(), channel="prod", previous=bundle())
    assert caught.value.code == "older_than_seen"
