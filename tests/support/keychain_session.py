"""What a process does with the keychain of its session: ``test_real_keychain`` starts it."""

import json
import sys
from collections.abc import Callable

import secretstorage

from waypost.client.dpop import DPoPKey
from waypost.shared.errors import StoreError


def kept() -> str:
    """Return the thumbprint of the key that is found or made, or why there is none."""
    try:
        return DPoPKey.kept().thumbprint
    except StoreError as exc:
        return f"{exc.code}: {exc.message}"


def held() -> str:
    """Return the first line of what the keychain itself says that it holds."""
    entry = {"service": "waypost", "username": "dpop"}
    (item,) = secretstorage.search_items(secretstorage.dbus_init(), entry)
    secret: bytes = item.get_secret()
    return secret.decode().partition("\n")[0]


def locked() -> str:
    """Lock the keychain, and return what comes of asking for the key."""
    secretstorage.get_default_collection(secretstorage.dbus_init()).lock()
    return kept()


STEPS: dict[str, Callable[[], str]] = {"kept": kept, "held": held, "locked": locked}

if __name__ == "__main__":
    print(json.dumps({name: STEPS[name]() for name in sys.argv[1:]}))
