"""Requests made at random from the server's own OpenAPI document: none fails."""

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings

from serve.conftest import running
from serve.toys import Toy, table
from stepwell.serve.app import Limits
from stepwell.serve.engine import Engine

schemathesis = pytest.importorskip("schemathesis")


def try_out(operation, mode, url: str, statuses: set[int]) -> None:
    """Send requests that fit an operation, or that do not."""
    known = {int(status) for status in operation.definition.raw["responses"]}

    @settings(
        max_examples=30, deadline=None, database=None, derandomize=True,
        suppress_health_check=[*HealthCheck],
    )  # fmt: skip
    @given(case=operation.as_strategy(generation_mode=mode))
    def one(case):
        status = case.call(base_url=url).status_code
        statuses.add(status)
        assert status in known | {404, 405}  # or a path or a method that there is not
        assert status < 500

    one()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("takes", ["files", "texts"])
def test_no_request_of_the_openapi_document_is_a_server_error(takes):
    served = replace(Toy().served(), takes=takes, read=lambda given, name: float(len(given)))
    statuses: set[int] = set()
    with running(Engine(served, 5000, table=table()), Limits(body=5000, seconds=1)) as url:
        schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
        for mode in schemathesis.GenerationMode:
            try_out(schema["/predict"]["POST"], mode, url, statuses)
    assert {200, 400} <= statuses
