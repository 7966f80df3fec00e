"""What axe-core, which knows the rules of accessibility, finds wrong in an open page."""

from __future__ import annotations

import os
from typing import Any

import pytest

OPTIONS = {
    "resultTypes": ["violations"],
    "preload": False,
}  # or it asks for style sheets, which files may not


def violations(page: Any) -> list[str]:
    """["rule: first place"], of all its rules; skips without axe-playwright-python, fails where required."""
    if os.environ.get("XENT_REQUIRE_BROWSER") is None:
        pytest.importorskip("axe_playwright_python")
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page, options=OPTIONS).response["violations"]
    return [f"{each['id']}: {each['nodes'][0]['target']}" for each in found]
