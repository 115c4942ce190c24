"""Source -> Binary with NVRTC: no driver and no GPU, facts from ptxas, errors that show the lines they mean."""

import subprocess
import sys
from pathlib import Path

import pytest

from bsgen import elf, libnvrtc, nvrtc, nvrtc_log
from bsgen.emit import Source
from bsgen.errors import CompileError
from bsgen.problem import TARGETS

TRIVIAL = Source("trivial", 'extern "C" __global__ void fill(int* x, int n) { x[threadIdx.x] = n; }\n', ("fill",))

BUSY = Source(
    "busy",
    """__constant__ int table[1000] = {1};
__device__ __noinline__ int helper(int a) {
  int local[10];
  for (int i = 0; i < 10; ++i) local[i] = a * i;
  return local[a & 7];
}
extern "C" __global__ void second(float* x) { *x = 1; }
extern "C" __global__ void __launch_bounds__(128) first(float* x, int n) {
  __shared__ float tile[256];
  tile[threadIdx.x] = x[n];
  __syncthreads();
  x[n] = tile[n] + helper(n) + table[n];
}
""",
    ("first", "second"),
)

SPILLING = Source(
    "spilling",
    """extern "C" __global__ void spill(float* x, int n) {
  float a[96];
  for (int i = 0; i < 96; ++i) a[i] = x[i * 32];
  for (int j = 0; j < n; ++j)
    for (int i = 0; i < 96; ++i) a[i] = a[i] * a[(i * 7) % 96] + 1.f;
  for (int i = 0; i < 96; ++i) x[i] = a[i];
}
""",
    ("spill",),
    ("--maxrregcount=32",),
)

# As ptxas wrote for an sm_80 kernel that calls a function, and for one whose wgmma it serialised.
LOG = """\
ptxas info    : 20 bytes gmem, 4000 bytes cmem[3], 8 bytes cmem[4]
ptxas info    : Compiling entry function 'foo' for 'sm_80'
ptxas info    : Function properties for foo
ptxas         .     72 bytes stack frame, 12 bytes spill stores, 16 bytes spill loads
ptxas info    : Used 20 registers, used 2 barriers, 72 bytes cumulative stack size, 1024 bytes smem, 364 bytes cmem[0]
ptxas info    : Compile time = 13.955 ms
ptxas info    : Function properties for _Z6helperi
ptxas         .     40 bytes stack frame, 4 bytes spill stores, 4 bytes spill loads
ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized due to x in 'foo'
"""


@pytest.mark.parametrize("arch", TARGETS)
def test_every_target_compiles_without_a_driver(arch):
    binary = nvrtc.compile(TRIVIAL, arch)
    assert binary.cubin.startswith(b"\x7fELF")
    assert (binary.name, binary.arch, binary.compiler) == ("trivial", arch, nvrtc.version())
    assert [kernel.name for kernel in binary.kernels] == ["fill"]
    assert binary.kernels[0].registers > 0
    assert binary.kernels[0].spill_stores == binary.kernels[0].spill_loads == 0


def test_the_same_source_gives_the_same_binary():
    assert nvrtc.compile(BUSY, "sm_90a") == nvrtc.compile(BUSY, "sm_90a")


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
def test_facts_of_each_entry_in_the_order_asked(arch):
    first, second = nvrtc.compile(BUSY, arch).kernels
    assert (first.name, second.name) == ("first", "second")
    assert first.static_shared >= 1024
    assert first.barriers == 1
    assert first.stack > 0
    assert first.constant >= 4000
    assert (second.static_shared, second.barriers, second.stack) == (0, 0, 0)


def test_options_of_the_source_are_used_and_spills_are_seen():
    binary = nvrtc.compile(SPILLING, "sm_80")
    facts = binary.kernel("spill")
    assert facts.registers <= 32
    assert facts.spill_stores > 0
    assert facts.spill_loads > 0


def test_log_is_parsed_by_function():
    (facts,) = nvrtc_log.kernel_facts(LOG, constant=4000).values()
    assert facts == nvrtc_log.KernelFacts("foo", 20, 12, 16, 72, 1024, 2, 4000)


def test_log_keeps_warnings_and_drops_times():
    log = nvrtc_log.tidy(LOG + "\0")
    assert "Compile time" not in log
    assert [line[:22] for line in nvrtc_log.warnings(log)] == ["ptxas info    : (C7510"]


def test_a_compile_error_shows_numbered_lines():
    text = (
        '// one\n// two\nextern "C" __global__ void f(int* x) {\n  *x = missing;\n}\n'
        + "//\n" * 20
        + "int g = nothing;\n"
    )
    with pytest.raises(CompileError) as caught:
        nvrtc.compile(Source("broken", text, ("f",)), "sm_90")
    message = str(caught.value)
    assert message.startswith("broken.cu does not compile for sm_90 (nvrtc ")
    assert 'broken.cu(4): error: identifier "missing" is undefined' in message
    assert ">  4 |   *x = missing;" in message
    assert '   3 | extern "C" __global__ void f(int* x) {' in message
    assert "> 26 | int g = nothing;" in message
    assert "  ...\n" in message
    assert "  15 |" not in message


def test_an_assembler_error_shows_the_ptx():
    text = 'extern "C" __global__ void f() {\n  asm volatile("foo.bar 1;");\n}\n'
    with pytest.raises(
        CompileError, match=r"(?s)Not a name of any known instruction: 'foo'.*PTX:.*> +\d+ \|\s+foo\.bar 1;"
    ):
        nvrtc.compile(Source("broken", text, ("f",)), "sm_90")


def test_an_unknown_architecture_names_the_known_and_the_remedy():
    with pytest.raises(CompileError, match=r"does not know sm_999, it compiles for .*sm_90.*pip install --upgrade"):
        nvrtc.compile(TRIVIAL, "sm_999")


def test_an_unknown_option_is_shown():
    with pytest.raises(CompileError, match=r"refuses an option .*--nonsense"):
        nvrtc.compile(Source("x", TRIVIAL.text, ("fill",), ("--nonsense",)), "sm_90")


def test_a_missing_entry_is_an_error():
    with pytest.raises(CompileError, match=r"has no kernel other; .*found: fill"):
        nvrtc.compile(Source("x", TRIVIAL.text, ("other",)), "sm_90")


def test_version_is_exact_and_loads_nothing():
    script = (
        "import sys\nfrom bsgen import nvrtc\nprint(nvrtc.version())\n"
        "assert not any(name.startswith('cuda') for name in sys.modules), 'CUDA bindings imported'\n"
        "assert 'libnvrtc' not in open('/proc/self/maps').read(), 'NVRTC loaded'\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    # What is predicted without the library is what the loaded library says.
    assert done.stdout.strip() == libnvrtc.identity(libnvrtc.load())
    assert libnvrtc.path() == libnvrtc.load()


def test_identity_changes_with_the_library(tmp_path):
    library = tmp_path / "libnvrtc.so.13.1.2"
    library.write_bytes(b"one build")
    first = libnvrtc.identity(library)
    library.write_bytes(b"another")
    assert first.startswith("nvrtc 13.1.2 (")
    assert libnvrtc.identity(library) != first


def test_identity_is_the_build_id_where_there_is_one():
    library = libnvrtc.path()
    build = elf.build_id(library)
    assert build is not None
    assert build[:16] in libnvrtc.identity(library)


@pytest.mark.parametrize(
    ("library", "beside", "release"),
    [
        ("cuda/lib64/libnvrtc.so.13.0.48", None, "13.0.48"),
        ("cuda/lib64/libnvrtc.so.13", "cuda/lib64/libnvrtc-builtins.so.13.0", "13.0"),
        ("cuda/lib64/libnvrtc.so.13", None, "13"),
        ("site/nvidia/cu13/lib/libnvrtc.so.13", "site/nvidia_cuda_nvrtc-13.2.7.dist-info", "13.2.7"),
        ("site/nvidia/cuda_nvrtc/lib/libnvrtc.so.12", "site/nvidia_cuda_nvrtc_cu12-12.9.86.dist-info", "12.9.86"),
        ("site/nvidia/cuda_nvrtc/lib/libnvrtc.so.12", "site/nvidia_cuda_nvrtc-13.2.7.dist-info", "12"),
    ],
)
def test_release_is_told_by_the_files(tmp_path, library, beside, release):
    for name in filter(None, (library, beside)):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    assert libnvrtc.release(tmp_path / library) == release


def test_without_nvrtc_the_remedy_is_named(monkeypatch):
    import cuda.pathfinder

    def absent(name):
        raise cuda.pathfinder.DynamicLibNotFoundError(f"Failure finding {name}")

    monkeypatch.setattr(libnvrtc, "_loaded", lambda: None)
    monkeypatch.setattr(libnvrtc, "_installed", lambda: iter(()))
    monkeypatch.setattr(cuda.pathfinder, "load_nvidia_dynamic_lib", absent)
    for action in (nvrtc.version, lambda: nvrtc.compile(TRIVIAL, "sm_90")):
        with pytest.raises(CompileError, match=r'not installed .*pip install "nvidia-cuda-nvrtc>=13,<14"'):
            action()


def test_a_file_that_is_no_library_has_no_build_id(tmp_path):
    for content in (b"", b"text", b"\x7fELF\x02\x01" + b"\xff" * 100):
        file = Path(tmp_path, "file")
        file.write_bytes(content)
        assert elf.build_id(file) is None
        assert elf.section_sizes(content) == {}
