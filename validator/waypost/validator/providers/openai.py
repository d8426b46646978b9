"""OpenAI's dialect, as OpenAI, Azure v1, Groq, Mistral, vLLM, Ollama and others speak it."""

__all__ = ["NATIVE", "VERSION", "headers"]

NATIVE = {
    "chat.completions": "/chat/completions",
    "completions": "/completions",
    "embeddings": "/embeddings",
    "responses": "/responses",
}
VERSION: str | None = None


def headers(api_key: str | None) -> dict[str, str]:
    """See ``Dialect``."""
    always = {"content-type": "application/json"}
    return always if api_key is None else {**always, "authorization": f"Bearer {api_key}"}
