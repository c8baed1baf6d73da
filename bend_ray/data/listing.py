"""What lies at `data.path`: files and folders, but for what systems leave there, and patterns of their names."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from bend_ray.data.split_names import LONG, split_of
from bend_ray.errors import DataError, shown, why
from bend_ray.progress import counted
from bend_ray.store.folders import patiently

LITTER = {"__macosx", "thumbs.db", "desktop.ini", "ehthumbs.db", "@eadir", "$recycle.bin", "lost+found"}
"""What systems and unpackers leave in folders; names that begin with a dot are passed over as well."""


@dataclass(frozen=True)
class Listing:
    """Names relative to ``root``, sorted, in pyarrow's file system ``system``; of a file itself, one empty name."""

    path: str
    system: Any
    root: str
    files: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()
    notes: list[str] = field(default_factory=list)
    """What a user should be told: what was understood, and what is left out."""

    @property
    def where(self) -> str:
        """For errors."""
        return f"data.path: {shown(self.path)}"

    def full(self, name: str) -> str:
        """For the file system."""
        return f"{self.root}/{name}" if name else self.root

    def read(self, name: str, count: int | None = None) -> bytes:
        """A file, or its first bytes. Raises DataError."""

        def question() -> bytes:
            with self.system.open_input_file(self.full(name)) as stream:
                data: bytes = stream.read(count)
                return data

        try:
            return patiently(shown(self.path), question) if "://" in self.path else question()
        except OSError as error:
            raise DataError(f"{self.where}/{name}: cannot be read ({why(error)})") from None


def listed(path: str, notes: list[str]) -> Listing:
    """Raises DataError for what cannot be opened; there may be nothing."""
    import pyarrow as pa
    from pyarrow import fs

    def ask(question: Any) -> Any:
        return patiently(shown(path), question) if "://" in path else question()

    try:
        system, root = fs.FileSystem.from_uri(path) if "://" in path else (fs.LocalFileSystem(), path.rstrip("/"))
        info = ask(lambda: system.get_file_info(root))
        if info.type != fs.FileType.Directory:
            return Listing(path, system, root, ("",) if info.type == fs.FileType.File else (), notes=notes)
        infos = ask(lambda: system.get_file_info(fs.FileSelector(root, recursive=True)))
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"data.path: {shown(path)}: cannot be opened ({why(error)})") from None
    names = {kind: list[str]() for kind in (fs.FileType.File, fs.FileType.Directory)}
    for info in infos:
        name = str(PurePosixPath(info.path).relative_to(root))
        if info.type in names and not any(_is_litter(part) for part in name.split("/")):
            names[info.type].append(name)
    files, folders = (tuple(sorted(of_kind)) for of_kind in names.values())
    return Listing(path, system, root, files, folders, notes)


def _is_litter(part: str) -> bool:
    return part.startswith(".") or part.lower() in LITTER


def left_out(names: Iterable[str]) -> str:
    """How many files are not read, and how their names end."""
    endings = Counter(PurePosixPath(name).suffix.lower() or "no suffix" for name in names)
    kinds = ", ".join(f"{count} {ending}" for ending, count in sorted(endings.items(), key=lambda kv: (-kv[1], kv[0])))
    return f"{counted(sum(endings.values()), 'files')} left out: {kinds}"


def matching(pattern: str, names: Iterable[str]) -> list[str]:
    """The names that a pattern means: a file, a folder with all that is in it, or a glob of either; `.` is all."""
    names = list(names)
    pattern = str(PurePosixPath(pattern)) if pattern.strip("./") else ""
    if not pattern:
        return names
    parts = re.split(r"(\*\*/?|\*|\?|\[[^\]]+\])", pattern)
    forms = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    whole = re.compile("".join(forms.get(part) or _literal(part) for part in parts) + "(?:/.*)?")
    return [name for name in names if whole.fullmatch(name)]


def _literal(part: str) -> str:
    if part.startswith("[") and part.endswith("]"):
        return "[" + part[1:-1].replace("\\", r"\\").replace("!", "^", part.startswith("[!")) + "]"
    return re.escape(part)


def base_of(pattern: str) -> str:
    """The folder that a pattern begins with, whatever it goes on with."""
    parts: list[str] = []
    for part in PurePosixPath(pattern).parts:
        if re.search(r"[*?\[]", part):
            break
        parts.append(part)
    return "/".join(parts)


def chosen(files: Mapping[str, Any], names: Iterable[str], where: str, what: str = "file") -> dict[str, str]:
    """Each of ``names`` that `data.files` means, with its split. Raises DataError for a pattern that means none, and
    for a name that two splits mean."""
    names, splits = list(names), dict[str, str]()
    for key, patterns in files.items():
        split = split_of(key) or ""
        for pattern in [patterns] if isinstance(patterns, str) else patterns:
            meant = matching(pattern, names)
            if not meant:
                raise DataError(f"data.files.{key}: {pattern!r} is no {what} of {where}{_nearby(names)}")
            for name in meant:
                if splits.setdefault(name, split) != split:
                    raise DataError(f"data.files.{key}: {name} is in {LONG[splits[name]]} as well; give it to one")
    return splits


def _nearby(names: list[str]) -> str:
    tops = list(dict.fromkeys(name.split("/")[0] for name in names))
    return f"; it has {', '.join(tops[:8])}{', ...' if len(tops) > 8 else ''}" if tops else ""
