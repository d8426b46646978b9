"""Answers of providers that mean something else than their status says. Data, and how we know it.

Where a caller could profit from having a text repeated, it is looked for at the beginning of the
message alone: the rest may hold what the caller wrote. ``sources`` are two reports that know
nothing of each other, ``seen`` is the day of the newest.
"""

import re
from typing import NamedTuple

__all__ = ["FOREIGN_STATE", "TOO_LONG", "TROUBLES", "KnownAnswer"]


class KnownAnswer(NamedTuple):
    """One answer.

    Attributes:
        provider: who sends it.
        status: that it was seen with; others that mean the same are looked at as well.
        codes: any of these, in small letters, is enough.
        text: what its message says; ``None``: the codes decide.
    """

    provider: str
    status: int
    codes: frozenset[str]
    text: re.Pattern[str] | None
    sources: tuple[str, ...]
    seen: str


def _begins(pattern: str) -> re.Pattern[str]:
    # Gateways put a status in front: ``400 Your credit …``.
    return re.compile(rf"^(?:error:\s*)?(?:\d{{3}}\s+)?(?:{pattern})", re.IGNORECASE)


def _says(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern, re.IGNORECASE)


_NONE: frozenset[str] = frozenset()
# Lists of such texts that open-source agents compact by; read on 2026-11-28.
AGENTS = "texts that several coding agents look for"

# ── our account's trouble, told as the request's mistake ───────────────────────────────────────

TROUBLES: tuple[KnownAnswer, ...] = (
    KnownAnswer(
        "anthropic", 400, _NONE, _begins(r"your credit balance is too low"),
        ("anthropics/claude-code#66314", "anthropics/claude-quickstarts#229"), "2026-08-22",
    ),
    KnownAnswer(
        "anthropic", 400, _NONE, _begins(r"you have reached your specified api usage limits"),
        ("anthropics/claude-code#38035", "anthropics/claude-code#2127"), "2026-03-24",
    ),
    KnownAnswer(
        "anthropic", 400, _NONE, _begins(r"this organization has been disabled"),
        ("anthropics/claude-code#72457", "CherryHQ/cherry-studio#3340"), "2026-06-30",
    ),
    # Which of an operator's accounts may use it differs, so another key or model may serve.
    KnownAnswer(
        "anthropic", 400, _NONE, _begins(r"the long context beta is not yet available for this"),
        ("anthropics/claude-code#27944", "anthropics/claude-code#23822"), "2026-03-14",
    ),
    KnownAnswer(
        "openai", 400, frozenset({"billing_hard_limit_reached"}),
        _begins(r"billing hard limit has been reached"),
        ("dfinke/PowerShellAI#127", "all-in-aigc/aiwallpaper#2"), "2024-08-01",
    ),
    # With 429, though no wait helps.
    KnownAnswer(
        "openai", 429, frozenset({"insufficient_quota"}),
        _begins(r"you exceeded your current quota, please check your plan and billing"),
        ("Pythagora-io/gpt-pilot#340", "sinaptik-ai/pandas-ai#47"), "2024-04-24",
    ),
    KnownAnswer(
        "alibaba", 400, frozenset({"arrearage"}),
        _begins(r"access denied, please make sure your account is in good standing"),
        ("tencentmusic/supersonic#1572", "hsliuping/TradingAgents-CN#170"), "2026-05-25",
    ),
    KnownAnswer(
        "gemini", 400, frozenset({"api_key_invalid"}),
        _begins(r"api key (?:not valid|expired|not found)"),
        ("continuedev/continue#11336", "Wei-Shaw/sub2api#1709"), "2026-04-16",
    ),
    KnownAnswer(
        "xai", 400, frozenset({"invalid_api_key"}), _begins(r"incorrect api key provided"),
        ("continuedev/continue#10778", "openai/codex#1352"), "2026-03-22",
    ),
    KnownAnswer(
        "gemini", 400, _NONE, _begins(r"user location is not supported for the api use"),
        ("google-gemini/gemini-cli#24641", "snailyp/gemini-balance#328"), "2026-04-03",
    ),
)  # fmt: skip

# ── a prompt that a model cannot hold ──────────────────────────────────────────────────────────

TOO_LONG: tuple[KnownAnswer, ...] = (
    KnownAnswer(
        "openai, groq", 400, frozenset({"context_length_exceeded"}),
        _says(r"maximum context length|exceeds? the context window"),
        ("crewAIInc/crewAI-examples#121", "OpenHands/OpenHands#1902"), "2024-07-06",
    ),
    KnownAnswer(
        "anthropic", 400, frozenset({"model_context_window_exceeded"}),
        _says(r"prompt is too long|input length and .?max_tokens.? exceed context limit"),
        ("anthropics/claude-code#12186", AGENTS),
        "2025-11-23",
    ),
    KnownAnswer(
        "anthropic", 413, frozenset({"request_too_large"}), None,
        ("anthropics/anthropic-sdk-python#938", "earendil-works/pi#2734"), "2026-03-31",
    ),
    KnownAnswer(
        "gemini", 400, _NONE, _says(r"exceeds the maximum number of tokens"),
        ("google-gemini/gemini-cli#4231", "google-gemini/gemini-cli#13006"), "2025-11-13",
    ),
    KnownAnswer(
        "mistral", 400, _NONE, _says(r"too large for model with \d+ maximum context length"),
        (AGENTS, "ten of which name Mistral for it"),
        "2026-11-28",
    ),
    # Its limit by the minute, which no wait makes larger.
    KnownAnswer(
        "groq", 413, _NONE, _begins(r"request too large for model"),
        ("continuedev/continue#10218", "cottongeeks/podscript#20"), "2026-06-29",
    ),
    # Likewise, with 429 and the code of every limit: one such request would rest the key for all.
    KnownAnswer(
        "openai", 429, _NONE, _begins(r"request too large for \S+ .{0,100}tokens per min"),
        ("TheR1D/shell_gpt#653", "continuedev/continue#11717"), "2026-03-22",
    ),
    # What its account may send is less than what the model could hold.
    KnownAnswer(
        "anthropic", 429, _NONE, _begins(r"extra usage is required for long context requests"),
        ("Wei-Shaw/sub2api#572", "NousResearch/hermes-agent#4747"), "2026-05-05",
    ),
    KnownAnswer(
        "llama.cpp", 400, frozenset({"exceed_context_size_error"}),
        _says(r"exceeds? (?:the )?available context size"),
        ("ggml-org/llama.cpp#15780", "oobabooga/textgen#7257"), "2026-02-21",
    ),
    KnownAnswer(
        "alibaba", 400, _NONE, _says(r"range of input length should be"),
        ("QwenLM/qwen-code#98", "infiniflow/ragflow#589"), "2026-03-03",
    ),
    KnownAnswer(
        "volcengine", 400, _NONE, _says(r"input length \d+ exceeds the maximum length"),
        ("langgenius/dify#32221", AGENTS), "2026-02-11",
    ),
    KnownAnswer(
        "vllm, bedrock", 400, _NONE,
        _says(r"input is too long|context length of|exceeds? (?:the )?(?:model(?:'s)? )?context"),
        ("THUDM/LongBench#104", AGENTS), "2025-01-23",
    ),
)  # fmt: skip

# ── an item that another account, or another provider, made ────────────────────────────────────

FOREIGN_STATE: tuple[KnownAnswer, ...] = (
    KnownAnswer(
        "openai", 400, frozenset({"invalid_encrypted_content"}),
        _begins(r"the encrypted content .{0,200}could not be (?:verified|decrypted)"),
        ("openai/codex#8145", "Wei-Shaw/sub2api#2863"), "2026-06-06",
    ),
    KnownAnswer(
        "anthropic", 400, _NONE,
        _begins(r"messages\.\d+\.content\.\d+: invalid .?signature.? in .?thinking.? block"),
        ("anthropics/anthropic-sdk-python#1598", "can1357/oh-my-pi#6379"), "2026-08-05",
    ),
    # With 404: of an item that only its maker keeps.
    KnownAnswer(
        "openai", 404, _NONE, _begins(r"item with id '[\w-]+' not found"),
        ("can1357/oh-my-pi#41", "anomalyco/opencode#7724"), "2026-02-12",
    ),
)  # fmt: skip
