"""The description of the server, and whether it keeps to it, whatever it is asked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import SkipTest

import pytest
import schemathesis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from manyscope.explorer.server import make_app

TOKEN = "a-token-that-is-long-enough"
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


def test_every_answer_is_described(client: TestClient) -> None:
    described = client.get("/api/openapi.json").json()
    operations = {
        (path, method): one for path, methods in described["paths"].items() for method, one in methods.items()
    }
    assert len(operations) == 16
    for (path, _), operation in operations.items():
        assert operation["description"], path
        assert {"401", "403"} <= set(operation["responses"]), path
        assert len(operation["security"]) == 2, path
        if "{name}" in path and not path.endswith("/about"):
            version = next(one for one in operation["parameters"] if one["name"] == "version")
            assert version["required"], path
            assert "409" in operation["responses"], path
    assert not [path for path, _ in operations if not path.startswith("/api/")]


# So many questions of each kind for each operation.
SETTINGS = settings(max_examples=25, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
MODES = [schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE]


@pytest.mark.slow
def test_no_question_breaks_the_server(experiment: Any) -> None:
    """Only statuses, kinds of content and forms that are described, and none that is the server's own fault."""
    app = make_app({"one": experiment}, TOKEN)
    headers = {"Authorization": f"Bearer {TOKEN}", "Host": "127.0.0.1"}
    schema = schemathesis.openapi.from_asgi("/api/openapi.json", app, headers=headers)
    answered: dict[str, set[int]] = {}
    for result in schema.get_all_operations():
        operation = result.ok()
        ask = _asking(headers, answered.setdefault(operation.label, set()))
        for mode in MODES:
            try:
                cases = operation.as_strategy(generation_mode=mode)
                SETTINGS(given(case=cases, known=st.sampled_from([True, True, True, False]))(ask))()
            except (SkipTest, Unsatisfiable):
                assert mode is schemathesis.GenerationMode.NEGATIVE, operation.label  # nothing can be wrong there
    for label, statuses in answered.items():
        assert statuses & {200, 204}, f"{label} was never answered: {statuses}"


def _asking(headers: dict[str, str], statuses: set[int]) -> Callable[..., None]:
    def ask(case: schemathesis.Case, known: bool) -> None:
        if known:  # else nearly no question would come further than to the name and the version
            if "name" in (case.path_parameters or {}):
                case.path_parameters["name"] = "one"
            if "version" in (case.query or {}):
                case.query["version"] = "first"
            for key in ("row", "number"):
                found = (case.path_parameters or {}).get(key)
                if isinstance(found, int) and found % 2 == 0:
                    case.path_parameters[key] = found % 40 if key == "row" else 0
            for key in ("name", "colour", "size"):
                if isinstance(case.body, dict) and isinstance(case.body.get(key), str):
                    case.body[key] = "flux"
            if isinstance(case.body, dict) and case.body.get("kind") in ("box", "lasso"):
                # That either goes with one of two shapes is not in the description.
                mine, other = ("corners", "points") if case.body["kind"] == "box" else ("points", "corners")
                case.body.pop(other, None)
                case.body[mine] = case.body.get(mine) or [[0, 0], [1, 1]]
            if isinstance(case.body, dict) and isinstance(case.body.get("rows"), dict) and "data" in case.body["rows"]:
                case.body["rows"]["data"] = "AwAAAAEAAAA="
        answer = case.call(headers=headers)
        statuses.add(answer.status_code)
        case.validate_response(answer, checks=CHECKS)

    return ask
