"""A real pool for each test."""

from one_pool import pool

__all__ = ["pool"]
