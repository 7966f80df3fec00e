"""The options of one loss: their way to numbers and back, for operators."""

from __future__ import annotations

from dataclasses import fields

from hypothesis import given
from hypothesis import strategies as st

from xent.core.label_function import LabelFunction
from xent.core.spec import LossSpec

POSITIVE = st.floats(1e-30, 1e30)
VALUES = {
    "ignore_index": st.integers(-(2**63), 2**63 - 1),
    "label_smoothing": st.floats(0, 1),
    "smoothing_over": st.sampled_from(["all", "others"]),
    "focal_gamma": st.floats(0, 1e300),
    "poly1_epsilon": st.floats(-1, 1e300),
    "z_loss": st.floats(0, 1e300),
    "softcap": st.none() | POSITIVE,
    "temperature": POSITIVE,
}


def test_every_option_has_values_here() -> None:
    assert list(VALUES) == [field.name for field in fields(LossSpec)]


@given(st.data())
def test_numbers_are_the_options(data: st.DataObject) -> None:
    options = {name: data.draw(values, name) for name, values in VALUES.items()}
    if options["label_smoothing"]:  # defined for labels alone, some of them
        options |= dict.fromkeys(LabelFunction._fields, 0.0)
    if options["focal_gamma"]:
        options["poly1_epsilon"] = 0.0
    spec = LossSpec(**options)
    numbers = spec.to_numbers()
    assert all(type(number) is float for number in numbers)
    assert LossSpec.from_numbers(numbers, spec.ignore_index) == spec
