/* Usage: operators DIRECTORY LOGS CALLS RATIO ASKING SEED [DROPS]
 *
 * Makes files in the directory SEED of DIRECTORY (or takes those of an earlier run with no CALLS), then writers change them
 * and readers look at them until CALLS calls have been made, RATIO of them by readers for each by a writer; one reader's call
 * in ASKING goes past the kernel's caches. LOGS gets a file of records for each process. DROPS says what is dropped
 * meanwhile: r dentries and inodes of the mount at DIRECTORY (by remounting it), c the whole machine's, p the page cache (of
 * the files), m memory (a piece of 48 MiB is taken and given back). Exit status: 0, or 2 when something else fails than a
 * call that a log tells of.
 */
#define _GNU_SOURCE
#include "operators.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

struct shared *shared;
static uint64_t ratio, asking, seed;
static int is_writer;
static struct record *records;
static size_t length, capacity;
static int log_file;

enum { ROOM = 4096 /* records by which a log grows */, LEAD = 200 /* calls that readers may be ahead */, A_WHILE = 80000 /* us at most between two drops */ };

void die(const char *what)
{
    fprintf(stderr, "%s: %s\n", what, strerror(errno));
    if (shared)
        __atomic_store_n(&shared->is_over, 1, __ATOMIC_RELAXED);
    exit(2);
}

int64_t now(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * INT64_C(1000000000) + time.tv_nsec;
}

/* xorshift64*: each process has its own sequence. */
uint64_t dice(uint64_t sides)
{
    seed ^= seed >> 12;
    seed ^= seed << 25;
    seed ^= seed >> 27;
    return (seed * UINT64_C(0x2545F4914F6CDD1D) >> 20) % sides;
}

void open_log(const char *directory, int process)
{
    char path[4096];

    if (snprintf(path, sizeof path, "%s/%d", directory, process) >= (int)sizeof path)
        die(directory);
    log_file = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    capacity = ROOM;
    records = malloc(capacity * sizeof *records);
    if (log_file < 0 || !records)
        die(path);
}

static void write_log(void)
{
    size_t size = length * sizeof *records;

    if (write(log_file, records, size) != (ssize_t)size)
        die("writing the log");
    length = 0;
}

/* Readers wait for writers: a cached answer costs a thousandth of a change. */
static void keep_pace(void)
{
    while (!__atomic_load_n(&shared->is_over, __ATOMIC_RELAXED) &&
           __atomic_load_n(&shared->by_readers, __ATOMIC_RELAXED) >
               ratio * __atomic_load_n(&shared->by_writers, __ATOMIC_RELAXED) + LEAD)
        usleep(30);
}

struct record *begin(enum kind kind, int object)
{
    if (!is_writer)
        keep_pace();
    if (length == capacity)
        write_log();
    struct record *record = &records[length];
    memset(record, 0, sizeof *record);
    record->kind = kind;
    record->object = object;
    record->start = now();
    return record;
}

long finish(struct record *record, long result)
{
    int error = errno;

    record->end = now();
    record->error = result < 0 ? error : 0;
    length++;
    uint64_t before = __atomic_fetch_add(is_writer ? &shared->by_writers : &shared->by_readers, 1, __ATOMIC_RELAXED);
    uint64_t others = __atomic_load_n(is_writer ? &shared->by_readers : &shared->by_writers, __ATOMIC_RELAXED);
    if (before + others >= shared->wanted)
        __atomic_store_n(&shared->is_over, 1, __ATOMIC_RELAXED);
    errno = error;
    return result;
}

static void become(int process, const char *logs)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    seed += UINT64_C(0x9E3779B97F4A7C15) * (process + 1);
    is_writer = process <= WRITERS;
    open_log(logs, process);
}

static void remount(void)
{
    struct statvfs facts;

    if (statvfs("..", &facts))
        die("..");
    unsigned long flags = facts.f_flag & (ST_RDONLY | ST_NOSUID | ST_NODEV | ST_NOEXEC | ST_NOATIME | ST_NODIRATIME);
    flags |= facts.f_flag & ST_RELATIME ? MS_RELATIME : 0;
    /* Drops the unused dentries of this file system (reconfigure_super), and with them the inodes. */
    if (mount("none", "..", NULL, MS_REMOUNT | flags, NULL))
        die("remounting");
}

static void drop_everybodys(void)
{
    int file = open("/proc/sys/vm/drop_caches", O_WRONLY | O_CLOEXEC);

    if (file < 0 || write(file, "2", 1) != 1)
        die("/proc/sys/vm/drop_caches");
    close(file);
}

static void drop_pages(void)
{
    for (int writer = 0; writer < WRITERS; writer++) {
        int file = open(path_of(file_object(writer, dice(2))), O_RDONLY | O_CLOEXEC);
        /* A reader tells of a file that cannot be opened. */
        if (file < 0)
            continue;
        posix_fadvise(file, 0, 0, POSIX_FADV_DONTNEED);
        close(file);
    }
}

static void press_memory(void)
{
    size_t size = 48 << 20;
    char *piece = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (piece == MAP_FAILED)
        die("memory");
    for (size_t offset = 0; offset < size; offset += 4096)
        piece[offset] = 1;
    munmap(piece, size);
}

static void drop_for_ever(const char *drops)
{
    int count = strlen(drops);

    while (count && !__atomic_load_n(&shared->is_over, __ATOMIC_RELAXED)) {
        usleep(dice(A_WHILE));
        switch (drops[dice(count)]) {
        case 'r':
            remount();
            break;
        case 'c':
            /* It takes long on a machine with many files in memory. */
            if (!dice(8))
                drop_everybodys();
            break;
        case 'p':
            drop_pages();
            break;
        case 'm':
            press_memory();
            break;
        default:
            errno = EINVAL;
            die(drops);
        }
    }
}

static void run(int process, const char *drops)
{
    if (process <= WRITERS)
        write_for_ever(process - 1);
    else if (process <= WRITERS + READERS)
        read_for_ever(process - WRITERS - 1, asking);
    else
        drop_for_ever(drops);
}

int main(int count, char **words)
{
    if (count < 7 || count > 8)
        return 2;
    const char *drops = count == 8 ? words[7] : "";
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED || chdir(words[1]) || (mkdir(words[6], 0777) && errno != EEXIST) || chdir(words[6]))
        die(words[1]);
    ratio = strtoull(words[4], NULL, 10);
    asking = strtoull(words[5], NULL, 10);
    seed = strtoull(words[6], NULL, 10) * 2 + 1;
    umask(0);
    shared->wanted = UINT64_MAX;
    is_writer = 1;
    open_log(words[2], 0);
    set_up();
    write_log();
    shared->by_writers = shared->by_readers = 0;
    shared->wanted = strtoull(words[3], NULL, 10);
    for (int process = 1; shared->wanted && process <= WRITERS + READERS + 1; process++) {
        pid_t child = fork();
        if (child < 0)
            die("fork");
        if (!child) {
            become(process, words[2]);
            run(process, drops);
            write_log();
            _exit(0);
        }
    }
    int status, is_bad = 0;
    while (wait(&status) > 0)
        is_bad |= status;
    return is_bad ? 2 : 0;
}
