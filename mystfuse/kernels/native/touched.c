/* Which parts of an image were touched first, and in which order: a bit for each unit, and a list of numbers. */
#include "touched.h"

#include <stdatomic.h>
#include <stdlib.h>

enum {
    LEAST_UNIT = 16 << 10, /* bytes: what a fetcher fetches at least */
    MOST_UNITS = 1 << 26,  /* of an image: 8 MiB of bits; pages that are never written take no memory */
    MOST_NOTED = 1 << 16,  /* what a trace may have */
    BITS = 32,
};

struct touched {
    int shift; /* a unit has 1 << shift bytes */
    uint64_t unit_count;
    _Atomic uint32_t *bits;
    _Atomic uint32_t *list;  /* number + 1; 0 while it is being written */
    _Atomic uint32_t taken;  /* places in the list; may be more than there are */
};

touched *touched_new(uint64_t size)
{
    touched *self = calloc(1, sizeof *self);
    if (self == NULL)
        return NULL;
    self->shift = 14;
    while (size >> self->shift >= MOST_UNITS)
        self->shift++;
    self->unit_count = (size >> self->shift) + 1;
    self->bits = calloc(self->unit_count / BITS + 1, sizeof *self->bits);
    self->list = calloc(MOST_NOTED, sizeof *self->list);
    if (self->bits == NULL || self->list == NULL) {
        touched_free(self);
        return NULL;
    }
    return self;
}

void touched_free(touched *self)
{
    if (self == NULL)
        return;
    free((void *)self->bits);
    free((void *)self->list);
    free(self);
}

static void note(touched *self, uint64_t unit)
{
    const uint32_t bit = UINT32_C(1) << unit % BITS;
    _Atomic uint32_t *word = &self->bits[unit / BITS];

    if (atomic_load_explicit(word, memory_order_relaxed) & bit)
        return;
    if (atomic_fetch_or_explicit(word, bit, memory_order_relaxed) & bit)
        return;
    const uint32_t place = atomic_fetch_add_explicit(&self->taken, 1, memory_order_relaxed);
    if (place < MOST_NOTED)
        atomic_store_explicit(&self->list[place], (uint32_t)unit + 1, memory_order_relaxed);
}

void touched_note(touched *self, uint64_t offset, uint64_t size)
{
    if (self == NULL || !size || atomic_load_explicit(&self->taken, memory_order_relaxed) >= MOST_NOTED)
        return;
    const uint64_t last = (offset + size - 1) >> self->shift;
    for (uint64_t unit = offset >> self->shift; unit <= last && unit < self->unit_count; unit++)
        note(self, unit);
}

uint64_t touched_unit(const touched *self)
{
    return self == NULL ? LEAST_UNIT : UINT64_C(1) << self->shift;
}

size_t touched_count(const touched *self)
{
    if (self == NULL)
        return 0;
    const uint32_t taken = atomic_load_explicit(&self->taken, memory_order_relaxed);
    return taken < MOST_NOTED ? taken : MOST_NOTED;
}

size_t touched_units(const touched *self, uint32_t *units, size_t room)
{
    const size_t count = touched_count(self);
    size_t made = 0;

    for (size_t place = 0; place < count && made < room; place++) {
        const uint32_t noted = atomic_load_explicit(&self->list[place], memory_order_relaxed);
        if (noted)
            units[made++] = noted - 1;
    }
    return made;
}
