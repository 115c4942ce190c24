"""The command group, and doctor, cache and inspect."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import bsgen
from bsgen import cache_place, cli, disasm, nvrtc, store
from bsgen.cli import diagnosis, main
from bsgen.cli.residency import Residency, residency
from bsgen.emit import Source
from bsgen.errors import CompileError, LayoutError
from bsgen.nvrtc import Binary

SOURCE = Source(
    "scale",
    """// scale: y = 2 x, for a test
// [plan] one thread an element

extern "C" __global__ void scale(float* x) {
  __shared__ float tile[32];
  tile[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  x[threadIdx.x] = tile[31 - threadIdx.x] * 2.f + 1.f;
}
""",
    ("scale",),
)
KEY = "a" * 64


@pytest.fixture(autouse=True)
def place(monkeypatch, tmp_path):
    root = tmp_path / "cache"
    monkeypatch.setenv("BSGEN_CACHE_DIR", str(root))
    monkeypatch.delenv("BSGEN_DISABLE_CACHE", raising=False)
    return root


@pytest.fixture(scope="module")
def binary():
    return nvrtc.compile(SOURCE, "sm_90a")


def bsgen_run(*arguments):
    return CliRunner().invoke(main, list(arguments), prog_name="bsgen")


def facts_of(*arguments, code=0):
    result = bsgen_run(*arguments, "--json")
    assert result.exit_code == code, result.output
    return json.loads(result.stdout)


def test_help_lists_commands_in_order_without_importing_them():
    script = (
        "import sys\nfrom bsgen.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "assert not [name for name in sys.modules if name.startswith(('bsgen.cli.', 'rich', 'cuda'))]\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    shown = [
        line.split()[0]
        for line in done.stdout.split("Commands:\n")[1].split("\n\n")[0].splitlines()
        if line[:3].strip()
    ]
    assert shown == [name for name in cli.COMMANDS if name in shown]
    assert {"doctor", "cache", "inspect"} <= set(shown)


def test_every_listed_command_can_be_loaded():
    with click.Context(main) as context:
        for name in main.list_commands(context):
            assert main.get_command(context, name).name == name


def test_version():
    assert bsgen_run("--version").stdout.split() == ["bsgen,", "version", bsgen.__version__]


def test_unknown_commands_and_options_are_usage_errors():
    assert bsgen_run("nonsense").exit_code == 2
    assert bsgen_run("cache", "show", "--nonsense").exit_code == 2
    assert bsgen_run("inspect", "no-such-file.cu").exit_code == 2


@pytest.mark.parametrize(
    ("raised", "shown"),
    [
        (LayoutError("layout: got 3, expected 0 or 1"), "error: layout: got 3, expected 0 or 1\n"),
        (KeyboardInterrupt(), "error: interrupted\n"),
    ],
)
def test_errors_are_one_line_and_exit_code_1(monkeypatch, raised, shown):
    def fail():
        raise raised

    monkeypatch.setattr("bsgen.cli.doctor.examine", fail)
    result = bsgen_run("doctor")
    assert (result.exit_code, result.stdout, result.stderr.lstrip("\n")) == (1, "", shown)


def test_a_closed_pipe_is_no_traceback():
    command = [sys.executable, "-c", "from bsgen.cli import main; main()", "--help"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        errors = process.stderr.read()
    assert process.returncode == 1
    assert errors == ""


def test_doctor_tells_what_works(place):
    facts = facts_of("doctor")
    assert facts["healthy"]
    assert facts["nvrtc"] == nvrtc.version()
    assert facts["cache"] == {"path": str(place), "enabled": True, "writable": True, "entries": 0, "bytes": 0}
    works = {verdict["what"]: verdict["works"] for verdict in facts["verdicts"]}
    assert works["compile kernels"]
    assert works["run on the CPU"]
    assert works["keep binaries on disk"]
    text = bsgen_run("doctor").stdout
    for shown in ("numpy", "What works", nvrtc.version(), str(place)):
        assert shown in text


def test_doctor_without_a_compiler_is_not_healthy(monkeypatch):
    def absent(*_):
        raise CompileError("NVRTC 13 is not installed; install it with: pip install nvidia-cuda-nvrtc")

    monkeypatch.setattr(nvrtc, "compile", absent)
    monkeypatch.setattr(nvrtc, "version", absent)
    facts = facts_of("doctor", code=1)
    assert facts["nvrtc"] is None
    assert "pip install" in facts["verdicts"][0]["why"]


def test_doctor_names_architectures_that_an_old_compiler_lacks(monkeypatch):
    monkeypatch.setattr(nvrtc, "supported", lambda: (80, 86, 89, 90))
    verdict = facts_of("doctor")["verdicts"][0]
    assert verdict["works"]
    assert "not for sm_100a, sm_103a, sm_120a" in verdict["why"]


class _Driver:
    """A driver with one GPU that bsgen knows and one that it does not."""

    class Known:
        ordinal, name, arch, memory, sms = 0, "NVIDIA H200", "sm_90a", 150 << 30, 132

    class Unknown:
        ordinal, name, memory, sms = 1, "Old", 8 << 30, 20

        @property
        def arch(self):
            raise bsgen.DriverError("device 1 (Old): not one that bsgen compiles for")

    def driver_version(self):
        return 13000

    def why_unavailable(self):
        return None

    def devices(self):
        return (self.Known(), self.Unknown())


def test_doctor_shows_gpus(monkeypatch):
    real = diagnosis.import_module
    monkeypatch.setattr(diagnosis, "import_module", lambda name: _Driver() if name.endswith("driver") else real(name))
    facts = facts_of("doctor")
    assert facts["driver"]["version"] == "13.0"
    assert [gpu["arch"] for gpu in facts["driver"]["gpus"]] == ["sm_90a", None]
    assert facts["verdicts"][2]["works"]
    assert "132 SMs, 150.0 GiB" in bsgen_run("doctor").stdout


def test_doctor_survives_a_driver_that_fails(monkeypatch):
    def broken(name):
        raise OSError("libcuda.so.1: invalid ELF header")

    monkeypatch.setattr(diagnosis, "import_module", broken)
    assert "invalid ELF header" in diagnosis._driver().problem


def test_doctor_says_why_nothing_is_cached(monkeypatch, place):
    place.parent.mkdir(exist_ok=True)
    place.touch()
    assert "cannot be written; set BSGEN_CACHE_DIR" in facts_of("doctor")["verdicts"][3]["why"]
    monkeypatch.setenv("BSGEN_DISABLE_CACHE", "1")
    assert "BSGEN_DISABLE_CACHE is set" in facts_of("doctor")["verdicts"][3]["why"]


def test_cache_show_verify_clear(place):
    cache = store.Store(place)
    assert facts_of("cache", "show") == {"path": str(place), "enabled": True, "entries": 0, "bytes": 0}
    cache.put(KEY, Binary("n", "sm_90a", "c", b"\x7fELF", (), ""))
    assert facts_of("cache", "show")["entries"] == 1
    assert "1 entry" in bsgen_run("cache", "show").stdout
    assert facts_of("cache", "verify") == {"path": str(place), "good": 1, "bad": []}
    cache.path("b" * 64).write_bytes(b"rubbish")
    assert facts_of("cache", "verify", code=1)["bad"] == [str(cache.path("b" * 64))]
    assert "1 broken" in bsgen_run("cache", "verify").stdout
    assert facts_of("cache", "clear")["removed"] == 2
    assert facts_of("cache", "show")["bytes"] == 0


def test_cache_prune(place):
    cache = store.Store(place)
    for name in "ab":
        cache.put(name * 64, Binary("n", "sm_90a", "c", b"\x7fELF", (), ""))
    size = cache.size() // 2
    assert facts_of("cache", "prune", "--size", "1G")["removed"] == 0
    assert facts_of("cache", "prune", "--size", str(size)) == {
        "path": str(place), "removed": 1, "bytes": size, "left": size,
    }  # fmt: skip
    assert "removed 1 entry" in bsgen_run("cache", "prune").stdout
    result = bsgen_run("cache", "prune", "--size", "much")
    assert (result.exit_code, result.stderr) == (
        1,
        "error: --size: got 'much', expected a size such as 500M or 4G, or 0 for no limit\n",
    )


def test_doctor_says_that_others_may_write_to_the_cache(place):
    place.mkdir()
    place.chmod(0o777)
    facts = facts_of("doctor")
    (verdict,) = [each for each in facts["verdicts"] if "binaries" in each["what"]]
    assert not verdict["works"]
    assert "others may write to it (mode 777)" in verdict["why"]


def test_doctor_shows_packs_and_settings(monkeypatch, tmp_path):
    sample = Path(__file__).parent / "data" / "format1.bsp"
    monkeypatch.setenv("BSGEN_PACK_PATH", f"{sample}:{tmp_path / 'none.bsp'}")
    monkeypatch.setenv("BSGEN_LOG", "warning")
    facts = facts_of("doctor")
    assert facts["settings"]["BSGEN_LOG"] == "warning"
    assert facts["packs"][0]["kernels"] > 0
    assert "sm_90a" in facts["packs"][0]["arches"]
    assert "none.bsp: cannot be read" in facts["packs"][1]["problem"]
    verdict = facts["verdicts"][-1]
    assert not verdict["works"]
    assert "cannot be read (No such file or directory); give the path of a readable pack" in verdict["why"]
    assert "kernels in 1 packs" in verdict["why"]
    assert "format1.bsp" in bsgen_run("doctor").stdout


def test_cache_without_a_place_is_an_error(monkeypatch):
    monkeypatch.setattr(cache_place, "roots", tuple)
    result = bsgen_run("cache", "show")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: the cache has no place")


@pytest.fixture
def artefact(tmp_path, binary):
    source = tmp_path / "scale.cu"
    source.write_text(SOURCE.text)
    source.with_suffix(".cubin").write_bytes(binary.cubin)
    facts = {"arch": "sm_90a", "plan": {"tile": [64, 64]}, "kernels": [{"name": "scale", "registers": 12}]}
    source.with_suffix(".json").write_text(json.dumps(facts))
    return source


@pytest.mark.skipif(disasm.find() is None, reason="nvdisasm is not installed")
@pytest.mark.parametrize("suffix", [".cu", ".cubin", ".json"])
def test_inspect_shows_all_three_files_from_any(artefact, suffix):
    found = facts_of("inspect", str(artefact.with_suffix(suffix)))
    assert found["header"] == ["scale: y = 2 x, for a test", "[plan] one thread an element"]
    assert found["facts"]["kernels"] == [{"name": "scale", "registers": 12}]
    (kernel,) = found["sass"]["kernels"]
    assert kernel["name"] == "scale"
    assert dict(kernel["families"])["BAR"] == 1
    text = bsgen_run("inspect", str(artefact)).stdout
    for shown in ("[plan] one thread", "registers", "12", "Machine code", "1 BAR"):
        assert shown in text


def test_inspect_shows_what_there_is(artefact, monkeypatch):
    monkeypatch.setattr(disasm, "find", lambda: None)
    artefact.with_suffix(".json").unlink()
    result = bsgen_run("inspect", str(artefact))
    assert result.exit_code == 0
    assert "pip install nvidia-cuda-nvdisasm" in result.stdout
    artefact.with_suffix(".cubin").unlink()
    found = facts_of("inspect", str(artefact))
    assert found["facts"] is None
    assert found["sass"] is None
    assert found["sass_missing"] == f"there is no {artefact.with_suffix('.cubin').name}"


def test_inspect_shows_the_whole_source_when_asked(artefact):
    assert facts_of("inspect", str(artefact), "--source")["source"] == SOURCE.text
    assert "source" not in facts_of("inspect", str(artefact))
    assert "__syncthreads();" in bsgen_run("inspect", str(artefact), "--source").stdout


def test_inspect_shows_entries_of_the_cache(place, monkeypatch):
    """A binary with the source that it came from, from either of the two; without the other, what there is."""
    mm = bsgen.compile([[1, 0], [1, 1]], 32, "float16", "fprop", "sm_90a")
    (binary,) = (place / "binaries").glob("*.bin")
    (request,) = (place / "binaries").glob("*.json")
    for entry in (binary, request):
        found = facts_of("inspect", str(entry), "--source")
        assert found["source"] == mm.source("fprop")
        assert found["facts"]["plan"]["summary"] == mm.operation("fprop").outline.summary
        (held,) = found["occupancy"].values()
        assert held["blocks"] >= 1
        assert "Occupancy" in bsgen_run("inspect", str(entry)).stdout
    request.rename(place / "request.json")
    found = facts_of("inspect", str(binary))
    assert found["header"] is None
    assert found["facts"]["kernels"][0]["registers"] > 0
    binary.unlink()
    assert facts_of("inspect", str(place / "request.json"))["sass_missing"] == "its binary is no longer in the cache"
    binary.write_bytes(b"rubbish")
    assert "not a good entry of the cache" in bsgen_run("inspect", str(binary)).stderr


def test_occupancy():
    """By hand, of the CUDA programming guide's limits."""
    assert str(residency("sm_90a", 384, 168, 225 << 10)) == (
        "1 thread block an SM, 12 of 64 warps (19%); the limit is registers and shared memory"
    )
    assert residency("sm_80", 128, 64, 0) == Residency(8, 32, 64, "registers")
    assert residency("sm_86", 64, 16, 1 << 10) == Residency(16, 32, 48, "thread blocks")
    assert residency("sm_89", 1024, 32, 0) == Residency(1, 32, 48, "warps")
    assert residency("sm_999", 128, 64, 0) is None


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.txt", b"text", "expected a file that ends in .cu, .cubin, .json"),
        ("x.bsp", b"bsgenpak", "is a pack of many kernels: show them with `bsgen pack inspect"),
        ("x.bin", b"text", "not a good entry of the cache"),
        (
            "x.json",
            hashlib.sha256(b'{"source": 3}').hexdigest().encode() + b'\n{"source": 3}',
            "not what bsgen writes",
        ),
        ("x.json", b"{", "not JSON"),
        ("x.json", b"\xff\xfe", "not JSON"),
        ("x.cubin", b"text", "not a cubin"),
    ],
)
def test_inspect_refuses_what_it_cannot_read(tmp_path, name, content, message):
    file = tmp_path / name
    file.write_bytes(content)
    result = bsgen_run("inspect", str(file))
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.skipif(disasm.find() is None, reason="nvdisasm is not installed")
def test_disasm_counts_instructions(binary):
    found = disasm.summary(binary.cubin)
    (kernel,) = found.kernels
    assert found.tool.startswith("nvdisasm")
    assert kernel.instructions == sum(count for _, count in kernel.families)
    assert kernel.count("BAR") == 1
    assert kernel.count("STS") == 1
    assert kernel.count("NOP") == 0
    with pytest.raises(bsgen.ArgumentError, match="nvdisasm cannot read it"):
        disasm.summary(binary.cubin[:200])


def test_disasm_without_the_tool_says_how_to_get_it(monkeypatch, binary):
    monkeypatch.setattr(disasm, "find", lambda: None)
    assert disasm.summary(binary.cubin) is None
    assert disasm.why_unavailable() == "nvdisasm is not installed; get it with: pip install nvidia-cuda-nvdisasm"


def test_a_command_that_there_is_not():
    result = bsgen_run("cmpile")
    assert result.exit_code == 2
    assert "compile" in result.stderr.partition("mean")[2]
    assert "mean" not in bsgen_run("xyzzy").stderr
