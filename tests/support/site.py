"""A published tree on a static web server."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from support.origin import Reply, serving
from support.publisher import Publisher

BUNDLE = "/v1/prod/bundle.json"


@dataclass
class Site:
    """What is served, by path; may be changed while it is.

    Attributes:
        url: of the bundle.
        asked: the paths that were asked for.
    """

    url: str
    files: dict[str, bytes]
    asked: list[str] = field(default_factory=list)

    @property
    def base(self) -> str:
        """Where the tree begins."""
        return self.url.removesuffix(BUNDLE)


@contextmanager
def site(files: Mapping[str, bytes]) -> Iterator[Site]:
    """Serve ``files`` until the block ends."""
    shelf = Site("", dict(files))

    def answer(headers: dict[str, str]) -> Reply:
        shelf.asked.append(headers[":path"])
        body = shelf.files.get(headers[":path"])
        return Reply(status=404) if body is None else Reply(body)

    with serving(answer) as origin:
        shelf.url = origin.url
        yield shelf


def tree_of(publisher: Publisher) -> dict[str, bytes]:
    """Return all that ``publisher`` has published, and its newest bundle, by path."""
    files = {f"/{path}": data for path, data in publisher.files.items()}
    return {**files, BUNDLE: publisher.bundle()}
