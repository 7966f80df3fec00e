"""What tests share: every backend with every instruction set, a browser, and the Hypothesis profile."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
from hypothesis import settings

from xent.kernels import cpu, registry
from xent.protocol import Kernels

settings.register_profile("xent", deadline=None, derandomize=True, max_examples=200)
settings.load_profile("xent")


class Backend(NamedTuple):
    """A backend of the registry; ``each`` selects its instruction sets one by one and back again."""

    name: str

    def each(self) -> Iterator[tuple[str, Kernels]]:
        kernels = registry.get(self.name)
        if self.name != "cpu":
            yield self.name, kernels
            return
        best = cpu.isas()[0]
        try:
            for isa in cpu.isas():
                cpu.set_isa(isa)
                yield f"{self.name}/{isa}", kernels
        finally:
            cpu.set_isa(best)


@pytest.fixture(params=[name for name in registry.BACKENDS if name != "reference"])
def backend(request: pytest.FixtureRequest) -> Backend:
    """Each backend but the reference."""
    return Backend(request.param)


BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium (playwright's Browser); without one a skip, or a failure where it is required."""
    found = filter(None, map(shutil.which, BROWSERS))
    executable = next(found, None)
    if executable is None:
        _without_browser(f"no browser on the PATH: none of {', '.join(BROWSERS)}")
    try:
        from playwright.sync_api import sync_playwright
    except ModuleNotFoundError:
        _without_browser("playwright is not installed")
    with sync_playwright() as playwright:
        options = ["--no-sandbox", "--disable-dev-shm-usage", "--font-render-hinting=none"]
        browser = playwright.chromium.launch(executable_path=executable, args=options)
        yield browser
        browser.close()


def _without_browser(reason: str) -> None:
    if os.environ.get("XENT_REQUIRE_BROWSER"):
        pytest.fail(f"XENT_REQUIRE_BROWSER is set, and there is {reason}")
    pytest.skip(reason)
