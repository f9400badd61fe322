/* Verified blocks in memory: equal items by number, bounded. Any thread may use one. */
#ifndef MYSTFUSE_CACHE_H
#define MYSTFUSE_CACHE_H

#include <stddef.h>
#include <stdint.h>

typedef struct cache cache;

/* Room for `capacity` bytes of items, rounded down to a power of two of sets; one set at least. NULL: no memory. */
cache *cache_new(size_t item_size, size_t capacity);
void cache_free(cache *self);
/* Copy a part of an item; 0: it is not there. */
int cache_get(cache *self, uint64_t number, size_t offset, size_t size, uint8_t *out);
void cache_put(cache *self, uint64_t number, const uint8_t *item);

#endif
