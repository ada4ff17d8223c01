"""A valid request for every route that reads a body, and ways to spoil it."""

from collections.abc import Iterator

SCHEMA = {
    "type": "object",
    "properties": {"x": {"type": ["integer", "null"]}, "y": {"enum": ["a", 1]}},
    "required": ["x"],
}
FUNCTION = {"name": "f", "description": "Does it.", "parameters": SCHEMA}
CHAT_TOOL = {"type": "function", "function": FUNCTION}
SAMPLING = {
    "model": "m",
    "temperature": 0.5,
    "top_p": 0.9,
    "top_k": 5,
    "min_p": 0.0,
    "repetition_penalty": 1.1,
    "seed": 3,
    "ignore_eos": False,
    "stop_token_ids": [3],
    "deterministic": False,
}
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
CHAT_TURNS = [
    {"role": "system", "content": "Short."},
    {"role": "user", "content": [{"type": "text", "text": "Hi."}], "name": "me"},
    {"role": "assistant", "content": None, "reasoning_content": "Hm.", "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "c1", "content": "1"},
]
MESSAGES_TURNS = [
    {"role": "user", "content": [{"type": "text", "text": "Hi.", "cache_control": {"type": "ephemeral"}}]},
    {
        "role": "assistant",
        "content": [
            {"type": "thinking", "thinking": "Hm.", "signature": ""},
            {"type": "tool_use", "id": "t1", "name": "f", "input": {"x": 1}},
        ],
    },
    {
        "role": "user",
        "content": [
            {
                "type": "tool_result",
                "tool_use_id": "t1",
                "is_error": True,
                "content": [{"type": "text", "text": "1"}],
            }
        ],
    },
]
MESSAGES_PROMPT = {
    "model": "m",
    "system": [{"type": "text", "text": "Short."}],
    "messages": MESSAGES_TURNS,
    "tools": [{"name": "f", "description": "Does it.", "input_schema": SCHEMA}],
    "tool_choice": {"type": "auto", "disable_parallel_tool_use": True},
    "thinking": {"type": "enabled", "budget_tokens": 1024},
    "chat_template_kwargs": {"a": 1},
}
VALID = {
    "/v1/chat/completions": {
        **SAMPLING,
        "messages": CHAT_TURNS,
        "tools": [CHAT_TOOL],
        "tool_choice": "auto",
        "stop": ["END"],
        "max_tokens": 9,
        "max_completion_tokens": 9,
        "stream": False,
        "stream_options": {"include_usage": True},
        "logprobs": True,
        "top_logprobs": 2,
        "n": 1,
        "presence_penalty": 0.1,
        "frequency_penalty": 0.1,
        "response_format": {"type": "text"},
        "chat_template_kwargs": {"a": 1},
        "enable_thinking": False,
        "reasoning_effort": "none",
        "logit_bias": {},
    },
    "/v1/responses": {
        **SAMPLING,
        "instructions": "Short.",
        "input": [
            {"role": "user", "content": [{"type": "input_text", "text": "Hi."}]},
            {"type": "reasoning", "id": "r", "summary": [], "content": [], "encrypted_content": "SG0="},
            {"type": "function_call", "call_id": "c1", "name": "f", "arguments": '{"x": 1}'},
            {"type": "function_call_output", "call_id": "c1", "output": "1"},
            {"type": "custom_tool_call", "call_id": "c2", "name": "g", "input": "x"},
            {"type": "custom_tool_call_output", "call_id": "c2", "output": "y"},
            {"type": "local_shell_call", "call_id": "c3", "action": {"type": "exec", "command": ["ls"]}},
            {"type": "local_shell_call_output", "call_id": "c3", "output": "z"},
        ],
        "tools": [{"type": "function", **FUNCTION, "strict": False}, {"type": "web_search"}],
        "tool_choice": {
            "type": "allowed_tools",
            "mode": "auto",
            "tools": [{"type": "function", "name": "f"}],
        },
        "max_output_tokens": 9,
        "stream": False,
        "store": False,
        "include": ["reasoning.encrypted_content"],
        "parallel_tool_calls": True,
        "top_logprobs": 0,
        "text": {"format": {"type": "text"}, "verbosity": "low"},
        "reasoning": {"effort": "none", "summary": "auto"},
        "metadata": {"a": "b"},
        "prompt_cache_key": "k",
        "previous_response_id": None,
    },
    "/v1/messages": {
        **SAMPLING,
        **MESSAGES_PROMPT,
        "max_tokens": 9,
        "stop_sequences": ["END"],
        "stream": False,
        "output_config": {"effort": "low"},
        "metadata": {"user_id": "u"},
    },
    "/v1/messages/count_tokens": MESSAGES_PROMPT,
    "/v1/completions": {
        **SAMPLING,
        "prompt": ["Hi.", "Ho."],
        "max_tokens": 9,
        "stop": ["END"],
        "stream": False,
        "stream_options": {"include_usage": True},
        "echo": True,
        "logprobs": 1,
        "n": 1,
        "best_of": 1,
        "return_token_ids": True,
        "logit_bias": {},
    },
    "/infill": {
        **SAMPLING,
        "input_prefix": "a = ",
        "input_suffix": "\nb",
        "prompt": "1",
        "input_extra": [{"text": "c", "filename": "c.py"}],
        "n_predict": 9,
        "repeat_penalty": 1.0,
        "t_max_predict_ms": 500.0,
        "stop": ["END"],
        "stream": False,
        "return_tokens": True,
        "response_fields": ["content", "timings/prompt_n"],
    },
    "/tokenize": {
        "messages": CHAT_TURNS,
        "tools": [CHAT_TOOL],
        "parse_special": True,
        "with_pieces": True,
        "add_generation_prompt": True,
        "chat_template_kwargs": {"a": 1},
        "enable_thinking": False,
    },
    "/detokenize": {"tokens": [72, 105]},
}


def nested(levels: int, kind: type) -> dict | list:
    value: dict | list = kind()
    for _ in range(levels):
        value = {"properties": {"x": value}} if kind is dict else [value]
    return value


# json.dumps writes the lone surrogate as the escape \ud800, which is sound ASCII on its way to the server.
HOSTILE = (
    None, True, 0, -1, 2.5, 2**31, 2**63, -(2**63) - 1, 10**400, 1e308, "", " ", "text", "0.5", "\0", "a\0b",
    "\ud800", "\U0010ffff", "<|im_end|>", "<tool_call>", "x" * 10_000, [], [[]], [None], ["x"], [1, "x"], {},
    {"type": "text"}, {"type": "function"}, {"": ""}, {"type": "\0", "\ud800": "\udfff"}, nested(70, dict),
    nested(150, list),
)  # fmt: skip

Place = tuple[str | int, ...]


def places(value, here: Place = ()) -> Iterator[Place]:
    """Where a value stands in a body, at any depth."""
    if here:
        yield here
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in inner:
        yield from places(each, (*here, key))


def replaced(value, place: Place, other):
    """A copy with another value there; as it was where an earlier replacement took the place away."""
    if not place:
        return other
    key, *rest = place
    is_there = (
        key in value if isinstance(value, dict) else isinstance(value, list) and key in range(len(value))
    )
    if not is_there:
        return value
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[key] = replaced(value[key], tuple(rest), other)
    return copy
