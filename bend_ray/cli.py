"""The command line: `bend-ray run CONFIG.yaml` and one command a stage.

Light on purpose: torch and Ray load when a stage runs, so that `--help` answers at once. Options are made from the
configuration's models; argparse rather than a second reader of types, so that every value is checked in one place.
"""

import argparse
import itertools
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from bend_ray.errors import BendError, ConfigError, shown
from bend_ray.store.kinds import STAGES
from bend_ray.version import __version__

FREE = ("--classifier.kwargs.", "--data.kwargs.", "--data.files.")
"""What begins the keys of free-form ones."""
HELP = {
    "run": "all stages in order; what is there already is kept",
    "collect": "train the base classifier, then chains; keep snapshots of the subset",
    "search": "search for a better autoencoder, diffusion model and sampler (search.trials)",
    "fit": "fit autoencoder and diffusion model to the snapshots",
    "sample": "sample the members of the ensemble",
    "evaluate": "write the report",
    "serve": "answer over HTTP; the same command with another run rolls over to it",
    "predict": "answer for images or .npy files",
    "export": "write what the report recommends to a folder of its own, to be served or loaded without the run",
    "show": "what is in a run, from what, how good, how to go on",
}


class _Parser(argparse.ArgumentParser):
    """One sentence and exit code 2, as for every other error of the user's."""

    commands: Mapping[str, "_Parser"]
    """Of the top one."""

    def __init__(self, **arguments: Any) -> None:
        self.options: list[str] = []
        super().__init__(**arguments)

    def add_argument(self, *names: Any, **arguments: Any) -> argparse.Action:
        action = super().add_argument(*names, **arguments)
        self.options += action.option_strings
        return action

    def error(self, message: str) -> NoReturn:
        unknown = [word.rstrip(":") for word in message.split() if word.startswith("--")]
        from bend_ray.config import nearest  # pydantic: a tenth of a second

        near = nearest(unknown[0].split("=")[0], self.options) if unknown else ""
        where = self.prog.removeprefix("bend-ray").strip()
        hint = f"; did you mean {near}?" if near and near not in unknown else "; see --help"
        raise ConfigError((f"{where}: " if where else "") + message + hint)


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command; BendErrors become one line on stderr and exit code 2."""
    try:
        _run(list(sys.argv[1:] if argv is None else argv))
    except BendError as error:
        print(f"bend-ray: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\nbend-ray: stopped; run the same command again to go on", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output (head, less) has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def parser() -> _Parser:
    """The whole command line."""
    from bend_ray.config.choices import AGGREGATIONS  # pydantic: a tenth of a second

    top = _Parser(prog="bend-ray", description="Ensembles of classifiers sampled from a diffusion model (BEND) on Ray.")
    top.add_argument("--version", action="version", version=f"bend-ray {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    top.commands = commands.choices
    for name in ("run", *STAGES):
        command = commands.add_parser(name, help=HELP[name], description=HELP[name], allow_abbrev=False)
        command.add_argument("config", metavar="CONFIG.yaml", help="the configuration")
        command.add_argument("--run-dir", help="folder or URI of the run (default: runs/<name of CONFIG>)")
        command.add_argument("--dry-run", action="store_true", help="print what would be done and asked for, and stop")
        command.add_argument(
            "--show-data", metavar="PATH.png", help="with --dry-run: draw rows of the data with labels"
        )
        command.add_argument("--verbose", action="store_true", help="let Ray speak")
        _add_keys(command, "Config")
    predict = commands.add_parser("predict", help=HELP["predict"], description=HELP["predict"], allow_abbrev=False)
    predict.add_argument("run", metavar="RUN_OR_ENSEMBLE", help="folder or URI of a run or an ensemble")
    predict.add_argument("inputs", nargs="+", metavar="INPUT", help="image files (PNG, JPEG, ...) or .npy arrays")
    words = ", or ".join(one.label for one in AGGREGATIONS.values())
    predict.add_argument("--strategy", choices=list(AGGREGATIONS), default="abend", help=words)
    predict.add_argument("--json", action="store_true", help="one JSON object a row")
    _add_keys(predict, "Inference")
    serve = commands.add_parser("serve", help=HELP["serve"], description=HELP["serve"], allow_abbrev=False)
    serve.add_argument("run", metavar="RUN_OR_ENSEMBLE", help="folder or URI of a run or an ensemble")
    serve.add_argument("--host", dest="serve.host", default=argparse.SUPPRESS, help="short for --serve.host")
    serve.add_argument("--port", dest="serve.port", default=argparse.SUPPRESS, help="short for --serve.port")
    serve.add_argument("--verbose", action="store_true", help="let Ray speak")
    _add_keys(serve, "Serving")
    export = commands.add_parser("export", help=HELP["export"], description=HELP["export"], allow_abbrev=False)
    export.add_argument("run", metavar="RUN", help="folder or URI of a run with a report")
    export.add_argument(
        "--deploy",
        nargs="?",
        const="recommended",
        required=True,
        metavar="NAME",
        help="what to write: base, abend, average_of_cycles, ... of the report (default: what it recommends)",
    )
    export.add_argument("--to", metavar="FOLDER", help="folder or URI to write to (default: RUN/deploy)")
    show = commands.add_parser("show", help=HELP["show"], description=HELP["show"], allow_abbrev=False)
    show.add_argument("run", metavar="RUN", help="folder or URI of a run")
    _add_keys(show, "Inference")
    return top


def _add_keys(command: _Parser, model: str) -> None:
    from bend_ray import config  # pydantic: a tenth of a second

    old = {now: [was for was, other in config.RENAMED.items() if other == now] for now in config.RENAMED.values()}
    keys = config.keys(getattr(config, model))
    for section, names in itertools.groupby(keys, key=lambda key: key.split(".")[0]):
        group = command.add_argument_group(section)
        for key in names:
            field = keys[key]
            default = "required" if field.is_required() else f"default: {field.default}"
            text = f"{config.meaning(field)} ({default})".replace("%", "%%")
            options = [f"--{name}" for name in (key, *old.get(key, ()))]
            group.add_argument(*options, dest=key, metavar="VALUE", default=argparse.SUPPRESS, help=text)
            command.options += options


def _run(argv: list[str]) -> None:
    free, rest = _free_keys(argv)
    top = parser()
    arguments, unknown = top.parse_known_args(rest)
    command = top.commands[arguments.command]
    if free and arguments.command not in ("run", *STAGES):
        unknown = [*(f"--{key}" for key in free), *unknown]
    if unknown:
        command.error(f"unrecognized arguments: {' '.join(unknown)}")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # the user's own modules, as `python -m` would find them
    if arguments.command == "predict":
        from bend_ray.stages import predict

        predict.execute(arguments.run, arguments.inputs, arguments.strategy, arguments.json, _overrides(arguments))
    elif arguments.command == "serve":
        from bend_ray.stages import serve

        serve.execute(arguments.run, _overrides(arguments), arguments.verbose)
    elif arguments.command == "export":
        from bend_ray.stages import export

        export.execute(arguments.run, arguments.deploy, arguments.to)
    elif arguments.command == "show":
        from bend_ray.stages import show

        show.execute(arguments.run, _overrides(arguments))
    else:
        _run_stages(arguments, free)


def _free_keys(argv: list[str]) -> tuple[dict[str, str], list[str]]:
    """Keys within free-form ones (classifier.kwargs.width), which no list knows, and the other words, keys among them
    as files have them. They come out first: a parser that does not know them would take their values for words of
    their own."""
    free: dict[str, str] = {}
    rest: list[str] = []
    words = iter(argv)
    for word in words:
        name, equals, value = word.partition("=")
        if (
            word.startswith("--") and "." in name
        ):  # collect.held-out is collect.held_out; what lies in kwargs is not ours
            section, *keys = name[2:].split(".")
            name = ".".join([f"--{section}", *(key.replace("-", "_") for key in keys[:2]), *keys[2:]])
        if not name.startswith(FREE):
            rest.append(name + equals + value)
            continue
        value = value if equals else next(words, "--")
        if not equals and value.startswith("--"):
            raise ConfigError(f"{name}: expected one value")
        free[name.removeprefix("--")] = value
    return free, rest


def _overrides(arguments: argparse.Namespace) -> dict[str, str]:
    return {key: value for key, value in vars(arguments).items() if "." in key or key == "seed"}


def _run_stages(arguments: argparse.Namespace, free: dict[str, str]) -> None:
    if arguments.show_data and not arguments.dry_run:
        raise ConfigError("--show-data: draws what a dry run says of the data; give --dry-run as well")
    from bend_ray.config import load

    config = load(
        arguments.config, _overrides(arguments) | free, say=lambda line: print(f"bend-ray: {line}", file=sys.stderr)
    )
    where = arguments.run_dir or f"runs/{Path(arguments.config).stem}"

    from bend_ray.run import Run
    from bend_ray.stages import pipeline
    from bend_ray.store.folders import Folder

    run = Run(config, Folder(where))
    stages = () if arguments.command == "run" else (arguments.command,)
    if arguments.dry_run:
        pipeline.dry_run(run, stages, arguments.verbose, arguments.show_data)
        return
    pipeline.execute(run, stages, arguments.verbose)
    where = shown(where)
    if arguments.command in ("run", "evaluate"):
        print(f"\nreport:   {where}/report/README.md\nnext:     bend-ray show {where}")
        print(f"          bend-ray predict {where} IMAGE_OR_NPY...\n          bend-ray serve {where}")
        print(f"          bend-ray export {where} --deploy")
    else:
        print(f"next:     bend-ray show {where}")


if __name__ == "__main__":
    main()
