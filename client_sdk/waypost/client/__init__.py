"""The client SDK: proposes a model for each request and lets the validator have the last word.

>>> from waypost.client import Waypost
>>> wp = Waypost(manifest_url="https://edge.example/v1/prod/bundle.json", root=root, token=token)
>>> client = openai.OpenAI(
...     base_url=wp.base_url, api_key="unused", http_client=wp.httpx2_client()
... )
>>> client.chat.completions.create(model="auto", messages=[...])

What is listed in ``__all__``, ``waypost.client.dpop`` and ``waypost.client.testing``, is the API;
the rest may change.
"""

from waypost.client._choose import Choice, Freshness
from waypost.client._client import AsyncWaypost, Waypost
from waypost.client._core import Manifest, ManifestSource
from waypost.client._events import (
    Answered,
    Event,
    EventHook,
    FactsElsewhere,
    FailedOver,
    Refreshed,
)
from waypost.client._feedback import Rating, decision_id
from waypost.client._options import Options
from waypost.client._token import AsyncTokenSource, TokenSource
from waypost.shared.contracts import Measured
from waypost.shared.decision.engine import Exclusion
from waypost.shared.decision.explain import Explanation
from waypost.shared.errors import (
    InvalidRequestError,
    StoreError,
    TrustError,
    UpstreamError,
    WaypostError,
)

__all__ = [
    "Answered",
    "AsyncTokenSource",
    "AsyncWaypost",
    "Choice",
    "Event",
    "EventHook",
    "Exclusion",
    "Explanation",
    "FactsElsewhere",
    "FailedOver",
    "Freshness",
    "InvalidRequestError",
    "Manifest",
    "ManifestSource",
    "Measured",
    "Options",
    "Rating",
    "Refreshed",
    "StoreError",
    "TokenSource",
    "TrustError",
    "UpstreamError",
    "Waypost",
    "WaypostError",
    "decision_id",
]
