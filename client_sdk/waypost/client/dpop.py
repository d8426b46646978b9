"""A key that access tokens are bound to, so that a stolen token is worth nothing (RFC 9449).

    key = DPoPKey.kept()                       # in the keychain, or a file of this user
    wp = Waypost(token=lambda: ask_app_for_token(bound_to=key.thumbprint), dpop=key, ...)

Every request then carries a proof, signed with the key, for its method, its URL and its token.
The key never leaves this machine.
"""

import os
import secrets
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, Self

import msgspec
from cryptography.hazmat.primitives.asymmetric.ec import (
    ECDSA,
    SECP256R1,
    EllipticCurvePrivateKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from waypost.client._named import named
from waypost.client._paths import user_data_dir
from waypost.shared.contracts import Confirmation, SpendLimit
from waypost.shared.errors import StoreError
from waypost.shared.tokens.issuer_keys import b64url, jwk_of, thumbprint
from waypost.shared.tokens.narrowing import NARROWED, Narrowing

__all__ = ["DPoPKey", "FileKeyStore", "KeyStore", "KeychainKeyStore", "Prover"]

SERVICE, NAME = "waypost", "dpop"


class KeyStore(Protocol):
    """Where a key is kept between runs."""

    def load(self) -> bytes | None:
        """Return what was kept; ``None`` if nothing was."""
        ...

    def keep(self, pem: bytes) -> None:
        """Keep ``pem``, unless another process kept one meanwhile."""
        ...


class FileKeyStore:
    """A file that its owner alone may read; by default in the user's data directory."""

    @named
    def __init__(self, path: Path | None = None) -> None:
        self._path = path or (
            user_data_dir(platform=sys.platform, env=os.environ, home=Path.home()) / "dpop.pem"
        )

    def load(self) -> bytes | None:
        """Return the file's content; raises StoreError if it cannot be read."""
        try:
            return self._path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as exc:
            raise StoreError(f"cannot read {self._path}: {exc.strerror}") from exc

    def keep(self, pem: bytes) -> None:
        """Write the file whole; raises StoreError if that cannot be done."""
        draft = self._path.with_name(f".{self._path.name}-{secrets.token_hex(8)}")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(pem)
            try:
                # Of several processes starting at once one link holds, and all use that key.
                with suppress(FileExistsError):
                    os.link(draft, self._path)
            finally:
                os.unlink(draft)
        except OSError as exc:
            raise StoreError(f"cannot write {self._path}: {exc.strerror}") from exc


class KeychainKeyStore:
    """The platform's keychain, by the ``keyring`` package: ``pip install waypost[keychain]``.

    Of processes that are the very first, and start at once, each may use a key of its own for
    that run: keychains cannot put what is not there yet.
    """

    @named
    def __init__(self, name: str = NAME) -> None:
        """Args:
        name: of the entry; apps that must not share a key have names of their own.

        Raises:
            ImportError: there is no ``keyring``, or no keychain that it could use.
        """
        keyring: Any = import_module("keyring")  # its types are partly unknown
        self._backend = keyring.get_keyring()
        self._error: type[Exception] = import_module("keyring.errors").KeyringError
        if isinstance(self._backend, import_module("keyring.backends.fail").Keyring):
            raise ImportError("keyring finds no keychain on this machine")
        self._name = name

    def load(self) -> bytes | None:
        """Return what the keychain holds; raises StoreError if it does not open."""
        try:
            found: str | None = self._backend.get_password(SERVICE, self._name)
        except self._error as exc:
            raise StoreError(f"the keychain does not open: {exc}") from exc
        return None if found is None else found.encode()

    def keep(self, pem: bytes) -> None:
        """Put the key into the keychain; raises StoreError if it does not take it."""
        try:
            if self._backend.get_password(SERVICE, self._name) is None:
                self._backend.set_password(SERVICE, self._name, pem.decode())
        except self._error as exc:
            raise StoreError(f"the keychain takes no key: {exc}") from exc


class DPoPKey:
    """A P-256 key, which access tokens can be bound to. Thread-safe."""

    def __init__(self, private: EllipticCurvePrivateKey) -> None:
        """Raises ValueError: of another curve than P-256."""
        self._private = private
        jwk = jwk_of(private.public_key())
        self.thumbprint: str = thumbprint(jwk)
        """What the token's issuer puts into ``cnf.jkt``; no secret."""
        self._jwk = jwk
        self._header = _encoded({"alg": "ES256", "jwk": jwk, "typ": "dpop+jwt"})

    @classmethod
    def generate(cls) -> Self:
        """Return a new key, which is gone with the process."""
        return cls(generate_private_key(SECP256R1()))

    @classmethod
    @named
    def kept(cls, store: KeyStore | None = None) -> Self:
        """Return the key kept in ``store``, made if there is none.

        Args:
            store: by default the platform's keychain if ``keyring`` finds one, else a file.

        Raises:
            StoreError: it cannot be read or written, or holds something else.
        """
        if store is None:
            try:
                store = KeychainKeyStore()
            except ImportError:
                store = FileKeyStore()
        pem = store.load()
        if pem is None:
            store.keep(cls.generate().pem())
            # Another process may have been quicker.
            pem = store.load()
        return cls.from_pem(pem or b"")

    @classmethod
    def from_pem(cls, pem: bytes) -> Self:
        """Return the key in ``pem``; raises StoreError (``key_unusable``) if it is none."""
        try:
            private = load_pem_private_key(pem, password=None)
            if isinstance(private, EllipticCurvePrivateKey):
                return cls(private)
        except (TypeError, ValueError):
            pass  # the cause may quote the key
        raise StoreError("this is no unencrypted P-256 key in PEM", code="key_unusable")

    def pem(self) -> bytes:
        """Return the private key, for a process that is to act as this one."""
        return self._private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    @named
    def proof(
        self, method: str, url: str, *, token: str, now: int, jti: str, nonce: str | None = None
    ) -> str:
        """Return the ``DPoP`` header for one request.

        Args:
            url: without query and fragment.
            token: that the request carries.
            now: Unix seconds.
            jti: never used before; at least 96 random bits.
            nonce: the last that the server gave.
        """
        claims: dict[str, object] = {
            "ath": b64url(sha256(token.encode()).digest()),
            "htm": method,
            "htu": url,
            "iat": now,
            "jti": jti,
        }
        if nonce is not None:
            claims["nonce"] = nonce
        return self._signed(self._header, claims)

    @named
    def narrow(
        self,
        token: str,
        *,
        to: str,
        lifetime_s: int,
        models: Sequence[str] | None = None,
        data_classes: Sequence[str] = (),
        budget_nusd: int | None = None,
        now: int | None = None,
    ) -> str:
        """Return a weaker token for another process, made without asking anybody.

        It carries all that limits ``token``, and what is said here on top; it can be narrowed
        further by whoever holds the key it is bound to, three times in all.

        Args:
            token: bound to this key.
            to: the thumbprint of the other's key; only its holder can use the result.
            lifetime_s: it ends with ``token`` at the latest.
            models: no others than these.
            data_classes: duties on top.
            budget_nusd: the most that may be spent with it, in billionths of a dollar.
            now: Unix seconds; by default, this machine's.
        """
        issued_at = int(time.time()) if now is None else now
        limits: tuple[SpendLimit, ...] = ()
        if budget_nusd is not None:
            limits = (SpendLimit(window="total", limit_nusd=budget_nusd),)
        narrowing = Narrowing(
            parent=token,
            jti=secrets.token_urlsafe(16),
            iat=issued_at,
            exp=issued_at + lifetime_s,
            cnf=Confirmation(to),
            models=None if models is None else tuple(models),
            data_classes=tuple(data_classes),
            limits=limits,
        )
        header = _encoded({"alg": "ES256", "jwk": self._jwk, "typ": NARROWED})
        return self._signed(header, narrowing)

    def _signed(self, header: str, claims: object) -> str:
        text = f"{header}.{_encoded(claims)}"
        r, s = decode_dss_signature(self._private.sign(text.encode(), ECDSA(SHA256())))
        return f"{text}.{b64url(r.to_bytes(32) + s.to_bytes(32))}"


def _encoded(value: object) -> str:
    return b64url(msgspec.json.encode(value))


class Prover:
    """Writes a client's credentials, and keeps the nonces that servers give it."""

    def __init__(self, key: DPoPKey, now: Callable[[], float]) -> None:
        self._key = key
        self._now = now
        self._nonces: dict[str, str] = {}  # by origin, of which there are as many as endpoints

    def credentials(self, method: str, base: str, path: str, token: str) -> list[tuple[str, str]]:
        """Return the headers that send ``token``.

        Args:
            base: of the validator; ``base + path`` is the URL.
        """
        proof = self._key.proof(
            method,
            base + path.partition("?")[0],
            token=token,
            now=int(self._now()),
            jti=secrets.token_urlsafe(16),
            nonce=self._nonces.get(base),
        )
        return [("Authorization", f"DPoP {token}"), ("DPoP", proof)]

    def heard(self, base: str, nonce: str | None) -> bool:
        """Learn the nonce that an answer brought; whether there was one."""
        if nonce is None:
            return False
        self._nonces[base] = nonce
        return True
