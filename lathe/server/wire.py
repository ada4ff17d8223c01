"""What the JSON of the dialects shares: how strictly fields are checked, and the shape of OpenAI's errors."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Wire(BaseModel):
    """What a client sends. Unknown fields are accepted and ignored: clients send those of every server."""

    # Strict: "0.7" is no number and true no count. Finite: Python's JSON reader lets NaN through.
    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)


class Error(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorReply(BaseModel):
    error: Error
