"""How the code hangs together: rooms, the imports between them, and sizes. `make check` prints it, a test holds it.

A room is a folder of ``bend_ray/``, or a file that stands beside them. An arrow is an import of one room by another,
at whatever depth of the file it stands; one that runs from a lower floor to a higher one runs back up. A circle is a
set of rooms of which each reaches each other. On another tree: ``python tests/floorplan.py OTHER/bend_ray``.
"""

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FLOORS: tuple[tuple[str, ...], ...] = (
    ("cli",),
    ("stages",),
    ("workers",),
    ("report",),
    ("search",),
    ("bend_ray",),
    ("serving", "generator"),
    ("ensemble", "snapshots", "alignment"),
    ("training",),
    ("run",),
    ("models",),
    ("data", "cluster"),
    ("store",),
    ("config",),
    ("version", "errors", "seeds", "progress"),
)
"""From the top down. ``bend_ray`` is the package itself: what it exports."""
LINES, FUNCTION_LINES = 250, 60
"""At most, of a file and of a function."""


@dataclass(frozen=True)
class Floorplan:
    """What was measured."""

    rooms: set[str]
    arrows: set[tuple[str, str]]
    """(room, the room that it imports)."""
    ray: set[str]
    """Rooms that import Ray."""
    long_files: dict[str, int]
    long_functions: dict[str, int]

    @property
    def circles(self) -> list[set[str]]:
        reached = {room: self._reached(room) for room in self.rooms}
        found = [frozenset(other for other in reached[room] if room in reached[other]) for room in self.rooms]
        return [set(circle) for circle in sorted(set(found), key=sorted) if circle]

    @property
    def back_up(self) -> list[tuple[str, str]]:
        """Arrows to a higher floor, or to another room of the same one."""
        floor = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
        return sorted(arrow for arrow in self.arrows if floor[arrow[1]] <= floor[arrow[0]])

    def _reached(self, room: str) -> set[str]:
        reached: set[str] = set()
        todo = [room]
        while todo:
            here = todo.pop()
            new = {to for start, to in self.arrows if start == here} - reached
            reached |= new
            todo += new
        return reached


def measured(package: Path) -> Floorplan:
    """The floor plan of the package in this folder."""
    arrows: set[tuple[str, str]] = set()
    ray: set[str] = set()
    files, functions = {}, {}
    paths = sorted(package.rglob("*.py"))
    rooms = {_room(path, package) for path in paths}
    for path in paths:
        text, room = path.read_text(), _room(path, package)
        tree, name = ast.parse(text), str(path.relative_to(package.parent))
        files[name] = len(text.splitlines())
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                functions[f"{name}:{node.name}"] = (node.end_lineno or 0) - node.lineno + 1
        for module in imports(tree):
            first, _, rest = module.partition(".")
            if first == "ray":
                ray.add(room)
            if first == package.name:
                to = rest.split(".")[0]
                arrows.add((room, to if to in rooms else package.name))
    return Floorplan(
        rooms,
        {(start, to) for start, to in arrows if start != to},
        ray,
        {name: count for name, count in files.items() if count > LINES},
        {name: count for name, count in functions.items() if count > FUNCTION_LINES},
    )


def imports(tree: ast.AST) -> Iterator[str]:
    """Dotted names of all that is imported, wherever it stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _room(path: Path, package: Path) -> str:
    first = path.relative_to(package).parts[0]
    return package.name if first == "__init__.py" else first.removesuffix(".py")


def main() -> None:
    """Print the numbers, and what is not as it should be; exit 1 where anything is."""
    package = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parents[1] / "bend_ray").resolve()
    plan = measured(package)
    here: dict[str, list[str]] = {}
    known = {room for rooms in FLOORS for room in rooms} >= plan.rooms
    if known:
        here["arrows back up"] = [f"{start} -> {to}" for start, to in plan.back_up]
    here["circles"] = [", ".join(sorted(circle)) for circle in plan.circles]
    here[f"files over {LINES} lines"] = [f"{name} {count}" for name, count in plan.long_files.items()]
    here[f"functions over {FUNCTION_LINES}"] = [f"{name} {count}" for name, count in plan.long_functions.items()]
    counts = ", ".join(f"{len(found)} {what}" for what, found in here.items())
    print(f"{package.name}: {len(plan.rooms)} rooms, {len(plan.arrows)} arrows, {counts}")
    for what, found in here.items():
        for one in found:
            print(f"  {what}: {one}")
    sys.exit(any(here.values()))


if __name__ == "__main__":
    main()
