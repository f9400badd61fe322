/* Two threads beside the workers: the pump carries libfuse's replies to the kernel; the watchdog hands over requests that storage
 * does not answer soon. */
#include "internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

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

void *pump(void *argument)
{
    fastpath *fp = argument;
    uint8_t *message = malloc(REPLY_ROOM);

    while (message != NULL) {
        const ssize_t size = recv(fp->config.socket_fd, message, REPLY_ROOM, 0);
        if (size < 0 && errno == EINTR && !atomic_load(&fp->is_stopping))
            continue;
        if (size <= 0)
            break;
        if (!atomic_load(&fp->has_begun))
            change_init(fp, message, (size_t)size);
        const struct iovec part = {message, (size_t)size};
        write_message(fp, &part, 1);
        atomic_store(&fp->has_begun, 1);
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
        || now() - atomic_load(&w->waiting_since) < w->fp->config.patience)
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
        put_request(fp, request);
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

void *watch(void *argument)
{
    fastpath *fp = argument;
    struct timespec until;

    pthread_mutex_lock(&fp->pool);
    while (!atomic_load(&fp->is_stopping) && !atomic_load(&fp->has_ended)) {
        if (!is_anyone_waiting(fp)) {
            pthread_cond_wait(&fp->waiting, &fp->pool);
            continue;
        }
        deadline(&until, fp->config.patience / 4);
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
