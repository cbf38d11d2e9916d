"""docker-compose.yml as Compose reads it: variables filled in, by their defaults unless told otherwise."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

REPOSITORY = Path(__file__).resolve().parents[1]
COMPOSE_FILE = REPOSITORY / "docker-compose.yml"

_VARIABLE = re.compile(r"\$\{([A-Z_]+):-([^${}]*)\}")


def compose(**variables: str) -> dict[str, Any]:
    """The whole file; every ``${NAME:-default}`` in a string is ``variables[NAME]``, or its default.

    Raises:
        AssertionError: a variable has no default, so that Compose would need an environment.
    """
    return _filled(yaml.safe_load(COMPOSE_FILE.read_text(encoding="utf-8")), variables)


def service(name: str, **variables: str) -> dict[str, Any]:
    """One service of it."""
    found: dict[str, Any] = compose(**variables)["services"][name]
    return found


def _filled(value: Any, variables: dict[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _filled(item, variables) for key, item in value.items()}
    if isinstance(value, list):
        return [_filled(item, variables) for item in value]
    if isinstance(value, str):
        filled = _VARIABLE.sub(lambda found: variables.get(found[1]) or found[2], value)
        assert "$" not in filled, f"a variable without a default: {filled}"
        return filled
    return value
