/* Writes to a file with O_DIRECT, by write(2), Linux' native aio or io_uring, while others read the same range through the
 * page cache; see test_direct_writes.py.
 *
 * The buffer that is written from lies behind userfaultfd(2). The kernel first drops the cached pages of the range, then
 * takes hold of the buffer: at that moment, between the two, a second thread reads the old bytes into the page cache again,
 * by read(2) and through a mapping. A third asks for the file's attributes: the daemon is stopped meanwhile, so that it
 * answers with the old ones after the write was handed to the kernel. When the write is complete, all have to be new.
 *
 * Usage: direct_writes FILE sync|aio|uring LENGTH CYCLES PID. FILE has LENGTH bytes at least; PID is the daemon's, or 0.
 * Exit status: 0, 1 when something old was seen, 2 when something failed, 77 when the kernel has not what it takes.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <linux/io_uring.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static char *buffer, *source, *seen, *view;
static size_t length;
static int faults, cached, direct;
static pid_t daemon_pid;

enum { A_MOMENT = 5000 /* microseconds: until a thread has got as far as it can */ };

static void fail(const char *what)
{
    int is_missing = errno == ENOSYS || errno == EPERM;

    fprintf(stderr, "%s: %s\n", what, strerror(errno));
    exit(is_missing ? 77 : 2);
}

static void check(const char *which, const char *bytes, int cycle)
{
    for (size_t index = 0; index < length; index++) {
        if (bytes[index] != (char)cycle) {
            printf("cycle %d: %s shows %d at byte %zu\n", cycle, which, (unsigned char)bytes[index], index);
            exit(1);
        }
    }
}

static void check_time(int cycle)
{
    static struct timespec last;
    struct stat attributes;

    if (fstat(cached, &attributes))
        fail("fstat");
    if (!memcmp(&attributes.st_mtim, &last, sizeof last)) {
        printf("cycle %d: fstat(2) shows the time of the last write\n", cycle);
        exit(1);
    }
    last = attributes.st_mtim;
}

static void read_all(void)
{
    if (pread(cached, seen, length, 0) != (ssize_t)length)
        fail("pread");
}

static void *ask_for_attributes(void *nothing)
{
    struct statx attributes;

    if (statx(cached, "", AT_EMPTY_PATH | AT_STATX_FORCE_SYNC, STATX_BASIC_STATS, &attributes))
        fail("statx");
    return nothing;
}

/* While a page of the buffer is missing: the kernel has dropped the cached pages, and has not begun to write. */
static void *serve_faults(void *nothing)
{
    struct uffd_msg message;
    pthread_t asking;

    while (read(faults, &message, sizeof message) == sizeof message) {
        read_all();
        for (size_t offset = 0; offset < length; offset += 4096)
            *(volatile char *)(view + offset);
        if (daemon_pid) {
            kill(daemon_pid, SIGSTOP);
            if (pthread_create(&asking, NULL, ask_for_attributes, NULL))
                fail("pthread_create");
            usleep(A_MOMENT);
        }
        struct uffdio_copy copy = {.dst = (uintptr_t)buffer, .src = (uintptr_t)source, .len = length};
        if (ioctl(faults, UFFDIO_COPY, &copy))
            fail("UFFDIO_COPY");
        if (daemon_pid) {
            usleep(A_MOMENT);
            kill(daemon_pid, SIGCONT);
            pthread_join(asking, NULL);
        }
    }
    return nothing;
}

static void open_faults(void)
{
    faults = syscall(SYS_userfaultfd, O_CLOEXEC);
    if (faults < 0)
        fail("userfaultfd");
    struct uffdio_api api = {.api = UFFD_API};
    struct uffdio_register range = {
        .range = {.start = (uintptr_t)buffer, .len = length}, .mode = UFFDIO_REGISTER_MODE_MISSING};
    if (ioctl(faults, UFFDIO_API, &api) || ioctl(faults, UFFDIO_REGISTER, &range))
        fail("userfaultfd");
}

static long write_sync(void)
{
    return pwrite(direct, buffer, length, 0);
}

static aio_context_t context;

static long write_aio(void)
{
    struct iocb block = {
        .aio_fildes = direct, .aio_lio_opcode = IOCB_CMD_PWRITE, .aio_buf = (uintptr_t)buffer, .aio_nbytes = length};
    struct iocb *blocks[] = {&block};
    struct io_event event;

    if (!context && syscall(SYS_io_setup, 4, &context))
        fail("io_setup");
    if (syscall(SYS_io_submit, context, 1, blocks) != 1)
        fail("io_submit");
    if (syscall(SYS_io_getevents, context, 1, 1, &event, NULL) != 1)
        fail("io_getevents");
    return event.res;
}

static int ring;
static struct io_uring_params parameters;
static char *submissions, *completions;
static struct io_uring_sqe *entries;

static long write_uring(void)
{
    if (!ring) {
        ring = syscall(SYS_io_uring_setup, 4, &parameters);
        if (ring < 0)
            fail("io_uring_setup");
        submissions = mmap(NULL, parameters.sq_off.array + parameters.sq_entries * 4, PROT_READ | PROT_WRITE, MAP_SHARED, ring,
                           IORING_OFF_SQ_RING);
        completions = mmap(NULL, parameters.cq_off.cqes + parameters.cq_entries * sizeof(struct io_uring_cqe),
                           PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_CQ_RING);
        entries = mmap(NULL, parameters.sq_entries * sizeof *entries, PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_SQES);
        if (submissions == MAP_FAILED || completions == MAP_FAILED || entries == MAP_FAILED)
            fail("mmap of the ring");
    }
    unsigned *tail = (unsigned *)(submissions + parameters.sq_off.tail);
    unsigned slot = *tail & (parameters.sq_entries - 1);
    entries[slot] =
        (struct io_uring_sqe){.opcode = IORING_OP_WRITE, .fd = direct, .addr = (uintptr_t)buffer, .len = length};
    ((unsigned *)(submissions + parameters.sq_off.array))[slot] = slot;
    __atomic_store_n(tail, *tail + 1, __ATOMIC_RELEASE);
    if (syscall(SYS_io_uring_enter, ring, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0) != 1)
        fail("io_uring_enter");
    unsigned *head = (unsigned *)(completions + parameters.cq_off.head);
    while (*head == __atomic_load_n((unsigned *)(completions + parameters.cq_off.tail), __ATOMIC_ACQUIRE))
        syscall(SYS_io_uring_enter, ring, 0, 1, IORING_ENTER_GETEVENTS, NULL, 0);
    struct io_uring_cqe *entry =
        (struct io_uring_cqe *)(completions + parameters.cq_off.cqes) + (*head & (parameters.cq_entries - 1));
    long result = entry->res;
    __atomic_store_n(head, *head + 1, __ATOMIC_RELEASE);
    return result;
}

int main(int count, char **words)
{
    if (count != 6)
        return 2;
    long (*write_directly)(void) = !strcmp(words[2], "aio")     ? write_aio
                                   : !strcmp(words[2], "uring") ? write_uring
                                                                : write_sync;
    length = strtoul(words[3], NULL, 10);
    int cycles = atoi(words[4]);
    daemon_pid = atoi(words[5]);
    cached = open(words[1], O_RDONLY);
    direct = open(words[1], O_RDWR | O_DIRECT);
    if (cached < 0 || direct < 0)
        fail(words[1]);
    buffer = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    source = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    view = mmap(NULL, length, PROT_READ, MAP_SHARED, cached, 0);
    seen = malloc(length);
    if (buffer == MAP_FAILED || source == MAP_FAILED || view == MAP_FAILED || !seen)
        fail("mmap");
    madvise(buffer, length, MADV_NOHUGEPAGE);
    open_faults();
    pthread_t thread;
    if (pthread_create(&thread, NULL, serve_faults, NULL))
        fail("pthread_create");
    for (int cycle = 1; cycle <= cycles; cycle++) {
        memset(source, cycle, length);
        madvise(buffer, length, MADV_DONTNEED);
        long written = write_directly();
        if (written != (long)length) {
            printf("cycle %d: %ld of %zu bytes were written\n", cycle, written, length);
            return 2;
        }
        read_all();
        check("read(2)", seen, cycle);
        check("the mapping", view, cycle);
        if (daemon_pid)
            check_time(cycle);
    }
    return 0;
}
