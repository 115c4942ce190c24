"""The command line: `bsgen COMMAND`. A command's module is imported when the command is used, not before."""

from __future__ import annotations

import difflib
from importlib import import_module
from importlib.util import find_spec
from typing import IO, Any

import click

import bsgen
from bsgen.errors import BsgenError

# Name -> what it does in one line, in the order shown. Command NAME is the object NAME in module bsgen.cli.NAME; the
# line stands here so that --help imports none of them.
COMMANDS = {
    "demo": "Make a layout, compile it, run it and check it: the whole of bsgen in one command.",
    "compile": "Compile a layout: CUDA source, cubin and facts of each kernel.",
    "layout": "Make, show and convert layouts.",
    "inspect": "Show what is in a .cu, .cubin or .json that compile wrote.",
    "bench": "Time kernels against their peers.",
    "tune": "Measure candidate plans and keep the fastest.",
    "pack": "Build, inspect and verify packs: kernels that run without a compiler.",
    "cache": "Show, prune, clear and verify the disk cache.",
    "doctor": "Show what is installed, what will work here, and what to do about the rest.",
}


class Failure(click.ClickException):
    """A failed command: `error: ...` on standard error and exit code 1."""

    def show(self, file: IO[Any] | None = None) -> None:
        """Print the message."""
        click.echo(f"error: {self.format_message()}", file=file, err=file is None)


class LazyGroup(click.Group):
    """Commands of `COMMANDS` whose module exists; bsgen's errors become one line and exit code 1."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands there are."""
        return [name for name in COMMANDS if find_spec(f"bsgen.cli.{name}")]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command."""
        if cmd_name not in self.list_commands(ctx):
            return None
        command: click.Command = getattr(import_module(f"bsgen.cli.{cmd_name}"), cmd_name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; of one that there is not, what may have been meant."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            near = difflib.get_close_matches(args[0], self.list_commands(ctx), 1)
            if not near or "mean" in error.message:
                raise
            raise click.UsageError(f"{error.message} Did you mean {near[0]!r}?", ctx) from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of commands in --help, without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name]) for name in self.list_commands(ctx)])

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except BsgenError as error:
            raise Failure(str(error)) from None
        except KeyboardInterrupt:
            raise Failure("interrupted") from None


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(bsgen.__version__, prog_name="bsgen")
def main() -> None:
    """Compile a fixed block-sparsity layout to CUDA kernels made for it."""
