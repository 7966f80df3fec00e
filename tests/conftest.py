"""What tests share: every backend with every instruction set, a browser, and the Hypothesis profile."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

# Workers of pytest-xdist share the cores. Threads change no bit: kernels/test_threads.py starts several.
if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // int(workers))))

import numpy as np
import pytest
from hypothesis import settings

# Triton interprets its kernels where it could not run them; it asks once, when it is imported.
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")

from xent.core.contract import Kernels
from xent.kernels import cpu, registry

settings.register_profile("xent", deadline=None, derandomize=True, max_examples=200)
settings.load_profile("xent")


@pytest.fixture(autouse=True)
def _same_random_numbers() -> None:
    """PyTorch's generator is the process's: each test has it from the start, in any order of the tests."""
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)


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


@pytest.fixture(params=[name for name in registry.BACKENDS if name not in ("reference", "triton")])
def backend(request: pytest.FixtureRequest) -> Backend:
    """Each backend but the reference, and but the one of triton/test_triton.py, which takes tensors."""
    return Backend(request.param)


@pytest.fixture
def interpreter(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Conversions as a GPU makes them; no work twice, and no words about NaN."""
    import torch
    from ml_dtypes import bfloat16
    from triton import language as tl
    from triton.runtime import interpreter as triton

    types = {"fp16": np.float16, "fp32": np.float32, "fp64": np.float64, "bf16": bfloat16}
    whole, done, scopes = triton._patch_lang, set(), []

    def once(function: Any) -> Any:
        """Half of the time goes into exchanging all of the language at each call of a function."""
        languages = {id(x) for x in (tl, tl.core) if x in function.__globals__.values()}
        if not languages <= done:
            scopes.append(whole(function))
            done.update(languages)
        return triton._LangPatchScope()

    def convert(x: Any, source: Any, target: Any, rounding: Any) -> Any:
        source, target = (np.dtype(types[t.name]) for t in (source, target))
        return x.view(source).astype(target).view(f"uint{8 * target.itemsize}")

    monkeypatch.setattr(triton, "_convert_float", convert)
    monkeypatch.setattr(triton, "_patch_lang", once)
    if not torch.cuda.is_available():  # its arguments are copied to themselves
        monkeypatch.setattr(triton.GridExecutor, "_restore_args_dev", lambda *arguments: None)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore", RuntimeWarning)
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        yield
    for scope in reversed(scopes):
        scope.restore()


BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def _only_font(family: str, folder: Path) -> dict[str, str]:
    """The environment of a process that finds the fonts beside that of ``family`` and no others."""
    command = ["fc-list", "--format=%{file}\\n", f":family={family}"]
    files = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split("\n")
    folders = {str(Path(file).parent) for file in files if file} if shutil.which("fc-list") else set()
    if not folders:
        pytest.skip(f"the font {family} is not installed")
    config = folder / "fonts.conf"
    places = "".join(f"<dir>{each}</dir>" for each in sorted(folders))
    alias = f"<alias><family>sans-serif</family><prefer><family>{family}</family></prefer></alias>"
    cache = f"<cachedir>/var/cache/fontconfig</cachedir><cachedir>{folder}</cachedir>"
    config.write_text(f'<?xml version="1.0"?><fontconfig>{places}{cache}{alias}</fontconfig>')
    return {**os.environ, "FONTCONFIG_FILE": str(config)}


@pytest.fixture(scope="module")
def browser(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A headless Chromium (playwright's Browser); without one a skip, or a failure where it is required.

    With a parameter, the family of a font, it finds no others.
    """
    family = getattr(request, "param", None)
    fonts = {} if family is None else {"env": _only_font(family, tmp_path_factory.mktemp("fonts"))}
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
        browser = playwright.chromium.launch(executable_path=executable, args=options, **fonts)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def window(browser: Any) -> Iterator[Any]:
    """One page for most tests: a new one takes the browser longer than what is tested in it."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    yield page
    page.close()


@pytest.fixture
def visit(browser: Any, window: Any, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Opens HTML as a file: ``visit(html, link="#…", **context)``, in a page of its own with a context.

    In the end nothing but that file was asked for, and the console was silent.
    """
    pages: list[Any] = []
    said: list[str] = []
    listeners = {
        "console": lambda message: said.append(message.text),
        "pageerror": lambda error: said.append(str(error)),
        "request": lambda request: said.append(request.url) if tmp_path.name not in request.url else None,
    }

    def open_page(html: str, link: str = "", **context: Any) -> Any:
        page = browser.new_page(**context) if context else window
        if page not in pages:
            pages.append(page)
            for event, listener in listeners.items():
                page.on(event, listener)
        file = tmp_path / f"{len(list(tmp_path.iterdir()))}.html"
        file.write_text(html, "utf-8")
        page.goto(f"{file.as_uri()}{link}")
        return page

    yield open_page
    for page in pages:
        for event, listener in listeners.items():
            page.remove_listener(event, listener)
        if page is not window:
            page.close()
    assert said == []


def _without_browser(reason: str) -> None:
    if os.environ.get("XENT_REQUIRE_BROWSER"):
        pytest.fail(f"XENT_REQUIRE_BROWSER is set, and there is {reason}")
    pytest.skip(reason)
