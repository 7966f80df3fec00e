"""Take the pictures report.png and explorer.png of the pages that the command writes: run after a change.

Needs playwright, and Chromium on the PATH.
"""

from __future__ import annotations

import shutil
import tempfile
from contextlib import chdir
from pathlib import Path

from playwright.sync_api import sync_playwright

from xent.command import cli

IMAGES = Path(__file__).parents[1] / "images"
ROW = ["explain", "2 3 4", "--label", "0", "--label-smoothing", "0.1", "--html", "explorer.html"]
FIT = ["fit", "digits", "--report", "report.html"]
SIZES = {"report": (1040, 1878), "explorer": (1280, 1012)}  # a size ends where a part of the page does


def main() -> None:
    """Write both pictures."""
    with tempfile.TemporaryDirectory() as folder, chdir(folder), sync_playwright() as playwright:
        assert cli.main(ROW) == cli.main(FIT) == 0
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for name, (width, height) in SIZES.items():
            page = browser.new_page(viewport={"width": width, "height": height}, device_scale_factor=1.5)
            page.goto(Path(f"{name}.html").resolve().as_uri())
            page.evaluate("document.querySelectorAll('#options').forEach(part => part.open = true)")
            page.screenshot(path=IMAGES / f"{name}.png")
        browser.close()


if __name__ == "__main__":
    main()
