/* What ext4 has besides ext2: checksums of metadata, long group descriptors, extent trees. As in ext2.c, whatever is not as usual is
 * FORWARD: a checksum that does not match too.
 *
 * Sources: Documentation/filesystems/ext4 of the kernel; fs/ext4/extents.c, fs/ext4/namei.c, fs/ext4/super.c. The reference is
 * ext2/checksum.py, ext2/extents.py and ext2/block_groups.py. */
#include "internal.h"

#include <stdlib.h>
#include <string.h>

enum {
    OLD_INODE_SIZE = 128,
    SHORT_DESCRIPTOR = 32,
    DESCRIPTOR_CHECKSUM = 30,
    NODE_HEADER = 12,
    NODE_ENTRY = 12,
    NODE_MAGIC = 0xf30a,
    MAX_DEPTH = 5,
    LONGEST_WRITTEN = 32768,
    MAX_LEAVES = 64, /* for one request */
    TAIL = 12,
    CHECKED = 1 << 14, /* entries of fastpath.checked */
};

static const uint64_t MAX_LOGICAL = (uint64_t)1 << 32;
static const uint8_t ZEROS[4];

static void store_32(uint8_t *bytes, uint32_t value)
{
    for (int index = 0; index < 4; index++)
        bytes[index] = (uint8_t)(value >> 8 * index);
}

/* -- Checksums. */

static uint32_t inode_seed(const fastpath *fp, uint64_t ino, uint32_t generation)
{
    uint8_t bytes[8];
    store_32(bytes, (uint32_t)ino);
    store_32(bytes + 4, generation);
    return crc32c_update(fp->config.checksum_seed, bytes, sizeof bytes);
}

int is_checked_inode(const fastpath *fp, uint64_t ino, const uint8_t *bytes)
{
    const size_t size = fp->config.inode_size;
    uint32_t crc = inode_seed(fp, ino, load_32(bytes + 100)), stored = load_16(bytes + 124);
    int is_wide = 0;

    crc = crc32c_update(crc, bytes, 124);
    crc = crc32c_update(crc, ZEROS, 2);
    crc = crc32c_update(crc, bytes + 126, 2);
    if (size > OLD_INODE_SIZE) {
        is_wide = load_16(bytes + 128) >= 4;
        if (is_wide)
            stored |= load_16(bytes + 130) << 16;
        crc = crc32c_update(crc, bytes + 128, 2);
        crc = crc32c_update(crc, is_wide ? ZEROS : bytes + 130, 2);
        crc = crc32c_update(crc, bytes + 132, size - 132);
    }
    return (is_wide ? crc : crc & 0xffff) == stored;
}

static int is_checked_descriptor(const fastpath *fp, uint64_t group, const uint8_t *bytes)
{
    const fastpath_config *config = &fp->config;
    uint8_t number[4];
    const uint32_t stored = load_16(bytes + DESCRIPTOR_CHECKSUM);
    uint32_t crc;

    store_32(number, (uint32_t)group);
    if (config->has_checksums) {
        crc = crc32c_update(config->checksum_seed, number, sizeof number);
        crc = crc32c_update(crc, bytes, DESCRIPTOR_CHECKSUM);
        crc = crc32c_update(crc, ZEROS, 2);
        crc = crc32c_update(crc, bytes + SHORT_DESCRIPTOR, config->descriptor_size - SHORT_DESCRIPTOR);
        return (crc & 0xffff) == stored;
    }
    if (!config->has_descriptor_checksums)
        return 1;
    crc = crc16_update(0xffff, config->uuid, sizeof config->uuid);
    crc = crc16_update(crc, number, sizeof number);
    crc = crc16_update(crc, bytes, DESCRIPTOR_CHECKSUM);
    return crc16_update(crc, bytes + SHORT_DESCRIPTOR, config->descriptor_size - SHORT_DESCRIPTOR) == stored;
}

/* The tail of a block of names. */
static int has_tail(const uint8_t *block, size_t size, uint32_t seed)
{
    const uint8_t *tail = block + size - TAIL;
    return !load_32(tail) && load_16(tail + 4) == TAIL && !tail[6] && tail[7] == 0xde
           && crc32c_update(seed, block, size - TAIL) == load_32(tail + 8);
}

/* Where a block of the index has its limit and count; 0: it is none. */
static size_t find_counts(const uint8_t *block, size_t size)
{
    const uint32_t first = load_16(block + 4), second = load_16(block + 16);

    if (first == size || (size == MAX_BLOCK && (first == 0 || first == 65535)))
        return 8;
    return first == 12 && second == size - 12 && !load_32(block + 24) && block[29] == 8 ? 32 : 0;
}

static int is_checked_index(const uint8_t *block, size_t size, uint32_t seed)
{
    const size_t counts = find_counts(block, size);
    if (!counts)
        return 0;
    const size_t limit = load_16(block + counts), count = load_16(block + counts + 2), tail = counts + limit * 8;
    if (count > limit || tail + 8 > size)
        return 0;
    uint32_t crc = crc32c_update(seed, block, counts + count * 8);
    crc = crc32c_update(crc, block + tail, 4);
    return crc32c_update(crc, ZEROS, 4) == load_32(block + tail + 4);
}

/* Blocks of the image never change, so each is checked once: what was checked as what is remembered. To remember the wrong thing, by a
 * collision, lets nothing through but a block whose checksum does not match: what the image holds is verified elsewhere. */
static uint64_t mark_of(const inode *directory, uint64_t number)
{
    const uint64_t owner = directory->ino << 32 | directory->generation;
    return (number * 0x9e3779b97f4a7c15 ^ owner * 0xc2b2ae3d27d4eb4f) | 1;
}

enum outcome look_at_directory(worker *w, const inode *directory, uint64_t number, const uint8_t **at)
{
    fastpath *fp = w->fp;
    const size_t size = fp->config.block_size;
    enum outcome outcome = look_at_block(w, number, at);

    if (outcome != DONE || !fp->config.has_checksums)
        return outcome;
    const uint64_t mark = mark_of(directory, number);
    _Atomic uint64_t *const checked = &fp->checked[mark >> 1 & (CHECKED - 1)];
    const int is_of_image = *at == w->directory;
    if (is_of_image && atomic_load_explicit(checked, memory_order_relaxed) == mark)
        return DONE;
    const uint32_t seed = inode_seed(fp, directory->ino, directory->generation);
    if (!has_tail(*at, size, seed) && !is_checked_index(*at, size, seed))
        return FORWARD;
    if (is_of_image)
        atomic_store_explicit(checked, mark, memory_order_relaxed);
    return DONE;
}

int init_checked(fastpath *fp)
{
    fp->checked = fp->config.has_checksums ? calloc(CHECKED, sizeof *fp->checked) : NULL;
    return fp->checked != NULL || !fp->config.has_checksums;
}

/* -- Group descriptors. */

enum outcome find_extended_table(worker *w, uint64_t group, uint64_t *table)
{
    const fastpath_config *config = &w->fp->config;
    const uint64_t per_block = config->block_size / config->descriptor_size, index = group / per_block;
    uint8_t bytes[64];
    uint64_t places[3];

    if (config->descriptor_size > sizeof bytes || (config->descriptor_blocks && index >= config->descriptor_block_count))
        return FORWARD;
    const uint64_t number = config->descriptor_blocks ? config->descriptor_blocks[index] : config->descriptors + index;
    const enum outcome outcome
        = read_block(w, number, group % per_block * config->descriptor_size, config->descriptor_size, bytes);
    if (outcome != DONE)
        return outcome;
    if (!is_checked_descriptor(w->fp, group, bytes))
        return FORWARD;
    uint64_t first = config->first_data_block, end = config->blocks_count;
    if (!config->has_flexible_groups) {
        first += group * config->blocks_per_group;
        end = first + at_most(config->blocks_per_group, config->blocks_count - first);
    }
    for (int which = 0; which < 3; which++) {
        places[which] = load_32(bytes + 4 * which);
        if (config->descriptor_size > SHORT_DESCRIPTOR)
            places[which] |= (uint64_t)load_32(bytes + SHORT_DESCRIPTOR + 4 * which) << 32;
        const uint64_t size = which == 2 ? config->table_blocks : 1;
        if (places[which] < first || places[which] <= config->first_data_block || places[which] > end - size)
            return FORWARD;
    }
    *table = places[2];
    return DONE;
}

/* -- Extents. */

/* Whether all entries of a node are in order, inside the file's blocks `low` to `high`, and inside the file system. */
static int is_usual_node(const fastpath *fp, const uint8_t *node, size_t size, uint32_t depth, uint64_t low, uint64_t high)
{
    const size_t count = load_16(node + 2), most = load_16(node + 4), room = (size - NODE_HEADER) / NODE_ENTRY;
    const uint64_t first = fp->config.first_data_block, limit = fp->config.blocks_count;

    if (load_16(node) != NODE_MAGIC || load_16(node + 6) != depth || count > most || most > room || !most || (depth && !count))
        return 0;
    for (size_t index = 0; index < count; index++) {
        const uint8_t *entry = node + NODE_HEADER + index * NODE_ENTRY;
        const uint64_t logical = load_32(entry);
        uint64_t length = load_16(entry + 4), number = (uint64_t)load_16(entry + 6) << 32 | load_32(entry + 8);
        if (depth) {
            length = 1;
            number = (uint64_t)load_16(entry + 8) << 32 | load_32(entry + 4);
        } else if (length > LONGEST_WRITTEN)
            length -= LONGEST_WRITTEN;
        if (!length || logical < low || logical + length > high || number <= first || number + length > limit)
            return 0;
        low = logical + length;
    }
    return 1;
}

/* A block of the tree, checked, in one of the worker's nodes, which may have it already. */
static enum outcome load_node(worker *w, const inode *it, uint64_t number, uint32_t depth, uint64_t low, uint64_t high,
                              const uint8_t **node)
{
    fastpath *fp = w->fp;
    const size_t size = fp->config.block_size;
    extent_node *kept = &w->nodes[depth ? 1 : 0];

    *node = kept->bytes;
    if (kept->number == number && kept->ino == it->ino && kept->generation == it->generation && kept->depth == depth
        && kept->low == low && kept->high == high && kept->state == fp->written.states)
        return DONE;
    kept->number = 0;
    const enum outcome outcome = read_block(w, number, 0, size, kept->bytes);
    if (outcome != DONE)
        return outcome;
    if (!is_usual_node(fp, kept->bytes, size, depth, low, high))
        return FORWARD;
    if (fp->config.has_checksums) {
        const size_t end = NODE_HEADER + load_16(kept->bytes + 4) * (size_t)NODE_ENTRY;
        if (end + 4 > size
            || crc32c_update(inode_seed(fp, it->ino, it->generation), kept->bytes, end) != load_32(kept->bytes + end))
            return FORWARD;
    }
    kept->number = number;
    kept->ino = it->ino;
    kept->generation = it->generation;
    kept->depth = depth;
    kept->low = low;
    kept->high = high;
    kept->state = fp->written.states;
    return DONE;
}

/* The leaf for a block of a file, and the blocks that it is for. */
static enum outcome find_extent_leaf(worker *w, const inode *it, uint64_t logical, const uint8_t **leaf, uint64_t *high)
{
    const uint8_t *node = it->bytes;
    uint32_t depth = load_16(node + 6);
    uint64_t low = 0;

    *high = MAX_LOGICAL;
    if (depth > MAX_DEPTH || !is_usual_node(w->fp, node, sizeof it->bytes, depth, low, *high))
        return FORWARD;
    while (depth) {
        const size_t count = load_16(node + 2);
        size_t below = 0, above = count; /* the last entry that begins at or before it */
        while (below < above) {
            const size_t middle = (below + above) / 2;
            if (load_32(node + NODE_HEADER + middle * NODE_ENTRY) <= logical)
                below = middle + 1;
            else
                above = middle;
        }
        if (!below)
            return FORWARD; /* the first index begins later: rare */
        const uint8_t *entry = node + NODE_HEADER + (below - 1) * NODE_ENTRY;
        low = load_32(entry);
        if (below < count)
            *high = load_32(entry + NODE_ENTRY);
        depth--;
        const enum outcome outcome
            = load_node(w, it, (uint64_t)load_16(entry + 8) << 32 | load_32(entry + 4), depth, low, *high, &node);
        if (outcome != DONE)
            return outcome;
    }
    *leaf = node;
    return DONE;
}

/* Fill in what one leaf has of the file's blocks `first` to `end`. */
static void map_leaf(const uint8_t *leaf, uint64_t first, uint64_t end, uint64_t *pointers)
{
    const size_t count = load_16(leaf + 2);
    size_t index = 0, above = count;

    while (index < above) {
        const size_t middle = (index + above) / 2;
        if (load_32(leaf + NODE_HEADER + middle * NODE_ENTRY) <= first)
            index = middle + 1;
        else
            above = middle;
    }
    for (index -= index > 0; index < count; index++) {
        const uint8_t *entry = leaf + NODE_HEADER + index * NODE_ENTRY;
        const uint64_t logical = load_32(entry), length = load_16(entry + 4);
        const uint64_t physical = (uint64_t)load_16(entry + 6) << 32 | load_32(entry + 8);
        if (logical >= end)
            return;
        if (length > LONGEST_WRITTEN)
            continue; /* not written yet: a hole */
        const uint64_t stop = at_most(logical + length, end);
        for (uint64_t block = logical > first ? logical : first; block < stop; block++)
            pointers[block - first] = physical + (block - logical);
    }
}

enum outcome map_extents(worker *w, const inode *it, uint64_t first, size_t count, uint64_t *pointers)
{
    uint64_t position = first;
    const uint64_t end = first + count;

    if (end > MAX_LOGICAL)
        return FORWARD;
    memset(pointers, 0, count * sizeof *pointers);
    for (int leaves = 0; position < end; leaves++) {
        const uint8_t *leaf;
        uint64_t high;
        const enum outcome outcome = leaves < MAX_LEAVES ? find_extent_leaf(w, it, position, &leaf, &high) : FORWARD;
        if (outcome != DONE)
            return outcome;
        const uint64_t stop = at_most(high, end);
        map_leaf(leaf, position, stop, pointers + (position - first));
        position = stop;
    }
    return DONE;
}
