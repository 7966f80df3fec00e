"""What the command says of a mistake."""

from __future__ import annotations

from collections.abc import Iterable

import pytest


def require_one_line(capsys: pytest.CaptureFixture[str], expected: Iterable[str]) -> None:
    """Nothing on standard output, and one line of error with all the words of ``expected``."""
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("xent: error: ")
    assert err.count("\n") == 1
    for part in expected:
        assert part in err
