"""A resolver that takes its time: `getaddrinfo` hangs for names that end in `.slow`.

A few lines of C in front of the C library's (LD_PRELOAD), for a program of a test. Whatever other
names it is asked for, it answers as ever.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <netdb.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int getaddrinfo(const char *host, const char *port, const struct addrinfo *hints,
                struct addrinfo **found) {
    static int (*real)(const char *, const char *, const struct addrinfo *, struct addrinfo **);
    if (!real) real = dlsym(RTLD_NEXT, "getaddrinfo");
    size_t length = host ? strlen(host) : 0;
    if (length > 5 && !strcmp(host + length - 5, ".slow")) {
        usleep(1000 * atol(getenv("RESOLVER_MS")));
        return real("127.0.0.1", port, hints, found);
    }
    return real(host, port, hints, found);
}
"""


def slow_resolver(directory: Path, milliseconds: int) -> dict[str, str]:
    """The environment of a program in which names ending in `.slow` are 127.0.0.1, in the end."""
    compiler = shutil.which("cc")
    assert compiler, "a C compiler is needed, as for building the extension module"
    source, library = directory / "resolver.c", directory / "resolver.so"
    source.write_text(SOURCE)
    flags = ["-shared", "-fPIC", "-O1", "-ldl"]
    subprocess.run([compiler, str(source), "-o", str(library), *flags], check=True)
    return {"LD_PRELOAD": str(library), "RESOLVER_MS": str(milliseconds)}
