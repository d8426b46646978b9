"""Reads issuers.yaml: whose access tokens hold, and which of them are revoked."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from waypost.cli.yamlfile import FileError, FileModel, YAMLFile, read_yaml
from waypost.edge.authoring.fields import Instant, Name, Unique, known, wrong
from waypost.edge.tokens.jwks import JWKSError, load
from waypost.shared.contracts import ALGORITHMS, Algorithm, Issuer, IssuerKey, Issuers
from waypost.shared.tokens.issuer_keys import public_key

__all__ = ["IssuersFile", "load_issuers", "read_issuers"]


def load_issuers(path: Path, *, channel: str, version: int, issued_at: int) -> Issuers:
    """Return the token issuers written in ``path``.

    Args:
        version: of this publication, above all earlier ones.
        issued_at: Unix seconds.

    Raises:
        FileError: all that is wrong with the file, each with line, path and mend.
    """
    file, written = _read(path)
    found: list[Issuer] = []
    owners: dict[str, str] = {}
    for place, issuer in enumerate(written.issuers):
        try:
            found.append(issuer.document(path.parent))
        except JWKSError as exc:
            file.find(("issuers", place, "jwks"), exc.message)
            continue
        for key in found[-1].keys:
            # Those of the file itself were found before; these come from key sets.
            owner = owners.setdefault(key.kid, issuer.iss)
            if owner != issuer.iss:
                message = f"this and '{owner}' have a key '{key.kid}'; a token names just one"
                file.find(("issuers", place), message)
    if file.findings:
        raise FileError(file.findings)
    return written.document(tuple(found), channel=channel, version=version, issued_at=issued_at)


def read_issuers(path: Path) -> "IssuersFile":
    """Return ``path`` as written; raises FileError as ``load_issuers`` does, but for key sets."""
    return _read(path)[1]


def _read(path: Path) -> "tuple[YAMLFile, IssuersFile]":
    file = read_yaml(path)
    named = {iss for _, row in file.rows("issuers") if isinstance(iss := row.get("iss"), str)}
    written = file.read(IssuersFile, context={"issuer": named})
    if written is not None:
        _check(file, written)
    if written is None or file.findings:
        raise FileError(file.findings)
    return file, written


IssuerRef = Annotated[str, known("issuer")]
# Not * alone: an issuer that may spend from any account is not confined.
AccountPattern = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/@-]{0,127}\*?$")]
NoSpace = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[\x21-\x7e]+$")]


Coordinate = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{43}$")]


class _Key(FileModel):
    kid: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
    alg: Algorithm
    x: Coordinate | None = None
    y: Coordinate | None = None
    n: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{300,700}$")] | None = None
    e: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,8}$")] | None = None
    status: Literal["active", "retiring", "revoked"] = "active"
    not_before: Instant = 0
    expires_at: Instant | None = None

    def document(self) -> IssuerKey:
        return IssuerKey(
            kid=self.kid,
            alg=self.alg,
            x=self.x,
            y=self.y,
            n=self.n,
            e=self.e,
            status=self.status,
            not_before=self.not_before,
            expires_at=self.expires_at,
        )


class _Issuer(FileModel):
    iss: Annotated[str, Field(min_length=1, max_length=300)]
    keys: list[_Key] = []
    jwks: Annotated[str, Field(pattern=r"^[\w.-]+(/[\w.-]+)*$")] | None = None
    algorithms: Unique[Algorithm] = list(ALGORITHMS)
    max_lifetime_s: Annotated[int, Field(ge=1, le=86_400)] = 3_600
    min_iat: Instant = 0
    scope: NoSpace | None = None
    tenants: Unique[Name] | None = None
    accounts: Unique[AccountPattern] | None = None
    one_time: bool = False
    dpop: Literal["optional", "required"] = "optional"
    bearer_clients: Unique[NoSpace] = []

    @model_validator(mode="after")
    def _has_keys(self) -> "_Issuer":
        if bool(self.keys) == (self.jwks is not None):
            raise wrong(
                "give either keys or jwks, a file that `waypost issuers import-jwks` writes"
            )
        return self

    def document(self, folder: Path) -> Issuer:
        keys = tuple(key.document() for key in self.keys)
        if self.jwks is not None:
            keys = tuple(load(folder / self.jwks, algorithms=self.algorithms).values())
            if not keys:
                raise JWKSError(
                    f"{folder / self.jwks} does not exist: waypost issuers import-jwks writes it"
                )
        return Issuer(
            iss=self.iss,
            keys=keys,
            algorithms=tuple(self.algorithms),
            max_lifetime_s=self.max_lifetime_s,
            min_iat=self.min_iat,
            scope=self.scope,
            tenants=None if self.tenants is None else tuple(self.tenants),
            accounts=None if self.accounts is None else tuple(self.accounts),
            one_time=self.one_time,
            dpop=self.dpop,
            bearer_clients=tuple(self.bearer_clients),
        )


class _RevokedToken(FileModel):
    iss: IssuerRef
    jti: NoSpace


class _Subject(FileModel):
    iss: IssuerRef
    sub: NoSpace
    min_iat: Instant | None = None
    min_epoch: Annotated[int, Field(ge=1, lt=2**53)] | None = None

    @model_validator(mode="after")
    def _says_something(self) -> "_Subject":
        if self.min_iat is None and self.min_epoch is None:
            raise wrong("takes nothing back; give min_iat, min_epoch or both")
        return self


class _Tenant(FileModel):
    iss: IssuerRef
    tenant: Name
    min_iat: Instant


class IssuersFile(FileModel):
    """All of ``issuers.yaml``, as written."""

    issuers: Annotated[list[_Issuer], Field(min_length=1)]
    revoked_tokens: list[_RevokedToken] = []
    subjects: list[_Subject] = []
    tenants: list[_Tenant] = []

    def document(
        self, issuers: tuple[Issuer, ...], *, channel: str, version: int, issued_at: int
    ) -> Issuers:
        return Issuers(
            channel=channel,
            version=version,
            issued_at=issued_at,
            issuers=issuers,
            # A reader that does not know it would let each issuer spend from all accounts.
            must_understand=(
                ("issuer_accounts",)
                if any(issuer.accounts is not None for issuer in issuers)
                else ()
            ),
            revoked_jtis=tuple(f"{token.iss} {token.jti}" for token in self.revoked_tokens),
            min_iat_by_subject={
                f"{entry.iss} {entry.sub}": entry.min_iat
                for entry in self.subjects
                if entry.min_iat is not None
            },
            min_iat_by_tenant={
                f"{entry.iss} {entry.tenant}": entry.min_iat for entry in self.tenants
            },
            min_epoch_by_subject={
                f"{entry.iss} {entry.sub}": entry.min_epoch
                for entry in self.subjects
                if entry.min_epoch is not None
            },
        )


def _check(file: YAMLFile, written: IssuersFile) -> None:
    kids: set[str] = set()
    names: set[str] = set()
    for i, issuer in enumerate(written.issuers):
        if issuer.iss in names:
            file.find(("issuers", i, "iss"), f"'{issuer.iss}' is here twice; put its keys together")
        names.add(issuer.iss)
        if issuer.accounts is None and len(written.issuers) > 1:
            file.find(
                ("issuers", i),
                "needs accounts, those it may spend from: with more than one issuer each has its"
                " own",
            )
        for k, key in enumerate(issuer.keys):
            path = ("issuers", i, "keys", k)
            if key.kid in kids:
                file.find((*path, "kid"), f"there are two keys '{key.kid}'; a token names just one")
            kids.add(key.kid)
            if key.alg not in issuer.algorithms:
                file.find((*path, "alg"), f"'{key.alg}' is not among this issuer's algorithms")
            try:
                public_key(key.document())
            except ValueError:
                where = "n" if key.alg == "RS256" else "x"
                file.find(
                    (*path, where), f"is no {key.alg} public key; copy it again from its owner"
                )
            if key.expires_at is not None and key.expires_at <= key.not_before:
                file.find((*path, "expires_at"), "is not after not_before")
