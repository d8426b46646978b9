"""Takes the README's picture: PYTHONPATH=tests python -m support.screenshot

A validator on the policy of ``waypost init``, a day of made-up traffic, and Chromium.
"""

import asyncio
import io
import tempfile
import time
from pathlib import Path

from PIL import Image
from playwright.async_api import async_playwright

from support.debian import program
from support.projects import a_project
from support.traffic import pour, some_traffic
from support.upstream import running_upstream
from support.validator import OPERATOR_TOKEN, running_validator
from waypost.edge.authoring.load_policy import load_policy

PICTURE = Path(__file__).parents[2] / "docs" / "images" / "console.png"
MAX_BYTES = 200_000
RECORDS = 40_000


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        project = a_project(Path(folder))
        now = int(time.time())
        policy = load_policy(project.policy, channel="prod", version=1, issued_at=now).full
        async with running_upstream() as upstream:
            upstreams = {model.provider: upstream for model in policy.models}
            async with running_validator(
                Path(folder), upstreams, policy=policy, console={"token": "CONSOLE_TOKEN"}
            ) as running:
                traffic = some_traffic(RECORDS, policy, until_ms=now * 1_000, days=1.1)
                await pour(running.services.store, policy, traffic)
                _save(await _picture(running.url))


async def _picture(url: str) -> bytes:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=program("chromium"), args=["--no-sandbox"]
        )
        page = await browser.new_page(
            viewport={"width": 1240, "height": 800}, device_scale_factor=1.5
        )
        await page.goto(f"{url}/console/")
        await page.get_by_label("Operator token").fill(OPERATOR_TOKEN)
        await page.keyboard.press("Enter")
        await page.locator(".live[data-state=on]").wait_for()
        return await page.screenshot()


def _save(picture: bytes) -> None:
    # Few colours are in it, and dithering would make them many.
    colours = Image.open(io.BytesIO(picture)).convert("RGB").quantize(96, dither=Image.Dither.NONE)
    PICTURE.parent.mkdir(exist_ok=True)
    colours.save(PICTURE, optimize=True)
    size = PICTURE.stat().st_size
    assert size < MAX_BYTES, f"{size} bytes"


if __name__ == "__main__":
    asyncio.run(main())
