/* The blocks written since the mount, as Python's overlay has them: a table from block numbers to slots in the overlay's arenas. */
#include "internal.h"

#include <stdlib.h>
#include <string.h>

enum { LEAST = 1024 /* entries */ };

int written_init(written_blocks *self)
{
    pthread_rwlockattr_t attributes;
    if (pthread_rwlockattr_init(&attributes))
        return 0;
    /* glibc prefers readers unless told otherwise: a stream of them would keep a commit out for ever. */
#ifdef __GLIBC__
    pthread_rwlockattr_setkind_np(&attributes, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
#endif
    const int failed = pthread_rwlock_init(&self->state, &attributes);
    pthread_rwlockattr_destroy(&attributes);
    return !failed;
}

void written_destroy(written_blocks *self)
{
    free(self->entries);
    free(self->arenas);
    pthread_rwlock_destroy(&self->state);
}

static size_t place_of(size_t capacity, uint64_t number)
{
    return (size_t)(number * UINT64_C(0x9e3779b97f4a7c15) >> 20) & (capacity - 1);
}

/* The entry of a block, or the free one where it belongs. */
static written_entry *entry_of(written_entry *entries, size_t capacity, uint64_t number)
{
    size_t place = place_of(capacity, number);
    while (entries[place].number && entries[place].number != number + 1)
        place = (place + 1) & (capacity - 1);
    return &entries[place];
}

static void remove_entry(written_blocks *self, written_entry *entry)
{
    const size_t mask = self->capacity - 1;
    size_t hole = (size_t)(entry - self->entries), place = hole;

    /* Entries behind it move up, so that none is behind a hole that a search would stop at. */
    for (;;) {
        place = (place + 1) & mask;
        const written_entry *next = &self->entries[place];
        if (!next->number)
            break;
        const size_t home = place_of(self->capacity, next->number - 1);
        if (((place - home) & mask) >= ((place - hole) & mask)) {
            self->entries[hole] = *next;
            hole = place;
        }
    }
    self->entries[hole] = (written_entry){0};
    self->used--;
}

static int resize(written_blocks *self, size_t capacity)
{
    written_entry *entries = calloc(capacity, sizeof *entries);
    if (entries == NULL)
        return 0;
    for (size_t place = 0; place < self->capacity; place++)
        if (self->entries[place].number)
            *entry_of(entries, capacity, self->entries[place].number - 1) = self->entries[place];
    free(self->entries);
    self->entries = entries;
    self->capacity = capacity;
    return 1;
}

static int reserve_arenas(written_blocks *self, size_t count)
{
    if (count <= self->arena_count)
        return 1;
    const size_t room = count + count / 2 + 16;
    const uint8_t **arenas = realloc(self->arenas, room * sizeof *arenas);
    if (arenas == NULL)
        return 0;
    memset(arenas + self->arena_count, 0, (room - self->arena_count) * sizeof *arenas);
    self->arenas = arenas;
    self->arena_count = room;
    return 1;
}

int fastpath_reserve(fastpath *fp, size_t blocks, size_t arenas)
{
    written_blocks *self = &fp->written;
    const size_t needed = self->used + blocks;

    if (!reserve_arenas(self, arenas))
        return 0;
    if (self->capacity && needed <= self->capacity / 2) {
        /* Given back when most of it has been free for long; without memory for that we keep it. */
        if (self->capacity > LEAST && needed < self->capacity / 16)
            resize(self, self->capacity / 4);
        return 1;
    }
    size_t capacity = self->capacity ? self->capacity : LEAST;
    while (needed > capacity / 2)
        capacity *= 2;
    return resize(self, capacity);
}

void fastpath_arena(fastpath *fp, size_t number, const void *memory)
{
    if (number < fp->written.arena_count)
        fp->written.arenas[number] = memory;
}

void fastpath_written(fastpath *fp, const uint64_t *numbers, const int64_t *slots, size_t count)
{
    written_blocks *self = &fp->written;

    for (size_t index = 0; index < count; index++) {
        if (!self->capacity)
            return;
        written_entry *entry = entry_of(self->entries, self->capacity, numbers[index]);
        if (slots[index] == FASTPATH_OF_THE_IMAGE) {
            if (entry->number)
                remove_entry(self, entry);
            continue;
        }
        if (!entry->number) {
            entry->number = numbers[index] + 1;
            self->used++;
        }
        entry->slot = slots[index];
    }
}

enum outcome written_find(const fastpath *fp, uint64_t number, const uint8_t **at)
{
    const written_blocks *self = &fp->written;

    *at = NULL;
    if (!self->used)
        return DONE;
    const written_entry *entry = entry_of(self->entries, self->capacity, number);
    if (!entry->number)
        return DONE;
    if (entry->slot < 0)
        return FORWARD;
    const size_t per_arena = fp->config.arena_size / fp->config.block_size, arena = (size_t)entry->slot / per_arena;
    if (arena >= self->arena_count || self->arenas[arena] == NULL)
        return FORWARD;
    *at = self->arenas[arena] + (size_t)entry->slot % per_arena * fp->config.block_size;
    return DONE;
}

void fastpath_lock(fastpath *fp)
{
    pthread_rwlock_wrlock(&fp->written.state);
}

void fastpath_unlock(fastpath *fp)
{
    fp->written.states++;
    pthread_rwlock_unlock(&fp->written.state);
}

void fastpath_give_up(fastpath *fp)
{
    atomic_store(&fp->has_given_up, 1);
}

void fastpath_known(fastpath *fp, uint64_t ino)
{
    if (ino < fp->counts_size)
        atomic_fetch_add(&fp->counts[ino], 1);
}

uint64_t fastpath_forgotten(fastpath *fp, uint64_t ino, uint64_t count)
{
    if (ino >= fp->counts_size)
        return 0;
    uint64_t before = atomic_load(&fp->counts[ino]), after;
    do
        after = before - at_most(before, count);
    while (!atomic_compare_exchange_weak(&fp->counts[ino], &before, after));
    return after;
}

uint64_t fastpath_count(fastpath *fp, uint64_t ino)
{
    return ino < fp->counts_size ? atomic_load(&fp->counts[ino]) : 0;
}
