/* A fast path as a whole: made, asked, and given back. */
#include "internal.h"

#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

enum {
    METADATA = 24 << 20, /* bytes of metadata blocks to keep */
    MAX_THREADS = 64,
};

static int is_power(size_t number, size_t least, size_t most)
{
    return number >= least && number <= most && (number & (number - 1)) == 0;
}

static int is_usual_file_system(const fastpath_config *config)
{
    return is_power(config->block_size, 1024, MAX_BLOCK) && is_power(config->inode_size, 128, config->block_size)
           && config->blocks_per_group && config->inodes_per_group && config->blocks_count > config->first_data_block
           && config->descriptor_size >= 32 && config->descriptor_size <= config->block_size
           && config->inodes_count < (uint64_t)1 << 32 && config->patience > 0 && config->arena_size >= config->block_size;
}

static int is_usual(const fastpath_config *config)
{
    return config->part_count >= 1 && config->part_count <= FASTPATH_MAX_PARTS && is_usual_file_system(config)
           && (config->cipher == NULL || is_power(config->sector_size, 512, MAX_SECTOR_SIZE))
           && config->listeners > 0 && config->spare >= 0 && config->listeners + config->spare <= MAX_THREADS;
}

static int init_locks(fastpath *self)
{
    pthread_condattr_t attributes;

    if (pthread_condattr_init(&attributes))
        return 0;
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    const int failed = pthread_mutex_init(&self->pool, NULL) || pthread_mutex_init(&self->queue, NULL)
                       || pthread_cond_init(&self->wanted, &attributes) || pthread_cond_init(&self->waiting, &attributes)
                       || pthread_cond_init(&self->queued, &attributes);
    pthread_condattr_destroy(&attributes);
    return !failed && written_init(&self->written);
}

static int init_memory(fastpath *self)
{
    const fastpath_config *config = &self->config;

    self->counts_size = config->inodes_count + 1;
    /* As large as the inode table could be; pages that no count is in take no memory. */
    self->counts = mmap(NULL, self->counts_size * sizeof *self->counts, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (self->counts == MAP_FAILED) {
        self->counts = NULL;
        return 0;
    }
    if (!init_checked(self))
        return 0;
    self->blocks = cache_new(config->block_size, METADATA);
    self->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    return self->blocks != NULL && self->event_fd >= 0;
}

static int init_workers(fastpath *self)
{
    const int count = self->config.listeners + self->config.spare;

    self->workers = calloc((size_t)count, sizeof *self->workers);
    if (self->workers == NULL)
        return 0;
    for (; self->worker_count < count; self->worker_count++)
        if (!worker_init(&self->workers[self->worker_count], self)) {
            self->worker_count++;
            return 0;
        }
    return 1;
}

fastpath *fastpath_new(const fastpath_config *config)
{
    if (!is_usual(config))
        return NULL;
    fastpath *self = calloc(1, sizeof *self);
    if (self == NULL)
        return NULL;
    self->config = *config;
    self->shape = config->tree ? hash_tree_shape_of(config->tree) : NULL;
    self->last = &self->first;
    self->event_fd = -1;
    atomic_store(&self->last_request, now());
    for (size_t index = 0; index < config->part_count; index++)
        atomic_store(&self->part_has_nowait[index], 1);
    if (!init_locks(self) || !init_memory(self) || !init_workers(self)) {
        fastpath_free(self);
        return NULL;
    }
    return self;
}

void fastpath_free(fastpath *self)
{
    if (self == NULL)
        return;
    for (int index = 0; index < self->worker_count; index++)
        worker_destroy(&self->workers[index]);
    free(self->workers);
    while (self->first != NULL) {
        fastpath_request *request = self->first;
        self->first = request->next;
        fastpath_done(request);
    }
    if (self->event_fd >= 0)
        close(self->event_fd);
    if (self->counts != NULL)
        munmap((void *)(uintptr_t)self->counts, self->counts_size * sizeof *self->counts);
    cache_free(self->blocks);
    free((void *)(uintptr_t)self->checked);
    written_destroy(&self->written);
    free(self);
}

static void add_counters(fastpath_status *to, const counters *from)
{
    for (size_t opcode = 0; opcode < FASTPATH_MAX_OPCODE; opcode++) {
        to->answered[opcode] += atomic_load(&from->answered[opcode]);
        to->forwarded[opcode] += atomic_load(&from->forwarded[opcode]);
    }
    to->bytes_fetched += atomic_load(&from->bytes_fetched);
    to->bytes_decrypted += atomic_load(&from->bytes_decrypted);
}

void fastpath_get_status(fastpath *self, fastpath_status *status)
{
    memset(status, 0, sizeof *status);
    for (int index = 0; index < self->worker_count; index++)
        add_counters(status, &self->workers[index].counters);
    status->open_files = atomic_load(&self->open_files);
    status->last_request = (double)atomic_load(&self->last_request) / 1e9;
}

int fastpath_answer(fastpath *self, const uint8_t *request, size_t size, uint8_t *reply, size_t room, size_t *reply_size)
{
    worker *w = calloc(1, sizeof *w);
    enum outcome outcome = FORWARD;

    *reply_size = 0;
    if (w == NULL || size < sizeof(struct fuse_in_header) || size > REQUEST_ROOM)
        goto end;
    if (worker_init(w, self)) {
        w->is_test = 1;
        memcpy(w->request, request, size);
        w->request_size = size;
        outcome = answer(w);
        for (int waits = 0; outcome == WAIT && waits < 64; waits++) {
            outcome = device_wait(w);
            if (outcome == DONE)
                outcome = answer(w);
        }
        if (outcome == DONE && w->reply_size <= room) {
            memcpy(reply, w->reply, w->reply_size);
            *reply_size = w->reply_size;
        }
    }
    worker_destroy(w);
end:
    free(w);
    return outcome == DONE && *reply_size <= room;
}
