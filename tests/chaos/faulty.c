/* A disk that fails and a wall clock that steps, on cue, in processes that are started with LD_PRELOAD of this.

   FAULTY_CONTROL names a file with a `struct control`, which faulty.py writes and every such process maps, so that a
   change takes effect at once in all of them. Disk faults come to regular files whose path begins with FAULTY_PATH;
   sockets, pipes and all other files are left alone. Only CLOCK_REALTIME steps: timers run on the other clocks. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

enum { NONE, FAIL, SHORT };

struct control {
    _Atomic int64_t clock_offset_ns;
    _Atomic int64_t fault;    /* of the enum above, at every `every`-th write */
    _Atomic int64_t error;    /* errno of FAIL */
    _Atomic int64_t every;
    _Atomic int64_t delay_ns; /* before each write and fsync */
    _Atomic int64_t writes;   /* seen by all processes */
    _Atomic int64_t faults;   /* that came of them */
};

static struct control *control;
static const char *prefix;
static ssize_t (*next_write)(int, const void *, size_t);
static int (*next_fsync)(int);
static int (*next_clock_gettime)(clockid_t, struct timespec *);

__attribute__((constructor)) static void start(void)
{
    const char *path = getenv("FAULTY_CONTROL");
    int fd;

    next_write = (ssize_t (*)(int, const void *, size_t))dlsym(RTLD_NEXT, "write");
    next_fsync = (int (*)(int))dlsym(RTLD_NEXT, "fsync");
    next_clock_gettime = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    prefix = getenv("FAULTY_PATH");
    if (!path || !prefix || (fd = open(path, O_RDWR | O_CLOEXEC)) < 0)
        return;
    void *mapped = mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (mapped != MAP_FAILED)
        control = mapped;
}

static int is_meant(int fd)
{
    struct stat status;
    char name[32], path[4096];
    ssize_t length;

    if (!control || fstat(fd, &status) || !S_ISREG(status.st_mode))
        return 0;
    snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
    length = readlink(name, path, sizeof path - 1);
    return length >= (ssize_t)strlen(prefix) && !memcmp(path, prefix, strlen(prefix));
}

static void be_slow(void)
{
    int64_t left = control->delay_ns;
    struct timespec pause = {left / 1000000000, left % 1000000000};

    while (left > 0 && nanosleep(&pause, &pause) && errno == EINTR)
        ;
}

ssize_t write(int fd, const void *data, size_t size)
{
    if (!is_meant(fd))
        return next_write(fd, data, size);
    be_slow();
    int64_t number = ++control->writes;
    if (control->fault != NONE && number % control->every == 0) {
        control->faults++;
        if (control->fault == FAIL) {
            errno = (int)control->error;
            return -1;
        }
        return next_write(fd, data, size / 3 + 1);
    }
    return next_write(fd, data, size);
}

int fsync(int fd)
{
    if (is_meant(fd))
        be_slow();
    return next_fsync(fd);
}

int clock_gettime(clockid_t which, struct timespec *at)
{
    int status = next_clock_gettime(which, at);

    if (control && !status && which == CLOCK_REALTIME) {
        int64_t ns = (int64_t)at->tv_sec * 1000000000 + at->tv_nsec + control->clock_offset_ns;
        at->tv_sec = ns / 1000000000;
        at->tv_nsec = ns % 1000000000;
    }
    return status;
}

time_t time(time_t *at)
{
    struct timespec now;

    clock_gettime(CLOCK_REALTIME, &now);
    if (at)
        *at = now.tv_sec;
    return now.tv_sec;
}

int gettimeofday(struct timeval *restrict at, void *restrict zone)
{
    struct timespec now;
    int status = clock_gettime(CLOCK_REALTIME, &now);

    (void)zone;
    at->tv_sec = now.tv_sec;
    at->tv_usec = now.tv_nsec / 1000;
    return status;
}
