"""Attempts to escape from the sandbox. Each does what it would do outside, where it works, and must fail inside."""

from __future__ import annotations

import os
import platform
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterable
from pathlib import Path

import pytest

from kvattn.errors import KvattnError
from kvattn.questions.sandbox import sandbox
from kvattn.questions.sandbox.jail import kernel, seccomp
from kvattn.questions.sandbox.program import passes
from kvattn.questions.sandbox.sandbox import REQUIRED, Isolation, Jailed, Limits, Outcome, watch

QUICK = Limits(wall_s=10, cpu_s=5, memory_bytes=256 << 20)


def jailed(source: str, limits: Limits = QUICK, require: Iterable[Isolation] = REQUIRED) -> Outcome:
    """A Python source run as a program in the sandbox, with the standard library alone."""
    with Jailed({"role": "source", "source": textwrap.dedent(source)}, limits, require) as process:
        watch([process], limits.wall_s, lambda: process.exited)
        return process.outcome()


@pytest.fixture(scope="module", autouse=True)
def _isolation() -> None:
    """Skips where this machine's kernel cannot do it, which `run` refuses in words (tested below)."""
    try:
        jailed("pass")
    except KvattnError as e:
        pytest.skip(str(e))


KILL = {"x86_64": 62, "aarch64": 129}  # the number of the system call


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder beside the scratch folders, in which anybody may write."""
    tmp_path.chmod(0o777)
    return tmp_path


def processes(mark: str) -> list[int]:
    """Process ids whose command line, name or environment holds a text."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and any(mark.encode() in (entry / x).read_bytes() for x in ("cmdline", "environ")):
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def in_scratch() -> set[str]:
    return {x.name for x in Path(tempfile.gettempdir()).glob("kvattn-sandbox-*")}


def test_nothing_runs_unless_allowed(outside: Path) -> None:
    flag = outside / "ran"
    with pytest.raises(KvattnError, match="--allow-code-execution") as e:
        passes(f"open({str(flag)!r}, 'w')", "def check(f):\n    f()\n\ncheck(f)")
    assert "\n" not in str(e.value)
    assert not flag.exists()


def test_a_program_runs_with_an_empty_environment_and_a_scratch_folder_of_its_own() -> None:
    os.environ["KVATTN_SECRET"] = "sesame"
    before = in_scratch()
    try:
        done = jailed("""
            import json, os, sys
            open("note", "w").write("x" * 1000)
            print(json.dumps([dict(os.environ), os.getcwd(), os.listdir("."), sys.stdin.read(), sys.flags.isolated]))
            sys.exit(7)
        """)
    finally:
        del os.environ["KVATTN_SECRET"]
    assert (done.ended, done.code, done.ok) == ("exited", 7, False)
    import json

    environment, folder, files, stdin, isolated = json.loads(done.stdout)
    assert set(environment) <= {"HOME", "TMPDIR", "LC_CTYPE"}
    assert environment["HOME"] == folder
    assert (files, stdin, isolated) == (["note"], "", 1)
    assert in_scratch() == before
    assert not Path(folder).exists()


def test_an_error_shows_on_stderr() -> None:
    done = jailed("print('so far'); 1/0")
    assert (done.code, done.stdout) == (1, "so far\n")
    assert done.stderr.rstrip().endswith("ZeroDivisionError: division by zero")


def test_neither_third_party_packages_nor_kvattn_can_be_imported() -> None:
    for name in ("numpy", "kvattn", "seccomp", "roles"):
        assert "ModuleNotFoundError" in jailed(f"import {name}").stderr, name


# -- processes -------------------------------------------------------------------------------------------------------


def test_fork_bomb() -> None:
    done = jailed("""
        import os
        made = 0
        for how in (os.fork, lambda: os.posix_spawn("/bin/true", ["true"], {}), lambda: os.execv("/bin/true", ["t"])):
            try:
                how()
                made += 1
                while True: os.fork()
            except OSError as e:
                print(type(e).__name__)
        print(made, os.getpid())
    """)
    lines = done.stdout.split("\n")
    assert lines[:3] == ["PermissionError"] * 3
    assert lines[3].split()[0] == "0"


def test_subprocess_and_multiprocessing() -> None:
    assert "PermissionError" in jailed("import subprocess; subprocess.run(['/bin/sh', '-c', 'true'])").stderr
    code = "import multiprocessing as m; p = m.get_context('fork').Process(target=print); p.start(); print('up')"
    done = jailed(code)
    assert not done.ok
    assert "up" not in done.stdout


def test_raw_system_calls_are_refused_too() -> None:
    """Not the C library's wrappers but the calls themselves: fork, vfork, clone, clone3, by number."""
    numbers = {"x86_64": (57, 58, 56, 435), "aarch64": (220, 435)}.get(platform.machine())
    if numbers is None:
        pytest.skip(f"no system call numbers for {platform.machine()}")
    done = jailed(f"""
        import ctypes, os
        libc, me = ctypes.CDLL(None, use_errno=True), os.getpid()
        for n in {numbers}:
            if n == 58: continue  # vfork cannot be called this way
            r = libc.syscall(n, 17, 0, 0, 0, 0)  # SIGCHLD
            if os.getpid() != me or r > 0: print("forked", n); os._exit(0)
            print(n, r, ctypes.get_errno())
        print("end")
    """)
    assert "forked" not in done.stdout
    assert done.stdout.rstrip().endswith("end")


def test_threads_are_bounded_by_memory_and_end_with_the_process() -> None:
    began = time.monotonic()
    done = jailed("""
        import threading, time
        n = 0
        try:
            while n < 100000:
                threading.Thread(target=time.sleep, args=(3600,), daemon=False).start(); n += 1
        except RuntimeError as e:
            print(n, e)
    """)
    assert int(done.stdout.split()[0]) < 1000
    assert time.monotonic() - began < 60


def test_a_daemon_cannot_outlive() -> None:
    mark = "kvattn-sandbox-"
    before = set(processes(mark))
    done = jailed("""
        import os, time
        try:
            if os.fork(): os._exit(0)
            os.setsid()
            if os.fork(): os._exit(0)
            time.sleep(3600)
        except PermissionError:
            print("no child")
    """)
    assert done.stdout == "no child\n"
    assert set(processes(mark)) <= before


def test_whoever_is_left_in_the_group_is_killed() -> None:
    """The kill itself, without the filter's help: a child of a process that has ended, in its session."""
    child = "import subprocess,sys; subprocess.Popen([sys.executable,'-c','import time; time.sleep(3600) # left-over'])"
    jail = Jailed({"role": "source", "source": "pass"}, QUICK, ())
    with jail:
        watch([jail], 30, lambda: jail.exited and not jail.open)  # else its pipes are closed with it, and still watched
        jail.kill()
        jail.process = subprocess.Popen([sys.executable, "-c", child], start_new_session=True, stdout=subprocess.PIPE)
        jail.exited = False
        watch([jail], 30, lambda: jail.exited)
        assert processes("left-over")
    deadline = time.monotonic() + 10
    while processes("left-over") and time.monotonic() < deadline:  # a killed process stays a moment
        time.sleep(0.05)
    assert not processes("left-over")


# -- signals ---------------------------------------------------------------------------------------------------------


def test_signals_to_the_parent() -> None:
    received: list[int] = []
    old = signal.signal(signal.SIGUSR1, lambda number, frame: received.append(number))
    try:
        os.kill(os.getpid(), signal.SIGUSR1)
        assert received == [signal.SIGUSR1]  # the handler works
        done = jailed(f"""
            import ctypes, fcntl, os, resource, signal
            victim = {os.getpid()}
            def asynchronous():
                r, w = os.pipe()
                fcntl.fcntl(r, fcntl.F_SETOWN, victim)
                fcntl.fcntl(r, 10, signal.SIGUSR1)  # F_SETSIG
                fcntl.fcntl(r, fcntl.F_SETFL, os.O_ASYNC)
                os.write(w, b"x")
            def raw():
                number = {KILL.get(platform.machine(), -1)}
                if ctypes.CDLL(None).syscall(number, victim, int(signal.SIGUSR1)): raise OSError
            ways = [
                lambda: os.kill(victim, signal.SIGUSR1),
                lambda: os.kill(os.getppid(), signal.SIGUSR1),
                lambda: os.killpg(os.getpgid(victim), signal.SIGUSR1),
                lambda: os.kill(-1, signal.SIGUSR1),
                lambda: signal.pidfd_send_signal(os.pidfd_open(victim), signal.SIGUSR1),
                asynchronous, raw,
                lambda: resource.prlimit(victim, resource.RLIMIT_CPU, (1, 1)),
                lambda: os.setpriority(os.PRIO_PROCESS, victim, 19),
                lambda: os.sched_setaffinity(victim, [0]),
            ]
            for way in ways:
                try: way(); print("done")
                except OSError: print("refused")
        """)
    finally:
        signal.signal(signal.SIGUSR1, old)
    assert done.stdout.split() == ["refused"] * 10
    assert received == [signal.SIGUSR1]
    import resource

    assert resource.getrlimit(resource.RLIMIT_CPU)[0] != 1


def test_tracing_the_parent() -> None:
    done = jailed(f"""
        import ctypes
        libc = ctypes.CDLL(None, use_errno=True)
        print(libc.ptrace(16, {os.getpid()}, 0, 0), ctypes.get_errno())  # PTRACE_ATTACH
        class Span(ctypes.Structure): _fields_ = [("at", ctypes.c_void_p), ("length", ctypes.c_size_t)]
        buffer = ctypes.create_string_buffer(8)
        here, there = Span(ctypes.addressof(buffer), 8), Span(ctypes.addressof(buffer), 8)
        got = libc.process_vm_readv({os.getpid()}, ctypes.byref(here), 1, ctypes.byref(there), 1, 0)
        print(got, ctypes.get_errno())
    """)
    assert done.stdout.split() == ["-1", "1", "-1", "1"]  # EPERM


# -- files -----------------------------------------------------------------------------------------------------------


def test_files_outside_the_scratch_folder(outside: Path) -> None:
    kept = outside / "kept"
    kept.write_text("as it was")
    kept.chmod(0o666)
    mode, at = kept.stat().st_mode, kept.stat().st_mtime_ns
    done = jailed(f"""
        import ctypes, os, shutil
        folder, kept = {str(outside)!r}, {str(kept)!r}
        os.mkdir("mine"); open("mine/file", "w").write("mine")
        os.symlink(kept, "link")
        ways = [
            lambda: open(folder + "/new", "w"),
            lambda: open(kept, "a"),
            lambda: open("link", "w"),
            lambda: open("../escaped", "w"),
            lambda: os.open(kept, os.O_RDONLY | os.O_TRUNC),
            lambda: os.truncate(kept, 0),
            lambda: os.unlink(kept),
            lambda: os.rename(kept, folder + "/renamed"),
            lambda: os.rename("mine/file", folder + "/moved"),
            lambda: os.link("mine/file", folder + "/linked"),
            lambda: os.symlink("x", folder + "/symlink"),
            lambda: os.mkdir(folder + "/folder"),
            lambda: os.mkfifo(folder + "/fifo"),
            lambda: os.chmod(kept, 0o777),
            lambda: os.chown(kept, 0, 0),
            lambda: os.utime(kept, (0, 0)),
            lambda: os.setxattr(kept, "user.x", b"1"),
            lambda: os.chroot("."),
            lambda: open("/proc/self/mem", "r+b"),
            lambda: open("/dev/shm/x", "w"),
            lambda: open("/tmp/kvattn-escaped", "w"),
        ]
        for i, way in enumerate(ways):
            try: way(); print("done", i)
            except OSError: pass
        print("end", open("mine/file").read())
    """)
    assert done.stdout == "end mine\n", done.stderr
    assert kept.read_text() == "as it was"
    assert (kept.stat().st_mode, kept.stat().st_mtime_ns) == (mode, at)
    assert [x.name for x in outside.iterdir()] == ["kept"]
    assert not Path("/tmp/kvattn-escaped").exists()
    assert not Path(tempfile.gettempdir(), "escaped").exists()


def test_mounts_and_namespaces_stay_shut() -> None:
    done = jailed("""
        import ctypes
        libc = ctypes.CDLL(None, use_errno=True)
        print(libc.unshare(0x10000000), libc.mount(b"none", b"/tmp", b"tmpfs", 0, None), libc.umount2(b".", 2))
    """)
    assert done.stdout.split() == ["-1", "-1", "-1"]


def test_a_large_file_and_a_full_scratch_folder(outside: Path) -> None:
    done = jailed("open('big', 'wb').write(b'x' * (2 << 20))")
    assert not done.ok
    many = jailed("""
        n = 0
        try:
            while True:
                open(f"f{n}", "wb").write(b"x" * 900_000); n += 1
                if n > 1000: break
        except OSError: pass
        print(n)
    """)
    if "scratch-quota" not in many.protections:
        pytest.skip("the kernel gives the scratch folder no file system of its own here")
    assert int(many.stdout) <= 18


def test_what_the_parent_holds_cannot_be_read(outside: Path) -> None:
    secret = outside / "secret"
    secret.write_text("open sesame")
    done = jailed(f"""
        import os
        for path in ("/proc/{os.getpid()}/environ", f"/proc/{{os.getppid()}}/environ", "/proc/self/cmdline", "/proc",
                     "/etc/passwd", "/etc/shadow", {str(secret)!r}, {__file__!r}, {sandbox.__file__!r},
                     "/root", "/tmp"):
            try:
                os.listdir(path) if os.path.isdir(path) else open(path, "rb").read()
                print("read", path)
            except OSError:
                print("refused")
    """)
    if "reads" not in done.isolated:
        pytest.skip("no Landlock here: what may be read is not confined, and the outcome says so")
    assert done.stdout.split() == ["refused"] * 11


@pytest.mark.parametrize("shape", ["deep", "locked", "links"])
def test_a_hostile_folder_is_removed_whole(outside: Path, shape: str) -> None:
    folder = outside / "scratch"
    folder.mkdir()
    other = outside / "other"
    other.mkdir()
    (other / "file").write_text("stays")
    if shape == "deep":
        at = os.open(folder, os.O_RDONLY)
        for _ in range(3000):  # deeper than recursion goes, and than a path is long
            os.mkdir("d", dir_fd=at)
            at, old = os.open("d", os.O_RDONLY, dir_fd=at), at
            os.close(old)
        os.close(at)
    elif shape == "locked":
        (folder / "a" / "b").mkdir(parents=True)
        (folder / "a" / "b" / "file").write_text("x")
        (folder / "a" / "b").chmod(0)
        (folder / "a").chmod(0)
    else:
        (folder / "link").symlink_to(other)
        (folder / "sub").mkdir()
        (folder / "sub" / "link").symlink_to(other / "file")
    sandbox.empty(str(folder))
    assert not folder.exists()
    assert (other / "file").read_text() == "stays"


# -- network ---------------------------------------------------------------------------------------------------------


def test_network() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port), timeout=5):  # outside, it can be reached
            server.accept()[0].close()
        server.settimeout(0.2)
        done = jailed(f"""
            import socket, urllib.request
            ways = [
                lambda: socket.create_connection(("127.0.0.1", {port}), timeout=2),
                lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", {port})),
                lambda: socket.socket(socket.AF_INET6, socket.SOCK_STREAM),
                lambda: socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b"x", "/dev/log"),
                lambda: socket.socketpair(),
                lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW),
                lambda: socket.getaddrinfo("localhost", 80) and socket.socket(),
                lambda: urllib.request.urlopen("http://127.0.0.1:{port}", timeout=2),
            ]
            for way in ways:
                try: way(); print("done")
                except OSError: print("refused")
        """)
        with pytest.raises(TimeoutError):
            server.accept()
    assert done.stdout.split() == ["refused"] * 8


# -- resources -------------------------------------------------------------------------------------------------------


def test_memory() -> None:
    done = jailed("x = bytearray(400 << 20); print(len(x))")
    assert not done.ok
    assert "MemoryError" in done.stderr
    assert jailed("x = bytearray(100 << 20); print(len(x))").ok


def test_sleeping_forever() -> None:
    done = jailed("import time; print('here', flush=True); time.sleep(3600)", Limits(wall_s=1.5))
    assert (done.ended, done.code, done.stdout) == ("timeout", None, "here\n")


def test_a_signal_handler_does_not_help_against_the_clock() -> None:
    source = """
        import signal, time
        for s in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}: signal.signal(s, signal.SIG_IGN)
        print("deaf", flush=True)
        time.sleep(3600)
    """
    done = jailed(source, Limits(wall_s=1.5))
    assert (done.ended, done.stdout) == ("timeout", "deaf\n")


def test_computing_forever() -> None:
    done = jailed("while True: pass", Limits(wall_s=60, cpu_s=1))
    assert (done.ended, done.code) == ("killed", None)


def test_closed_streams_do_not_end_the_watch() -> None:
    done = jailed("import os, time; [os.close(i) for i in range(3)]; time.sleep(1); os._exit(4)")
    assert (done.ended, done.code) == ("exited", 4)


def test_a_flood_of_output() -> None:
    limits = Limits(wall_s=2, cpu_s=60, output_bytes=5000)
    done = jailed("import sys\nwhile True: sys.stdout.write('x' * 65536); sys.stderr.write('y' * 65536)", limits)
    assert (done.ended, done.truncated) == ("timeout", True)
    assert done.stdout == "x" * 5000
    assert done.stderr == "y" * 5000
    some = jailed("print('x' * 100_000); print('end')", Limits(output_bytes=5000))
    assert (some.ok, some.truncated, len(some.stdout)) == (True, True, 5000)


def test_crashes() -> None:
    done = jailed("import ctypes; ctypes.string_at(0)")
    assert (done.ended, done.ok) == ("killed", False)
    deep = jailed("import sys; sys.setrecursionlimit(10**7)\ndef f(): f()\nf()")
    assert not deep.ok
    assert not jailed("(" * 100_000).ok


# -- what is not there is said -----------------------------------------------------------------------------------------


def test_nothing_runs_where_a_required_isolation_is_missing(outside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A jail whose filter cannot be installed, as on a machine without seccomp."""
    script = outside / "main.py"
    for name in ("main", "kernel", "roles", "seccomp"):
        text = sandbox.SCRIPT.with_name(f"{name}.py").read_text()
        (outside / f"{name}.py").write_text(text.replace("platform.machine() not in MACHINES", "True"))
    monkeypatch.setattr(sandbox, "SCRIPT", script)
    with pytest.raises(KvattnError, match="cannot isolate files") as e:
        jailed("open('/dev/full', 'w').write('x')")
    assert "\n" not in str(e.value)
    done = jailed("print('ran')", require=())
    assert (done.stdout, "seccomp" in done.protections, "files" in done.isolated) == ("ran\n", False, False)
    if "net-namespace" in done.protections:
        assert "network" in done.isolated
        call = """
            import socket
            try:
                socket.create_connection(("8.8.8.8", 53), 5)
            except OSError:
                print("refused")
        """
        assert jailed(call, require=("network",)).stdout == "refused\n"


def test_without_landlock_no_file_can_be_changed_at_all(outside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A jail in which Landlock says it is not there: the filter then refuses every change of a file."""
    for name in ("main", "kernel", "roles", "seccomp"):
        text = sandbox.SCRIPT.with_name(f"{name}.py").read_text()
        (outside / f"{name}.py").write_text(text.replace("if abi < 1:", "if True:"))
    kept = outside / "kept"
    kept.write_text("as it was")
    monkeypatch.setattr(sandbox, "SCRIPT", outside / "main.py")
    done = jailed(f"""
        import os
        kept = {str(kept)!r}
        ways = [
            lambda: open("scratch", "w"), lambda: open(kept, "a"), lambda: open(kept, "r+"), lambda: os.unlink(kept),
            lambda: os.truncate(kept, 0), lambda: os.rename(kept, kept + "2"), lambda: os.mkdir(kept + "3"),
            lambda: os.symlink("a", kept + "4"), lambda: os.open(kept, os.O_RDONLY | os.O_TRUNC),
            lambda: os.open({str(outside)!r}, os.O_WRONLY | os.O_TMPFILE),
        ]
        for way in ways:
            try: way(); print("done")
            except OSError: print("refused")
        print(open(kept).read())
    """)
    assert done.stdout.split() == ["refused"] * 10 + ["as", "it", "was"]
    assert "read-only" in done.protections
    assert done.isolated == {"network", "files", "processes", "signals"}
    assert kept.read_text() == "as it was"


def test_isolation_is_claimed_only_for_what_is_active() -> None:
    assert kernel.isolated(["rlimits", "net-namespace"]) == ["network"]
    assert kernel.isolated(["landlock-7"]) == ["reads"]
    assert set(kernel.isolated(["landlock-1", "seccomp", "read-only"])) == {*sandbox.REQUIRED, "reads"}
    assert "files" not in kernel.isolated(["landlock-2", "seccomp"])


def test_filter_numbers_are_the_kernels() -> None:
    """Against the kernel's own header, where it is installed."""
    header = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"), Path("/usr/include/asm-generic/unistd.h")
    if not all(x.exists() for x in header):
        pytest.skip("no kernel headers here")
    import re

    tables = [dict(re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", x.read_text())) for x in header]
    named = {**seccomp.DENIED, **seccomp.CHANGES_FILES, "clone": seccomp.CLONE, "clone3": seccomp.CLONE3}
    named |= {"prlimit64": seccomp.PRLIMIT64, "fcntl": seccomp.FCNTL, "ioctl": seccomp.IOCTL}
    named |= {"open": seccomp.OPEN, "openat": seccomp.OPENAT}
    for name, numbers in named.items():
        assert numbers == tuple(int(t.get(name, 0)) for t in tables), name


@pytest.mark.parametrize("machine", sorted(seccomp.MACHINES))
@pytest.mark.parametrize("read_only", [False, True])
def test_the_filter_decides_as_its_table_says(machine: str, read_only: bool) -> None:
    """The filter run by an interpreter of classic BPF, on both machines' numbers."""
    made = seccomp.program(machine, read_only)
    column, architecture = seccomp.MACHINES[machine]
    assert len(made) < 4096

    def decide(number: int, arguments: tuple[int, ...] = (0, 0, 0), arch: int = architecture) -> int:
        data = {0: number, 4: arch, **{16 + 8 * i: x for i, x in enumerate(arguments)}}
        at = word = 0
        while True:
            op, yes, no, k = made[at]
            at += 1
            if op == 0x20:
                word = data[k]
            elif op == 0x06:
                return k
            else:
                at += yes if {0x15: word == k, 0x35: word >= k, 0x45: bool(word & k)}[op] else no

    allow, eperm = 0x7FFF0000, 0x00050001
    for numbers in seccomp.DENIED.values():
        if numbers[column]:
            assert decide(numbers[column]) == eperm
    for numbers in seccomp.CHANGES_FILES.values():
        if numbers[column]:
            assert decide(numbers[column]) == (eperm if read_only else allow)
    assert decide(0, arch=0x40000003) == 0x80000000  # i386's calls would have other numbers
    assert decide(0x40000000 + seccomp.DENIED["ptrace"][column]) == decide(452) == 0x00050000 + 38
    assert decide(seccomp.CLONE3[column]) == 0x00050000 + 38
    assert decide(seccomp.CLONE[column], (17, 0, 0)) == eperm
    assert decide(seccomp.CLONE[column], (0x3D0F00, 0, 0)) == allow  # a thread of the C library's
    assert decide(seccomp.PRLIMIT64[column], (0, 7, 0)) == allow
    assert decide(seccomp.PRLIMIT64[column], (1234, 7, 0)) == eperm
    assert [decide(seccomp.FCNTL[column], (3, x, 0)) for x in (1, 8, 10, 15)] == [allow, eperm, eperm, eperm]
    assert decide(seccomp.OPENAT[column], (0, 0, 0o100)) == (0x00050000 + 13 if read_only else allow)
    assert decide(seccomp.OPENAT[column], (0, 0, 0o2000000)) == allow
    assert decide(0) == allow
