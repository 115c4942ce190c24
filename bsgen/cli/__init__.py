"""The command line: `bsgen COMMAND`. A command's module is imported when the command is used, not before."""

from __future__ import annotations

import difflib
import errno
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
    "inspect": "Show a compiled kernel: purpose, plan, registers, occupancy, machine code.",
    "bench": "Time kernels against their peers.",
    "tune": "Measure candidate plans and keep the fastest.",
    "pack": "Build, inspect and verify packs: kernels that run without a compiler.",
    "cache": "Show, prune, clear and verify the disk cache.",
    "doctor": "Show what is installed, what will work here, and what to do about the rest.",
}


ENVIRONMENT = {
    "BSGEN_CACHE_DIR": "Folders of the disk cache, separated by colons; the last is written.  [default: ~/.cache/bsgen]",
    "BSGEN_CACHE_SIZE": "What the cache may hold, such as 500M; 0 for no limit.  [default: 4G]",
    "BSGEN_DISABLE_CACHE": "1: keep nothing on disk.",
    "BSGEN_DISABLE_JIT": "1: take kernels from packs and the cache alone; an error if one would be compiled.",
    "BSGEN_PACK_PATH": "Packs, or folders of them, to look into first, separated by colons.",
    "BSGEN_LOG": "debug, info, warning or error: what to say on standard error.",
    "BSGEN_NVTX": "1: NVTX ranges around launches, for Nsight Systems.",
    "NO_COLOR": "Any value: no colours.",
}
EXIT_CODES = "0 done; 1 failed, a line on standard error says why; 2 wrong usage."


class Failure(click.ClickException):
    """A failed command: `error: ...` on standard error and exit code 1."""

    def show(self, file: IO[Any] | None = None) -> None:
        """Print the message."""
        click.echo(f"error: {self.format_message()}", file=file, err=file is None)


class Command(click.Command):
    """A command whose help ends in examples (its `epilog`, one a line) and what its exit codes mean."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The end of --help."""
        _end_help(self, formatter)


class Group(click.Group):
    """Commands of this kind; of one that there is not, what may have been meant."""

    command_class = Command
    group_class = type

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command, or say what is like it."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            near = difflib.get_close_matches(args[0], self.list_commands(ctx), 1)
            if not near or "mean" in error.message:
                raise
            raise click.UsageError(f"{error.message} Did you mean {near[0]!r}?", ctx) from None

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The end of --help."""
        _end_help(self, formatter)


def _end_help(command: click.Command, formatter: click.HelpFormatter) -> None:
    examples = (command.epilog or "").strip()
    if examples:
        with formatter.section("Examples"):
            for line in examples.splitlines():
                formatter.write(f"{'':{formatter.current_indent}}{line}\n")
    with formatter.section("Exit codes"):
        formatter.write_text(EXIT_CODES)


class LazyGroup(Group):
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

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of commands in --help, without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name]) for name in self.list_commands(ctx)])
        with formatter.section("Environment"):
            formatter.write_dl(list(ENVIRONMENT.items()))

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except BsgenError as error:
            raise Failure(str(error)) from None
        except OSError as error:
            if error.errno == errno.EPIPE:  # whoever read it has seen enough
                raise
            raise Failure(f"{error.strerror or error}; is the disk full?") from None
        except KeyboardInterrupt:
            raise Failure("interrupted") from None


@click.command(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="""
bsgen demo
bsgen layout make random --rows 64 --density 0.1 -o layout.npy
bsgen compile layout.npy --op fprop --arch sm_90a -o kernels
bsgen COMMAND --help
eval "$(_BSGEN_COMPLETE=bash_source bsgen)"     # completion; also zsh_source, fish_source
""",
)
@click.version_option(bsgen.__version__, prog_name="bsgen")
def main() -> None:
    """Compile a fixed block-sparsity layout to CUDA kernels made for it.

    Facts go to standard output, as tables for people or with --json for programs; errors and progress to standard error.
    """
