"""Tiny checkpoints, written by transformers itself, and the table of parity."""

from collections.abc import Callable

import pytest
from reference import FAMILIES, Parity, Reference, build_reference

PARITY = pytest.StashKey[dict[str, Parity]]()


@pytest.fixture(scope="session")
def references(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Reference]:
    """The model and the folder of a family, made once."""
    made: dict[str, Reference] = {}

    def reference(name: str) -> Reference:
        if name not in made:
            model_type, settings = FAMILIES[name]
            folder = tmp_path_factory.mktemp("reference")
            model = build_reference(model_type, **settings)
            model.save_pretrained(folder)
            made[name] = Reference(name, model, folder)
        return made[name]

    return reference


@pytest.fixture(scope="session")
def parity_table(request: pytest.FixtureRequest) -> dict[str, Parity]:
    """Rows that the tests fill; `pytest -s` shows them as a Markdown table."""
    return request.config.stash.setdefault(PARITY, {})


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    rows = config.stash.get(PARITY, {})
    if not rows or config.getoption("capture") != "no":
        return
    terminalreporter.write_line(
        "\n| model | largest logit difference | std of logits | greedy tokens equal |"
    )
    terminalreporter.write_line("| --- | --- | --- | --- |")
    for name, row in rows.items():
        numbers = f"{row.largest_difference:.1e} | {row.logit_std:.2f} | {row.agreeing_tokens} of 64"
        terminalreporter.write_line(f"| {name} | {numbers} |")
