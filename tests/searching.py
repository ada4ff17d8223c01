"""How many examples a property's test tries: a multiple of what its run's profile says (see conftest)."""

from typing import Any

from hypothesis import settings


def times(factor: float, **options: Any) -> settings:
    return settings(max_examples=round(factor * settings.default.max_examples), **options)
