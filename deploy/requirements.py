"""Prints what pyproject.toml asks for, so that an image installs it before the source is there.

Usage: `python requirements.py EXTRA ...`, in the folder of pyproject.toml. Extras that name extras are followed.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any


def requirements(project: Mapping[str, Any], extras: Sequence[str]) -> list[str]:
    """The dependencies of the ``[project]`` table and of ``extras``, each once. Raises: KeyError."""
    of_extras = (requirement for extra in extras for requirement in _of_extra(project, extra))
    return list(dict.fromkeys([*project["dependencies"], *of_extras]))


def _of_extra(project: Mapping[str, Any], extra: str) -> Iterator[str]:
    own = re.compile(rf"{re.escape(project['name'])}\[(.+)\]")
    for requirement in project["optional-dependencies"][extra]:
        if match := own.fullmatch(requirement):
            for other in match[1].split(","):
                yield from _of_extra(project, other.strip())
        else:
            yield requirement


if __name__ == "__main__":
    with Path("pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    print("\n".join(requirements(project, sys.argv[1:])))
