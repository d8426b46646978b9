"""A chat in the terminal, in thirty lines, that goes on whatever the network does."""

import os
from pathlib import Path

import openai

from waypost.client import Waypost

HERE = Path(__file__).parent

wp = Waypost(
    manifest_url=os.environ["WAYPOST_MANIFEST_URL"],
    root=Path(os.environ.get("WAYPOST_ROOT", HERE / "root.json")),
    base_url=os.environ.get("WAYPOST_BASE_URL"),
    token=lambda: Path(os.environ["WAYPOST_TOKEN_FILE"]).read_text().strip(),
)
client = openai.OpenAI(base_url=wp.base_url, api_key="unused", http_client=wp.httpx2_client())

while question := input("> "):
    try:
        for chunk in client.chat.completions.create(
            model="auto", messages=[{"role": "user", "content": question}], stream=True
        ):
            print(chunk.choices[0].delta.content or "", end="", flush=True)
        print(f"  [{wp.freshness}]")
    except openai.OpenAIError as exc:
        print(f"No answer: {exc}")
client.close()
wp.close()
