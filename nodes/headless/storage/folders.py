"""Input, output and temporary folders, and the file names that a workflow may use in them.

A workflow may come from anyone, so on every operating system its file names must stay inside their folder.
"""

from __future__ import annotations

import mimetypes
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path

from ....uniworld_core.errors import UniWorldError
from .name_tokens import expand_tokens, placeholder, plain

PACKAGE_ROOT = Path(__file__).resolve().parents[3]
SHIPPED_INPUT = PACKAGE_ROOT / "workflows" / "input"

# Names that Windows maps to devices in every folder, with any extension.
_WINDOWS_DEVICES = re.compile(r"^(con|prn|aux|nul|conin\$|conout\$|com[0-9¹²³]|lpt[0-9¹²³])(\..*)?$", re.IGNORECASE)
_ENCODED_SEPARATOR = re.compile(r"%(2e|2f|5c|00)", re.IGNORECASE)
_ANNOTATION = re.compile(r"^(?P<name>.*?)\s?\[(?P<folder>input|output|temp)\]$", re.DOTALL)
_MAX_NAME_BYTES = 200  # file systems allow 255 bytes; counter and extension need some of them
_MAX_PARTS = 32  # of a path; common tools cannot remove folders that are nested a thousand deep


def check_relative(name: str, what: str = "file name") -> str:
    """Check that a name stays inside its folder, and return it with forward slashes.

    Args:
        what: noun for the name in an error.

    Raises:
        UniWorldError: the name is empty or absolute, or contains a drive, a device, `..`, control or encoded characters.
    """
    shown = repr(name if len(name) <= 80 else name[:77] + "...")
    if not name or name != name.strip():
        raise UniWorldError(f"The {what} {shown} is empty or has spaces around it. Use a plain name such as 'cat.png'.")
    if any(ord(letter) < 32 or ord(letter) == 127 for letter in name):
        raise UniWorldError(f"The {what} {shown} contains a control character. Use a plain name such as 'cat.png'.")
    if not _is_encodable(name):
        raise UniWorldError(f"The {what} {shown} contains a lone surrogate. Use a plain name such as 'cat.png'.")
    if _ENCODED_SEPARATOR.search(name):
        raise UniWorldError(
            f"The {what} {shown} contains a percent-encoded character. Use a plain name such as 'cat.png'."
        )
    path = name.replace("\\", "/")
    if path.startswith(("/", "~")) or ":" in path:
        raise UniWorldError(f"The {what} {shown} is an absolute path or has a drive. Use a name inside the folder.")
    parts = path.split("/")
    if len(parts) > _MAX_PARTS:
        raise UniWorldError(
            f"The {what} {shown} is nested in {len(parts) - 1} folders; at most {_MAX_PARTS - 1} are allowed."
        )
    for part in parts:
        if part in ("", ".", ".."):
            raise UniWorldError(f"The {what} {shown} leads out of its folder. Use a name without the part '{part}'.")
        if part.endswith((".", " ")) or _WINDOWS_DEVICES.match(part):
            raise UniWorldError(f"The {what} {shown} is invalid on Windows because of '{part}'. Choose another name.")
        if len(part.encode(errors="surrogatepass")) > _MAX_NAME_BYTES:
            raise UniWorldError(f"The {what} {shown} is longer than {_MAX_NAME_BYTES} bytes. Choose a shorter one.")
    return "/".join(parts)


def resolve_inside(base: Path, name: str, what: str = "file name") -> Path:
    """Return the path of `name` inside `base`; it need not exist.

    Raises:
        UniWorldError: as for `check_relative`, or a symbolic link leads out of `base`.
    """
    root = _resolved(base)
    path = _resolved(root / check_relative(name, what))
    if not path.is_relative_to(root):
        raise UniWorldError(f"The {what} {name!r} leads out of '{base}' by a symbolic link. Put the file itself there.")
    return path


def expand_path(name: str | Path) -> Path:
    """Return a path that the user typed, with `~` replaced by the home folder.

    Raises:
        UniWorldError: the path contains invalid characters, or the home folder is unknown.
    """
    if "\0" in str(name) or not _is_encodable(str(name)):
        raise UniWorldError(f"The path {str(name)!r} contains characters that no file name can have. Correct it.")
    try:
        return Path(name).expanduser()
    except RuntimeError as error:
        raise UniWorldError(f"The home folder in '{name}' is unknown. Write the full path.") from error


def _is_encodable(name: str) -> bool:
    """Return whether the file system can encode a name. It cannot encode lone surrogates, which JSON strings allow."""
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        return False
    return True


def is_file(path: Path) -> bool:
    """Return whether a file exists; False also for a path that is too long or not accessible."""
    try:
        return path.is_file()
    except OSError:
        return False


def _resolved(path: Path) -> Path:
    try:
        return path.resolve()
    except RuntimeError as error:  # raised before Python 3.13
        raise UniWorldError(f"'{path}' is a loop of symbolic links. Put the file itself there.") from error
    except OSError as error:
        raise _inaccessible(path, error) from error


def _inaccessible(path: Path, error: OSError) -> UniWorldError:
    return UniWorldError(f"'{path}' cannot be accessed: {error.strerror}. Check the path.")


@dataclass
class Folders:
    """The folders of one host, in ComfyUI's layout, and input names bound to pictures elsewhere.

    Attributes:
        shipped_input: read-only folder of pictures shipped with the package, searched after `input`.
        bound: input names of pictures outside the folders, which the user passed on the command line.
    """

    input: Path = Path("input")
    output: Path = Path("output")
    temp: Path = Path("temp")
    shipped_input: Path | None = SHIPPED_INPUT
    bound: dict[str, Path] = field(default_factory=dict)

    @classmethod
    def under(cls, base: Path) -> Folders:
        return cls(base / "input", base / "output", base / "temp")

    def of_kind(self, kind: str) -> Path:
        """Return the folder of kind "input", "output" or "temp"."""
        return {"input": self.input, "output": self.output, "temp": self.temp}[kind]

    def list_inputs(self) -> list[str]:
        """Return the sorted names of the pictures that a workflow can load."""
        names = {name for name in self.bound}
        for folder in (self.input, self.shipped_input):
            if folder is not None and folder.is_dir():
                names.update(file.name for file in folder.iterdir() if _is_picture_name(file.name) and file.is_file())
        return sorted(names)

    def find_picture(self, annotated: str) -> Path:
        """Return the file of an input name. `cat.png [output]` is searched in the output folder, as in ComfyUI.

        Raises:
            UniWorldError: the name is invalid, or there is no such file.
        """
        if not isinstance(annotated, str):
            raise UniWorldError(f"{annotated!r} is not a picture name. Use the name of a file such as 'cat.png'.")
        if annotated in self.bound:
            return self.bound[annotated]
        match = _ANNOTATION.match(annotated)
        name, kind = (match["name"], match["folder"]) if match else (annotated, "input")
        folders = [self.of_kind(kind)]
        if kind == "input" and self.shipped_input is not None:
            folders.append(self.shipped_input)
        for folder in folders:
            path = resolve_inside(folder, name, "picture name")
            if path.is_file():
                return path
        raise UniWorldError(f"There is no picture {name!r} in '{folders[0]}'. {self._hint(kind)}")

    def _hint(self, kind: str) -> str:
        names = self.list_inputs() if kind == "input" else []
        known = f" Available: {', '.join(names[:10])}{', ...' if len(names) > 10 else ''}." if names else ""
        return f"Put it there, or choose another.{known}"

    def bind(self, picture: Path) -> str:
        """Bind a picture anywhere on disk to an input name, and return that name.

        Raises:
            UniWorldError: there is no such file.
        """
        path = _resolved(expand_path(picture))
        if not is_file(path):
            raise UniWorldError(f"There is no picture file '{picture}'. Check the path.")
        stem = re.sub(r'[<>:"/\\|?*%\[\]\x00-\x1f\x7f]', "_", picture.name).strip(". ") or "picture"
        name = check_relative(stem[-120:].strip(". "))
        number = 2
        while self.bound.get(name, path) != path:
            name = f"{number}_{stem[-120:]}"
            number += 1
        self.bound[name] = path
        return name

    def new_picture(
        self, kind: str, prefix: str, lookup: Callable[[str], str | None] = lambda _: None, **sizes: int
    ) -> NewPicture:
        """Create the folder for a picture with this file name prefix, and return its location.

        Args:
            lookup: returns the text for a token such as `%Sampler.seed%`, or None if the token is unknown.
            sizes: values of the tokens `width` and `height`.

        Raises:
            UniWorldError: the prefix is invalid or leads out of the folder.
        """
        base, known = self.of_kind(kind), {key: str(size) for key, size in sizes.items()}
        try:
            target = resolve_inside(base, expand_tokens(prefix, lookup, known), "file name prefix")
        except UniWorldError:
            # A value of another widget made the name invalid. The computed picture must not be lost because of that.
            filled = expand_tokens(prefix, lambda token: lookup(token) or placeholder(token), known, clean=plain)
            target = resolve_inside(base, filled, "file name prefix")
        subfolder = target.parent.relative_to(_resolved(base)).as_posix()
        target.parent.mkdir(parents=True, exist_ok=True)
        return NewPicture(target.parent, "" if subfolder == "." else subfolder, target.name)

    def check_prefix(self, kind: str, prefix: str) -> None:
        """Check that pictures with this prefix can be saved, without creating anything.

        Raises:
            UniWorldError: as for `new_picture`, or a file has the name of a folder that the prefix needs.
        """
        expanded = expand_tokens(prefix, placeholder, {"width": "1", "height": "1"}, clean=plain)
        base = _resolved(self.of_kind(kind))
        for folder in resolve_inside(base, expanded, "file name prefix").parents:
            if folder == base:
                return
            try:
                taken = folder.exists() and not folder.is_dir()
            except OSError as error:
                raise _inaccessible(folder, error) from error
            if taken:
                raise UniWorldError(f"The file name prefix {prefix!r} needs the folder '{folder}', but that is a file.")


@dataclass(frozen=True)
class NewPicture:
    """Location of a new picture: its folder, the folder's path relative to the base folder, and the name's stem."""

    folder: Path
    subfolder: str
    stem: str

    def next_counter(self) -> int:
        """Return one more than the highest counter of the files `stem_00001_...` in the folder."""
        pattern = re.compile(re.escape(self.stem) + r"_(\d{1,9})_", re.IGNORECASE)
        found = (pattern.match(entry.name) for entry in self.folder.iterdir())
        return max((int(match[1]) for match in found if match), default=0) + 1


def _is_picture_name(name: str) -> bool:
    kind, _ = mimetypes.guess_type(name)
    return (kind or "").startswith("image/") or name.lower().endswith(".webp")


_installed = Folders()
_in_use: ContextVar[Folders | None] = ContextVar("folders_in_use", default=None)


def install(folders: Folders) -> None:
    """Make `folders` the default of this process. A program calls it once, at startup."""
    global _installed
    _installed = folders


@contextmanager
def use(folders: Folders) -> Iterator[None]:
    """Make `folders` current within this context only; the nodes of a run get them from `current()`."""
    token = _in_use.set(folders)
    try:
        yield
    finally:
        _in_use.reset(token)


def current() -> Folders:
    """Return the folders that the built-in nodes read and write: those in `use`, else the process's default."""
    return _in_use.get() or _installed
