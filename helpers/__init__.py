"""Prune first, then adapt, then unlearn: the package behind the course.

The rooms, in the order in which data passes through them:

``config`` -> ``data`` -> ``models`` -> ``training`` -> ``pruning`` -> ``lora`` ->
``unlearning`` -> ``audit`` -> ``runs`` -> ``study`` -> ``grid`` -> ``report``, ``plots``,
``panels``, ``sliders``, ``card``, ``widgets``, with ``files`` (safe reading and writing) below
them all, and ``tutorial`` and ``python -m helpers`` above.

Importing this package loads nothing heavy; each room is imported by name::

    from helpers import data, runs
    from helpers.config import get_config
"""

__version__ = "0.1.0"
