"""Names of tensors in files and in modules."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import UniWorldError

# How many names an error lists.
LISTED = 5


@dataclass(frozen=True)
class Names:
    """Maps tensor names between files and a module by a table of prefixes.

    Attributes:
        prefixes: (prefix in files, prefix in the module). A name in a file is mapped by its longest matching prefix; a name
            that matches none belongs to another part. A name in the module is mapped by the first match, which is the
            published spelling.
        skipped: suffixes of names in files that are not read, because the module computes these tensors.
    """

    prefixes: tuple[tuple[str, str], ...]
    skipped: tuple[str, ...] = ()

    def in_module(self, name: str) -> str | None:
        """Map a tensor's name in a file to its name in the module, or to None if it belongs to another part."""
        if name.endswith(self.skipped) and self.skipped:
            return None
        fitting = [pair for pair in self.prefixes if name.startswith(pair[0])]
        if not fitting:
            return None
        in_file, in_module = max(fitting, key=lambda pair: len(pair[0]))
        return in_module + name[len(in_file) :]

    def in_file(self, name: str) -> str:
        """Map a tensor's name in the module to its name in a file. Raises UniWorldError if no prefix matches."""
        for in_file, in_module in self.prefixes:
            if name.startswith(in_module):
                return in_file + name[len(in_module) :]
        raise UniWorldError(f"The module's tensor {name} has no name in a file.")


SAME_NAMES = Names((("", ""),))


def some(names: list[str]) -> str:
    """Return the first of these names for an error, and how many more there are."""
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more
