import pytest


@pytest.fixture
def ask():
    """The one user's turn that most tests send: what the reply is, the script says."""
    return {"model": "any-name", "messages": [{"role": "user", "content": "Hi."}]}
