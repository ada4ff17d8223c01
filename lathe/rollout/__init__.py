"""An attempt at a task: a model works in a sandbox, and what it leaves is judged in another, clean one."""

from lathe.rollout.attempt import RolloutConfig, rollout
from lathe.rollout.harness import ForeignAgent, harness_rollout

__all__ = ["ForeignAgent", "RolloutConfig", "harness_rollout", "rollout"]
