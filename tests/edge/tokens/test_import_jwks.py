"""An identity provider's keys, from its JWKS to a token that a validator takes."""

import json
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from support.command import Command
from support.origin import Reply, serving
from support.projects import a_project, publish_project
from support.tokens import AUDIENCE, NOW, App
from waypost.edge.project.project import Project
from waypost.shared.tokens.issuer_keys import as_jwk
from waypost.shared.trust import Trusted, open_bundle
from waypost.validator.access.tokens import TokenVerifier

ISS = "https://idp.example"


def idp(kid: str, app: App | None = None) -> App:
    made = app or App.with_rs256()
    return App(iss=ISS, kid=kid, key=made.key)


FIRST, SECOND, THIRD = idp("2027-01"), idp("2027-02"), idp("2027-03")


@dataclass
class Provider:
    """An identity provider: what it publishes may be changed."""

    url: str = ""
    document: Any = None
    status: int = 200

    def publish(self, *apps: App, **more: Any) -> None:  # noqa: ANN401
        keys = [as_jwk(app.public_key()) for app in apps]
        self.document = {"keys": keys, **more}


@contextmanager
def a_provider() -> Iterator[Provider]:
    provider = Provider()

    def answer(_: dict[str, str]) -> Reply:
        body = provider.document
        return Reply(
            body if isinstance(body, bytes) else json.dumps(body).encode(), status=provider.status
        )

    with serving(answer) as origin:
        provider.url = f"{origin.url}/jwks.json"
        provider.publish(FIRST)
        yield provider


@pytest.fixture
def provider() -> Iterator[Provider]:
    with a_provider() as made:
        yield made


@pytest.fixture
def command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    project = a_project(tmp_path)
    project.issuers.write_text(
        f"issuers:\n  - iss: {ISS}\n    jwks: idp.jwks.json\n    algorithms: [RS256]\n"
    )
    return Command(tmp_path, monkeypatch, capsys)


def imports(command: Command, provider: Provider, *more: str) -> Any:  # noqa: ANN401
    return command("issuers", "import-jwks", provider.url, "--iss", ISS, *more)


def kept(command: Command) -> list[str]:
    path = command.folder / "idp.jwks.json"
    return [key["kid"] for key in json.loads(path.read_text())["keys"]] if path.exists() else []


def opened(command: Command) -> Trusted:
    """Return what a validator sees."""
    project = Project(command.folder)
    bundle = (project.private / "v1/prod/bundle.json").read_bytes()
    return open_bundle(bundle, root=project.root.read_bytes(), channel="prod", projection="full")


def verified(command: Command, app: App) -> str:
    """Return whose token one of ``app`` is, by what is published."""
    verifier = TokenVerifier(opened(command).issuers, audience=AUDIENCE)
    return verifier.verify(app.bearer(scope="infer"), now=NOW).iss


def test_a_provider_s_tokens_hold_once_its_keys_are_imported_and_published(
    command: Command, provider: Provider
) -> None:
    done = imports(command, provider)

    assert (done.code, kept(command)) == (0, ["2027-01"])
    assert "added: 2027-01" in done.out
    publish_project(Project(command.folder))
    assert verified(command, FIRST) == ISS


def test_the_example_of_the_tokens_page_works(command: Command, provider: Provider) -> None:
    page = (Path(__file__).parents[3] / "docs/tokens.md").read_text()
    section = page.split("## Keys of an identity provider")[1].split("\n## ")[0]
    settings, by_hand, timer = re.findall(r"^```\w*\n(.*?)^```", section, re.S | re.M)
    Project(command.folder).issuers.write_text(settings)

    for line in (*by_hand.splitlines(), timer):
        line = line.rpartition(" && ")[2].replace("https://idp.example/jwks.json", provider.url)
        command.good(*shlex.split(line)[1:])
        provider.publish(FIRST, SECOND)

    assert verified(command, SECOND) == ISS


def test_a_planned_rotation_is_followed_without_a_word(
    command: Command, provider: Provider
) -> None:
    for apps in ((FIRST,), (FIRST, SECOND), (SECOND,), (SECOND, THIRD)):
        provider.publish(*apps)
        assert imports(command, provider).code == 0

    assert kept(command) == ["2027-02", "2027-03"]


def test_nothing_new_is_said_to_be_so(command: Command, provider: Provider) -> None:
    imports(command, provider)

    assert "is current" in imports(command, provider).out


def test_another_key_under_a_known_id_is_an_alarm(command: Command, provider: Provider) -> None:
    imports(command, provider)
    before = (command.folder / "idp.jwks.json").read_bytes()
    provider.publish(idp("2027-01"), SECOND)

    done = imports(command, provider)

    assert done.code == 1
    assert "ALARM: other keys under known ids: 2027-01" in done.err
    assert (command.folder / "idp.jwks.json").read_bytes() == before


def test_a_set_with_none_of_the_known_keys_is_an_alarm_until_a_person_agrees(
    command: Command, provider: Provider
) -> None:
    imports(command, provider)
    provider.publish(SECOND)

    assert imports(command, provider).code == 1
    assert kept(command) == ["2027-01"]
    assert imports(command, provider, "--accept").code == 0
    assert kept(command) == ["2027-02"]


PRIVATE = {**as_jwk(FIRST.public_key()), "d": "AQAB"}
SMALL = as_jwk(FIRST.public_key()) | {"n": "u-SfdHPj" * 20}


@pytest.mark.parametrize(
    ("document", "said"),
    [
        (b"<html>", "no JWK set"),
        ({"keys": {}}, "no JWK set"),
        ([], "no JWK set"),
        ({"keys": []}, "it is empty"),
        ({"keys": ["x"]}, "no JSON object"),
        ({"keys": [PRIVATE]}, "private or secret"),
        ({"keys": [{"kty": "oct", "k": "AAAA", "kid": "x"}]}, "private or secret"),
        ({"keys": [as_jwk(FIRST.public_key())] * 2}, "two keys '2027-01'"),
        ({"keys": [SMALL]}, "no RS256 public key"),
        ({"keys": [as_jwk(FIRST.public_key()) | {"use": "enc"}]}, "not for checking signatures"),
        ({"keys": [as_jwk(FIRST.public_key()) | {"kid": "a b"}]}, "cannot be used"),
        ({"keys": [as_jwk(App.with_es256().public_key())]}, "which the issuer does not use"),
        ({"keys": [{}] * 101}, "101 keys"),
        (b" " * 300_000, "more than 262,144 bytes"),
    ],
)
def test_a_set_that_cannot_be_used_changes_nothing(
    command: Command, provider: Provider, document: object, said: str
) -> None:
    imports(command, provider)
    provider.document = document

    done = imports(command, provider)

    assert done.code == 1
    assert said in done.err
    assert kept(command) == ["2027-01"]


def test_keys_for_other_uses_are_left_out_and_named(command: Command, provider: Provider) -> None:
    provider.document["keys"].append(as_jwk(SECOND.public_key()) | {"use": "enc"})

    done = imports(command, provider)

    assert kept(command) == ["2027-01"]
    assert "Left out: '2027-02' is not for checking signatures" in done.out


@pytest.mark.parametrize("status", [301, 404, 500])
def test_a_provider_that_does_not_answer_changes_nothing(
    command: Command, provider: Provider, status: int
) -> None:
    imports(command, provider)
    provider.status = status

    done = imports(command, provider)

    assert done.code == 1
    assert f"jwks_unavailable: {provider.url} answered {status}" in done.err
    assert kept(command) == ["2027-01"]


@pytest.mark.parametrize("url", ["http://idp.example/jwks", "file:///etc/passwd", "jwks.json"])
def test_keys_come_over_tls(command: Command, url: str) -> None:
    assert command("issuers", "import-jwks", url, "--iss", ISS).code == 2


def test_an_issuer_must_be_one_of_the_file(command: Command, provider: Provider) -> None:
    done = command("issuers", "import-jwks", provider.url, "--iss", "https://other.example")

    assert (done.code, kept(command)) == (2, [])


def test_a_script_reads_what_changed(command: Command, provider: Provider) -> None:
    said = json.loads(imports(command, provider, "--json").out)

    assert said["written"]
    assert said["update"]["added"] == ["2027-01"]


def test_it_goes_on_until_it_is_stopped(
    command: Command, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[int] = []

    def sleep(seconds: int) -> None:
        slept.append(seconds)
        provider.publish(*(SECOND, FIRST)[: len(slept)])
        if len(slept) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr("waypost.edge.commands.issuers_cli.time.sleep", sleep)
    assert imports(command, provider, "--every", "3600").code == 130

    # The second set was an alarm and was not taken, the third has a known key again.
    assert slept == [3_600] * 3
    assert kept(command) == ["2027-01", "2027-02"]


# ── import, sign and publish, with nobody watching ─────────────────────────────────────────────


@pytest.fixture
def unattended(command: Command, provider: Provider) -> Command:
    """A project that a person has set up: the first keys imported and published."""
    path = Project(command.folder).issuers
    path.write_text(path.read_text().replace("[RS256]", "[RS256, ES256]"))
    imports(command, provider)
    publish_project(Project(command.folder))
    return command


def test_a_rotation_is_published_and_nothing_else_is(
    unattended: Command, provider: Provider
) -> None:
    before = opened(unattended)
    project = Project(unattended.folder)
    for file in (project.policy, project.issuers):
        file.write_text(file.read_text() + "# half a thou")
    project.policy.write_text("models: [")
    provider.publish(FIRST, SECOND)

    done = imports(unattended, provider, "--publish")

    assert done.code == 0
    assert "added: 2027-02" in done.out
    assert verified(unattended, SECOND) == ISS
    after = opened(unattended)
    assert (after.policy, after.policy_digest) == (before.policy, before.policy_digest)
    assert after.issuers.version > before.issuers.version


def test_nothing_new_publishes_nothing(unattended: Command, provider: Provider) -> None:
    before = opened(unattended)

    assert imports(unattended, provider, "--publish").code == 0
    assert opened(unattended).issuers == before.issuers


def test_a_publication_that_failed_is_made_up_for(unattended: Command, provider: Provider) -> None:
    provider.publish(FIRST, SECOND)
    keys = Project(unattended.folder).keys
    elsewhere = keys.rename(keys.with_name("taken away"))

    assert imports(unattended, provider, "--publish").code == 1
    elsewhere.rename(keys)
    assert imports(unattended, provider, "--publish").code == 0

    assert verified(unattended, SECOND) == ISS


def test_the_first_keys_are_imported_by_a_person(command: Command, provider: Provider) -> None:
    done = imports(command, provider, "--publish")

    assert (done.code, kept(command)) == (2, [])
    assert "a person imports the first keys" in done.err


def test_keys_of_an_algorithm_it_had_none_of_are_an_alarm(
    unattended: Command, provider: Provider
) -> None:
    provider.publish(FIRST, idp("2027-ec", App.with_es256()))

    done = imports(unattended, provider, "--publish")

    assert done.code == 1
    assert "ALARM: keys of an algorithm that it had none of: ES256" in done.err
    assert kept(unattended) == ["2027-01"]
    assert imports(unattended, provider, "--publish", "--accept").code == 0
    assert len(opened(unattended).issuers.issuers[0].keys) == 2


def test_alarms_and_publications_are_told_to_the_webhook(
    unattended: Command, provider: Provider
) -> None:
    with serving(lambda _: Reply()) as pager:
        provider.publish(FIRST, SECOND)
        imports(unattended, provider, "--publish", "--webhook", pager.url)
        provider.publish(THIRD)
        imports(unattended, provider, "--publish", "--webhook", pager.url)
        provider.status = 500
        imports(unattended, provider, "--webhook", pager.url)
    published, alarm, outage = (json.loads(request[":body"]) for request in pager.requests)
    gone = imports(unattended, provider, "--webhook", pager.url)

    assert (published["event"], published["iss"]) == ("jwks_published", ISS)
    assert (published["added"], published["removed"]) == (["2027-02"], [])
    assert (alarm["event"], alarm["code"]) == ("jwks_alarm", "jwks_invalid")
    assert "not one of the known keys is left" in alarm["message"]
    assert outage["code"] == "jwks_unavailable"
    assert kept(unattended) == ["2027-01", "2027-02"]
    assert "the webhook was not told" in gone.err
    assert pager.url not in gone.err


def test_a_key_id_of_another_issuer_is_not_published(
    unattended: Command, provider: Provider
) -> None:
    path = Project(unattended.folder).issuers
    public = App().public_key().x
    path.write_text(
        path.read_text()
        + "    accounts: [theirs]\n"
        + f"  - iss: https://app.example\n    accounts: [ours]\n    keys: [{{kid: 2027-02, alg: EdDSA, x: {public}}}]\n"
    )
    publish_project(Project(unattended.folder))
    provider.publish(FIRST, SECOND)

    assert "key_taken: another issuer has a key '2027-02'" in (
        imports(unattended, provider, "--publish").err
    )


def test_a_project_whose_keys_were_never_imported_is_not_published(command: Command) -> None:
    done = command("publish")

    assert done.code == 1
    assert "waypost issuers import-jwks writes it" in done.err


def test_two_issuers_with_one_key_id_are_not_published(
    command: Command, provider: Provider
) -> None:
    imports(command, provider)
    path = Project(command.folder).issuers
    public = App().public_key().x
    path.write_text(
        path.read_text()
        + "    accounts: [theirs]\n"
        + f"  - iss: https://app.example\n    accounts: [ours]\n    keys: [{{kid: 2027-01, alg: EdDSA, x: {public}}}]\n"
    )

    done = command("publish")

    assert done.code == 1
    assert "have a key '2027-01'" in done.err


def test_only_keys_or_only_a_key_set(command: Command) -> None:
    path = Project(command.folder).issuers
    path.write_text("issuers:\n  - iss: https://app.example\n")

    assert "give either keys or jwks" in command("publish").err


def test_a_1024_bit_key_is_no_issuer_key() -> None:
    weak = rsa.generate_private_key(65_537, 1_024)  # noqa: S505 - that is the point

    with pytest.raises(ValueError, match="is no RS256 public key"):
        App(key=weak).public_key()
