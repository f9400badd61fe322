/* Messages: replies to the kernel, the queue of requests for Python, and requests for libfuse. */
#include "internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum {
    RETRIES = 1000,                /* milliseconds that a reply is tried again for want of memory */
    LISTING_OF_LIBFUSE = 64 << 10, /* bytes of a listing: more may not fit its socket */
};

static const uint64_t DIRECTORY_HANDLE = (uint64_t)1 << 62; /* with the inode's number, since pyfuse3 shows handles alone */

int64_t now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

/* -- Replies. */

/* Write a whole message to the kernel; 0: it does not want it. A reply that is not delivered hangs its caller for ever. */
int write_message(fastpath *fp, const struct iovec *parts, int count)
{
    for (int attempt = 0;; attempt++) {
        if (writev(fp->config.fuse_fd, parts, count) >= 0)
            return 1;
        if (errno == ENODEV)
            atomic_store(&fp->has_ended, 1);
        if (errno == EINTR)
            continue;
        if ((errno != ENOMEM && errno != EAGAIN) || attempt == RETRIES)
            return 0;
        const struct timespec pause = {0, 1000000};
        nanosleep(&pause, NULL);
    }
}

int fastpath_reply(fastpath *fp, uint64_t unique, int error, const uint8_t *data, size_t size)
{
    struct fuse_out_header header = {.len = (uint32_t)(sizeof header + size), .error = -error, .unique = unique};
    const struct iovec parts[2] = {{&header, sizeof header}, {(void *)(uintptr_t)data, size}};

    return write_message(fp, parts, size ? 2 : 1);
}

void fastpath_drop_attributes(fastpath *fp, uint64_t nodeid)
{
    struct fuse_notify_inval_inode_out out = {.ino = nodeid, .off = -1};
    struct fuse_out_header header = {.len = sizeof header + sizeof out, .error = FUSE_NOTIFY_INVAL_INODE};
    const struct iovec parts[2] = {{&header, sizeof header}, {&out, sizeof out}};

    write_message(fp, parts, 2);
}

int send_reply(worker *w, uint64_t unique, int error, size_t size)
{
    struct fuse_out_header header = {.len = (uint32_t)(sizeof header + size), .error = -error, .unique = unique};
    const struct iovec part = {w->reply, sizeof header + size};

    memcpy(w->reply, &header, sizeof header);
    w->reply_size = part.iov_len;
    return w->is_test || write_message(w->fp, &part, 1);
}

/* -- The queue for Python. */

/* With the queue's lock held: tell Python that there is something to take. */
static void tell(fastpath *fp)
{
    const uint64_t one = 1;

    if (!fp->is_told && write(fp->event_fd, &one, sizeof one) < 0)
        atomic_store(&fp->has_ended, 1); /* It has room for more than ever come. */
    fp->is_told = 1;
}

/* With the queue's lock held. */
static void note_arrival(fastpath *fp)
{
    atomic_fetch_add_explicit(&fp->arrivals, 1, memory_order_relaxed);
    pthread_cond_signal(&fp->queued);
    if (!fp->is_taking && fp->first != NULL)
        tell(fp);
}

void put_request(fastpath *fp, fastpath_request *request)
{
    pthread_mutex_lock(&fp->queue);
    *fp->last = request;
    fp->last = &request->next;
    note_arrival(fp);
    pthread_mutex_unlock(&fp->queue);
}

fastpath_request *copy_request(const uint8_t *bytes, size_t size)
{
    fastpath_request *request = malloc(sizeof *request + size);
    if (request != NULL) {
        request->next = NULL;
        request->size = size;
        memcpy(request->bytes, bytes, size);
    }
    return request;
}

void deadline(struct timespec *time, int64_t nanoseconds)
{
    const int64_t then = now() + nanoseconds;
    time->tv_sec = then / 1000000000;
    time->tv_nsec = then % 1000000000;
}

/* Wait a moment without sleeping, which takes longer than most requests, if the last one came soon. */
static void look_for_arrival(fastpath *fp, uint64_t arrivals)
{
    const int64_t end = now() + LOOKING;

    if (!fp->config.may_spin || fp->last_take > BURST)
        return;
    while (atomic_load_explicit(&fp->arrivals, memory_order_relaxed) == arrivals && now() < end)
        spin();
}

/* With the queue's lock held, wait for an arrival, at most until a time. */
static void await_arrival(fastpath *fp, int64_t nanoseconds)
{
    const int64_t start = now();
    struct timespec until;
    const uint64_t arrivals = atomic_load(&fp->arrivals);

    deadline(&until, nanoseconds);
    pthread_mutex_unlock(&fp->queue);
    look_for_arrival(fp, arrivals);
    pthread_mutex_lock(&fp->queue);
    while (atomic_load(&fp->arrivals) == arrivals && !atomic_load(&fp->has_ended))
        if (pthread_cond_timedwait(&fp->queued, &fp->queue, &until) == ETIMEDOUT)
            break;
    fp->last_take = now() - start;
}

fastpath_request *fastpath_take(fastpath *fp, uint32_t microseconds)
{
    uint64_t rest;

    pthread_mutex_lock(&fp->queue);
    fp->is_taking = 1;
    if (fp->first == NULL && microseconds && !atomic_load(&fp->has_ended))
        await_arrival(fp, (int64_t)microseconds * 1000);
    fastpath_request *request = fp->first;
    if (request != NULL) {
        fp->first = request->next;
        if (fp->first == NULL)
            fp->last = &fp->first;
    }
    if (fp->is_told && read(fp->event_fd, &rest, sizeof rest) < 0 && errno != EAGAIN)
        atomic_store(&fp->has_ended, 1);
    fp->is_told = 0;
    pthread_mutex_unlock(&fp->queue);
    return request;
}

void fastpath_pause(fastpath *fp)
{
    pthread_mutex_lock(&fp->queue);
    fp->is_taking = 0;
    if (fp->first != NULL)
        tell(fp);
    pthread_mutex_unlock(&fp->queue);
}

const uint8_t *fastpath_bytes(const fastpath_request *request)
{
    return request->bytes;
}

size_t fastpath_size(const fastpath_request *request)
{
    return request->size;
}

void fastpath_done(fastpath_request *request)
{
    free(request);
}

int fastpath_event(fastpath *fp)
{
    return fp->event_fd;
}

void tell_forgotten(fastpath *fp, uint64_t ino)
{
    const struct fuse_in_header header = {.len = sizeof header, .opcode = FUSE_FORGET, .nodeid = ino};
    fastpath_request *request = copy_request((const uint8_t *)&header, sizeof header);
    /* Without memory for it the inode's blocks stay in use until the end. */
    if (request != NULL)
        put_request(fp, request);
}

/* -- Requests for libfuse. */

/* What libfuse gets differs in one thing: listings, since pyfuse3 does not tell their inode. */
void prepare_for_libfuse(uint8_t *request, size_t size)
{
    struct fuse_in_header header;
    struct fuse_read_in in;

    memcpy(&header, request, sizeof header);
    if ((header.opcode != FUSE_READDIRPLUS && header.opcode != FUSE_READDIR) || size < sizeof header + sizeof in)
        return;
    memcpy(&in, request + sizeof header, sizeof in);
    in.fh = DIRECTORY_HANDLE | ino_of(header.nodeid);
    in.size = (uint32_t)at_most(in.size, LISTING_OF_LIBFUSE);
    memcpy(request + sizeof header, &in, sizeof in);
}

static void note_forward(fastpath *fp)
{
    pthread_mutex_lock(&fp->queue);
    note_arrival(fp);
    pthread_mutex_unlock(&fp->queue);
}

/* 0: the socket has no room now. */
int send_to_libfuse(fastpath *fp, const uint8_t *request, size_t size, int flags)
{
    const uint64_t unique = ((const struct fuse_in_header *)(const void *)request)->unique;
    ssize_t sent;

    do
        sent = send(fp->config.socket_fd, request, size, flags | MSG_NOSIGNAL);
    while (sent < 0 && errno == EINTR);
    if (sent < 0 && errno == EAGAIN && (flags & MSG_DONTWAIT))
        return 0;
    if (sent < 0)
        fastpath_reply(fp, unique, errno == ENOMEM || errno == ENOBUFS ? ENOMEM : EIO, NULL, 0);
    else
        note_forward(fp);
    return 1;
}

int goes_to_python(const fastpath *fp, uint32_t opcode)
{
    return opcode < FASTPATH_MAX_OPCODE && (fp->config.python_opcodes >> opcode & 1);
}

void queue_request(fastpath *fp, const uint8_t *bytes, size_t size)
{
    fastpath_request *request = copy_request(bytes, size);
    if (request != NULL)
        put_request(fp, request);
    else
        fastpath_reply(fp, ((const struct fuse_in_header *)(const void *)bytes)->unique, ENOMEM, NULL, 0);
}
