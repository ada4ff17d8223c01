"""A real pool for the tests of a module."""

from one_pool import pool, probed

__all__ = ["pool", "probed"]
