"""Results on standard output."""

import json
from argparse import Namespace
from collections.abc import Mapping
from typing import Any

from nextvec.cli import show


def as_json(value: Mapping[str, Any]) -> int:
    """Print one JSON object; return exit code 0."""
    print(json.dumps(value))
    return 0


def facts(values: Mapping[str, Any], arguments: Namespace) -> int:
    """Print names and values, or with ``--json`` one object; return exit code 0."""
    if arguments.json:
        return as_json(values)
    show.pairs(values)
    return 0
