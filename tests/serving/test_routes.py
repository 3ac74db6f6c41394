"""The table of paths: what a path is found by, the right that it needs, and the document that is generated from it."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nextvec.serving import openapi, routes
from nextvec.serving.routes import PATHS, Path


@given(st.sampled_from(PATHS), st.text(min_size=1, max_size=20).filter(lambda text: "/" not in text))
def test_a_path_is_found_with_its_parameters(path: Path, value: str) -> None:
    names = re.findall(r"{(\w+)}", path.template)
    filled = re.sub(r"{\w+}", lambda _: value, path.template)
    assert routes.find(filled) == (path, dict.fromkeys(names, value))
    assert routes.right(filled) == path.right


@pytest.mark.parametrize(
    "path", ["", "/v1", "/v1/sessions/", "/v1/sessions//append", "/v1/sessions/a/b", "/v1/sessions/a/append/", "/healthz/"]
)
def test_another_path_is_not_found_and_needs_the_highest_right(path: str) -> None:
    assert routes.find(path) is None
    assert routes.right(path) == "admin"


def test_only_probes_and_the_dashboard_need_no_right() -> None:
    free = {path.template for path in PATHS if path.right is None}
    assert free == {"/healthz", "/readyz", "/", "/dashboard.css", "/dashboard.js"}


def test_every_object_in_the_document_is_closed() -> None:
    """A field that is not declared fails the test of the document against a running server."""
    schemas = openapi.schemas(16).values()
    assert all(schema["additionalProperties"] is False for schema in schemas if schema["type"] == "object")
