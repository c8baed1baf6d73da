"""The table of all configuration keys, as Markdown: `make docs` writes it to `docs/config.md`, a test compares."""

from typing import Any

from bend_ray.config import Config, keys, meaning, placement_keys


def markdown() -> str:
    """One table a section: key, default, meaning."""
    lines = [
        "# Configuration",
        "",
        "Every key of a configuration file, and of the command line as `--section.key VALUE`, where `-` may stand for",
        "`_`. Made by `make docs` from `bend_ray/config/`. Keys marked * say where work runs or a file lies: they may",
        "differ between the runs that share a run directory.",
        "",
        "Of `data.name`, `data.path` and `data.target`, and of `classifier.name`, `classifier.target` and",
        "`classifier.hub`, one alone is given. One on the command line takes the place of another in the file, whose",
        "`kwargs` go with it.",
    ]
    section = ""
    for key, field in keys().items():
        group, _, name = key.rpartition(".")
        if (group or "run") != section:
            section = group or "run"
            lines += ["", f"## {section}", "", "| key | default | meaning |", "|---|---|---|"]
        model: Any = Config.model_fields[group].annotation if group else Config
        mark = "*" if name in placement_keys(model) else ""
        text = meaning(field).replace("|", "\\|")
        lines.append(f"| `{name}`{mark} | {_default(field)} | {text} |")
    return "\n".join(lines) + "\n"


def _default(field: Any) -> str:
    if field.is_required():
        return "required"
    value = field.default
    return f"`{', '.join(value)}`" if isinstance(value, tuple) else f"`{value}`"


if __name__ == "__main__":
    print(markdown(), end="")
