"""A seccomp filter that refuses what a computation does not need: processes, signals, sockets, the files' owners and
modes, other processes' memory and limits, namespaces, mounts, and every system call newer than the list."""

from __future__ import annotations

import ctypes
import platform
import struct
from errno import EACCES, ENOSYS, EPERM

# Numbers on x86_64 and aarch64, from Linux' own tables; 0 where the machine has no such call.
# fmt: off
DENIED = {
    "kill": (62, 129), "tkill": (200, 130), "tgkill": (234, 131), "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240), "pidfd_send_signal": (424, 424), "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438), "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "process_madvise": (440, 440), "process_mrelease": (448, 448), "kcmp": (312, 272), "fork": (57, 0),
    "vfork": (58, 0), "execve": (59, 221), "execveat": (322, 281), "socket": (41, 198), "socketpair": (53, 199),
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427), "chmod": (90, 0),
    "fchmod": (91, 52), "fchmodat": (268, 53), "chown": (92, 0), "fchown": (93, 55), "lchown": (94, 0),
    "fchownat": (260, 54), "utime": (132, 0), "utimes": (235, 0), "futimesat": (261, 0), "utimensat": (280, 88),
    "setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7), "removexattr": (197, 14),
    "lremovexattr": (198, 15), "fremovexattr": (199, 16), "mount": (165, 40), "umount2": (166, 39),
    "pivot_root": (155, 41), "chroot": (161, 51), "open_tree": (428, 428), "move_mount": (429, 429),
    "fsopen": (430, 430), "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433),
    "mount_setattr": (442, 442), "unshare": (272, 97), "setns": (308, 268), "bpf": (321, 280),
    "perf_event_open": (298, 241), "userfaultfd": (323, 282), "add_key": (248, 217), "request_key": (249, 218),
    "keyctl": (250, 219), "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106),
    "kexec_load": (246, 104), "kexec_file_load": (320, 294), "reboot": (169, 142), "swapon": (167, 224),
    "swapoff": (168, 225), "sethostname": (170, 161), "setdomainname": (171, 162), "personality": (135, 92),
    "acct": (163, 89), "quotactl": (179, 60), "quotactl_fd": (443, 443), "settimeofday": (164, 170),
    "clock_settime": (227, 112), "clock_adjtime": (305, 266), "adjtimex": (159, 171), "setpriority": (141, 140),
    "ioprio_set": (251, 30), "sched_setaffinity": (203, 122), "sched_setscheduler": (144, 119),
    "sched_setparam": (142, 118), "sched_setattr": (314, 274), "migrate_pages": (256, 238), "move_pages": (279, 239),
    "shmget": (29, 194), "msgget": (68, 186), "semget": (64, 190), "mq_open": (240, 180),
    "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265), "fanotify_init": (300, 262),
    "syslog": (103, 116), "vhangup": (153, 58), "iopl": (172, 0), "ioperm": (173, 0), "modify_ldt": (154, 0),
}
# Where Landlock cannot guard the files, nothing at all may be written, made, moved or removed.
CHANGES_FILES = {
    "truncate": (76, 45), "openat2": (437, 437), "creat": (85, 0), "unlink": (87, 0), "unlinkat": (263, 35),
    "rename": (82, 0), "renameat": (264, 38), "renameat2": (316, 276), "mkdir": (83, 0), "mkdirat": (258, 34),
    "rmdir": (84, 0), "link": (86, 0), "linkat": (265, 37), "symlink": (88, 0), "symlinkat": (266, 36),
    "mknod": (133, 0), "mknodat": (259, 33),
}
# fmt: on
CLONE, CLONE3, PRLIMIT64, FCNTL, IOCTL = (56, 220), (435, 435), (302, 261), (72, 25), (16, 29)
OPEN, OPENAT = (2, 0), (257, 56)
MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
FIRST_UNKNOWN = 452  # numbers from 424 on are the same on all machines; x32's calls lie above too

CLONE_THREAD = 0x10000
F_SETOWN, F_SETSIG, F_SETOWN_EX = 8, 10, 15  # would have the kernel signal another process
FIOSETOWN, SIOCSPGRP, TIOCSTI, TIOCLINUX = 0x8901, 0x8902, 0x5412, 0x541C
WRITING = 0x1 | 0x2 | 0x40 | 0x200  # O_WRONLY, O_RDWR, O_CREAT, O_TRUNC (O_TMPFILE needs one of the first two)

# Classic BPF: load a word of seccomp_data, compare it, return.
LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
NUMBER, ARCHITECTURE = 0, 4  # offsets in seccomp_data
ALLOW, ERRNO, KILL_PROCESS = 0x7FFF0000, 0x00050000, 0x80000000

Instruction = tuple[int, int, int, int]  # operation, jump if true, jump if false, operand


def argument(index: int) -> int:
    """Offset of the lower half of an argument."""
    return 16 + 8 * index


def program(machine: str, read_only: bool) -> list[Instruction]:
    """The filter for a machine; `read_only` refuses whatever changes a file."""
    column, architecture = MACHINES[machine]
    out: list[Instruction] = [
        (LOAD, 0, 0, ARCHITECTURE),
        (EQUAL, 1, 0, architecture),
        (RETURN, 0, 0, KILL_PROCESS),
        (LOAD, 0, 0, NUMBER),
        (AT_LEAST, 0, 1, FIRST_UNKNOWN),
        (RETURN, 0, 0, ERRNO | ENOSYS),
        (EQUAL, 0, 1, CLONE3[column]),
        (RETURN, 0, 0, ERRNO | ENOSYS),  # the C library then uses clone, whose flags can be seen
    ]
    for numbers in (*DENIED.values(), *(CHANGES_FILES.values() if read_only else ())):
        if numbers[column]:
            out += [(EQUAL, 0, 1, numbers[column]), (RETURN, 0, 0, ERRNO | EPERM)]
    out += _when(CLONE[column], 0, [(ANY_BIT, 1, 0, CLONE_THREAD), (RETURN, 0, 0, ERRNO | EPERM)])
    out += _when(PRLIMIT64[column], 0, [(EQUAL, 1, 0, 0), (RETURN, 0, 0, ERRNO | EPERM)])
    for number, index, values in (
        (FCNTL[column], 1, (F_SETOWN, F_SETSIG, F_SETOWN_EX)),
        (IOCTL[column], 1, (FIOSETOWN, SIOCSPGRP, TIOCSTI, TIOCLINUX)),
    ):
        out += _when(number, index, [x for v in values for x in ((EQUAL, 0, 1, v), (RETURN, 0, 0, ERRNO | EPERM))])
    if read_only:
        for numbers, index in ((OPEN, 1), (OPENAT, 2)):
            if numbers[column]:
                refuse: list[Instruction] = [(ANY_BIT, 0, 1, WRITING), (RETURN, 0, 0, ERRNO | EACCES)]
                out += _when(numbers[column], index, refuse)
    return [*out, (RETURN, 0, 0, ALLOW)]


def _when(number: int, index: int, body: list[Instruction]) -> list[Instruction]:
    """Runs `body` on an argument of one system call, which is allowed where the body says nothing."""
    return [(EQUAL, 0, len(body) + 2, number), (LOAD, 0, 0, argument(index)), *body, (RETURN, 0, 0, ALLOW)]


def install(read_only: bool) -> bool:
    """Puts the filter on this process for good; False where machine or kernel cannot. Needs no_new_privs."""
    if platform.machine() not in MACHINES:
        return False
    made = program(platform.machine(), read_only)
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *x) for x in made))
    header = struct.pack("@HP", len(made), ctypes.addressof(code))
    return ctypes.CDLL(None).prctl(22, 2, ctypes.c_char_p(header), 0, 0) == 0  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER
