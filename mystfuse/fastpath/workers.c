/* Workers read requests from /dev/fuse, answer them or hand them over. When one has to wait for storage, a spare one takes its
 * place.
 *
 * How many read is a matter of what it costs to wake a thread, which is as much as most answers do. So usually one worker reads, and
 * between two requests of a program looks for the next one for a moment before it sleeps. More of them read for some milliseconds
 * after there was more to do than one could: several requests at once, or one for much data. */
#include "internal.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
    MAX_WAITS = 256,     /* times that a request waits for storage */
    MUCH_DATA = 8 << 10, /* bytes of a READ that takes longer than waking a thread */
};

static const int64_t PARALLEL = 2000000; /* nanoseconds in which several workers read */

/* -- The pool: who reads /dev/fuse. */

/* How many may read now: several while storage is waited for, too, which others use meanwhile. */
static int places(const fastpath *fp)
{
    if (atomic_load_explicit(&fp->absent, memory_order_relaxed))
        return fp->config.listeners;
    return now() < atomic_load_explicit(&fp->parallel_until, memory_order_relaxed) ? fp->config.listeners : 1;
}

/* There is more to do than one worker can. */
static void ask_for_more(fastpath *fp)
{
    atomic_store_explicit(&fp->parallel_until, now() + PARALLEL, memory_order_relaxed);
    if (atomic_load_explicit(&fp->listening, memory_order_relaxed) >= fp->config.listeners)
        return;
    pthread_mutex_lock(&fp->pool);
    pthread_cond_signal(&fp->wanted);
    pthread_mutex_unlock(&fp->pool);
}

/* Give one's place back where one worker is enough; 0: this one is needed. */
static int step_down(fastpath *fp)
{
    if (atomic_load_explicit(&fp->listening, memory_order_relaxed) <= 1)
        return 0;
    pthread_mutex_lock(&fp->pool);
    const int is_too_many = fp->listening > places(fp);
    fp->listening -= is_too_many;
    pthread_mutex_unlock(&fp->pool);
    return is_too_many;
}

/* Take a place among those that read; 0: it is over. */
static int take_turn(worker *w)
{
    fastpath *fp = w->fp;

    pthread_mutex_lock(&fp->pool);
    fp->idle++;
    while (fp->listening >= places(fp) && !atomic_load(&fp->is_stopping) && !atomic_load(&fp->has_ended))
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
        fp->absent++;
        /* One for this place, and one more, since several may read now. */
        pthread_cond_signal(&fp->wanted);
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
    fp->absent--;
    const int has_place = fp->listening < places(fp);
    fp->listening += has_place;
    pthread_mutex_unlock(&fp->pool);
    return has_place;
}

/* -- Handing over. */

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
        /* After fastpath_stop, what the blocks are in may be gone. */
        if (outcome == WAIT || atomic_load(&w->fp->is_stopping))
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

/* -- Reading. */

static int has_request(fastpath *fp)
{
    struct pollfd poll_fd = {.fd = fp->config.fuse_fd, .events = POLLIN};
    return poll(&poll_fd, 1, 0) != 0;
}

/* Look for a request for a moment, if the last ones came soon after each other. Not where another worker sleeps in read(2), which the
 * kernel would wake up, or waits for storage, as the program does. */
static void look_for_request(fastpath *fp, int64_t start)
{
    if (!fp->config.may_spin || atomic_load_explicit(&fp->last_wait, memory_order_relaxed) > BURST
        || atomic_load_explicit(&fp->listening, memory_order_relaxed) != 1
        || atomic_load_explicit(&fp->absent, memory_order_relaxed))
        return;
    while (!has_request(fp) && now() - start < LOOKING)
        spin();
}

static int is_for_much_data(const worker *w)
{
    struct fuse_read_in in;

    if (opcode_of(w->request) != FUSE_READ || w->request_size < sizeof(struct fuse_in_header) + sizeof in)
        return 0;
    memcpy(&in, w->request + sizeof(struct fuse_in_header), sizeof in);
    return in.size > MUCH_DATA;
}

/* Read a request; 0: there will be none any more, or the worker shall look whether it is over. */
static int read_request(worker *w)
{
    struct fuse_in_header header;
    const int64_t start = now();

    look_for_request(w->fp, start);
    const ssize_t size = read(w->fp->config.fuse_fd, w->request, REQUEST_ROOM);
    atomic_store_explicit(&w->fp->last_wait, now() - start, memory_order_relaxed);

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

void tell_end(fastpath *fp)
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

void *work(void *argument)
{
    worker *w = argument;
    fastpath *fp = w->fp;

    while (take_turn(w)) {
        int has_place = 1;
        while (has_place && !atomic_load(&fp->is_stopping) && !atomic_load(&fp->has_ended)) {
            if (!read_request(w))
                continue;
            atomic_store_explicit(&fp->last_request, now(), memory_order_relaxed);
            if (is_for_much_data(w) || has_request(fp))
                ask_for_more(fp);
            has_place = handle(w) && !step_down(fp);
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
