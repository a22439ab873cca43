/* A disk that breaks: after $GOOD_CALLS writes and flushes to files below $BROKEN_FOLDER, all further ones fail with EIO. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static int is_broken(int descriptor)
{
    static int calls;
    char link[64], path[4096];
    const char *folder = getenv("BROKEN_FOLDER"), *good = getenv("GOOD_CALLS");
    ssize_t length;

    if (!folder || !good)
        return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    length = readlink(link, path, sizeof path - 1);
    if (length < 0)
        return 0;
    path[length] = 0;
    if (strncmp(path, folder, strlen(folder)) != 0)
        return 0;
    return __sync_add_and_fetch(&calls, 1) > atoi(good);
}

ssize_t write(int descriptor, const void *data, size_t size)
{
    static ssize_t (*real)(int, const void *, size_t);
    if (is_broken(descriptor)) {
        errno = EIO;
        return -1;
    }
    if (!real)
        real = (ssize_t (*)(int, const void *, size_t))dlsym(RTLD_NEXT, "write");
    return real(descriptor, data, size);
}

int fsync(int descriptor)
{
    static int (*real)(int);
    if (is_broken(descriptor)) {
        errno = EIO;
        return -1;
    }
    if (!real)
        real = (int (*)(int))dlsym(RTLD_NEXT, "fsync");
    return real(descriptor);
}
