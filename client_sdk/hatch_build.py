"""Puts ``waypost.shared`` into what is built here; it has a folder of its own in a checkout."""

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class AddShared(BuildHookInterface[Any]):
    """Adds the folder, but to an sdist's build, which finds it inside already."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        here = Path(self.root)
        if version != "editable" and not (here / "waypost/shared").is_dir():
            build_data["force_include"][str(here.parent / "shared/waypost")] = "waypost"
