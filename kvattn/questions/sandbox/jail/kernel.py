"""Rights given up before untrusted code runs: limits, namespaces, capabilities, Landlock, seccomp.

Everything is tried, nothing is assumed: `confine` returns what took effect.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import struct
import sys
from types import ModuleType
from typing import Any

PR_SET_PDEATHSIG, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 1, 24, 38
NEW_MOUNTS, NEW_UTS, NEW_IPC, NEW_USER, NEW_NETWORK = 0x20000, 0x4000000, 0x8000000, 0x10000000, 0x40000000
MS_NOSUID, MS_NODEV, MS_REC, MS_PRIVATE = 0x2, 0x4, 0x4000, 0x40000
CAPABILITIES_V3 = 0x20080522

# Landlock: system calls (the same number on every machine) and access rights, by the ABI that brought them.
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
WRITE_FILE, READ_FILE, READ_DIR, TRUNCATE = 1 << 1, 1 << 2, 1 << 3, 1 << 14
FILE_RIGHTS = {1: (1 << 13) - 1, 2: 1 << 13, 3: TRUNCATE, 5: 1 << 15}
ON_FILES = WRITE_FILE | READ_FILE | TRUNCATE | 1  # rights that a file, as opposed to a folder, can be given
TCP_RIGHTS, SCOPES = 0b11, 0b11  # bind and connect; abstract sockets and signals
LANDLOCK_TRUNCATE, LANDLOCK_TCP, LANDLOCK_SCOPES = 3, 4, 6

DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/share/zoneinfo", "/etc/ld.so.cache", "/etc/localtime")


def confine(limits: dict[str, int], scratch: str, parent: int, seccomp: ModuleType) -> list[str]:
    """Gives up what can be given up, for good. Returns the names of the protections that are now active."""
    active = ["session", "empty-environment"]
    if not sys.platform.startswith("linux"):
        _limit(limits, threads=False)
        return [*active, "rlimits", *([] if os.geteuid() == 0 else ["no-processes"])]
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before it could take us along
        os._exit(3)
    active += _namespaces(libc, scratch, limits["scratch_bytes"])
    if _drop_capabilities(libc):
        active.append("no-capabilities")
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0:
        active.append("no-new-privileges")
    abi = _landlock(libc, scratch)
    if abi:
        active.append(f"landlock-{abi}")
    read_only = abi < LANDLOCK_TRUNCATE
    filtered = seccomp.install(read_only)
    if filtered:
        active += ["seccomp", *(["read-only"] if read_only else [])]
    _limit(limits, threads=filtered)
    active.append("rlimits")
    return active if filtered or os.geteuid() == 0 else [*active, "no-processes"]


def isolated(active: list[str]) -> list[str]:
    """What the code is kept from, given the active protections.

    network: any connection; files: changing any file outside its scratch folder; processes: starting one; signals:
    sending one to, tracing or limiting another process; reads: files but Python's own and the system's libraries
    """
    abi = max((int(x.partition("-")[2]) for x in active if x.startswith("landlock-")), default=0)
    filtered = "seccomp" in active
    found = {
        "network": filtered or "net-namespace" in active,
        "files": filtered and (abi >= LANDLOCK_TRUNCATE or "read-only" in active),
        "processes": filtered or "no-processes" in active,
        "signals": filtered,
        "reads": abi > 0,
    }
    return [name for name, holds in found.items() if holds]


def _limit(limits: dict[str, int], threads: bool) -> None:
    """Resource limits. Without the filter new processes are refused by a limit, which threads fall under too."""
    wanted = {
        "RLIMIT_CPU": limits["cpu_s"],
        "RLIMIT_AS": limits["memory_bytes"],
        "RLIMIT_FSIZE": limits["file_bytes"],
        "RLIMIT_NOFILE": limits["open_files"],
        "RLIMIT_CORE": 0,
        "RLIMIT_MEMLOCK": 0,
        "RLIMIT_MSGQUEUE": 0,
    }
    if not threads:
        wanted["RLIMIT_NPROC"] = 0
    for name, value in wanted.items():
        if hasattr(resource, name):
            with contextlib.suppress(ValueError, OSError):  # the hard limit may be lower already
                resource.setrlimit(getattr(resource, name), (value, value))


def _namespaces(libc: Any, scratch: str, size: int) -> list[str]:
    """A network without interfaces, own IPC, and a scratch folder in memory, of limited size, that nobody else sees."""
    uid, gid = os.getuid(), os.getgid()
    apart = NEW_NETWORK | NEW_IPC | NEW_UTS | NEW_MOUNTS
    if libc.unshare(NEW_USER | apart) == 0:
        active = ["user-namespace", "net-namespace"]
        for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            with contextlib.suppress(OSError), open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    elif libc.unshare(apart) == 0:
        active = ["net-namespace"]
    else:
        return []
    options = f"size={size},nr_inodes=1024,mode=0700".encode()
    private = libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None) == 0
    flags = MS_NOSUID | MS_NODEV
    if private and libc.mount(b"tmpfs", os.fsencode(scratch), b"tmpfs", flags, options) == 0:
        os.chdir(scratch)
        active.append("scratch-quota")
    return active


def _drop_capabilities(libc: Any) -> bool:
    for capability in range(64):
        if libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) != 0:
            break
    header, nothing = struct.pack("=II", CAPABILITIES_V3, 0), struct.pack("=6I", 0, 0, 0, 0, 0, 0)
    return libc.capset(ctypes.c_char_p(header), ctypes.c_char_p(nothing)) == 0


def _landlock(libc: Any, scratch: str) -> int:
    """Files: the scratch folder, and for reading Python and the system's libraries. Returns the ABI, 0 for none."""
    abi = libc.syscall(CREATE_RULESET, None, ctypes.c_size_t(0), 1)
    if abi < 1:
        return 0
    rights = sum(bits for since, bits in FILE_RIGHTS.items() if since <= abi)
    ruleset = struct.pack("=Q", rights)
    if abi >= LANDLOCK_TCP:
        ruleset += struct.pack("=Q", TCP_RIGHTS)
    if abi >= LANDLOCK_SCOPES:
        ruleset += struct.pack("=Q", SCOPES)
    ruleset_fd = libc.syscall(CREATE_RULESET, ctypes.c_char_p(ruleset), ctypes.c_size_t(len(ruleset)), 0)
    if ruleset_fd < 0:
        return 0
    python = {os.path.dirname(os.__file__), *(os.path.join(sys.base_prefix, x) for x in ("lib", sys.platlibdir))}
    for path in {*python, *LIBRARIES}:
        _allow(libc, ruleset_fd, path, READ_FILE | READ_DIR)
    for path in DEVICES:
        _allow(libc, ruleset_fd, path, (READ_FILE | WRITE_FILE | TRUNCATE) & rights)
    ok = _allow(libc, ruleset_fd, scratch, rights) and libc.syscall(RESTRICT_SELF, ruleset_fd, 0) == 0
    os.close(ruleset_fd)
    return abi if ok else 0


def _allow(libc: Any, ruleset_fd: int, path: str, rights: int) -> bool:
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        if not os.path.isdir(path):
            rights &= ON_FILES
        rule = struct.pack("=Qi", rights, fd)
        return libc.syscall(ADD_RULE, ruleset_fd, 1, ctypes.c_char_p(rule), 0) == 0
    finally:
        os.close(fd)
