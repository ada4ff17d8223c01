"""The tool-calling example of Qwen3-Coder's model card, against `lathe serve`.

The card's text but for its two slips (`import OpenAI`, `completion.choice[0]`), and the served model's name.
Any name will do: the server answers with the model that it has.
"""

from openai import OpenAI


# Your tool implementation
def square_the_number(num: float) -> float:
    return num**2


# Define Tools
tools = [
    {
        "type": "function",
        "function": {
            "name": "square_the_number",
            "description": "output the square of the number.",
            "parameters": {
                "type": "object",
                "required": ["input_num"],
                "properties": {
                    "input_num": {
                        "type": "number",
                        "description": "input_num is a number that will be squared",
                    }
                },
            },
        },
    }
]

# Define LLM
client = OpenAI(
    # Use a custom endpoint compatible with OpenAI API
    base_url="http://localhost:8000/v1",  # api_base
    api_key="EMPTY",
)

messages = [{"role": "user", "content": "square the number 1024"}]

completion = client.chat.completions.create(
    messages=messages,
    model="Qwen3-Coder-480B-A35B-Instruct",
    max_tokens=65536,
    tools=tools,
)

print(completion.choices[0])
