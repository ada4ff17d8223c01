"""Which weights sampled a token, how long ago that was, and how it was drawn."""

from __future__ import annotations

from lathe.types import SamplingParams, Trajectory


def token_versions(trajectory: Trajectory) -> list[int | None]:
    """The version of the weights that sampled each token, None for a prompt's."""
    versions: list[int | None] = [None] * len(trajectory.token_ids)
    for segment in trajectory.segments:
        for start, version in ((segment.start, segment.weights_version), *segment.weights_updates):
            versions[start : segment.stop] = [version] * (segment.stop - start)
    return versions


def is_stale(sampled: int, version: int | None, max_staleness: int | None) -> bool:
    """Whether weights of the version `sampled` are more than `max_staleness` versions (None: any number)
    behind `version`, which is trained. Raises ValueError where that is not said."""
    if max_staleness is None:
        return False
    if version is None:
        raise ValueError("max_staleness is set, but the version that is trained is not said")
    return version - sampled > max_staleness


def draws_from_model(sampling: SamplingParams) -> bool:
    """Whether tokens are drawn from the very distribution whose log-probabilities are noted."""
    penalties = (sampling.presence_penalty, sampling.frequency_penalty, sampling.repetition_penalty - 1.0)
    truncations = (sampling.top_p - 1.0, sampling.top_k, sampling.min_p)
    return sampling.temperature == 1.0 and not any((*penalties, *truncations)) and sampling.grammar is None
