"""The field's words: what was called by a home-made one stays called by the field's, and locals say what they hold."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import bend_ray

PACKAGE = Path(bend_ray.__file__).parent

EMPTY = {"found", "there", "asked", "own", "known"}
"""Names that any value could have: a local or a parameter is called after what it holds."""

INSTEAD = {
    "board": "heartbeat",
    "Desk": "Heartbeat",
    "reporting": "heartbeat",
    "nulls": "baselines",
    "gate": "accuracy filter",
    "gated": "filtered",
    "recalibrate": "reestimate_batch_norm",
    "recalibration": "re-estimation of batch norm",
    "Recalibration": "BatchNormReestimation",
    "calibrate": "temperature_scale",
    "cutting": "partition",
    "watching": "watchdog",
    "Pile": "SpillBuffer",
    "follow": "ema_update",
    "everything": "training_state",
    "Unanswered": "ReplicaLossMiddleware",
    "Description": "ModelSpec",
    "Blocks": "SnapshotStream",
    "Held": "InMemorySnapshots",
    "FORGET": "CONDITION_DROPOUT",
    "REACH": "a name after what it bounds",
}
"""Old identifiers, and what the same thing is called now."""

PROSE = {
    r"\bnull models?\b": "baseline",
    r"\bnulls\b": "baselines",
    r"\bgates?\b": "accuracy filter",
    r"\brecalibrat\w+": "re-estimate (batch norm), or temperature_scale",
    r"\b(Desk|Pile|Unanswered|Held|Blocks|FORGET)\b": "see the identifiers",
    r"\bboard\b": "heartbeat",
    r"\bmanieth\b": "groups rank, rank + world, ...",
}
"""Old words that comments, docstrings and messages cannot mean otherwise."""

ALLOWED = {
    ("config/section.py", "gate"): "an old key, which is still read",
    ("config/section.py", "recalibrate"): "an old key, which is still read",
    ("ensemble/batch_norm.py", "recalibrate"): "the name of a seed: another one would give other bits",
    ("ensemble/ensemble.py", "calibrate"): "an alias of the public API",
    ("serving/arrow.py", "nulls"): "Arrow's word for missing values",
    ("stages/sample.py", "Blocks"): "the first word of a sentence: blocks of members",
}
"""By file and word, with the reason."""


def texts() -> Iterator[tuple[str, str]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path.relative_to(PACKAGE).as_posix(), path.read_text()


def identifiers(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and name of all that is called something."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield node.lineno, node.id
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.Attribute):
            yield node.lineno, node.attr
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.lineno, node.name
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield from ((node.lineno, alias.asname or alias.name.split(".")[-1]) for alias in node.names)


def locals_of(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and name of each variable where it gets its value, and of each parameter."""
    for node in ast.walk(tree):
        if isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id


def old_identifiers(file: str, text: str) -> list[str]:
    return [
        f"bend_ray/{file}:{line}: {name} is called {INSTEAD[name.lstrip('_')]} now"
        for line, name in identifiers(ast.parse(text))
        if name.lstrip("_") in INSTEAD and (file, name) not in ALLOWED
    ]


def old_words(file: str, text: str) -> list[str]:
    return [
        f"bend_ray/{file}:{number}: says {match[0]!r}; the field's word is {instead}"
        for number, line in enumerate(text.splitlines(), 1)
        for pattern, instead in PROSE.items()
        for match in re.finditer(pattern, line)
        if (file, match[0]) not in ALLOWED
    ]


def empty_names(file: str, text: str) -> list[str]:
    return [
        f"bend_ray/{file}:{line}: {name} could be called so whatever it holds; name it after what it holds"
        for line, name in locals_of(ast.parse(text))
        if name in EMPTY
    ]


def test_locals_and_parameters_are_called_after_what_they_hold() -> None:
    wrong = [sentence for file, text in texts() for sentence in empty_names(file, text)]
    assert not wrong, "\n".join(wrong)


def test_no_old_name_is_an_identifier() -> None:
    wrong = [sentence for file, text in texts() for sentence in old_identifiers(file, text)]
    assert not wrong, "\n".join(wrong)


def test_no_old_word_is_said_in_comments_docstrings_and_messages() -> None:
    wrong = [sentence for file, text in texts() for sentence in old_words(file, text)]
    assert not wrong, "\n".join(wrong)


def test_each_allowance_is_needed() -> None:
    of = dict(texts())
    stale = [f"{word} in {file}" for file, word in ALLOWED if not re.search(rf"\b{word}\b", of.get(file, ""))]
    assert not stale, f"ALLOWED has what nobody says any more: {stale}"


def test_the_checks_see_what_they_are_for() -> None:
    code = "def gate(found, *, x=1):\n    own = [known for known in x]\n    self.Held = nulls  # the null models\n"
    assert [sentence.split(": ")[1].split()[0] for sentence in empty_names("a.py", code)] == ["found", "own", "known"]
    names = {sentence.split(": ")[1].split()[0] for sentence in old_identifiers("a.py", code)}
    assert names == {"gate", "Held", "nulls"}
    words = [sentence.split("'")[1] for sentence in old_words("a.py", code)]
    assert sorted(words) == ["Held", "gate", "null models", "nulls"]
