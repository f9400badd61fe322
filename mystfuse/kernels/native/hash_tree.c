/* The hash tree of dm-verity: its shape, its root hash, and the hash blocks that have been verified. */
#include "cache.h"
#include "kernel.h"
#include "touched.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

enum { MIN_BLOCK = 512, MAX_BLOCK = 512 << 10 };

struct hash_tree {
    const hasher *hasher;
    hash_tree_shape shape;
    cache *kept;
    touched *touched; /* NULL: without memory for it, nothing is noted */
    _Atomic uint64_t blocks_verified, hash_blocks_verified;
};

static int is_power(uint64_t number, uint64_t least, uint64_t most)
{
    return number >= least && number <= most && (number & (number - 1)) == 0;
}

/* Whether each level has a digest for each block below it, and the highest is one block. */
static int has_usual_levels(const hash_tree_shape *shape)
{
    uint64_t below = shape->data_blocks;

    if (shape->level_count > MAX_TREE_LEVELS)
        return 0;
    for (size_t level = 0; level < shape->level_count; level++) {
        if (below <= 1 || shape->level_blocks[level] != (below - 1) / shape->digests_per_block + 1)
            return 0;
        below = shape->level_blocks[level];
    }
    return below == 1;
}

static int is_usual(const hash_tree_shape *shape)
{
    return is_power(shape->data_block_size, MIN_BLOCK, MAX_BLOCK) && is_power(shape->hash_block_size, MIN_BLOCK, MAX_BLOCK)
           && shape->digest_size && shape->digest_size <= MAX_DIGEST_SIZE
           && is_power(shape->digests_per_block, 2, shape->hash_block_size / shape->digest_size)
           && shape->data_blocks <= ((uint64_t)1 << 63) / shape->data_block_size && has_usual_levels(shape);
}

/* Bytes of the cache: never less than a few paths, for any size of hash blocks. */
static size_t room(const hash_tree_shape *shape, size_t cache_size)
{
    size_t least = 8;
    while (least < 2 * shape->level_count + 4)
        least *= 2;
    return cache_size > least * shape->hash_block_size ? cache_size : least * shape->hash_block_size;
}

/* Where the image ends, with data and tree. */
static uint64_t end_of(const hash_tree_shape *shape)
{
    uint64_t end = shape->data_blocks * shape->data_block_size;
    for (size_t level = 0; level < shape->level_count; level++) {
        const uint64_t level_end = shape->level_offset[level] + shape->level_blocks[level] * shape->hash_block_size;
        end = level_end > end ? level_end : end;
    }
    return end;
}

hash_tree *hash_tree_new(const hasher *hasher, const hash_tree_shape *shape, size_t cache_size)
{
    if (!is_usual(shape) || shape->digest_size != hasher_digest_size(hasher))
        return NULL;
    hash_tree *self = calloc(1, sizeof *self);
    if (self == NULL)
        return NULL;
    self->hasher = hasher;
    self->shape = *shape;
    self->kept = cache_new(shape->hash_block_size, shape->level_count ? room(shape, cache_size) : 0);
    if (self->kept == NULL) {
        free(self);
        return NULL;
    }
    self->touched = touched_new(end_of(shape));
    return self;
}

void hash_tree_free(hash_tree *self)
{
    if (self != NULL) {
        cache_free(self->kept);
        touched_free(self->touched);
    }
    free(self);
}

const hash_tree_shape *hash_tree_shape_of(const hash_tree *self)
{
    return &self->shape;
}

static uint64_t number_of(size_t level, uint64_t index)
{
    /* There are less than 1 << 54 data blocks. */
    return (uint64_t)level << 56 | index;
}

int hash_tree_digests(hash_tree *self, size_t level, uint64_t first, size_t count, uint8_t *digests)
{
    const hash_tree_shape *shape = &self->shape;

    if (level == shape->level_count) {
        memcpy(digests, shape->root_hash, shape->digest_size);
        return 1;
    }
    return cache_get(self->kept, number_of(level, first / shape->digests_per_block),
                     first % shape->digests_per_block * shape->digest_size, count * shape->digest_size, digests);
}

void hash_tree_digests_in(const hash_tree *self, const uint8_t *block, uint64_t first, size_t count, uint8_t *digests)
{
    const hash_tree_shape *shape = &self->shape;
    memcpy(digests, block + first % shape->digests_per_block * shape->digest_size, count * shape->digest_size);
}

int hash_tree_keep(hash_tree *self, size_t level, uint64_t index, const uint8_t *block, const uint8_t *expected)
{
    size_t mismatch;

    if (!hasher_first_mismatch(self->hasher, block, self->shape.hash_block_size, 1, expected, &mismatch))
        return TREE_NO_MEMORY;
    if (mismatch == 0)
        return TREE_REFUSED;
    cache_put(self->kept, number_of(level, index), block);
    atomic_fetch_add_explicit(&self->hash_blocks_verified, 1, memory_order_relaxed);
    touched_note(self->touched, self->shape.level_offset[level] + index * self->shape.hash_block_size,
                 self->shape.hash_block_size);
    return TREE_KEPT;
}

int hash_tree_first_mismatch(hash_tree *self, uint64_t first, const uint8_t *data, size_t count, const uint8_t *expected,
                             size_t *index)
{
    if (!hasher_first_mismatch(self->hasher, data, self->shape.data_block_size, count, expected, index))
        return 0;
    atomic_fetch_add_explicit(&self->blocks_verified, *index, memory_order_relaxed);
    touched_note(self->touched, first * self->shape.data_block_size, *index * self->shape.data_block_size);
    return 1;
}

uint64_t hash_tree_blocks_verified(const hash_tree *self)
{
    return atomic_load_explicit(&self->blocks_verified, memory_order_relaxed);
}

uint64_t hash_tree_hash_blocks_verified(const hash_tree *self)
{
    return atomic_load_explicit(&self->hash_blocks_verified, memory_order_relaxed);
}

uint64_t hash_tree_touched_unit(const hash_tree *self)
{
    return touched_unit(self->touched);
}

size_t hash_tree_touched_count(const hash_tree *self)
{
    return touched_count(self->touched);
}

size_t hash_tree_touched_units(const hash_tree *self, uint32_t *units, size_t room)
{
    return touched_units(self->touched, units, room);
}
