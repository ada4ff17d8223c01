"""A judge's place for each test."""

from one_pool import pool

__all__ = ["pool"]
