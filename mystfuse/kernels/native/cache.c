/* Equal items by number, in sets of WAYS. Each set has a lock, and a hand that drops the items that were not used since it last
 * came by (the CLOCK algorithm). Items are copied in and out, so nobody holds one. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "cache.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { WAYS = 8 };

typedef struct {
    pthread_mutex_t lock;
    unsigned hand;
    uint8_t was_used[WAYS];
    uint64_t numbers[WAYS]; /* + 1; 0: none */
} set;

struct cache {
    size_t item_size, set_count; /* a power of two */
    int shift;
    set *sets;
    uint8_t *items;
};

cache *cache_new(size_t item_size, size_t capacity)
{
    cache *self = calloc(1, sizeof *self);
    if (self == NULL)
        return NULL;
    self->item_size = item_size;
    self->set_count = 1;
    self->shift = 64;
    while (self->set_count * 2 * WAYS * item_size <= capacity) {
        self->set_count *= 2;
        self->shift--;
    }
    self->sets = calloc(self->set_count, sizeof *self->sets);
    /* Pages that no item has used yet take no memory. */
    self->items = mmap(NULL, self->set_count * WAYS * item_size, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (self->items == MAP_FAILED)
        self->items = NULL;
    if (self->sets == NULL || self->items == NULL) {
        cache_free(self);
        return NULL;
    }
    for (size_t index = 0; index < self->set_count; index++)
        pthread_mutex_init(&self->sets[index].lock, NULL);
    return self;
}

void cache_free(cache *self)
{
    if (self == NULL)
        return;
    if (self->items != NULL)
        munmap(self->items, self->set_count * WAYS * self->item_size);
    free(self->sets);
    free(self);
}

static size_t set_of(const cache *self, uint64_t number)
{
    return self->shift == 64 ? 0 : (size_t)(number * UINT64_C(0x9e3779b97f4a7c15) >> self->shift);
}

static uint8_t *item_of(const cache *self, size_t index, unsigned way)
{
    return self->items + (index * WAYS + way) * self->item_size;
}

static int way_of(const set *in, uint64_t number)
{
    for (int way = 0; way < WAYS; way++)
        if (in->numbers[way] == number + 1)
            return way;
    return -1;
}

int cache_get(cache *self, uint64_t number, size_t offset, size_t size, uint8_t *out)
{
    const size_t index = set_of(self, number);
    set *in = &self->sets[index];

    pthread_mutex_lock(&in->lock);
    const int way = way_of(in, number);
    if (way >= 0) {
        in->was_used[way] = 1;
        memcpy(out, item_of(self, index, (unsigned)way) + offset, size);
    }
    pthread_mutex_unlock(&in->lock);
    return way >= 0;
}

/* The way that the hand stops at: one that was not used since it last came by. */
static unsigned take_way(set *in)
{
    while (in->was_used[in->hand]) {
        in->was_used[in->hand] = 0;
        in->hand = (in->hand + 1) % WAYS;
    }
    const unsigned way = in->hand;
    in->hand = (in->hand + 1) % WAYS;
    return way;
}

void cache_put(cache *self, uint64_t number, const uint8_t *item)
{
    const size_t index = set_of(self, number);
    set *in = &self->sets[index];

    pthread_mutex_lock(&in->lock);
    if (way_of(in, number) < 0) {
        const unsigned way = take_way(in);
        in->numbers[way] = number + 1;
        in->was_used[way] = 1;
        memcpy(item_of(self, index, way), item, self->item_size);
    }
    pthread_mutex_unlock(&in->lock);
}
