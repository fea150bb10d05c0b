"""The page of all commands, from the commands themselves."""

from collections.abc import Iterator

import click

from docs.generate.markdown import code, plain, table
from onnxdfq.cli.main import main
from onnxdfq.cli.options import Command

HEAD = """# Commands

Every command takes `--help`. Bad input ends with one sentence and exit code 2; a `--require` that is not met, or a
fault of onnxdfq, with 1.
"""


def commands_page() -> str:
    """A section for each command: what it does, how it is called, its options."""
    context = click.Context(main, info_name="onnxdfq")
    return "\n".join([HEAD, *_sections(main, context)])


def _sections(group: click.Group, context: click.Context) -> Iterator[str]:
    """Those of all commands of a group, and of the groups in it."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from _sections(command, click.Context(command, info_name=name, parent=context))
        else:
            yield _section(command, click.Context(command, info_name=name, parent=context))


def _section(command: click.Command, context: click.Context) -> str:
    name = context.command_path.partition(" ")[2]
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    parts = [f"## {name}", *map(plain, (command.help or "").split("\n\n")), f"```text\n{usage}\n```"]
    if isinstance(command, Command):
        if command.example:
            parts.append(f"```sh\n{command.example}\n```")
        for title, rows in command.records(context).items():
            parts.append(table([title, ""], [(code(options), plain(said)) for options, said in rows]))
    return "\n\n".join(parts) + "\n"
