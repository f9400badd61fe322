/* The threads' beginning and end. */
#include "internal.h"

#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static const int64_t GRACE = 1000000000; /* nanoseconds for the threads to end */

enum {
    STACK = 512 << 10,
    WAKE_UP = SIGUSR2, /* takes a worker out of read(2) */
};

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
    w->hash_block = malloc(fp->shape ? fp->shape->hash_block_size : 1);
    w->metadata = malloc(fp->config.block_size);
    w->directory = malloc(fp->config.block_size);
    for (int index = 0; index < 2; index++)
        w->nodes[index].bytes = malloc(fp->config.is_extended ? fp->config.block_size : 1);
    return w->request && w->reply && w->fetched && w->verified && w->decrypted && w->hash_block && w->metadata && w->directory
           && w->nodes[0].bytes && w->nodes[1].bytes;
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
    for (int index = 0; index < 2; index++)
        free(w->nodes[index].bytes);
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
    const int64_t end = now() + GRACE;

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

int fastpath_has_begun(fastpath *fp)
{
    return atomic_load(&fp->has_begun);
}

int fastpath_has_ended(fastpath *fp)
{
    return atomic_load(&fp->has_ended);
}
