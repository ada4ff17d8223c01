"""A coding agent of another house: httpx, OpenAI's dialect, one tool. It runs in a sandbox."""

import json
import os
import subprocess
import sys

import httpx

TOOL = {
    "type": "function",
    "function": {
        "name": "sh",
        "description": "Run a line.",
        "parameters": {"type": "object", "properties": {"line": {"type": "string"}}, "required": ["line"]},
    },
}


def main(task: str) -> None:
    messages = [{"role": "system", "content": "You use sh."}, {"role": "user", "content": task}]
    with httpx.Client(base_url=os.environ["OPENAI_BASE_URL"], timeout=60) as client:
        while True:
            body = {"model": os.environ["OPENAI_MODEL"], "messages": messages, "tools": [TOOL]}
            response = client.post("/chat/completions", json=body, headers={"X-Session-Id": "mine"})
            response.raise_for_status()
            reply = response.json()["choices"][0]["message"]
            messages.append(reply)
            if not reply.get("tool_calls"):
                return
            for call in reply["tool_calls"]:
                line = json.loads(call["function"]["arguments"])["line"]
                done = subprocess.run(line, shell=True, capture_output=True, text=True)
                messages.append({"role": "tool", "tool_call_id": call["id"], "content": done.stdout or "ok"})


if __name__ == "__main__":
    main(sys.argv[1])
