"""One tree of errors. What a user did wrong is a `UserError`, and its message says how to mend it."""

from __future__ import annotations

from typing import Any


class LatheError(Exception):
    """Every error that Lathe raises on purpose."""


class UserError(LatheError):
    """The request, the file or the setting is wrong. Shown without a traceback."""


class ModelNotFound(UserError):
    """No model is known, cached or reachable by that name."""


class CheckpointError(UserError):
    """A checkpoint's files are missing, damaged, or not what its config says."""


class TemplateError(UserError):
    """A chat template can't be read, or refuses the conversation."""


class ConfigError(UserError):
    """A recipe can't be read, or sets what can't be set."""


class RecordError(UserError):
    """A file of rollouts is not there, or a line of it is damaged."""


class TaskError(UserError):
    """A file of tasks is not there, or one of its tasks could never be judged."""


class InvalidRequest(UserError):
    """A request that no setting of the server could serve."""


class GrammarError(InvalidRequest):
    """A schema or grammar that can't be imposed on a reply, or that leads nowhere."""


class PromptTooLong(InvalidRequest):
    """The prompt (and what was asked for beyond it) does not fit."""

    def __init__(self, num_prompt_tokens: int, max_context: int, max_tokens: int | None = None):
        asked = "" if max_tokens is None else f" and max_tokens asks for {max_tokens} more"
        super().__init__(
            f"This model's maximum context length is {max_context} tokens. "
            f"The prompt has {num_prompt_tokens} tokens{asked}. Shorten the prompt or lower max_tokens."
        )
        self.num_prompt_tokens = num_prompt_tokens
        self.max_context = max_context


class UpstreamError(LatheError):
    """The engine that is asked over HTTP failed, or said what can't be understood."""


class SandboxError(LatheError):
    """Something went wrong in or with a sandbox. Its four kinds must never be mistaken for one another."""


class CommandFailed(SandboxError):
    """A command ended with another exit code than 0. `result` is its types.ExecResult."""

    def __init__(self, message: str, result: Any):
        super().__init__(message)
        self.result = result


class CommandTimedOut(SandboxError):
    """A command was killed at its time limit. `result` holds what it had written by then."""

    def __init__(self, message: str, result: Any):
        super().__init__(message)
        self.result = result


class SandboxGone(SandboxError):
    """The sandbox is closed, has outlived its lifetime, or its first process was killed."""


class InfrastructureError(SandboxError):
    """The machine failed, not what ran in the sandbox: no verdict can follow from it."""


class BackendRefused(InfrastructureError, UserError):
    """This machine can't have sandboxes of the kind that was asked for. The message says what would help."""


class MissingExtra(LatheError):
    """A part that needs packages which are not installed."""

    def __init__(self, extra: str):
        super().__init__(f"This needs packages that are not installed: pip install 'lathe[{extra}]'")
