"""Fill in the templates of the pages."""

from __future__ import annotations

from typing import Any

from xent.files.phrases import printable


def render(template: str, **values: Any) -> str:
    """The text of ``templates/<template>`` with ``values``, which are escaped unless they are `Markup`.

    Templates pass names from the data through the filter ``name``, or ``printable`` where an element is not
    allowed: a name may be written right to left, or hold characters that reorder the text around it.

    A variable of the template that ``values`` lack is an error.
    """
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("xent.html"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["printable"] = lambda words: printable(str(words))
    environment.filters["name"] = lambda words: Markup("<bdi>{}</bdi>").format(printable(str(words)))
    return environment.get_template(template).render(values)
