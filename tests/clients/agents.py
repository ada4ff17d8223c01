"""The coding agents: where each comes from, how it finds a server, and how its model calls its tools."""

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from agent import GREET, NOTES, TASK, THANKS, WINDOW, Agent, Line, conversation, shell

from lathe.types import ToolCall


def qwen(dialect: str, auth_type: str, environment: Callable[[str], Mapping[str, str]]) -> Agent:
    """Qwen Code, which speaks all three dialects."""
    options = ["--auth-type", auth_type, "--approval-mode", "yolo"]
    return Agent(
        name=f"qwen-{dialect}",
        program="qwen",
        installer="npm",
        packages=("@qwen-code/qwen-code@0.24.4",),
        mark="You are Qwen Code, a non-interactive CLI agent",
        lines=conversation(
            lambda path, text: ToolCall("write_file", {"file_path": path, "content": text}),
            lambda path: ToolCall("read_file", {"file_path": path}),
        ),
        commands=lambda url: [["qwen", TASK, *options], ["qwen", "--continue", THANKS, *options]],
        environment=environment,
        num_trajectories=2,
        cached_share=0.9,  # --continue lists the folder anew, which has two more files now
    )


def openai_variables(url: str) -> dict[str, str]:
    return {"OPENAI_BASE_URL": f"{url}/v1", "OPENAI_API_KEY": "none", "OPENAI_MODEL": "qwen3-coder"}


def anthropic_variables(url: str) -> dict[str, str]:
    return {"ANTHROPIC_BASE_URL": url, "ANTHROPIC_API_KEY": "none", "ANTHROPIC_MODEL": "qwen3-coder"}


OPENCODE = Agent(
    name="opencode",
    program="opencode",
    installer="npm",
    packages=("opencode-ai@1.18.33",),
    mark="You are opencode, an interactive CLI tool",
    lines=conversation(
        lambda path, text: ToolCall("write", {"filePath": path, "content": text}),
        lambda path: ToolCall("read", {"filePath": path}),
    ),
    commands=lambda url: [["opencode", "run", TASK], ["opencode", "run", "--continue", THANKS]],
    environment=lambda url: {
        "OPENCODE_DISABLE_MODELS_FETCH": "1",
        "OPENCODE_DISABLE_AUTOUPDATE": "1",
    },
    settings=lambda url: {
        ".config/opencode/opencode.json": json.dumps(
            {
                "model": "lathe/qwen3-coder",
                "small_model": "lathe/qwen3-coder",
                "permission": "allow",
                "provider": {
                    "lathe": {
                        "npm": "@ai-sdk/openai-compatible",
                        "options": {"baseURL": f"{url}/v1", "apiKey": "none"},
                        "models": {
                            "qwen3-coder": {
                                "tool_call": True,
                                "limit": {"context": WINDOW, "output": 65_536},
                            }
                        },
                    }
                },
            }
        )
    },
)

PI = Agent(
    name="pi",
    program="pi",
    installer="npm",
    packages=("@earendil-works/pi-coding-agent@0.87.1",),  # later ones need packages that npm did not find
    mark="operating inside pi, a coding agent harness",
    lines=conversation(
        lambda path, text: ToolCall("write", {"path": path, "content": text}),
        lambda path: ToolCall("read", {"path": path}),
    ),
    commands=lambda url: [
        ["pi", "--provider", "lathe", "--model", "qwen3-coder", "-p", TASK],
        ["pi", "--provider", "lathe", "--model", "qwen3-coder", "--continue", "-p", THANKS],
    ],
    environment=lambda url: {"PI_OFFLINE": "1"},
    settings=lambda url: {
        ".pi/agent/models.json": json.dumps(
            {
                "providers": {
                    "lathe": {
                        "api": "openai-completions",
                        "baseUrl": f"{url}/v1",
                        "apiKey": "none",
                        "models": [{"id": "qwen3-coder", "contextWindow": WINDOW}],
                    }
                }
            }
        )
    },
)

CLAUDE = Agent(
    name="claude",
    program="claude",
    installer="npm",
    packages=("@anthropic-ai/claude-code@2.1.330",),
    mark="Claude Code",
    lines=conversation(
        lambda path, text: ToolCall("Write", {"file_path": path, "content": text}),
        lambda path: ToolCall("Read", {"file_path": path}),
    ),
    commands=lambda url: [
        ["claude", "-p", TASK, "--dangerously-skip-permissions"],
        ["claude", "--continue", "-p", THANKS, "--dangerously-skip-permissions"],
    ],
    environment=lambda url: {
        "ANTHROPIC_BASE_URL": url,
        "ANTHROPIC_AUTH_TOKEN": "none",
        "ANTHROPIC_MODEL": "qwen3-coder",
        "ANTHROPIC_SMALL_FAST_MODEL": "qwen3-coder",
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "CLAUDE_CODE_MAX_CONTEXT_TOKENS": str(WINDOW),  # without, it believes in a million
        "IS_SANDBOX": "1",  # root may skip permissions only in a sandbox
    },
)

CODEX_OPTIONS = [
    "--skip-git-repo-check",
    "--dangerously-bypass-approvals-and-sandbox",
]

CODEX = Agent(
    name="codex",
    program="codex",
    installer="npm",
    packages=("@openai/codex@0.169.0",),
    mark="Codex",
    lines=shell(lambda command: ToolCall("exec_command", {"cmd": command})),
    commands=lambda url: [
        ["codex", "exec", *CODEX_OPTIONS, TASK],
        ["codex", "exec", *CODEX_OPTIONS, "resume", "--last", THANKS],
    ],
    environment=lambda url: {"LATHE_KEY": "none"},
    settings=lambda url: {
        ".codex/config.toml": f"""
model = "qwen3-coder"
model_provider = "lathe"
model_context_window = {WINDOW}

[model_providers.lathe]
name = "Lathe"
base_url = "{url}/v1"
env_key = "LATHE_KEY"
wire_api = "responses"
"""
    },
)

CLINE = Agent(
    name="cline",
    program="cline",
    installer="npm",
    packages=("cline@3.0.65",),
    mark="Cline",
    lines=shell(lambda command: ToolCall("run_commands", {"commands": [command]}), goes_on=False),
    commands=lambda url: [
        ["cline", "auth", "-p", "openai-compatible", "-k", "none", "-m", "qwen3-coder", "-b", f"{url}/v1"],
        ["cline", "-P", "openai-compatible", "-m", "qwen3-coder", "-k", "none", TASK],
    ],
)

MINI = Agent(
    name="mini",
    program="mini",
    installer="pip",
    packages=("mini-swe-agent==2.4.6", "mcp"),  # its litellm imports mcp without saying so
    mark="You are a helpful assistant that can interact with a computer.",
    lines=shell(
        lambda command: ToolCall("bash", {"command": command}),
        end=("echo COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT",),
        goes_on=False,
    ),
    commands=lambda url: [
        ["mini", "-m", "openai/qwen3-coder", "-t", TASK, "-y", "--exit-immediately", "-o", "run.json"]
    ],
    environment=lambda url: {
        "OPENAI_API_BASE": f"{url}/v1",
        "OPENAI_API_KEY": "none",
        "MSWEA_CONFIGURED": "true",
        "MSWEA_COST_TRACKING": "ignore_errors",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    },
)

AIDER_OPTIONS = [
    "--model",
    "openai/qwen3-coder",
    "--edit-format",
    "diff",
    "--yes-always",
    "--no-check-update",
    "--no-show-release-notes",
    "--analytics-disable",
    "--no-show-model-warnings",
]

UNFINISHED = 'raise SystemExit("not finished")\n'


def edit(path: str, before: str, after: str) -> str:
    """The block that aider replaces text by."""
    return f"{path}\n```\n<<<<<<< SEARCH\n{before}=======\n{after}>>>>>>> REPLACE\n```\n\n"


AIDER = Agent(
    name="aider",
    program="aider",
    installer="pip",
    packages=("aider-chat==0.86.2",),
    mark="SEARCH/REPLACE",
    lines=lambda folder: [
        Line(
            "I write both files.",
            edits=edit("greet.py", "", UNFINISHED) + edit("notes.txt", "", NOTES),
        ),
        Line("Now I finish the first.", edits=edit("greet.py", UNFINISHED, GREET)),
    ],
    commands=lambda url: [
        [
            "aider",
            *AIDER_OPTIONS,
            "--auto-test",
            "--test-cmd",
            f"{sys.executable} greet.py",
            "--message",
            TASK,
            "greet.py",
        ]
    ],
    environment=lambda url: {"OPENAI_API_BASE": f"{url}/v1", "OPENAI_API_KEY": "none"},
    num_trajectories=2,
    cached_share=0.6,  # the files' text stands before the conversation
)


def sdk_agent(package: str, dialect: str) -> Agent:
    """A coding agent of a few lines over an official Python client (sdk_agent.py)."""
    return Agent(
        name=f"{package}-{dialect}",
        program="python",
        installer=None,
        packages=(package,),
        mark="You write files.",
        lines=conversation(
            lambda path, text: ToolCall("write", {"path": path, "text": text}),
            lambda path: ToolCall("read", {"path": path}),
        ),
        commands=lambda url: [
            [
                "python",
                str(Path(__file__).with_name("sdk_agent.py")),
                dialect,
                url,
                TASK,
                THANKS,
            ]
        ],
    )


AGENTS = [
    sdk_agent("openai", "chat"),
    sdk_agent("openai", "responses"),
    sdk_agent("anthropic", "messages"),
    qwen("chat", "openai", openai_variables),
    qwen("messages", "anthropic", anthropic_variables),
    qwen("responses", "openai-responses", openai_variables),
    MINI,
    OPENCODE,
    PI,
    AIDER,
    CLAUDE,
    CODEX,
    CLINE,
]
