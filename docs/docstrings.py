"""Turns the Sphinx notation in docstrings into Markdown for the API pages: roles into links, "::" into ":"."""

import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:func|class|meth|mod|attr|data):`(~?)([\w.]+)`")
PACKAGES = "msa_ops", "msa_model"


class Docstrings(griffe.Extension):
    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        """Rewrites every docstring of a package once it is loaded."""
        public = {name: f"{pkg.path}.{name}" for name in pkg.exports or [] if isinstance(name, str)}
        for module_or_member in _descend(pkg):
            if module_or_member.docstring:
                docstring = module_or_member.docstring
                docstring.value = _markdown(docstring.value, public)


def _descend(obj: griffe.Object):
    yield obj
    for member in obj.members.values():
        if not member.is_alias:
            yield from _descend(member)


def _markdown(text: str, public: dict[str, str]) -> str:
    def link(match: re.Match) -> str:
        shortened, name = match.groups()
        last = name.rsplit(".", 1)[-1]
        label = f"`{last if shortened else name}`"
        if last in public:
            return f"[{label}][{public[last]}]"
        return label

    text = ROLE.sub(link, text)
    text = re.sub(r"``([^`]+)``", r"`\1`", text)
    return re.sub(r"::(?=\n\n?[ ]{4})", ":", text)
