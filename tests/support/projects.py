"""A project folder with a policy, and keys that nobody guards."""

import time
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from waypost.edge.commands.init_project import init_project
from waypost.edge.project.project import Project
from waypost.edge.publishing.publish import Published, publish
from waypost.edge.publishing.repository import ROLES
from waypost.edge.publishing.signing_keys import create_keys, load_keyring, load_signers


def a_project(directory: Path) -> Project:
    """Return a new project with the policy of ``waypost init`` and unencrypted keys."""
    init_project(directory, key=Ed25519PrivateKey.generate())
    project = Project(directory)
    create_keys(project, passphrase=None, now=int(time.time()))
    return project


def publish_project(project: Project, *, channel: str = "prod", age_s: int = 0) -> Published:
    """Publish what the project's files say, as if ``age_s`` ago."""
    keyring = load_keyring(project.keys)
    return publish(
        project,
        channel=channel,
        signers=load_signers(keyring, project.keys, ROLES, passphrase=None),
        hints_keys=keyring.of("hints"),
        now=int(time.time()) - age_s,
    )


def hide_model(project: Project, name: str) -> None:
    """Mark a model of the project's policy private."""
    text = project.policy.read_text()
    marked = text.replace(f"  {name}:\n", f"  {name}:\n    private: true\n", 1)
    assert marked != text
    project.policy.write_text(marked)
