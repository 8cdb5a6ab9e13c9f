"""`pairvpr VERB ...`: what a person does with a model.

Contract: a verb is a module of `verbs/` with one function under `@verb(help, examples)`: it adds its arguments to the
parser and returns what runs. Heavy imports stay inside what runs, so that --help is instant. Mistakes are one line and
exit status 2.
"""

from __future__ import annotations

import argparse
import importlib
import pkgutil
from collections.abc import Callable
from typing import NoReturn

from pairvpr_dist import verbs
from pairvpr_dist.errors import UserError, exit_on_user_error

Run = Callable[[argparse.Namespace], None]
Declare = Callable[[argparse.ArgumentParser], Run]
OVERRIDES = "override"  # where a verb's arguments hold its KEY=VALUE, if it takes any
VERBS: dict[str, tuple[str, str, Declare]] = {}  # name -> help, examples, function


def verb(text: str, examples: str) -> Callable[[Declare], Declare]:
    """Register a function as the verb of its name."""

    def register(declare: Declare) -> Declare:
        VERBS[declare.__name__.removesuffix("_")] = (text, examples, declare)
        return declare

    return register


def known_verbs() -> dict[str, tuple[str, str, Declare]]:
    """All verbs by name, once their modules are imported."""
    for module in pkgutil.iter_modules(verbs.__path__):
        importlib.import_module(f"{verbs.__name__}.{module.name}")
    return VERBS


class Parser(argparse.ArgumentParser):
    """argparse, with its mistakes in one line like all others."""

    def error(self, message: str) -> NoReturn:
        """Raise the mistake as `UserError`."""
        raise UserError(f"{message}; see {self.prog} --help")


def main() -> None:
    """The program `pairvpr`."""
    exit_on_user_error(lambda: run())


def run(arguments: list[str] | None = None) -> None:
    """Parse `arguments` (none: the command line) and run the verb. Raises `UserError`."""
    args = parse(arguments)
    args.run(args)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """What `arguments` (none: the command line) ask for; `run` is what runs it. Raises `UserError`."""
    parser = Parser(prog="pairvpr", description="Pair-VPR: two-stage visual place recognition.")
    commands = parser.add_subparsers(metavar="VERB", required=True)
    for name, (text, examples, declare) in known_verbs().items():
        own = commands.add_parser(
            name,
            help=text,
            description=f"{text[0].upper()}{text[1:]}.",
            epilog=f"examples:\n{examples}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        own.set_defaults(run=declare(own))
    args, left = parser.parse_known_args(arguments)
    late = [text for text in left if "=" in text and not text.startswith("-")]  # argparse takes them in one place only
    if late != left or (late and not hasattr(args, OVERRIDES)):
        parser.error(f"unrecognized arguments: {' '.join(left)}")
    if late:
        setattr(args, OVERRIDES, [*getattr(args, OVERRIDES), *late])
    return args


if __name__ == "__main__":
    from pairvpr_dist.cli import main as main_of_package  # the verbs register there, not in __main__

    main_of_package()
