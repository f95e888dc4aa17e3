"""Turns docstrings into Markdown for the API pages: Sphinx roles into links, "::" into ":", and an argument line for
several names ("low, high: bounds") into one line per name."""

import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:func|class|meth|mod|attr|data):`(~?)([\w.]+)`")
NAMES = re.compile(r"( {4})(\w+(?:, \w+)+): (.*(?:\n {8,}.*)*)")


class Docstrings(griffe.Extension):
    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        """Rewrites every docstring of a package once it is loaded."""
        public = {}
        for name in (str(export) for export in pkg.exports or []):
            # A function may have the name of its own folder, for which the path without it would stand.
            folder = name in pkg.members and pkg.members[name].is_module
            public[name] = f"{pkg.path}.{name}.{name}" if folder else f"{pkg.path}.{name}"
        for member in _descend(pkg):
            if member.docstring:
                member.docstring.value = _markdown(member.docstring.value, public)


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
    text = re.sub(r"::(?=\n\n? {4})", ":", text)
    text = re.sub(r"(Returns:\n +)``([^`]+)``: ", r"\1\2: ", text)
    text = re.sub(r"``([^`]+)``", r"`\1`", text)
    return re.sub(r"(?m)^Args:\n(?: {4}.*\n?|\n(?= {4}))+", lambda args: NAMES.sub(_split, args.group()), text)


def _split(match: re.Match) -> str:
    indent, names, meaning = match.groups()
    return "\n".join(f"{indent}{name}: {meaning}" for name in names.split(", "))
