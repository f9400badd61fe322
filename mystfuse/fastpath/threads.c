/* Who does what: workers read requests and answer or hand them over; the pump carries libfuse's replies to the kernel; the watchdog
 * hands over what storage does not answer soon; Python takes its requests from the queue. */
#include "internal.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum {
    STACK = 512 << 10,
    MAX_WAITS = 256,       /* times that a request waits for storage */
    TICK = 250 * 1000000,  /* nanoseconds between looks of the watchdog */
    WAKE_UP = SIGUSR2,     /* takes a worker out of read(2) */
    RETRIES = 1000,        /* milliseconds that a reply is tried again for want of memory */
    LISTING_OF_LIBFUSE = 64 << 10, /* bytes of a listing: more may not fit its socket */
};

static const uint64_t DIRECTORY_HANDLE = (uint64_t)1 << 62; /* with the inode's number, since pyfuse3 shows handles alone */

enum request_owner { WORKER, WAITING, WATCHDOG };

int64_t now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

static uint32_t opcode_of(const uint8_t *request)
{
    return ((const struct fuse_in_header *)(const void *)request)->opcode;
}

/* -- Replies. */

/* Write a whole message to the kernel; 0: it does not want it. A reply that is not delivered hangs its caller for ever. */
static int write_message(fastpath *fp, const struct iovec *parts, int count)
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

int send_reply(worker *w, uint64_t unique, int error, size_t size)
{
    struct fuse_out_header header = {.len = (uint32_t)(sizeof header + size), .error = -error, .unique = unique};
    const struct iovec part = {w->reply, sizeof header + size};

    memcpy(w->reply, &header, sizeof header);
    w->reply_size = part.iov_len;
    return w->is_test || write_message(w->fp, &part, 1);
}

/* -- The queue for Python. */

static void put(fastpath *fp, fastpath_request *request)
{
    const uint64_t one = 1;

    pthread_mutex_lock(&fp->queue);
    const int was_empty = fp->first == NULL;
    *fp->last = request;
    fp->last = &request->next;
    pthread_cond_signal(&fp->queued);
    if (was_empty && write(fp->event_fd, &one, sizeof one) < 0)
        atomic_store(&fp->has_ended, 1); /* It has room for more than ever come. */
    pthread_mutex_unlock(&fp->queue);
}

static fastpath_request *copy_request(const uint8_t *bytes, size_t size)
{
    fastpath_request *request = malloc(sizeof *request + size);
    if (request != NULL) {
        request->next = NULL;
        request->size = size;
        memcpy(request->bytes, bytes, size);
    }
    return request;
}

static void deadline(struct timespec *time, int64_t nanoseconds)
{
    const int64_t then = now() + nanoseconds;
    time->tv_sec = then / 1000000000;
    time->tv_nsec = then % 1000000000;
}

fastpath_request *fastpath_take(fastpath *fp, uint32_t microseconds)
{
    struct timespec until;
    uint64_t rest;

    deadline(&until, (int64_t)microseconds * 1000);
    pthread_mutex_lock(&fp->queue);
    const uint64_t forwards = fp->forwards;
    while (fp->first == NULL && microseconds && forwards == fp->forwards && !atomic_load(&fp->has_ended))
        if (pthread_cond_timedwait(&fp->queued, &fp->queue, &until) == ETIMEDOUT)
            break;
    fastpath_request *request = fp->first;
    if (request != NULL) {
        fp->first = request->next;
        if (fp->first == NULL) {
            fp->last = &fp->first;
            if (read(fp->event_fd, &rest, sizeof rest) < 0 && errno != EAGAIN)
                atomic_store(&fp->has_ended, 1);
        }
    }
    pthread_mutex_unlock(&fp->queue);
    return request;
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
        put(fp, request);
}

/* -- The pool: who reads /dev/fuse. */

/* Take a place among those that read; 0: it is over. */
static int take_turn(worker *w)
{
    fastpath *fp = w->fp;

    pthread_mutex_lock(&fp->pool);
    fp->idle++;
    while (fp->listening >= fp->config.listeners && !atomic_load(&fp->is_stopping) && !atomic_load(&fp->has_ended))
        pthread_cond_wait(&fp->wanted, &fp->pool);
    fp->idle--;
    fp->listening++;
    pthread_mutex_unlock(&fp->pool);
    return !atomic_load(&fp->is_stopping) && !atomic_load(&fp->has_ended);
}

/* Leave one's place to another worker, to wait for something; 0: then nobody would read. */
static int leave(worker *w)
{
    fastpath *fp = w->fp;

    pthread_mutex_lock(&fp->pool);
    const int may_leave = fp->listening > 1 || fp->idle > 0;
    if (may_leave) {
        fp->listening--;
        w->is_waiting = 1;
        pthread_cond_signal(&fp->wanted);
        pthread_cond_signal(&fp->waiting);
    }
    pthread_mutex_unlock(&fp->pool);
    return may_leave;
}

/* Having left: take the place again if it is free. Returns whether it was. */
static int come_back(worker *w)
{
    fastpath *fp = w->fp;

    pthread_mutex_lock(&fp->pool);
    w->is_waiting = 0;
    const int has_place = fp->listening < fp->config.listeners;
    fp->listening += has_place;
    pthread_mutex_unlock(&fp->pool);
    return has_place;
}

/* -- Handing over. */

/* What libfuse gets differs in one thing: listings, since pyfuse3 does not tell their inode. */
static void prepare_for_libfuse(uint8_t *request, size_t size)
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
    fp->forwards++;
    pthread_cond_signal(&fp->queued);
    pthread_mutex_unlock(&fp->queue);
}

/* 0: the socket has no room now. */
static int send_to_libfuse(fastpath *fp, const uint8_t *request, size_t size, int flags)
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

static int goes_to_python(const fastpath *fp, uint32_t opcode)
{
    return opcode < FASTPATH_MAX_OPCODE && (fp->config.python_opcodes >> opcode & 1);
}

static void queue_request(fastpath *fp, const uint8_t *bytes, size_t size)
{
    fastpath_request *request = copy_request(bytes, size);
    if (request != NULL)
        put(fp, request);
    else
        fastpath_reply(fp, ((const struct fuse_in_header *)(const void *)bytes)->unique, ENOMEM, NULL, 0);
}

/* Returns whether the worker still has its place. */
static int hand_over(worker *w, int has_place)
{
    if (goes_to_python(w->fp, opcode_of(w->request))) {
        queue_request(w->fp, w->request, w->request_size);
        return has_place;
    }
    prepare_for_libfuse(w->request, w->request_size);
    if (send_to_libfuse(w->fp, w->request, w->request_size, MSG_DONTWAIT))
        return has_place;
    const int left = has_place && leave(w);
    send_to_libfuse(w->fp, w->request, w->request_size, 0);
    return left ? come_back(w) : has_place;
}

/* -- Workers. */

/* Wait for storage; WAIT: the watchdog has handed the request over meanwhile. */
static enum outcome wait_for_storage(worker *w)
{
    int expected = WAITING;

    atomic_store(&w->owner, WAITING);
    const enum outcome outcome = device_wait(w);
    return atomic_compare_exchange_strong(&w->owner, &expected, WORKER) ? outcome : WAIT;
}

/* Answer the request or hand it over. Returns whether the worker still has its place. */
static int handle(worker *w)
{
    const uint32_t opcode = opcode_of(w->request);
    enum outcome outcome = answer(w);
    int has_place = 1;

    for (int waits = 0; outcome == WAIT; waits++) {
        if (has_place) {
            if (!leave(w)) {
                outcome = FORWARD;
                break;
            }
            has_place = 0;
            atomic_store(&w->waiting_since, now());
        }
        outcome = waits < MAX_WAITS ? wait_for_storage(w) : FORWARD;
        if (outcome == WAIT)
            return come_back(w);
        if (outcome == DONE)
            outcome = answer(w);
    }
    if (opcode < FASTPATH_MAX_OPCODE)
        count(outcome == DONE ? &w->counters.answered[opcode] : &w->counters.forwarded[opcode], 1);
    if (!has_place)
        has_place = come_back(w);
    return outcome == DONE ? has_place : hand_over(w, has_place);
}

/* Read a request; 0: there will be none any more, or the worker shall look whether it is over. */
static int read_request(worker *w)
{
    struct fuse_in_header header;
    const ssize_t size = read(w->fp->config.fuse_fd, w->request, REQUEST_ROOM);

    if (size < 0) {
        if (errno == ENODEV || (errno != EINTR && errno != EAGAIN && errno != ENOENT))
            atomic_store(&w->fp->has_ended, 1);
        if (errno == EAGAIN) {
            struct pollfd poll_fd = {.fd = w->fp->config.fuse_fd, .events = POLLIN};
            poll(&poll_fd, 1, -1);
        }
        return 0;
    }
    memcpy(&header, w->request, sizeof header);
    w->request_size = (size_t)size;
    w->fetched_size = 0;
    /* The kernel sends neither; an interrupted request is answered all the same, so nobody has to know. */
    return (size_t)size >= sizeof header && header.len == (size_t)size && header.opcode != FUSE_INTERRUPT;
}

static void tell_end(fastpath *fp)
{
    const uint64_t one = 1;

    pthread_mutex_lock(&fp->pool);
    pthread_cond_broadcast(&fp->wanted);
    pthread_cond_broadcast(&fp->waiting);
    pthread_mutex_unlock(&fp->pool);
    pthread_mutex_lock(&fp->queue);
    pthread_cond_broadcast(&fp->queued);
    if (write(fp->event_fd, &one, sizeof one) < 0) {
        /* It is readable already. */
    }
    pthread_mutex_unlock(&fp->queue);
}

static void *work(void *argument)
{
    worker *w = argument;
    fastpath *fp = w->fp;

    while (take_turn(w)) {
        int has_place = 1;
        while (has_place && !atomic_load(&fp->is_stopping) && !atomic_load(&fp->has_ended)) {
            if (!read_request(w))
                continue;
            atomic_store_explicit(&fp->last_request, now(), memory_order_relaxed);
            has_place = handle(w);
        }
        if (has_place) {
            pthread_mutex_lock(&fp->pool);
            fp->listening--;
            pthread_mutex_unlock(&fp->pool);
        }
    }
    tell_end(fp);
    atomic_fetch_sub(&fp->running, 1);
    return NULL;
}

/* -- The pump. */

/* INIT's reply, in which libfuse has agreed to less than it may. */
static void change_init(const fastpath *fp, uint8_t *reply, size_t size)
{
    struct fuse_out_header header;
    struct fuse_init_out out;

    if (size < sizeof header + sizeof out)
        return;
    memcpy(&header, reply, sizeof header);
    memcpy(&out, reply + sizeof header, sizeof out);
    if (header.error)
        return;
    out.flags = (out.flags & ~fp->config.init_clear) | fp->config.init_set;
    if (fp->config.max_write && fp->config.max_write < out.max_write) {
        out.max_write = fp->config.max_write;
        out.max_pages = (uint16_t)(fp->config.max_write / (uint32_t)sysconf(_SC_PAGESIZE));
    }
    if (fp->config.max_background) {
        out.max_background = fp->config.max_background;
        out.congestion_threshold = fp->config.max_background;
    }
    memcpy(reply + sizeof header, &out, sizeof out);
}

static void *pump(void *argument)
{
    fastpath *fp = argument;
    uint8_t *message = malloc(REPLY_ROOM);
    int has_answered_init = 0;

    while (message != NULL) {
        const ssize_t size = recv(fp->config.socket_fd, message, REPLY_ROOM, 0);
        if (size < 0 && errno == EINTR && !atomic_load(&fp->is_stopping))
            continue;
        if (size <= 0)
            break;
        if (!has_answered_init)
            change_init(fp, message, (size_t)size);
        has_answered_init = 1;
        const struct iovec part = {message, (size_t)size};
        write_message(fp, &part, 1);
    }
    free(message);
    atomic_fetch_sub(&fp->running, 1);
    return NULL;
}

/* -- The watchdog. */

/* Take a request from a worker that has waited too long; NULL: it has not. With the pool's lock held, which the worker takes
 * before it reads another request. */
static fastpath_request *take_from(worker *w)
{
    int expected = WAITING;

    if (!w->is_waiting || atomic_load(&w->owner) != WAITING
        || now() - atomic_load(&w->waiting_since) < (int64_t)FASTPATH_PATIENCE * 1000000000)
        return NULL;
    fastpath_request *request = copy_request(w->request, w->request_size);
    if (request != NULL && !atomic_compare_exchange_strong(&w->owner, &expected, WATCHDOG)) {
        free(request);
        request = NULL;
    }
    return request;
}

static void pass_on(fastpath *fp, fastpath_request *request)
{
    const uint32_t opcode = opcode_of(request->bytes);

    if (opcode < FASTPATH_MAX_OPCODE)
        count(&fp->workers[0].counters.forwarded[opcode], 1);
    if (goes_to_python(fp, opcode)) {
        put(fp, request);
        return;
    }
    prepare_for_libfuse(request->bytes, request->size);
    send_to_libfuse(fp, request->bytes, request->size, 0);
    free(request);
}

static int is_anyone_waiting(const fastpath *fp)
{
    for (int index = 0; index < fp->worker_count; index++)
        if (fp->workers[index].is_waiting)
            return 1;
    return 0;
}

static void *watch(void *argument)
{
    fastpath *fp = argument;
    struct timespec until;

    pthread_mutex_lock(&fp->pool);
    while (!atomic_load(&fp->is_stopping) && !atomic_load(&fp->has_ended)) {
        if (!is_anyone_waiting(fp)) {
            pthread_cond_wait(&fp->waiting, &fp->pool);
            continue;
        }
        deadline(&until, TICK);
        pthread_cond_timedwait(&fp->waiting, &fp->pool, &until);
        for (int index = 0; index < fp->worker_count; index++) {
            fastpath_request *request = take_from(&fp->workers[index]);
            if (request == NULL)
                continue;
            pthread_mutex_unlock(&fp->pool);
            pass_on(fp, request);
            pthread_mutex_lock(&fp->pool);
        }
    }
    pthread_mutex_unlock(&fp->pool);
    atomic_fetch_sub(&fp->running, 1);
    return NULL;
}

/* -- Beginning and end. */

static void *take_memory(size_t size)
{
    void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return memory == MAP_FAILED ? NULL : memory;
}

static void give_memory(void *memory, size_t size)
{
    if (memory != NULL)
        munmap(memory, size);
}

int worker_init(worker *w, fastpath *fp)
{
    /* Pages are whole, and take no memory until they are used. */
    w->fp = fp;
    w->request = take_memory(REQUEST_ROOM);
    w->reply_memory = take_memory(PAGE + REPLY_ROOM);
    if (w->reply_memory != NULL)
        w->reply = w->reply_memory + PAGE - sizeof(struct fuse_out_header);
    w->fetched = take_memory(MAX_DATA);
    w->verified = take_memory(device_room(fp));
    w->decrypted = take_memory(device_room(fp));
    w->hash_block = malloc(fp->config.hash_block_size ? fp->config.hash_block_size : 1);
    w->metadata = malloc(fp->config.block_size);
    w->directory = malloc(fp->config.block_size);
    return w->request && w->reply && w->fetched && w->verified && w->decrypted && w->hash_block && w->metadata && w->directory;
}

void worker_destroy(worker *w)
{
    give_memory(w->request, REQUEST_ROOM);
    give_memory(w->reply_memory, PAGE + REPLY_ROOM);
    give_memory(w->fetched, MAX_DATA);
    give_memory(w->verified, device_room(w->fp));
    give_memory(w->decrypted, device_room(w->fp));
    free(w->hash_block);
    free(w->metadata);
    free(w->directory);
}

static void wake_up(int number)
{
    (void)number;
}

static int start_thread(pthread_t *thread, void *(*function)(void *), void *argument)
{
    pthread_attr_t attributes;
    sigset_t all, before;

    if (pthread_attr_init(&attributes))
        return 0;
    pthread_attr_setstacksize(&attributes, STACK);
    sigfillset(&all);
    sigdelset(&all, WAKE_UP);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    const int failed = pthread_create(thread, &attributes, function, argument);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
    return !failed;
}

int fastpath_start(fastpath *fp)
{
    struct sigaction action = {.sa_handler = wake_up};
    int is_good = sigaction(WAKE_UP, &action, NULL) == 0;

    for (int index = 0; is_good && index < fp->worker_count; index++) {
        atomic_fetch_add(&fp->running, 1);
        is_good = fp->workers[index].is_started = start_thread(&fp->workers[index].thread, work, &fp->workers[index]);
        atomic_fetch_sub(&fp->running, !is_good);
    }
    atomic_fetch_add(&fp->running, 1);
    is_good = fp->pump_started = is_good && start_thread(&fp->pump, pump, fp);
    atomic_fetch_sub(&fp->running, !is_good);
    atomic_fetch_add(&fp->running, 1);
    is_good = fp->watchdog_started = is_good && start_thread(&fp->watchdog, watch, fp);
    atomic_fetch_sub(&fp->running, !is_good);
    if (!is_good)
        fastpath_stop(fp);
    return is_good;
}

/* A thread may be on its way into read(2), so one signal is not enough. */
static void wake_all(fastpath *fp)
{
    for (int index = 0; index < fp->worker_count; index++)
        if (fp->workers[index].is_started)
            pthread_kill(fp->workers[index].thread, WAKE_UP);
    tell_end(fp);
}

int fastpath_stop(fastpath *fp)
{
    const struct timespec pause = {0, 1000000};
    const int64_t end = now() + (int64_t)FASTPATH_PATIENCE * 1000000000;

    atomic_store(&fp->is_stopping, 1);
    shutdown(fp->config.socket_fd, SHUT_RDWR);
    while (atomic_load(&fp->running)) {
        if (now() > end)
            return 0;
        wake_all(fp);
        nanosleep(&pause, NULL);
    }
    for (int index = 0; index < fp->worker_count; index++)
        if (fp->workers[index].is_started)
            pthread_join(fp->workers[index].thread, NULL);
    if (fp->pump_started)
        pthread_join(fp->pump, NULL);
    if (fp->watchdog_started)
        pthread_join(fp->watchdog, NULL);
    return 1;
}

int fastpath_has_ended(fastpath *fp)
{
    return atomic_load(&fp->has_ended);
}
