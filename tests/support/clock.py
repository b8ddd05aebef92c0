"""A clock of its own for a server: hours off, or stepped while it runs.

A few lines of C in front of the C library's clock (LD_PRELOAD) add what a file says, in seconds.
The compiler is the one that links the extension module: where that was built, there is one.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static long offset(void) {
    static int file = -1;
    char text[32] = {0};
    if (file < 0) file = open(getenv("CLOCK_OFFSET"), O_RDONLY | O_CLOEXEC);
    return pread(file, text, sizeof text - 1, 0) > 0 ? atol(text) : 0;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    static int (*real)(struct timeval *, void *);
    if (!real) real = dlsym(RTLD_NEXT, "gettimeofday");
    int result = real(now, zone);
    now->tv_sec += offset();
    return result;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int result = real(clock, now);
    if (clock == CLOCK_REALTIME) now->tv_sec += offset();
    return result;
}
"""


class Clock:
    """What to start a server with, and the way to set its clock."""

    def __init__(self, directory: Path, seconds: int) -> None:
        compiler = shutil.which("cc")
        assert compiler, "a C compiler is needed, as for building the extension module"
        source, library = directory / "clock.c", directory / "clock.so"
        source.write_text(SOURCE)
        flags = ["-shared", "-fPIC", "-O1", "-ldl"]
        subprocess.run([compiler, str(source), "-o", str(library), *flags], check=True)
        self._file = directory / "offset"
        self.step_to(seconds)
        self.environment = {"LD_PRELOAD": str(library), "CLOCK_OFFSET": str(self._file)}

    def step_to(self, seconds: int) -> None:
        """So many seconds away from the real time, from now on."""
        self._file.write_text(f"{seconds:<20}")
