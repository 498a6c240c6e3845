/* Loaded into a process before its C library: fails, shortens or kills at one of the calls that
   write to files of a store, whoever makes it: our own code, SQLite or USearch. Linux only.

   gcc -O1 -shared -fPIC -o faults.so faults.c -ldl */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { ERROR = 0, SHORT = 1, KILL = 2 };

static char folder[4096];
static long left = -1; /* calls until it happens; negative: never */
static long calls;
static int what, number;

/* Arm: at the nth call (from 0) that writes below a folder do `how`, with errno `error`. */
void faults_arm(const char *below, long nth, int how, int error) {
    strncpy(folder, below, sizeof folder - 1);
    calls = 0;
    left = nth;
    what = how;
    number = error;
}

long faults_calls(void) { return calls; }

static int ours(int fd) {
    char link[64], path[4096];
    if (!folder[0]) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n < 0) return 0;
    path[n] = 0;
    return strncmp(path, folder, strlen(folder)) == 0;
}

/* 0: go on; 1: fail with errno; 2: write half. */
static int strike(int mine, size_t size) {
    if (!mine) return 0;
    calls++;
    if (left < 0 || left-- != 0) return 0;
    if (what == KILL) kill(getpid(), SIGKILL);
    if (what == SHORT && size > 1) return 2;
    errno = number;
    return 1;
}

#define REAL(name) \
    static __typeof__(name) *real; \
    if (!real) real = dlsym(RTLD_NEXT, #name)

#define WRITE(name, offset_type) \
    ssize_t name(int fd, const void *data, size_t size, offset_type at) { \
        REAL(name); \
        int hit = strike(ours(fd), size); \
        return hit == 1 ? -1 : real(fd, data, hit == 2 ? size / 2 : size, at); \
    }

WRITE(pwrite, off_t)
WRITE(pwrite64, off64_t)

ssize_t write(int fd, const void *data, size_t size) {
    REAL(write);
    int hit = strike(ours(fd), size);
    return hit == 1 ? -1 : real(fd, data, hit == 2 ? size / 2 : size);
}

size_t fwrite(const void *data, size_t size, size_t count, FILE *file) {
    REAL(fwrite);
    int hit = strike(ours(fileno(file)), count);
    return hit == 1 ? 0 : real(data, size, hit == 2 ? count / 2 : count, file);
}

#define PLAIN(name, declaration, call, mine) \
    int name declaration { \
        REAL(name); \
        return strike(mine, 0) ? -1 : real call; \
    }

PLAIN(fsync, (int fd), (fd), ours(fd))
PLAIN(fdatasync, (int fd), (fd), ours(fd))
PLAIN(ftruncate, (int fd, off_t size), (fd, size), ours(fd))
PLAIN(ftruncate64, (int fd, off64_t size), (fd, size), ours(fd))
PLAIN(rename, (const char *from, const char *to), (from, to),
      folder[0] && strncmp(to, folder, strlen(folder)) == 0)
PLAIN(unlink, (const char *path), (path), folder[0] && strncmp(path, folder, strlen(folder)) == 0)
