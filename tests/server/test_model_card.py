"""The model card's openai snippet runs as it stands, but for the port, which may be taken here."""

import json
from pathlib import Path

from serving import serve

import lathe
from lathe.testing import ScriptedModel

EXAMPLE = Path(lathe.__file__).parents[1] / "examples" / "model_card_openai.py"
CALL = (
    "<tool_call>\n<function=square_the_number>\n<parameter=input_num>\n1024\n</parameter>\n"
    "</function>\n</tool_call>"
)


def test_the_model_cards_snippet(capsys):
    text = EXAMPLE.read_text()
    assert text.count("http://localhost:8000") == 1
    with serve(ScriptedModel(CALL)) as url:
        scope: dict = {}
        exec(compile(text.replace("http://localhost:8000", url), EXAMPLE, "exec"), scope)
    assert "square_the_number" in capsys.readouterr().out
    choice = scope["completion"].choices[0]
    assert choice.finish_reason == "tool_calls"
    (call,) = choice.message.tool_calls
    assert scope["square_the_number"](num=json.loads(call.function.arguments)["input_num"]) == 1_048_576
