"""A coding agent with two tools, over an official Python client: sdk_agent.py DIALECT URL TASK...

Prints what the model says, and after each reply the prompt's tokens and how many of them were cached.
"""

import json
import sys
from pathlib import Path

SYSTEM = "You write files."
PATH = {"path": {"type": "string"}}
TOOLS = {
    "write": {
        "type": "object",
        "properties": {**PATH, "text": {"type": "string"}},
        "required": ["path", "text"],
    },
    "read": {"type": "object", "properties": PATH, "required": ["path"]},
}


def use(name: str, arguments: dict) -> str:
    path = Path(arguments["path"])
    if name == "write":
        path.write_text(arguments["text"])
        return "written"
    return path.read_text()


def chat(url: str, tasks: list[str]) -> None:
    """OpenAI's chat completions, streamed and put together by the client's own helper."""
    from openai import OpenAI

    client = OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    tools = [{"type": "function", "function": {"name": n, "parameters": p}} for n, p in TOOLS.items()]
    messages = [{"role": "system", "content": SYSTEM}]
    for task in tasks:
        messages.append({"role": "user", "content": task})
        while messages[-1]["role"] != "assistant":
            options = {"stream_options": {"include_usage": True}}
            with client.chat.completions.stream(
                model="m", messages=messages, tools=tools, **options
            ) as stream:
                reply = stream.get_final_completion()
            message = reply.choices[0].message
            say(message.content, reply.usage.prompt_tokens, reply.usage.prompt_tokens_details.cached_tokens)
            messages.append(message.to_dict())
            for call in message.tool_calls or ():
                result = use(call.function.name, json.loads(call.function.arguments))
                messages.append({"role": "tool", "tool_call_id": call.id, "content": result})


def responses(url: str, tasks: list[str]) -> None:
    """OpenAI's responses, streamed: what the model put out goes back as it came."""
    from openai import OpenAI

    client = OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    tools = [{"type": "function", "name": n, "parameters": p, "strict": False} for n, p in TOOLS.items()]
    items = []
    for task in tasks:
        items.append({"role": "user", "content": task})
        calls = None
        while calls is None or calls:
            request = dict(model="m", instructions=SYSTEM, input=items, tools=tools, store=False)
            with client.responses.stream(**request) as stream:
                reply = stream.get_final_response()
            say(reply.output_text, reply.usage.input_tokens, reply.usage.input_tokens_details.cached_tokens)
            items += [item.to_dict() for item in reply.output]
            calls = [item for item in reply.output if item.type == "function_call"]
            for call in calls:
                result = use(call.name, json.loads(call.arguments))
                items.append({"type": "function_call_output", "call_id": call.call_id, "output": result})


def messages(url: str, tasks: list[str]) -> None:
    """Anthropic's messages, streamed: the reply's blocks go back as they came."""
    from anthropic import Anthropic

    client = Anthropic(base_url=url, api_key="none", max_retries=0)
    tools = [{"name": n, "input_schema": p} for n, p in TOOLS.items()]
    turns = []
    for task in tasks:
        turns.append({"role": "user", "content": task})
        while turns[-1]["role"] == "user":
            request = dict(model="m", system=SYSTEM, messages=turns, tools=tools, max_tokens=1000)
            with client.messages.stream(**request) as stream:
                reply = stream.get_final_message()
            usage = reply.usage
            text = "".join(block.text for block in reply.content if block.type == "text")
            say(text, usage.input_tokens + usage.cache_read_input_tokens, usage.cache_read_input_tokens)
            turns.append({"role": "assistant", "content": [block.to_dict() for block in reply.content]})
            results = [
                {"type": "tool_result", "tool_use_id": block.id, "content": use(block.name, block.input)}
                for block in reply.content
                if block.type == "tool_use"
            ]
            turns += [{"role": "user", "content": results}] if results else []


def say(text: str, num_tokens: int, num_cached: int) -> None:
    print(f"{text}\nprompt {num_tokens} ({num_cached} cached)")


if __name__ == "__main__":
    dialect, url, *tasks = sys.argv[1:]
    {"chat": chat, "responses": responses, "messages": messages}[dialect](url, tasks)
