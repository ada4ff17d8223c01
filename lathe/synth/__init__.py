"""Makers of tasks and of their tests, and the gates that measure them."""
