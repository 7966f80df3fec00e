"""The recipe for distillation: a student learns from its teacher's stored entries."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

from examples import distillation


def test_a_student_learns_from_the_stored_entries_of_its_teacher():
    before, after = distillation.run(steps=60, num_rows=4000)
    assert after < before / 2
