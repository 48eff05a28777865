"""Adapters of other tools than PEFT: what their files hold, as layers of a few kinds, and the one source of them all.

A format is a file with a ``read``: from the names of the tensors and the settings beside them to ``Found``, the adapted
layers. ``layers.py`` has what they share, from suffixes to layers; ``arithmetic.py`` the kinds' formulas; ``source.py``
the source; ``naming.py`` and ``base_parts.py`` say which of the base's matrices are a layer's.
"""
