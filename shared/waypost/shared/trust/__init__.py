"""Manifests: which bytes may be believed, and for how long.

A standard TUF repository travels as one untrusted bundle; ``open_bundle`` verifies it with the
unmodified ``tuf.ngclient.Updater``, and ``ManifestKeeper`` keeps the last good one. Importing
this package loads neither tuf nor an HTTP client: those come with the first bundle.
"""

from waypost.shared.trust.bundle import Projection
from waypost.shared.trust.expiry import NOTICE_S, Lapse, LapseTeller, lapses
from waypost.shared.trust.keeper import ManifestKeeper
from waypost.shared.trust.manifest import Trusted, open_bundle, with_policy_of

__all__ = [
    "NOTICE_S",
    "Lapse",
    "LapseTeller",
    "ManifestKeeper",
    "Projection",
    "Trusted",
    "lapses",
    "open_bundle",
    "with_policy_of",
]
