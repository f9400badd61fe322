/* The image's bytes: fetched once into our own memory, verified there (kernels/native/hash_tree.c), then decrypted. The trust boundary
 * of the fast path; the reference is devices/verity.py and devices/crypt.py.
 *
 * Nothing here waits for storage but device_wait: bytes come from the page cache (RWF_NOWAIT), or from what was waited for. */
#include "internal.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

enum {
    AROUND = 32 << 10,   /* bytes fetched from storage around metadata that is missing */
};

static uint64_t round_down(uint64_t offset, uint64_t unit)
{
    return offset / unit * unit;
}

static uint64_t round_up(uint64_t offset, uint64_t unit)
{
    return (offset + unit - 1) / unit * unit;
}

/* The number of the part of the image that has a byte; -1: none has. */
static int part_of(const fastpath *fp, uint64_t offset)
{
    for (size_t index = 0; index < fp->config.part_count; index++)
        if (fp->config.parts[index].start <= offset && offset < fp->config.parts[index].end)
            return (int)index;
    return -1;
}

/* -- Unverified bytes. */

static enum outcome want(worker *w, uint64_t offset, size_t size)
{
    w->wanted.offset = offset;
    w->wanted.size = size;
    return WAIT;
}

/* Bytes of one part from the page cache. */
static enum outcome fetch_part(worker *w, int index, uint64_t offset, size_t size, uint8_t *out)
{
    fastpath *fp = w->fp;
    const fastpath_part *part = &fp->config.parts[index];
    const struct iovec vector = {out, size};

    if (part->map_fd >= 0 && !elsewhere_is_stored(part, part->offset + offset - part->start, size, 0))
        return want(w, offset, size);
    if (!part->is_in_memory && !atomic_load_explicit(&fp->part_has_nowait[index], memory_order_relaxed))
        return want(w, offset, size);
    const ssize_t count = preadv2(part->fd, &vector, 1, (off_t)(part->offset + offset - part->start),
                                  part->is_in_memory ? 0 : RWF_NOWAIT);
    if (count == (ssize_t)size)
        return DONE;
    if (count < 0 && (errno == EOPNOTSUPP || errno == EINVAL || errno == ENOSYS))
        atomic_store(&fp->part_has_nowait[index], 0);
    else if (count < 0 && errno != EAGAIN && errno != EINTR)
        return FORWARD;
    return part->is_in_memory ? FORWARD : want(w, offset, size);
}

static enum outcome fetch(worker *w, uint64_t offset, size_t size, uint8_t *out)
{
    const size_t whole = size;

    if (offset >= w->fetched_offset && offset - w->fetched_offset <= w->fetched_size
        && size <= w->fetched_size - (offset - w->fetched_offset)) {
        memcpy(out, w->fetched + (offset - w->fetched_offset), size);
        return DONE;
    }
    while (size) {
        const int index = part_of(w->fp, offset);
        if (index < 0)
            return FORWARD;
        const size_t length = at_most(size, w->fp->config.parts[index].end - offset);
        const enum outcome outcome = fetch_part(w, index, offset, length, out);
        if (outcome != DONE)
            return outcome;
        offset += length, out += length, size -= length;
    }
    count(&w->counters.bytes_fetched, whole);
    return DONE;
}

/* Wait for bytes of one part; returns how many there are, or -1. */
static ssize_t wait_for_part(const fastpath_part *part, uint64_t offset, size_t size, uint8_t *out)
{
    size_t done = 0;
    while (done < size) {
        const ssize_t count = pread(part->fd, out + done, size - done, (off_t)(part->offset + offset + done - part->start));
        if (count < 0 && errno == EINTR && !done)
            return -1;
        if (count < 0 && errno != EINTR)
            return -1;
        if (count == 0)
            break;
        if (count > 0)
            done += (size_t)count;
    }
    return (ssize_t)done;
}

enum outcome device_wait(worker *w)
{
    const int index = part_of(w->fp, w->wanted.offset);

    w->fetched_size = 0;
    if (index < 0 || !w->wanted.size)
        return FORWARD;
    const fastpath_part *part = &w->fp->config.parts[index];
    /* No more than fits, and than the part has: the rest is wanted again. */
    const size_t size = at_most(at_most(w->wanted.size, MAX_DATA), part->end - w->wanted.offset);
    const uint64_t place = part->offset + w->wanted.offset - part->start;
    if (part->map_fd >= 0 && !elsewhere_is_stored(part, place, size, 1) && !elsewhere_wait(w->fp, part, place, size))
        return FORWARD;
    const ssize_t count = wait_for_part(part, w->wanted.offset, size, w->fetched);
    if (count <= 0)
        return FORWARD;
    w->fetched_offset = w->wanted.offset;
    w->fetched_size = (size_t)count;
    return DONE;
}

/* Have the kernel, or the fetcher, fetch bytes of the image, without waiting for them. */
static void expect(worker *w, uint64_t offset, size_t size)
{
    const int index = part_of(w->fp, offset);

    if (index < 0)
        return;
    const fastpath_part *part = &w->fp->config.parts[index];
    if (part->map_fd >= 0) {
        const uint64_t place = part->offset + offset - part->start;
        size = at_most(size, part->end - offset);
        if (!elsewhere_is_stored(part, place, size, 0)) {
            elsewhere_ask(part, place, size);
            return;
        }
    }
    if (part->is_in_memory)
        return;
    posix_fadvise(part->fd, (off_t)(part->offset + offset - part->start), (off_t)at_most(size, part->end - offset),
                  POSIX_FADV_WILLNEED);
}

void device_expect(worker *w, uint64_t offset, size_t size)
{
    const uint64_t place = offset + (w->fp->config.cipher ? w->fp->config.payload_offset : 0);
    const int index = part_of(w->fp, place);

    if (index >= 0 && w->fp->config.parts[index].map_fd < 0) {
        expect(w, place, size);
        return;
    }
    /* Of an image elsewhere, what is stored: a fetcher reads ahead by itself, as far as it is worth the network. */
    for (size_t done = 0; index >= 0 && done < size;) {
        const fastpath_part *part = &w->fp->config.parts[index];
        if (place + done >= part->end)
            return;
        const size_t piece = at_most(at_most(size - done, MAX_DATA), part->end - place - done);
        if (!elsewhere_is_stored(part, part->offset + place + done - part->start, piece, 0))
            return;
        expect(w, place + done, piece);
        done += piece;
    }
}

/* -- Verified bytes. */

/* Metadata comes in small pieces, neighbours soon after each other. */
static enum outcome want_around(worker *w)
{
    const int index = part_of(w->fp, w->wanted.offset);
    if (index >= 0 && w->fp->config.parts[index].map_fd >= 0)
        return WAIT;
    const uint64_t start = round_down(w->wanted.offset, AROUND), end = round_up(w->wanted.offset + w->wanted.size, AROUND);
    if (w->wanted.size < AROUND && part_of(w->fp, start) == part_of(w->fp, w->wanted.offset) && end - start <= MAX_DATA)
        want(w, start, end - start);
    return WAIT;
}

static enum outcome load_hash_block(worker *w, size_t level, uint64_t index);

/* The digests of `count` blocks, from the one with number `first` on, all below one hash block of a level. */
static enum outcome find_digests(worker *w, size_t level, uint64_t first, size_t count, uint8_t *digests)
{
    hash_tree *tree = w->fp->config.tree;

    if (hash_tree_digests(tree, level, first, count, digests))
        return DONE;
    const enum outcome outcome = load_hash_block(w, level, first / w->fp->shape->digests_per_block);
    if (outcome == DONE)
        hash_tree_digests_in(tree, w->hash_block, first, count, digests);
    return outcome;
}

/* A missing hash block, verified, in worker.hash_block and in the tree. */
static enum outcome load_hash_block(worker *w, size_t level, uint64_t index)
{
    const hash_tree_shape *shape = w->fp->shape;
    uint8_t expected[MAX_DIGEST_SIZE];
    const uint64_t offset = shape->level_offset[level] + index * shape->hash_block_size;
    enum outcome outcome = find_digests(w, level + 1, index, 1, expected);

    if (outcome == WAIT)
        /* So that storage fetches the whole path at the same time. */
        expect(w, offset, shape->hash_block_size);
    if (outcome != DONE)
        return outcome;
    outcome = fetch(w, offset, shape->hash_block_size, w->hash_block);
    if (outcome != DONE)
        return outcome == WAIT ? want_around(w) : outcome;
    return hash_tree_keep(w->fp->config.tree, level, index, w->hash_block, expected) == TREE_KEPT ? DONE : FORWARD;
}

/* Whole data blocks, all with their digests in one hash block. */
static enum outcome read_slice(worker *w, uint64_t offset, size_t size, uint8_t *out)
{
    const hash_tree_shape *shape = w->fp->shape;
    const size_t blocks = size / shape->data_block_size;
    size_t mismatch;
    enum outcome outcome = find_digests(w, 0, offset / shape->data_block_size, blocks, w->digests);

    if (outcome == WAIT)
        /* So that storage fetches both at the same time. */
        expect(w, offset, size);
    if (outcome == DONE)
        outcome = fetch(w, offset, size, out);
    if (outcome != DONE)
        return outcome;
    if (!hash_tree_first_mismatch(w->fp->config.tree, offset / shape->data_block_size, out, blocks, w->digests, &mismatch)
        || mismatch != blocks)
        return FORWARD;
    return DONE;
}

static enum outcome read_whole_blocks(worker *w, uint64_t offset, size_t size, uint8_t *out)
{
    const hash_tree_shape *shape = w->fp->shape;
    const uint64_t span = shape->data_block_size * shape->digests_per_block;
    const size_t slice = shape->data_block_size > SLICE ? shape->data_block_size : round_down(SLICE, shape->data_block_size);

    for (size_t done = 0; done < size;) {
        const uint64_t at = offset + done;
        const size_t length = at_most(at_most(size - done, slice), round_down(at, span) + span - at);
        const enum outcome outcome = read_slice(w, at, length, out + done);
        if (outcome == WAIT && w->wanted.offset == at && w->wanted.size == length)
            /* All that is left, rather than a slice at a time. */
            return want(w, at, size - done);
        if (outcome != DONE)
            return outcome;
        done += length;
    }
    return DONE;
}

static enum outcome read_verified(worker *w, uint64_t offset, size_t size, uint8_t *out)
{
    const hash_tree_shape *shape = w->fp->shape;

    if (shape == NULL)
        return fetch(w, offset, size, out);
    const uint64_t data_size = shape->data_blocks * shape->data_block_size;
    if (offset > data_size || size > data_size - offset)
        return FORWARD;
    const uint64_t start = round_down(offset, shape->data_block_size), end = round_up(offset + size, shape->data_block_size);
    if (start == offset && end == offset + size)
        return read_whole_blocks(w, offset, size, out);
    if (end - start > device_room(w->fp))
        return FORWARD;
    const enum outcome outcome = read_whole_blocks(w, start, end - start, w->verified);
    if (outcome == DONE)
        memcpy(out, w->verified + (offset - start), size);
    return outcome;
}

/* -- Decrypted bytes. */

static enum outcome read_whole_sectors(worker *w, uint64_t offset, size_t size, uint8_t *out)
{
    const fastpath_config *config = &w->fp->config;
    const enum outcome outcome = read_verified(w, config->payload_offset + offset, size, out);
    if (outcome != DONE)
        return outcome;
    if (!sector_cipher_run(config->cipher, 0, out, out, size, offset / 512 + config->iv_tweak))
        return FORWARD;
    count(&w->counters.bytes_decrypted, size);
    return DONE;
}

static enum outcome read_decrypted(worker *w, uint64_t offset, size_t size, uint8_t *out)
{
    const fastpath_config *config = &w->fp->config;

    if (offset > config->payload_size || size > config->payload_size - offset)
        return FORWARD;
    const uint64_t start = round_down(offset, config->sector_size), end = round_up(offset + size, config->sector_size);
    if (start == offset && end == offset + size)
        return read_whole_sectors(w, offset, size, out);
    if (end > config->payload_size || end - start > device_room(w->fp))
        return FORWARD;
    const enum outcome outcome = read_whole_sectors(w, start, end - start, w->decrypted);
    if (outcome == DONE)
        memcpy(out, w->decrypted + (offset - start), size);
    return outcome;
}

size_t device_room(const fastpath *fp)
{
    /* A request, and what of the first and last block or sector belongs to others. */
    return MAX_DATA + 2 * (fp->shape ? fp->shape->data_block_size : 0) + 2 * MAX_SECTOR_SIZE;
}

enum outcome device_read(worker *w, uint64_t offset, size_t size, uint8_t *out)
{
    return (w->fp->config.cipher ? read_decrypted : read_verified)(w, offset, size, out);
}
