"""A model over HTTP: `types.Model` on any server that speaks OpenAI's chat completions."""

from lathe.client.chat import ChatClient

__all__ = ["ChatClient"]
