"""The pages' templates, filled in."""

from __future__ import annotations

from typing import Any

from xent.files.phrases import printable


def render(template: str, **values: Any) -> str:
    """The text of ``templates/<template>`` with ``values``, which are escaped unless they are `Markup`.

    Names that people gave are filtered by ``name``, or by ``printable`` where no element can be: they may be
    of another direction of writing, or hold characters that reorder the text around them.

    A name that the template uses and ``values`` lack is an error, not an empty place.
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
