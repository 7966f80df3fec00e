"""The pages' templates, filled in."""

from __future__ import annotations

from typing import Any


def render(template: str, **values: Any) -> str:
    """The text of ``templates/<template>`` with ``values``, which are escaped unless they are `Markup`.

    A name that the template uses and ``values`` lack is an error, not an empty place.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("xent"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template(template).render(values)
