"""`bsgen compile`: files, facts, table, and what it refuses."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from bsgen import artefact, nvrtc, problem, topology
from bsgen.artefact import artefact_name
from bsgen.cli import main
from bsgen.errors import ArgumentError, CompileError, DriverError
from bsgen.layout import Layout
from bsgen.problem import Activation, DType, Epilogue, Op, Precision, Problem

LAYOUT = topology.banded(3, 4, 2)
DIGEST = LAYOUT.digest


@pytest.fixture(autouse=True)
def here(monkeypatch, tmp_path):
    """An empty working folder with a layout in it, and one disk cache for all tests of this file."""
    cache = tmp_path.parent / "compile-cache"
    monkeypatch.setenv("BSGEN_CACHE_DIR", str(cache))
    monkeypatch.chdir(tmp_path)
    LAYOUT.save("layout.npy")
    return tmp_path


def run(*arguments, code=0):
    result = CliRunner().invoke(main, ["compile", *map(str, arguments)], prog_name="bsgen")
    assert result.exit_code == code, result.output
    return result


def facts_of(*arguments):
    return json.loads(run("layout.npy", *arguments, "--json").stdout)


def written(folder="generated"):
    return sorted(file.name for file in Path(folder).iterdir())


def test_writes_source_cubin_and_facts_of_each_op(here):
    result = run("layout.npy")
    stems = [f"{op}_b32_bfloat16_{artefact.default_arch()}_{DIGEST}" for op in Op]
    assert written() == sorted(f"{stem}{suffix}" for stem in stems for suffix in (".cu", ".cubin", ".json"))
    for stem in stems:
        assert f"wrote generated/{stem}.{{cu,cubin,json}}" in result.stdout
        assert Path("generated", f"{stem}.cubin").read_bytes().startswith(b"\x7fELF")
        assert Path("generated", f"{stem}.cu").read_text().startswith("// ")
    for column in ("op", "arch", "family", "registers", "spills", "shared memory", "predicted"):
        assert column in result.stdout
    assert result.stderr == ""


def test_facts_hold_what_a_launcher_needs():
    facts = facts_of("--op", "fprop", "--arch", "sm_80", "--bias", "--activation", "gelu", "--batch", "128")
    (made,) = facts["artefacts"]
    assert made["name"] == f"fprop_b32_bfloat16_bias_gelu_n128_sm_80_{DIGEST}"
    assert made["arch"] == "sm_80"
    assert made["layout"] == {"digest": DIGEST, "shape": [3, 4], "nnz": LAYOUT.nnz, "density": LAYOUT.density}
    assert made["problem"]["op"] == "fprop"
    assert (made["problem"]["in_features"], made["problem"]["out_features"]) == (96, 128)
    assert (made["problem"]["bias"], made["problem"]["activation"], made["problem"]["batch"]) == (True, "gelu", 128)
    assert made["plan"]["family"] == "portable"
    assert made["predicted"]["seconds"] > 0
    assert made["predicted"]["rows"] == 128
    assert set(made["workspace"]) == {"fixed", "per_row"}
    launch, kernel = made["launches"][0], made["kernels"][0]
    assert launch["arguments"][:4] == ["x", "w", "out", "bias"]
    assert launch["entry"] == kernel["name"]
    assert launch["threads"] % 32 == 0
    assert launch["blocks"] > 0
    assert launch["shared_memory"] > 0
    assert kernel["registers"] > 0
    assert kernel["spill_stores"] == kernel["spill_loads"] == 0
    assert made["compiler"] == nvrtc.version()
    assert [file["file"] for file in made["files"]] == [f"{made['name']}.cu", f"{made['name']}.cubin"]


def test_the_facts_file_is_what_json_prints():
    facts = facts_of("--op", "wgrad")
    (file,) = Path("generated").glob("*.json")
    assert json.loads(file.read_text()) == facts["artefacts"][0]
    assert facts["files"] == [str(Path("generated", name)) for name in (*facts_names(facts), file.name)]


def facts_names(facts):
    return [file["file"] for made in facts["artefacts"] for file in made["files"]]


def test_every_op_for_every_architecture_once():
    facts = facts_of("--arch", "sm_80", "--arch", "sm_90a", "--arch", "sm_80", "--op", "dgrad", "--op", "dgrad")
    assert [(made["problem"]["op"], made["arch"]) for made in facts["artefacts"]] == [
        ("dgrad", "sm_80"),
        ("dgrad", "sm_90a"),
    ]


def test_the_epilogue_belongs_to_fprop_alone():
    facts = facts_of("--residual", "--emit-only")
    assert [made["problem"]["residual"] for made in facts["artefacts"]] == [True, False, False]
    assert "add --op fprop" in run("layout.npy", "--bias", "--op", "wgrad", code=2).stderr


def test_emit_only_never_compiles(monkeypatch):
    def fail(*arguments):
        raise AssertionError("compiled")

    monkeypatch.setattr("bsgen.compiled.build", fail)
    result = run("layout.npy", "--emit-only", "-o", "out", "--dtype", "float32", "--precision", "ieee")
    assert {Path(name).suffix for name in written("out")} == {".cu", ".json"}
    assert f"wrote out/fprop_b32_float32_ieee_{artefact.default_arch()}_{DIGEST}.{{cu,json}}" in result.stdout
    assert "kernels" not in json.loads(next(Path("out").glob("*.json")).read_text())


def test_the_same_bytes_again():
    run("layout.npy", "-o", "a")
    run("layout.npy", "-o", "b")
    assert written("a") == written("b")
    assert all(Path("a", name).read_bytes() == Path("b", name).read_bytes() for name in written("a"))


def test_inspect_reads_what_compile_writes():
    run("layout.npy", "--op", "fprop")
    (cubin,) = Path("generated").glob("*.cubin")
    result = CliRunner().invoke(main, ["inspect", str(cubin), "--json"])
    shown = json.loads(result.stdout)
    assert shown["facts"]["name"] == cubin.stem
    assert len(shown["files"]) == 3


def test_warnings_of_the_compiler_are_shown(monkeypatch):
    monkeypatch.setattr(nvrtc.Binary, "warnings", property(lambda self: ("ptxas warning: slow",)))
    result = run("layout.npy", "--op", "fprop")
    assert f"_{DIGEST}: ptxas warning: slow" in result.stdout


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"op": Op.DGRAD}, "dgrad"),
        ({"block_size": 8}, "b8"),
        ({"dtype": DType.FLOAT16}, "float16"),
        ({"dtype": DType.FLOAT32, "precision": Precision.IEEE}, "ieee"),
        ({"epilogue": Epilogue(bias=True)}, "bias"),
        ({"epilogue": Epilogue(activation=Activation.SILU)}, "silu"),
        ({"epilogue": Epilogue(residual=True)}, "residual"),
        ({"gate": True}, "gate"),
        ({"op": Op.WGRAD, "wgrad_dtype": DType.FLOAT32}, "dw32"),
        ({"batch": 64}, "n64"),
        ({"layout": Layout([[1]])}, Layout([[1]]).digest),
    ],
)
def test_no_two_problems_share_a_name(changes, part):
    plain = Problem(Op.FPROP, LAYOUT, 32, DType.BFLOAT16)
    name = artefact_name(replace(plain, **changes), "sm_90a")
    assert part in name.split("_")
    assert part not in artefact_name(plain, "sm_90a").split("_")
    assert "sm_80" in artefact_name(plain, "sm_80")


@pytest.mark.parametrize(
    "arguments",
    [
        ("missing.npy",),
        ("layout.npy", "--dtype", "int8"),
        ("layout.npy", "--block-size", "24"),
        ("layout.npy", "--op", "tgrad"),
        ("layout.npy", "--arch", "sm_75"),
        ("layout.npy", "--precision", "half"),
        ("layout.npy", "--activation", "tanh"),
        ("layout.npy", "--batch", "0"),
        ("layout.npy", "-o", "layout.npy"),
    ],
)
def test_wrong_usage_writes_nothing(arguments):
    result = run(*arguments, code=2)
    assert "Error: Invalid value" in result.stderr
    assert written(".") == ["layout.npy"]


def one_line(result):
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    return result.stderr


def test_a_bad_layout_is_one_line():
    np.save("bad.npy", np.full((2, 2), 3))
    assert "expected" in one_line(run("bad.npy", code=1))
    Path("cut.npy").write_bytes(Path("layout.npy").read_bytes()[:40])
    assert "truncated" in one_line(run("cut.npy", code=1))
    assert not Path("generated").exists()


def test_nothing_is_written_unless_everything_compiles(monkeypatch):
    real = nvrtc.compile

    def fail(source, arch):
        if "wgrad" in source.name:
            raise CompileError("no")
        return real(source, arch)

    monkeypatch.setenv("BSGEN_DISABLE_CACHE", "1")
    monkeypatch.setattr("bsgen.build._state.recall", lambda key: None)
    monkeypatch.setattr("bsgen.nvrtc.compile", fail)
    assert one_line(run("layout.npy", code=1)) == "error: no\n"
    assert not Path("generated").exists()


def test_an_output_folder_that_cannot_be_made_is_one_line():
    assert "layout.npy/out" in one_line(run("layout.npy", "-o", "layout.npy/out", "--emit-only", code=1))


def test_all_files_or_none(monkeypatch):
    folder = Path("generated")
    folder.mkdir()
    stem = f"wgrad_b32_bfloat16_{artefact.default_arch()}_{DIGEST}"
    (folder / f"{stem}.cu").mkdir()
    assert "not a regular file" in one_line(run("layout.npy", "--emit-only", code=1))
    assert written() == [f"{stem}.cu"]


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_one_line():
    Path("locked").mkdir(mode=0o500)
    assert "locked" in one_line(run("layout.npy", "-o", "locked", "--emit-only", code=1))


def test_the_default_architecture(monkeypatch):
    def old_gpu():
        raise DriverError("too old")

    monkeypatch.setattr(artefact.driver, "current_device", old_gpu)
    assert artefact.default_arch() == "sm_90a"
    gpu = artefact.driver.Device(0, "A10", (8, 6), 2**34, 72)
    monkeypatch.setattr(artefact.driver, "current_device", lambda: gpu)
    assert artefact.default_arch() == "sm_86"
    assert artefact.default_arch() in problem.TARGETS


def test_make_folder_names_the_place(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ArgumentError, match=r"file/under: cannot be made a folder \(Not a directory\)"):
        artefact.make_folder(tmp_path / "file" / "under")
