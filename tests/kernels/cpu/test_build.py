"""Compiled kernels are made where a compiler is, chosen by the processor, and say why they are not there."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lathe.errors import UserError
from lathe.kernels.cpu import build, library


def has_compiler() -> bool:
    try:
        build.find_compiler()
    except build.BuildFailed:
        return False
    return True


needs_compiler = pytest.mark.skipif(not has_compiler(), reason="no C++ compiler here")

SOURCES = {
    "kernels.cpp": """
        #define QUOTE(name) #name
        #define NAME(name) QUOTE(name)
        namespace LATHE_ISA { const char* name() { return NAME(LATHE_ISA); } }
    """,
    "dispatch.cpp": """
        #include <cstring>
        #define DECLARE(isa) namespace isa { const char* name(); }
        LATHE_EACH_ISA(DECLARE)
        #define API extern "C" __attribute__((visibility("default")))
        static const char* chosen = "";
        API int lathe_abi_version(void) { return VERSION; }
        API const char* lathe_isa(void) { return chosen; }
        API void lathe_run(void) {}
        API float lathe_normalizer(void) { return 0; }
        API void lathe_draw(void) {}
        API void lathe_pack(void) {}
        API int lathe_init(const char* isa, int num_threads) {
            if (num_threads < 1) return -1;
        #define CHOOSE(each) if (!isa || !std::strcmp(isa, #each)) chosen = each::name();
            LATHE_EACH_ISA(CHOOSE)
            return *chosen ? 0 : -1;
        }
    """,
}


def write_sources(folder: Path, version: int = library.ABI_VERSION) -> Path:
    folder.mkdir()
    for name, text in SOURCES.items():
        (folder / name).write_text(text.replace("VERSION", str(version)))
    return folder


@needs_compiler
def test_a_library_is_compiled_once_and_again_when_a_source_is_newer(tmp_path):
    sources, made = write_sources(tmp_path / "native"), tmp_path / "made" / "lib.so"
    assert build.build(made, sources).compiled
    assert not build.build(made, sources).compiled
    later = made.stat().st_mtime_ns + 1_000_000_000
    os.utime(sources / "kernels.cpp", ns=(later, later))
    assert build.build(made, sources).compiled
    assert sorted(each.name for each in made.parent.iterdir()) == ["lib.so"]


@needs_compiler
def test_each_instruction_set_has_its_kernels(tmp_path):
    made = build.build(tmp_path / "lib.so", write_sources(tmp_path / "native")).path
    sets = build.find_compiler().instruction_sets
    assert list(sets)[-1] == "plain"
    for name in sets:
        assert library.open_library(made, name, 1).isa == name


@needs_compiler
def test_what_a_compiler_refuses_is_shown_with_the_command(tmp_path):
    sources, made = write_sources(tmp_path / "native"), tmp_path / "lib.so"
    build.build(made, sources)
    before = made.read_bytes()
    (sources / "kernels.cpp").write_text("this is no C++\n")
    with pytest.raises(build.BuildFailed, match=r"-DLATHE_ISA=.*kernels\.cpp(.|\n)*error"):
        build.build(made, sources, force=True)
    assert made.read_bytes() == before


def test_without_a_compiler_it_says_which_were_looked_for(tmp_path):
    nowhere = {"PATH": str(tmp_path)}
    with pytest.raises(build.BuildFailed, match=r"no C\+\+ compiler \(c\+\+, g\+\+, clang\+\+\) is in PATH"):
        build.find_compiler(nowhere)
    with pytest.raises(build.BuildFailed, match="CXX names a compiler that is not there: nonesuch"):
        build.find_compiler({**nowhere, "CXX": "nonesuch -m64"})


def test_a_compiler_that_does_not_work_is_passed_over_or_named(tmp_path):
    broken = tmp_path / "c++"
    broken.write_text("#!/bin/sh\necho out of licences >&2\nexit 1\n")
    broken.chmod(0o755)
    with pytest.raises(build.BuildFailed, match=r"c\+\+ does not work: out of licences"):
        build.find_compiler({"PATH": str(tmp_path)})


def test_a_library_that_is_not_there_says_what_to_do(tmp_path):
    with pytest.raises(library.NoLibrary, match=r"is not there.*run `lathe kernels build`"):
        library.open_library(tmp_path / "lib.so")


def test_a_file_that_is_no_library_is_refused(tmp_path):
    (tmp_path / "lib.so").write_text("damaged")
    with pytest.raises(library.NoLibrary, match="can't be loaded"):
        library.open_library(tmp_path / "lib.so")


@needs_compiler
def test_a_library_of_other_sources_is_refused(tmp_path):
    made = build.build(tmp_path / "lib.so", write_sources(tmp_path / "native", version=-7)).path
    with pytest.raises(library.NoLibrary, match="version -7, not"):
        library.open_library(made)


@needs_compiler
def test_this_tree_has_its_library():
    loaded = library.load()
    assert loaded is not None, library.why_not()
    assert library.why_not() is None
    assert loaded.path == Path(os.environ.get("LATHE_CPU_LIBRARY") or build.LIBRARY)
    assert loaded.isa in (
        os.environ.get("LATHE_CPU_ISA") or loaded.isa,
        *build.find_compiler().instruction_sets,
    )


@needs_compiler
def test_the_environment_chooses_the_instruction_set():
    done = in_new_process(
        "from lathe.kernels.cpu import library; print(library.load().isa)", LATHE_CPU_ISA="plain"
    )
    assert done.stdout == "plain\n", done.stderr


@needs_compiler
def test_an_instruction_set_that_can_not_be_had_is_an_error_not_a_slow_run(tmp_path):
    made = build.build(tmp_path / "lib.so", write_sources(tmp_path / "native")).path
    with pytest.raises(UserError, match="LATHE_CPU_ISA=nonesuch"):
        library.open_library(made, "nonesuch")


@needs_compiler
@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads ELF objects with nm")
def test_no_function_is_shared_between_instruction_sets(tmp_path):
    """Else a machine without AVX2 may get the copy that was compiled for it."""
    objects = build.compile_objects(build.find_compiler(), build.SOURCES, tmp_path)
    kernels = {name: path for name, path in objects.items() if name.startswith("kernels.")}
    assert kernels
    assert [name for path in kernels.values() for name in build.shared_functions(path)] == []


@needs_compiler
@pytest.mark.skipif(sys.platform != "linux", reason="reads ELF objects with nm")
def test_a_shared_function_is_found(tmp_path):
    sources = write_sources(tmp_path / "native")
    (sources / "kernels.cpp").write_text(
        "struct S { __attribute__((noinline, used)) int f() { return 1; } };\n"
        'namespace LATHE_ISA { const char* name() { return S().f() ? "" : nullptr; } }\n'
    )
    objects = build.compile_objects(build.find_compiler(), sources, tmp_path)
    assert build.shared_functions(objects["kernels.plain"]) == ["S::f()"]


def test_building_imports_nothing_that_is_installed(tmp_path):
    """pip runs it in an environment that holds hatchling only."""
    done = subprocess.run(
        [sys.executable, "-I", "-S", build.__file__, "--help"], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0 and "--sanitize" in done.stdout, done.stderr


@pytest.mark.slow
def test_a_model_without_compiled_kernels_says_so_once():
    program = "from lathe import LLM; LLM('smollm2').close()"
    done = in_new_process(program, LATHE_CPU_LIBRARY="/nonexistent/lib.so")
    assert done.returncode == 0 and done.stderr.count("no compiled kernels") == 1, done.stderr
    assert "run `lathe kernels build`" in done.stderr


def in_new_process(program: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program], env=os.environ | environ, capture_output=True, text=True, timeout=110
    )
