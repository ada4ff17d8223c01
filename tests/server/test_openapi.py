"""The OpenAPI document is true: what schemathesis makes up from it finds no 500 and no unannounced answer."""

import pytest
import schemathesis
from hypothesis import HealthCheck, given
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    allow_header_conformance,
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)
from searching import times

from lathe.server.app import create_app
from lathe.testing import ScriptedModel

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    negative_data_rejection,
    unsupported_method,
    allow_header_conformance,
]


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_made_up_requests(mode):
    app = create_app(ScriptedModel(max_context=4096))
    operations = [
        found.ok() for found in schemathesis.openapi.from_asgi("/openapi.json", app).get_all_operations()
    ]
    assert len(operations) == 12
    if mode is GenerationMode.NEGATIVE:  # a GET without fields can't be sent wrongly
        operations = [operation for operation in operations if operation.method == "post"]
    num_cases = 0
    for operation in operations:

        @times(0.25, derandomize=True, database=None, suppress_health_check=[*HealthCheck])
        @given(case=operation.as_strategy(generation_mode=mode))
        def attempt(case):
            nonlocal num_cases
            num_cases += 1
            case.call_and_validate(checks=CHECKS)

        attempt()
    assert num_cases >= 20


def test_the_document_says_what_the_server_does():
    app = create_app(ScriptedModel(), api_key="key")
    document = app.openapi()
    chat = document["paths"]["/v1/chat/completions"]["post"]
    assert chat["responses"].keys() == {"200", "400", "401", "413", "503"}
    assert chat["responses"]["200"]["content"].keys() == {"application/json", "text/event-stream"}
    assert chat["security"] == [{"key": []}]
    health = document["paths"]["/health"]["get"]
    assert "security" not in health
    assert "401" not in health["responses"]
    assert "HTTPValidationError" not in document["components"]["schemas"]
