"""The help of every command, as a newcomer reads it: a summary, every option said, examples that parse, exit codes."""

from __future__ import annotations

import os
import pty
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from bsgen import cli
from bsgen.cli import main

ROOT = Path(__file__).parent.parent
NO_FACTS = {"bench"}  # its --json names a file: figures of hours are kept after every case


def commands(
    command: click.Command = main, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command and group by the words that name it."""
    yield path, command
    if isinstance(command, click.Group):
        with click.Context(command) as context:
            for name in command.list_commands(context):
                found = command.get_command(context, name)
                assert found is not None
                yield from commands(found, (*path, name))


ALL = dict(commands())
LEAVES = {path: command for path, command in ALL.items() if not isinstance(command, click.Group)}


def run(*words: str) -> str:
    done = CliRunner().invoke(main, list(words), prog_name="bsgen", terminal_width=110)
    assert done.exit_code == 0, done.output
    return done.output


def test_all_are_walked() -> None:
    assert {"demo", "compile", "layout", "inspect", "bench", "tune", "pack", "cache", "doctor"} == set(cli.COMMANDS)
    assert {("pack", "export-c"), ("layout", "make", "random"), ("cache", "prune")} <= set(ALL)
    assert len(LEAVES) >= 24


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_help(path: tuple[str, ...]) -> None:
    command, text = ALL[path], run(*path, "--help")
    summary = command.get_short_help_str(1000)
    assert summary[0].isupper()
    assert len(summary.split()) >= 3
    assert "Examples:\n  " in text
    assert "Exit codes:\n  0 done; 1 failed" in text
    assert max(map(len, text.splitlines())) <= 132
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{parameter.name} is not said"
            said = parameter.is_flag or parameter.required or parameter.show_default or "[default" in parameter.help
            either = path == ("layout", "make", "random") and parameter.name in ("density", "fan_in")  # one of the two
            optional = parameter.name == "png" or parameter.name in ("json_file", "png_file")
            assert said or either or optional, f"{parameter.name} has no default said"
        else:
            assert f"{parameter.human_readable_name}" in (command.help or ""), "an argument that is not explained"


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_examples_parse(path: tuple[str, ...]) -> None:
    """Commands, options and choices that exist; files need not."""
    lines = [line for line in (ALL[path].epilog or "").strip().splitlines() if "bsgen" in line]
    assert lines
    found = []
    for line in lines:
        words = shlex.split(line, comments=True)
        if "bsgen" not in words:
            continue
        words = words[words.index("bsgen") + 1 :]
        if words[:1] == ["COMMAND"]:
            continue
        found.append(words)
        command: click.Command = main
        name: tuple[str, ...] = ()
        while isinstance(command, click.Group) and words[:1] != ["--help"]:
            name, words = (*name, words[0]), words[1:]
            command = ALL[name]
        values, rest, _ = command.make_parser(click.Context(command)).parse_args(words)
        assert rest == []
        for parameter in command.params:
            value = values.get(parameter.name or "")
            if isinstance(value, list | str) and isinstance(parameter.type, click.Choice):
                assert set([value] if isinstance(value, str) else value) <= set(parameter.type.choices)
            assert not parameter.required or value is not None or "--help" in words, f"{line}: without {parameter.name}"
    assert found, "no example of the command itself"
    assert any(tuple(words[: len(path)]) == path for words in found)


@pytest.mark.parametrize("path", LEAVES, ids=" ".join)
def test_facts_come_as_json_too(path: tuple[str, ...]) -> None:
    options = {option: each for each in LEAVES[path].params for option in each.opts}
    assert "--json" in options
    assert options["--json"].is_flag or path[0] in NO_FACTS  # type: ignore[attr-defined]


def test_the_environment_is_said() -> None:
    """Every variable that the package reads."""
    text, sources = run("--help"), (ROOT / "bsgen").rglob("*.py")
    read = {name for file in sources for name in re.findall(r'environ\.get\("([A-Z_]+)"', file.read_text())}
    assert {"BSGEN_CACHE_DIR", "BSGEN_DISABLE_JIT", "BSGEN_LOG"} <= read
    assert [name for name in read - {"XDG_CACHE_HOME"} if name.startswith("BSGEN") and name not in text] == []
    assert set(re.findall(r"BSGEN_[A-Z_]+", text)) - {"BSGEN_COMPLETE"} <= read
    assert "_BSGEN_COMPLETE=bash_source bsgen" in text


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (("cache", "shwo"), "'show'"),
        (("pack", "biuld"), "'build'"),
        (("layout", "make", "band"), "'banded'"),
        (("compile", "--achr", "sm_80"), "--arch"),
    ],
)
def test_misspelt_words_get_a_suggestion(words: tuple[str, ...], meant: str) -> None:
    done = CliRunner().invoke(main, list(words))
    assert done.exit_code == 2
    assert meant in done.stderr.partition("mean")[2]


def in_a_terminal(**environment: str) -> str:
    """What `bsgen doctor` prints where standard output is a terminal."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", "from bsgen.cli import main; main()", "doctor"]
    env = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100", **environment}
    text = b""
    with subprocess.Popen(command, stdout=theirs, stderr=theirs, env=env, cwd=ROOT) as process:
        os.close(theirs)
        while True:
            try:
                part = os.read(ours, 1 << 16)
            except OSError:  # the other end is closed
                break
            if not part:
                break
            text += part
        process.wait()
    os.close(ours)
    return text.decode()


def test_no_color(tmp_path: Path) -> None:
    """Bold may stay: https://no-color.org asks for no colour."""
    shown = in_a_terminal(NO_COLOR="1", BSGEN_CACHE_DIR=str(tmp_path))
    assert "What works" in shown
    assert re.findall(r"\x1b\[[0-9;]*(?:3[0-8]|4[0-8]|9[0-7])[;m]", shown) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_no_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from bsgen.cli import main; main()", "cache", "show"]
    with open("/dev/full", "w") as full:
        env = {**os.environ, "BSGEN_CACHE_DIR": str(tmp_path)}
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, env=env, cwd=ROOT, check=False)
    assert done.returncode != 0
    assert "error: No space left on device" in done.stderr
    assert "Traceback" not in done.stderr


def test_pipes_get_text_alone(tmp_path: Path) -> None:
    """No escape codes, and nothing on standard error."""
    for words in (
        ("doctor",),
        ("layout", "make", "banded", "--rows", "4", "--width", "2", "-o", str(tmp_path / "l.npy")),
    ):
        command = [sys.executable, "-c", "from bsgen.cli import main; main()", *words]
        env = {**os.environ, "FORCE_COLOR": "", "BSGEN_CACHE_DIR": str(tmp_path / "cache")}
        done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=ROOT, check=True)
        assert "\x1b" not in done.stdout
        assert done.stderr == ""
