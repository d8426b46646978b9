"""Writes a first project: a policy to start from with its tests, settings, the app's token key."""

import os
from importlib.resources import files
from pathlib import Path
from string import Template

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from waypost.edge.tokens.issue import issuer_key
from waypost.shared.errors import StoreError

__all__ = ["AUDIENCE", "ISSUER", "ISSUER_KEY_FILE", "KID", "init_project", "template"]

# What the templates agree on; any other names do as well.
ISSUER = "https://app.example"
KID = "app-1"
AUDIENCE = "waypost"

ISSUER_KEY_FILE = "issuer.key.pem"


def template(name: str) -> str:
    """Return the text of a template: ``policy.yaml`` is complete, others have ``$places``."""
    return files("waypost.edge").joinpath("templates", name).read_text(encoding="utf-8")


def init_project(folder: Path, *, key: Ed25519PrivateKey) -> tuple[Path, ...]:
    """Write a new project to ``folder`` and return the files, or write none at all.

    Args:
        key: the app's token key; kept in ``issuer.key.pem``, readable by its owner alone.

    Raises:
        StoreError: ``already_exists`` if one of the files is there, else ``store_unavailable``.
    """
    public = issuer_key(key, kid=KID)
    contents = {
        "policy.yaml": template("policy.yaml"),
        "policy.test.yaml": template("policy.test.yaml"),
        "issuers.yaml": Template(template("issuers.yaml")).substitute(
            iss=ISSUER, kid=KID, x=public.x
        ),
        "validator.yaml": Template(template("validator.yaml")).substitute(audience=AUDIENCE),
        ISSUER_KEY_FILE: key.private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
        ).decode("ascii"),
    }
    paths = {folder / name: text for name, text in contents.items()}
    there = [path.name for path in paths if os.path.lexists(path)]
    if there:
        raise StoreError(
            f"{folder} already has {', '.join(there)}; nothing was written. Choose another folder",
            code="already_exists",
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, text in paths.items():
            _create(path, text, mode=0o600 if path.name == ISSUER_KEY_FILE else 0o644)
    except OSError as exc:
        raise StoreError(f"cannot write to {folder}: {exc.strerror}") from exc
    return tuple(paths)


def _create(path: Path, text: str, *, mode: int) -> None:
    # O_EXCL, which follows no link either: whatever appears meanwhile is not written over.
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with open(handle, "w", encoding="utf-8") as file:
        file.write(text)
