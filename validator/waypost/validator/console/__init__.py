"""The operator's pages: what was decided and why, what it cost, and how everything fares.

The rule: it reads. Nothing here changes a budget, a policy or a provider, and nothing it does
holds up a request: stores are read and pages rendered in threads.
"""

from waypost.validator.console.console import Console

__all__ = ["Console"]
