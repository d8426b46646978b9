"""Credentials: provider keys by their prefixes, private keys, JWTs, passwords in URLs and prose."""

import base64
import binascii
import re

import msgspec

from waypost.validator.detectors.checks import Kind, any_holds
from waypost.validator.detectors.linear import Match, Pattern

__all__ = ["SECRET"]

# As each provider documents its keys, or as its keys are seen to look; lengths are lower bounds,
# since providers lengthen keys without notice. Most are tokens that say whose they are.
_ISSUED = Pattern(
    r"\b(?:"
    r"(?:AKIA|ASIA)[A-Z0-9]{16}"  # AWS access key id
    r"|ABSK[A-Za-z0-9+/=]{40,}"  # AWS Bedrock
    r"|gh[opsur]_[A-Za-z0-9]{20,}|github_pat_\w{20,}"
    r"|glpat-[\w-]{20,}"  # GitLab
    r"|sk-[\w-]{20,}"  # OpenAI; Anthropic (sk-ant-), OpenRouter (sk-or-), DeepSeek
    r"|xai-\w{40,}|gsk_\w{20,}|hf_[A-Za-z0-9]{30,}|r8_\w{30,}|pplx-\w{40,}"
    r"|AIza[\w-]{35}|ya29\.[\w-]{20,}|GOCSPX-[\w-]{20,}"  # Google
    r"|xox[abeoprs]-[A-Za-z0-9-]{10,}|xapp-[A-Za-z0-9-]{10,}"  # Slack
    r"|[rs]k_(?:live|test)_[A-Za-z0-9]{16,}|whsec_[\w+/=]{20,}"  # Stripe
    r"|SG\.[\w-]{16,}\.[\w-]{16,}"  # SendGrid
    r"|npm_[A-Za-z0-9]{36}|pypi-AgE[\w-]{50,}"
    r"|dop_v1_[0-9a-f]{60,}|dapi[0-9a-f]{32}|shpat_[0-9a-f]{32}|PMAK-[\w-]{50,}"
    r"|\d{8,10}:AA[\w-]{32,}"  # Telegram
    r")"
)
_WEBHOOK = Pattern(
    r"hooks\.slack\.com/(?:services|workflows|triggers)/[\w/]{20,}"
    r"|(?:discord|discordapp)\.com/api/webhooks/\d{10,}/[\w-]{30,}"
)
_PRIVATE_KEY = Pattern(
    r"-----BEGIN (?:[A-Z0-9]{1,12} ){0,3}PRIVATE KEY(?: BLOCK)?-----|PuTTY-User-Key-File-\d"
)
_JWT = Pattern(r"\b(eyJ[\w-]{8,})\.eyJ[\w-]{8,}\.[\w-]*")
_URL = Pattern(r"\b[A-Za-z][A-Za-z0-9+.-]{1,30}://[^\s:/@\"'<>]{0,64}:([^\s/@\"'<>]{3,200})@[\w\[]")
_BEARER = Pattern(r"\b(?i:bearer|basic|authorization:? *(?:token|apikey)) +([\w.~+/=-]{16,})")
_NAME = (
    r"(?i:("
    r"(?:pass(?:word|wort|code|phrase)|passwd|pwd|\bpw\b|kennwort"
    r"|mot[ _]de[ _]passe|mdp|contraseña|clave)"
    r"|(?:secret|api|access|auth|account|private|encryption|signing|client|bearer|refresh)"
    r"[ _-]?(?:access[ _-]?)?(?:key|token|secret)"
    r")"
    r"[\"'`\]]{0,2}[ \t]{0,3}(?::=|=>|=|:|\bis\b:?|\bist\b:?|\blautet\b:?|\best\b ?:?|\bes\b:?)"
    r"[ \t]{0,3})"
)
_NAMED = Pattern(_NAME + r"(?:[bru]?[\"'`]([^\"'`\r\n]{6,200})|([^\s\"'`,;<>]{6,200}))")
# What each of the above begins with; counting on is what would cost time in ordinary text.
_HINT = Pattern(
    r"\b(?:AKIA|ASIA|ABSK|gh[opsur]_|github_pat_|glpat-|sk-|xai-|gsk_|hf_|r8_|pplx-"
    r"|AIza|ya29\.|GOCSPX-|xox[abeoprs]-|xapp-|[rs]k_|whsec_|SG\.|npm_|pypi-|dop_v1_|dapi|shpat_|PMAK-|eyJ)"
    r"|:AA|hooks\.slack\.com/|/api/webhooks/|PRIVATE KEY|PuTTY-User|://[^\s/@\"'<>]*@"
    r"|\b(?i:bearer|basic|authorization)\b|" + _NAME
)

_PLACEHOLDER = re.compile(
    rb"your|x{4}|\*{3}|\.\.\.|placeholder|redacted|replace.?me|change.?me|insert|dummy|todo|\A<|\A\{",
    re.IGNORECASE,
)
_REFERENCE = re.compile(  # to where a secret is kept: ${X}, $X, os.environ["X"], config.password
    rb"[$%][({]|[$%]\w+%?\Z|.*\(|[A-Za-z_]\w*(?:(?:\.|->|::)[A-Za-z_]\w*|\[[^\]]*\])+\Z"
)
_HAS_DIGIT = re.compile(rb"\d")
_NEXT_PARAMETER = re.compile(rb"&\w+=.*", re.DOTALL)
_PASSWORD_CHARS = 6
_KEY_CHARS = 16
_DISTINCT_CHARS = 8  # of 20 random hexadecimal digits, one in 2,000 has fewer


def _is_random(token: bytes) -> bool:
    """Return whether ``token`` looks drawn, not written: neither words alone nor a placeholder."""
    return (
        len(set(token)) >= _DISTINCT_CHARS
        and re.search(rb"[0-9A-Z]", token) is not None
        and not _PLACEHOLDER.search(token)
    )


def _is_password(value: bytes) -> bool:
    """Return whether ``value`` can be a password, and is neither a word nor a reference to one."""
    return (
        len(value) >= _PASSWORD_CHARS
        and re.search(rb"[0-9!@#$%^&*+~]", value) is not None
        and not _PLACEHOLDER.search(value)
        and not _REFERENCE.match(value)
    )


def _is_named_secret(match: Match) -> bool:
    name, quoted, bare = match[1] or b"", match[2], match[3] or b""
    value = quoted or _NEXT_PARAMETER.sub(b"", bare).rstrip(b".,;:!?)]}")
    if re.match(rb"(?i)pass|pwd?|kenn|mot|mdp|contra|clave", name):
        return _is_password(value)
    return (
        len(value) >= _KEY_CHARS
        and _HAS_DIGIT.search(value) is not None
        and _is_random(value)
        and not _REFERENCE.match(value)
    )


def _is_bearer(match: Match) -> bool:
    token = match[1] or b""
    return _HAS_DIGIT.search(token) is not None and _is_random(token)


def _is_jwt(match: Match) -> bool:
    header = match[1] or b""
    try:
        fields = msgspec.json.decode(base64.urlsafe_b64decode(header + b"=" * (-len(header) % 4)))
    except (binascii.Error, msgspec.DecodeError, UnicodeDecodeError):
        return False
    return isinstance(fields, dict) and "alg" in fields


def _has_secret(text: bytes) -> bool:
    return (
        _PRIVATE_KEY.is_in(text)
        or _WEBHOOK.is_in(text)
        or any_holds(_ISSUED.matches(text), lambda match: _is_random(match[0] or b""))
        or any_holds(_JWT.matches(text), _is_jwt)
        or any_holds(_URL.matches(text), lambda match: _is_password(match[1] or b""))
        or any_holds(_BEARER.matches(text), _is_bearer)
        or any_holds(_NAMED.matches(text), _is_named_secret)
    )


SECRET = Kind("secret", _HINT, _has_secret)
