/* Loaded into a process before its C library: writes down, in order, every call that changes files
   below a folder or waits for the disk, whoever makes it. Linux only; power.py reads it.

   gcc -O1 -shared -fPIC -o recorder.so recorder.c -ldl

   An entry is: kind (1 byte), inode, offset, length of a name, length of data (8 bytes each),
   name, data. Kinds: C created, W written, T cut or made longer, S synced, D folder synced,
   R renamed (name is from, data is to), U removed, M mark. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static char folder[4096];
static int out = -1;
static pthread_mutex_t turn = PTHREAD_MUTEX_INITIALIZER;

#define REAL(name) \
    static __typeof__(name) *real; \
    if (!real) real = dlsym(RTLD_NEXT, #name)

static void put(const void *data, size_t size) {
    static ssize_t (*real)(int, const void *, size_t);
    if (!real) real = dlsym(RTLD_NEXT, "write");
    while (size) {
        ssize_t n = real(out, data, size);
        if (n <= 0) abort();
        data = (const char *)data + n;
        size -= n;
    }
}

static void note(char kind, uint64_t inode, int64_t at, const char *name, const void *data,
                 size_t size) {
    uint64_t head[4] = {inode, at, name ? strlen(name) : 0, size};
    pthread_mutex_lock(&turn);
    put(&kind, 1);
    put(head, sizeof head);
    put(name, head[2]);
    put(data, size);
    pthread_mutex_unlock(&turn);
}

void recorder_start(const char *below, const char *log) {
    out = open(log, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    strncpy(folder, below, sizeof folder - 1);
}

void recorder_mark(long number) { note('M', 0, number, NULL, NULL, 0); }

static int below(const char *path) {
    return folder[0] && path && strncmp(path, folder, strlen(folder)) == 0;
}

/* The inode of a descriptor that counts, else 0; 1 for the folder. */
static uint64_t ours(int fd) {
    char link[64], path[4096];
    struct stat state;
    if (!folder[0] || fd == out) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n < 0) return 0;
    path[n] = 0;
    if (!below(path) || fstat(fd, &state)) return 0;
    return S_ISDIR(state.st_mode) ? 1 : state.st_ino;
}

static int opened(int fd, const char *path, int flags, int there) {
    uint64_t inode = fd >= 0 && below(path) ? ours(fd) : 0;
    if (inode > 1 && !there) note('C', inode, 0, path, NULL, 0);
    if (inode > 1 && there && (flags & O_TRUNC)) note('T', inode, 0, NULL, NULL, 0);
    return fd;
}

#define OPEN(name) \
    int name(const char *path, int flags, ...) { \
        REAL(name); \
        va_list rest; \
        va_start(rest, flags); \
        mode_t mode = va_arg(rest, mode_t); \
        va_end(rest); \
        int there = access(path, F_OK) == 0; \
        return opened(real(path, flags, mode), path, flags, there); \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name) \
    int name(int base, const char *path, int flags, ...) { \
        REAL(name); \
        va_list rest; \
        va_start(rest, flags); \
        mode_t mode = va_arg(rest, mode_t); \
        va_end(rest); \
        int there = access(path, F_OK) == 0; \
        return opened(real(base, path, flags, mode), path, flags, there); \
    }
OPENAT(openat)
OPENAT(openat64)

#define FOPEN(name) \
    FILE *name(const char *path, const char *mode) { \
        REAL(name); \
        int there = access(path, F_OK) == 0; \
        FILE *file = real(path, mode); \
        if (file) opened(fileno(file), path, strchr(mode, 'w') ? O_TRUNC : 0, there); \
        return file; \
    }
FOPEN(fopen)
FOPEN(fopen64)

#define PWRITE(name, offset_type) \
    ssize_t name(int fd, const void *data, size_t size, offset_type at) { \
        REAL(name); \
        ssize_t done = real(fd, data, size, at); \
        uint64_t inode = done > 0 ? ours(fd) : 0; \
        if (inode) note('W', inode, at, NULL, data, done); \
        return done; \
    }
PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)

ssize_t write(int fd, const void *data, size_t size) {
    REAL(write);
    uint64_t inode = ours(fd);
    off_t at = inode ? lseek(fd, 0, SEEK_CUR) : 0;
    ssize_t done = real(fd, data, size);
    if (inode && done > 0) note('W', inode, at, NULL, data, done);
    return done;
}

size_t fwrite(const void *data, size_t size, size_t count, FILE *file) {
    REAL(fwrite);
    uint64_t inode = folder[0] ? ours(fileno(file)) : 0;
    long at = inode ? ftell(file) : 0;
    size_t done = real(data, size, count, file);
    if (inode && done) note('W', inode, at, NULL, data, done * size);
    return done;
}

#define TRUNCATE(name, offset_type) \
    int name(int fd, offset_type size) { \
        REAL(name); \
        int failed = real(fd, size); \
        uint64_t inode = failed ? 0 : ours(fd); \
        if (inode) note('T', inode, size, NULL, NULL, 0); \
        return failed; \
    }
TRUNCATE(ftruncate, off_t)
TRUNCATE(ftruncate64, off64_t)

#define SYNC(name) \
    int name(int fd) { \
        REAL(name); \
        int failed = real(fd); \
        uint64_t inode = failed ? 0 : ours(fd); \
        if (inode) note(inode == 1 ? 'D' : 'S', inode, 0, NULL, NULL, 0); \
        return failed; \
    }
SYNC(fsync)
SYNC(fdatasync)

int rename(const char *from, const char *to) {
    REAL(rename);
    int failed = real(from, to);
    if (!failed && below(to)) note('R', 0, 0, from, to, strlen(to));
    return failed;
}

int unlink(const char *path) {
    REAL(unlink);
    int failed = real(path);
    if (!failed && below(path)) note('U', 0, 0, path, NULL, 0);
    return failed;
}
