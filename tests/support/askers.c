/* Threads that ask a mount for answers, each of which must come, in time, and be that of its own question.
 *
 * Usage: askers DIRECTORY REQUESTS THREADS PATIENCE
 *
 * DIRECTORY is of askers.py: files whose sizes and contents say which they are. Each thread picks a question by chance, of
 * those that the kernel cannot answer by itself, and checks the answer; now and then a signal interrupts one. Ends after
 * REQUESTS questions, each answered within PATIENCE seconds. Exit status: 0; 1: an answer was wrong or late; 2: something
 * failed; 3: the mount or its daemon has gone.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

enum {
    FILES = 32,
    LONGEST = 1 << 20, /* bytes of a read or write */
    MOST_THREADS = 32, /* each has a file to write to */
    ROOM = 4096, /* of a path */
};

struct asker {
    pthread_t thread;
    int number;
    uint64_t seed, asked;
    char *buffer;
    _Atomic int64_t since; /* when the present question was put, ns; 0: none is */
    const char *_Atomic question;
};

static struct asker askers[MOST_THREADS];
static _Atomic uint64_t count;
static uint64_t wanted;
static uint64_t inodes[FILES], mount_id;
static const char *top; /* DIRECTORY */

static int64_t now(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * INT64_C(1000000000) + time.tv_nsec;
}

static uint64_t dice(struct asker *asker, uint64_t sides)
{
    asker->seed ^= asker->seed >> 12;
    asker->seed ^= asker->seed << 25;
    asker->seed ^= asker->seed >> 27;
    return (asker->seed * UINT64_C(0x2545F4914F6CDD1D) >> 20) % sides;
}

static int is_of_end(int error)
{
    return error == ENOTCONN || error == ECONNABORTED;
}

/* An answer that is an error, or only part of what was asked for, is right when the mount or its daemon has gone. */
static void end_if_gone(int error)
{
    struct statx seen;

    if (is_of_end(error))
        _exit(3);
    int result = statx(AT_FDCWD, top, AT_STATX_FORCE_SYNC, STATX_INO | STATX_MNT_ID, &seen);
    if (result ? is_of_end(errno) : seen.stx_mnt_id != mount_id)
        _exit(3);
}

static void fail(const char *question, const char *what)
{
    int error = errno;

    end_if_gone(error);
    fprintf(stderr, "%s: %s: %s\n", question, what, strerror(error));
    _exit(1);
}

static void wrong(const char *question, uint64_t wanted_value, uint64_t got)
{
    end_if_gone(0);
    fprintf(stderr, "%s: %llu instead of %llu\n", question, (unsigned long long)got, (unsigned long long)wanted_value);
    _exit(1);
}

static void expect(const char *question, uint64_t wanted_value, uint64_t got)
{
    if (wanted_value != got)
        wrong(question, wanted_value, got);
}

static void put(struct asker *asker, const char *question)
{
    asker->question = question;
    asker->since = now();
}

static void path_of(char *path, size_t room, int file)
{
    snprintf(path, room, "%s/file%d", top, file);
}

/* As askers.py makes them. */
static uint64_t size_of(int file)
{
    return file ? (uint64_t)file * 20000 + 8 * file : 6 << 20;
}

static int open_file(struct asker *asker, int file, int flags)
{
    char path[ROOM];
    path_of(path, sizeof path, file);
    put(asker, "open");
    int handle = open(path, O_RDONLY | O_CLOEXEC | flags);

    if (handle < 0)
        fail("open", path);
    return handle;
}

static void ask_attributes(struct asker *asker)
{
    int file = dice(asker, FILES);
    char path[ROOM];
    struct statx seen;
    path_of(path, sizeof path, file);
    put(asker, "attributes");

    if (statx(AT_FDCWD, path, AT_STATX_FORCE_SYNC, STATX_BASIC_STATS, &seen))
        fail("attributes", path);
    expect("size", size_of(file), seen.stx_size);
    expect("inode", inodes[file], seen.stx_ino);
}

static void check_words(const char *question, const char *bytes, size_t length, int file, uint64_t offset)
{
    for (size_t index = 0; index + 8 <= length; index += 8) {
        uint64_t word;
        memcpy(&word, bytes + index, sizeof word);
        expect(question, (uint64_t)(file + 1) << 40 | (offset + index) / 8, word);
    }
}

static size_t any_length(struct asker *asker)
{
    return dice(asker, 8) ? 4096 * (1 + dice(asker, 4)) : 4096 * (1 + dice(asker, LONGEST / 4096));
}

static void ask_bytes(struct asker *asker)
{
    int file = dice(asker, 4) ? dice(asker, FILES) : 0;
    int handle = open_file(asker, file, O_DIRECT);
    size_t length = any_length(asker);
    uint64_t offset = dice(asker, size_of(file) / 4096 + 1) * 4096;
    put(asker, "bytes");
    ssize_t result = pread(handle, asker->buffer, length, offset);

    if (result < 0)
        fail("bytes", "pread");
    uint64_t left = size_of(file) - offset;
    expect("length", left < length ? left : length, result);
    check_words("bytes", asker->buffer, result, file, offset);
    close(handle);
}

static void ask_absent(struct asker *asker)
{
    char path[ROOM];
    struct stat seen;
    snprintf(path, sizeof path, "%s/absent-%d-%d-%llu", top, getpid(), asker->number, (unsigned long long)asker->asked);
    put(asker, "an absent name");
    if (!stat(path, &seen) || errno != ENOENT)
        fail("an absent name", path);
}

static void ask_present(struct asker *asker)
{
    int file = dice(asker, FILES);
    char path[ROOM];
    struct stat seen;
    path_of(path, sizeof path, file);
    put(asker, "a name");
    if (stat(path, &seen))
        fail("a name", path);
    expect("a name", inodes[file], seen.st_ino);
}

static void ask_open(struct asker *asker)
{
    int handle = open_file(asker, dice(asker, FILES), 0);

    put(asker, "close");
    close(handle);
}

static void ask_xattr(struct asker *asker)
{
    int file = dice(asker, FILES);
    char path[ROOM], value[16] = "";
    path_of(path, sizeof path, file);
    put(asker, "an attribute");
    ssize_t length = getxattr(path, "user.number", value, sizeof value - 1);

    if (length < 0)
        fail("an attribute", path);
    expect("an attribute", file, strtoul(value, NULL, 10));
}

static void ask_listing(struct asker *asker)
{
    char path[ROOM];
    snprintf(path, sizeof path, "%s/full", top);
    put(asker, "a listing");
    DIR *directory = opendir(path);
    int found = 0;

    if (!directory)
        fail("a listing", "opendir");
    errno = 0;
    for (struct dirent *entry; (entry = readdir(directory));)
        found += entry->d_name[0] == 'n';
    if (errno)
        fail("a listing", "readdir");
    closedir(directory);
    expect("a listing", 100, found);
}

static void ask_to_write(struct asker *asker)
{
    char path[ROOM];
    snprintf(path, sizeof path, "%s/own%d", top, asker->number);
    put(asker, "a write");
    int handle = open(path, O_RDWR | O_DIRECT | O_CLOEXEC);
    size_t length = any_length(asker);

    if (handle < 0)
        fail("a write", path);
    for (size_t offset = 0; offset < length; offset += 8)
        memcpy(asker->buffer + offset, &(uint64_t){(uint64_t)(asker->number + 100) << 40 | offset / 8}, 8);
    ssize_t result = pwrite(handle, asker->buffer, length, 0);
    if (result < 0)
        fail("a write", path);
    expect("a write", length, result);
    memset(asker->buffer, 0, length);
    put(asker, "written bytes");
    result = pread(handle, asker->buffer, length, 0);
    if (result < 0)
        fail("written bytes", path);
    expect("written bytes", length, result);
    check_words("written bytes", asker->buffer, length, asker->number + 99, 0);
    close(handle);
}

static void *ask_for_ever(void *argument)
{
    static void (*const questions[])(struct asker *) = {
        ask_attributes, ask_attributes, ask_attributes, ask_bytes, ask_bytes, ask_absent, ask_absent,
        ask_present, ask_open, ask_xattr, ask_listing, ask_to_write,
    };
    struct asker *asker = argument;
    uint64_t sides = sizeof questions / sizeof *questions;

    while (atomic_fetch_add(&count, 1) < wanted) {
        uint64_t number = dice(asker, sides);
        /* Listings and writes cost more. */
        questions[number < sides - 2 || !dice(asker, 4) ? number : 0](asker);
        asker->asked++;
        asker->since = 0;
    }
    return NULL;
}

static void do_nothing(int number)
{
    (void)number;
}

/* Watches all questions, and interrupts one now and then. Returns when all have been answered. */
static void watch(int threads, int64_t patience)
{
    for (int turn = 0;; turn++) {
        int waiting = 0;
        usleep(20000);
        for (int index = 0; index < threads; index++) {
            int64_t since = askers[index].since;
            waiting += since != 0;
            if (since && now() - since > patience) {
                fprintf(stderr, "%s: no answer within %lld s\n", askers[index].question, (long long)patience / 1000000000);
                _exit(1);
            }
        }
        if (!waiting && count >= wanted)
            return;
        if (turn % 5 == 0 && count < wanted)
            pthread_kill(askers[turn / 5 % threads].thread, SIGUSR1);
    }
}

static void begin(int number)
{
    struct asker *asker = &askers[number];

    asker->number = number;
    asker->seed = (number + 1) * UINT64_C(0x9E3779B97F4A7C15) ^ (uint64_t)getpid() << 32;
    if (posix_memalign((void **)&asker->buffer, 4096, LONGEST) ||
        pthread_create(&asker->thread, NULL, ask_for_ever, asker)) {
        perror("threads");
        _exit(2);
    }
}

int main(int words, char **word)
{
    struct sigaction action = {.sa_handler = do_nothing, .sa_flags = SA_RESTART};

    struct statx seen;

    if (words != 5 || statx(AT_FDCWD, word[1], 0, STATX_INO | STATX_MNT_ID, &seen))
        return 2;
    top = word[1];
    mount_id = seen.stx_mnt_id;
    wanted = strtoull(word[2], NULL, 10);
    int threads = atoi(word[3]);
    if (threads < 1 || threads > MOST_THREADS)
        return 2;
    sigaction(SIGUSR1, &action, NULL);
    for (int file = 0; file < FILES; file++) {
        char path[ROOM];
        struct stat seen;
        path_of(path, sizeof path, file);
        if (stat(path, &seen))
            fail("stat", path);
        inodes[file] = seen.st_ino;
    }
    for (int index = 0; index < threads; index++)
        begin(index);
    watch(threads, atoll(word[4]) * INT64_C(1000000000));
    for (int index = 0; index < threads; index++)
        pthread_join(askers[index].thread, NULL);
    return 0;
}
