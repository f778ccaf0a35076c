"""Prune first, then adapt, then unlearn: the package behind the course.

What each module holds, in the order in which data passes through them, stands in the section
"Files" of ``helpers/README.md``. Importing this package loads nothing heavy; each module is
imported by name::

    from helpers import data, runs
    from helpers.config import get_config
"""

__version__ = "0.1.0"
