"""Fits the small models that ride in a manifest. Needs the extra ``train``: numpy and scipy.

Authoring only: what client and validator run is ``waypost.shared.scoring.complexity`` and
``waypost.shared.scoring.semantic``, which need neither.
"""
