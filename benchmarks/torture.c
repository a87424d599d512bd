/* A layer under the file operations of a process: it counts them, and lets one fail, or kills the
   process there. torture.py compiles it, preloads it and arms it; nothing happens before.

   Only what lies below `root` counts. A write that is killed has written its first half. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static char root[PATH_MAX];
static long at, count;
static int armed, number, from_then_on, with_reads, done, log_file = -1;

/* error 0: kill. */
void torture_arm(const char *directory, long nth, int error, int sticky, int reads, const char *log) {
    strncpy(root, directory, sizeof root - 1);
    at = nth, number = error, from_then_on = sticky, with_reads = reads, count = 0, done = 0;
    log_file = (int)syscall(SYS_openat, AT_FDCWD, log, O_CREAT | O_WRONLY | O_TRUNC | O_CLOEXEC, 0600);
    armed = 1;
}

/* What a process of ours starts is armed by its environment: the first one, which makes the log. */
__attribute__((constructor)) static void arm_child(void) {
    const char *how = getenv("TORTURE_CHILD"), *log = getenv("TORTURE_LOG");
    long nth;
    int error, sticky, reads;
    if (!how || sscanf(how, "%ld %d %d %d", &nth, &error, &sticky, &reads) != 4) return;
    int made = (int)syscall(SYS_openat, AT_FDCWD, log, O_CREAT | O_EXCL | O_WRONLY, 0600);
    if (made < 0) return;
    syscall(SYS_close, made);
    torture_arm(getenv("TORTURE_ROOT"), nth, error, sticky, reads, log);
}

static int frees(const char *what) {
    return !strcmp(what, "unlink") || !strcmp(what, "rmdir") || !strcmp(what, "truncate") ||
           !strcmp(what, "rename") || !strcmp(what, "close");
}

/* The error that the nth operation is to have; -1: it is to be killed; 0: nothing. */
static int error_of(const char *what, long n) {
    if (at <= 0 || n < at || (done && !from_then_on)) return 0;
    if (number == 0) return -1;
    if ((number == ENOSPC || number == EDQUOT) && frees(what)) return 0;
    if (number == EROFS && (!strcmp(what, "write") || !strcmp(what, "fsync") || !strcmp(what, "close"))) return 0;
    done = 1;
    return number;
}

/* Counts an operation that matters and writes it down, with ! if it fails; returns its error. */
static int hit(const char *what, const char *path) {
    if ((!strcmp(what, "read") || !strcmp(what, "open")) != with_reads) return 0;
    long n = __sync_add_and_fetch(&count, 1);
    int error = error_of(what, n);
    char line[PATH_MAX + 64];
    int size = snprintf(line, sizeof line, "%ld%s %s %s\n", n, error > 0 ? "!" : "", what, path);
    syscall(SYS_write, log_file, line, size);
    return error;
}

static void die(void) { syscall(SYS_kill, getpid(), SIGKILL); for (;;) pause(); }

static int is_below(const char *path) { return !strncmp(path, root, strlen(root)); }

static int of_fd(int fd, char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t size = syscall(SYS_readlinkat, AT_FDCWD, link, path, PATH_MAX - 1);
    if (size < 0) return 0;
    path[size] = 0;
    return is_below(path);
}

static int of_path(int dir, const char *name, char *path) {
    char base[PATH_MAX];
    if (name[0] == '/') {
        snprintf(path, PATH_MAX, "%s", name);
    } else {
        if (dir == AT_FDCWD ? !getcwd(base, sizeof base) : (of_fd(dir, base), 0)) return 0;
        snprintf(path, PATH_MAX, "%s/%s", base, name);
    }
    return is_below(path);
}

#define REAL(name) static __typeof__(&name) real; if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)
#define TRY(what, in_scope) do { \
    char path[PATH_MAX]; \
    if (armed && (in_scope)) { \
        int error = hit(what, path); \
        if (error < 0) die(); \
        if (error) { errno = error; return -1; } \
    } } while (0)

static const char *of_flags(int flags) {
    return (flags & O_ACCMODE) != O_RDONLY || flags & (O_CREAT | O_TRUNC) ? "create" : "open";
}
#define MODE(flags) va_list list; va_start(list, flags); \
    mode_t mode = flags & (O_CREAT | __O_TMPFILE) ? va_arg(list, mode_t) : 0; va_end(list)

int open(const char *name, int flags, ...) {
    REAL(open); MODE(flags);
    TRY(of_flags(flags), of_path(AT_FDCWD, name, path));
    return real(name, flags, mode);
}
int open64(const char *name, int flags, ...) {
    REAL(open64); MODE(flags);
    TRY(of_flags(flags), of_path(AT_FDCWD, name, path));
    return real(name, flags, mode);
}
int openat(int dir, const char *name, int flags, ...) {
    REAL(openat); MODE(flags);
    TRY(of_flags(flags), of_path(dir, name, path));
    return real(dir, name, flags, mode);
}
int openat64(int dir, const char *name, int flags, ...) {
    REAL(openat64); MODE(flags);
    TRY(of_flags(flags), of_path(dir, name, path));
    return real(dir, name, flags, mode);
}
ssize_t write(int fd, const void *data, size_t size) {
    REAL(write);
    char path[PATH_MAX];
    if (armed && of_fd(fd, path)) {
        int error = hit("write", path);
        if (error < 0) { real(fd, data, size / 2); die(); }
        if (error) { errno = error; return -1; }
    }
    return real(fd, data, size);
}
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t place) {
    REAL(pwrite64); TRY("write", of_fd(fd, path)); return real(fd, data, size, place);
}
ssize_t writev(int fd, const struct iovec *parts, int n) {
    REAL(writev); TRY("write", of_fd(fd, path)); return real(fd, parts, n);
}
ssize_t read(int fd, void *data, size_t size) {
    REAL(read); TRY("read", of_fd(fd, path)); return real(fd, data, size);
}
ssize_t pread64(int fd, void *data, size_t size, off64_t place) {
    REAL(pread64); TRY("read", of_fd(fd, path)); return real(fd, data, size, place);
}
ssize_t pread(int fd, void *data, size_t size, off_t place) {
    REAL(pread); TRY("read", of_fd(fd, path)); return real(fd, data, size, place);
}
int close(int fd) {
    REAL(close);
    char path[PATH_MAX];
    int flags = armed ? fcntl(fd, F_GETFL) : -1;
    if (flags >= 0 && (flags & O_ACCMODE) != O_RDONLY && fd != log_file && of_fd(fd, path)) {
        int error = hit("close", path);
        if (error < 0) die();
        if (error) { real(fd); errno = error; return -1; }
    }
    return real(fd);
}
int fsync(int fd) { REAL(fsync); TRY("fsync", of_fd(fd, path)); return real(fd); }
int ftruncate(int fd, off_t size) { REAL(ftruncate); TRY("truncate", of_fd(fd, path)); return real(fd, size); }
int ftruncate64(int fd, off64_t size) { REAL(ftruncate64); TRY("truncate", of_fd(fd, path)); return real(fd, size); }
int mkdir(const char *name, mode_t mode) { REAL(mkdir); TRY("mkdir", of_path(AT_FDCWD, name, path)); return real(name, mode); }
int mkdirat(int dir, const char *name, mode_t mode) { REAL(mkdirat); TRY("mkdir", of_path(dir, name, path)); return real(dir, name, mode); }
int unlink(const char *name) { REAL(unlink); TRY("unlink", of_path(AT_FDCWD, name, path)); return real(name); }
int unlinkat(int dir, const char *name, int flags) { REAL(unlinkat); TRY("unlink", of_path(dir, name, path)); return real(dir, name, flags); }
int rmdir(const char *name) { REAL(rmdir); TRY("rmdir", of_path(AT_FDCWD, name, path)); return real(name); }
int rename(const char *old, const char *name) { REAL(rename); TRY("rename", of_path(AT_FDCWD, name, path)); return real(old, name); }
int renameat2(int from, const char *old, int dir, const char *name, unsigned flags) {
    REAL(renameat2); TRY("rename", of_path(dir, name, path)); return real(from, old, dir, name, flags);
}
