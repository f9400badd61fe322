/* The structures of ext2 as they usually are, over verified blocks and those written since. Whatever ext2/ (in Python) would refuse,
 * warn about, or look at twice is FORWARD here.
 *
 * Sources: fs/ext2/ext2.h, fs/ext2/inode.c, fs/ext2/dir.c, fs/ext4/ext4.h of the kernel. */
#include "internal.h"

#include <string.h>
#include <sys/stat.h>

enum {
    DESCRIPTOR_SIZE = 32,
    OLD_INODE_SIZE = 128,
    MAX_INODE_HEAD = 160, /* bytes of an inode that are looked at */
    DIRECT = 12,
    ENTRY_HEADER = 8,
    LEAST_ENTRY = 12,
    XATTR_MAGIC = (int)0xea020000,
    ENCRYPTED = 0x00000800,
    HUGE_FILE = 0x00040000,
    EXTENTS = 0x00080000,
    EA_INODE = 0x00200000,
    INLINE_DATA = 0x10000000,
    CASEFOLD = 0x40000000,
    /* i_flags whose inodes are not made of a block map. */
    UNUSUAL_FLAGS = ENCRYPTED | EXTENTS | EA_INODE | INLINE_DATA,
    MAX_CHECKED_INODE = 1024, /* bytes of an inode with a checksum */
    MAX_DIRECTORY_BLOCKS = 1024, /* of which a name is looked for; larger ones have an index in Python */
};

static const uint64_t MAX_DIRECTORY_SIZE = 1 << 29;

static int is_data_block(const fastpath *fp, uint64_t number)
{
    return fp->config.first_data_block < number && number < fp->config.blocks_count;
}

/* -- Blocks. */

/* Into worker.metadata and the cache. */
static enum outcome load_block(worker *w, uint64_t number)
{
    const size_t size = w->fp->config.block_size;
    const enum outcome outcome = device_read(w, number * size, size, w->metadata);
    if (outcome == DONE)
        cache_put(w->fp->blocks, number, w->metadata);
    return outcome;
}

enum outcome read_block(worker *w, uint64_t number, size_t offset, size_t size, uint8_t *out)
{
    const uint8_t *written;
    enum outcome outcome = written_find(w->fp, number, &written);

    if (outcome != DONE)
        return outcome;
    if (written != NULL) {
        memcpy(out, written + offset, size);
        return DONE;
    }
    if (cache_get(w->fp->blocks, number, offset, size, out))
        return DONE;
    outcome = load_block(w, number);
    if (outcome == DONE)
        memcpy(out, w->metadata + offset, size);
    return outcome;
}

enum outcome look_at_block(worker *w, uint64_t number, const uint8_t **at)
{
    enum outcome outcome = written_find(w->fp, number, at);

    if (outcome != DONE || *at != NULL)
        return outcome;
    *at = w->directory;
    return read_block(w, number, 0, w->fp->config.block_size, w->directory);
}

/* -- Inodes. */

/* Where the inode table of a group begins. */
static enum outcome find_table(worker *w, uint64_t group, uint64_t *table)
{
    const fastpath_config *config = &w->fp->config;
    const uint64_t position = group * DESCRIPTOR_SIZE;
    const uint64_t first = config->first_data_block + group * config->blocks_per_group;
    const uint64_t end = first + at_most(config->blocks_per_group, config->blocks_count - first);
    uint8_t descriptor[DESCRIPTOR_SIZE];

    if (w->latest_group == group + 1) {
        *table = w->latest_table;
        return DONE;
    }
    if (config->is_extended) {
        const enum outcome found = find_extended_table(w, group, table);
        if (found == DONE) {
            w->latest_group = group + 1;
            w->latest_table = *table;
        }
        return found;
    }
    const enum outcome outcome = read_block(w, config->descriptors + position / config->block_size,
                                            position % config->block_size, sizeof descriptor, descriptor);

    if (outcome != DONE)
        return outcome;
    const uint64_t block_bitmap = load_32(descriptor), inode_bitmap = load_32(descriptor + 4);
    *table = load_32(descriptor + 8);
    const int is_usual = first <= block_bitmap && block_bitmap < end && is_data_block(w->fp, block_bitmap)
                         && first <= inode_bitmap && inode_bitmap < end && is_data_block(w->fp, inode_bitmap)
                         && first <= *table && *table + config->table_blocks <= end && is_data_block(w->fp, *table);
    if (!is_usual)
        return FORWARD;
    w->latest_group = group + 1;
    w->latest_table = *table;
    return DONE;
}

static uint32_t load_device(const uint8_t *block)
{
    const uint32_t old = load_32(block), new = load_32(block + 4);
    return old ? (old & 0xffff) : new;
}

static int is_known_type(uint32_t mode)
{
    const uint32_t type = mode & S_IFMT;
    return type == S_IFREG || type == S_IFDIR || type == S_IFLNK || type == S_IFCHR || type == S_IFBLK || type == S_IFIFO
           || type == S_IFSOCK;
}

/* The low 2 bits of the extra field extend the seconds past 2038, the others are nanoseconds. */
static void parse_time(inode *to, int which, const uint8_t *seconds, uint32_t extra)
{
    const uint32_t nanoseconds = extra >> 2;
    to->seconds[which] = (int64_t)(int32_t)load_32(seconds) + ((int64_t)(extra & 3) << 32) + nanoseconds / 1000000000;
    to->nanoseconds[which] = nanoseconds % 1000000000;
}

/* The part behind the first 128 bytes; 0: something is not as usual. */
static int parse_extra(worker *w, const uint8_t *bytes, inode *to)
{
    const size_t size = w->fp->config.inode_size;
    uint32_t extra_size = 0;

    if (size > OLD_INODE_SIZE) {
        extra_size = load_16(bytes + 128);
        if (extra_size > size - OLD_INODE_SIZE || extra_size % 4)
            return 0;
    }
    parse_time(to, 0, bytes + 8, extra_size >= 16 ? load_32(bytes + 140) : 0);
    parse_time(to, 1, bytes + 16, extra_size >= 12 ? load_32(bytes + 136) : 0);
    parse_time(to, 2, bytes + 12, extra_size >= 8 ? load_32(bytes + 132) : 0);
    return 1;
}

/* Those parts of fields that only ext4 has. */
static void parse_high_parts(const fastpath_config *config, const uint8_t *bytes, inode *to)
{
    if (config->has_huge_files) {
        to->i_blocks |= (uint64_t)load_16(bytes + 116) << 32;
        if (to->flags & HUGE_FILE)
            to->i_blocks *= config->block_size / 512;
    }
    if (config->has_large_directories && S_ISDIR(to->mode))
        to->size |= (uint64_t)load_32(bytes + 108) << 32;
    if (config->is_64bit)
        to->file_acl |= (uint64_t)load_16(bytes + 118) << 32;
    /* As many blocks as the contents would take (ext4_file_getattr). */
    if (to->flags & INLINE_DATA && S_ISREG(to->mode))
        to->i_blocks += (to->size + 511) / 512;
}

static int parse_inode(worker *w, const uint8_t *bytes, inode *to)
{
    const uint32_t unusual = UNUSUAL_FLAGS & ~w->fp->config.usual_flags;

    to->mode = load_16(bytes);
    to->uid = load_16(bytes + 2) | load_16(bytes + 120) << 16;
    to->size = load_32(bytes + 4);
    to->gid = load_16(bytes + 24) | load_16(bytes + 122) << 16;
    to->links = load_16(bytes + 26);
    to->i_blocks = load_32(bytes + 28);
    to->flags = load_32(bytes + 32);
    to->generation = load_32(bytes + 100);
    to->file_acl = load_32(bytes + 104);
    if (S_ISREG(to->mode))
        to->size |= (uint64_t)load_32(bytes + 108) << 32;
    if (w->fp->config.is_extended)
        parse_high_parts(&w->fp->config, bytes, to);
    memcpy(to->bytes, bytes + 40, sizeof to->bytes);
    for (int index = 0; index < 15; index++)
        to->block[index] = load_32(bytes + 40 + 4 * index);
    to->rdev = S_ISCHR(to->mode) || S_ISBLK(to->mode) ? load_device(to->bytes) : 0;
    return is_known_type(to->mode) && !(to->flags & unusual) && to->links && to->size < (uint64_t)1 << 63
           && parse_extra(w, bytes, to);
}

/* Whether there may be attributes behind i_extra_isize. */
static enum outcome look_for_body_xattrs(worker *w, uint64_t number, size_t offset, const uint8_t *head, inode *to)
{
    const size_t size = w->fp->config.inode_size;
    uint8_t magic[4];

    to->has_body_xattrs = 0;
    if (size <= OLD_INODE_SIZE)
        return DONE;
    const size_t extra = load_16(head + 128);
    if (!extra || size - OLD_INODE_SIZE - extra < sizeof magic)
        return DONE;
    const enum outcome outcome = read_block(w, number, offset + OLD_INODE_SIZE + extra, sizeof magic, magic);
    to->has_body_xattrs = load_32(magic) == (uint32_t)XATTR_MAGIC;
    return outcome;
}

enum outcome read_inode(worker *w, uint64_t ino, inode *to)
{
    const fastpath_config *config = &w->fp->config;
    uint8_t head[MAX_CHECKED_INODE] = {0};
    uint64_t table;
    const size_t head_size = config->has_checksums ? config->inode_size : at_most(config->inode_size, MAX_INODE_HEAD);

    if (w->latest.ino == ino && ino && w->latest_state == w->fp->written.states) {
        *to = w->latest;
        return DONE;
    }
    if (head_size > sizeof head || ino == 0 || ino > config->inodes_count || (ino != ROOT_INO && ino < config->first_ino))
        return FORWARD;
    enum outcome outcome = find_table(w, (ino - 1) / config->inodes_per_group, &table);
    if (outcome != DONE)
        return outcome;
    const uint64_t position = (ino - 1) % config->inodes_per_group * config->inode_size;
    const uint64_t number = table + position / config->block_size;
    const size_t offset = position % config->block_size;
    outcome = read_block(w, number, offset, head_size, head);
    if (outcome != DONE)
        return outcome;
    if (config->has_checksums && !is_checked_inode(w->fp, ino, head))
        return FORWARD;
    to->ino = ino;
    if (!parse_inode(w, head, to))
        return FORWARD;
    outcome = look_for_body_xattrs(w, number, offset, head, to);
    if (outcome == DONE) {
        w->latest = *to;
        w->latest_state = w->fp->written.states;
    }
    return outcome;
}

/* -- Block maps. */

static int are_usual(const fastpath *fp, const uint64_t *pointers, size_t count)
{
    for (size_t index = 0; index < count; index++)
        if (pointers[index] && !is_data_block(fp, pointers[index]))
            return 0;
    return 1;
}

/* `count` pointers of one indirect block. */
static enum outcome read_pointers(worker *w, uint64_t number, size_t first, size_t count, uint64_t *pointers)
{
    /* In the second half, from where each goes to a place that is not behind its own. */
    uint8_t *bytes = (uint8_t *)pointers + count * 4;

    if (!number) {
        memset(pointers, 0, count * sizeof *pointers);
        return DONE;
    }
    if (!is_data_block(w->fp, number))
        return FORWARD;
    const enum outcome outcome = read_block(w, number, first * 4, count * 4, bytes);
    if (outcome == DONE)
        for (size_t index = 0; index < count; index++)
            pointers[index] = load_32(bytes + index * 4);
    return outcome;
}

/* The indirect block that has the pointer of a block, and how many blocks from there on have theirs in it too. */
static enum outcome find_leaf(worker *w, const inode *it, uint64_t logical, uint64_t *leaf, size_t *index, size_t *left)
{
    const uint64_t per_block = w->fp->config.block_size / 4;
    uint64_t position = logical - DIRECT, span = per_block;
    int depth = 1;

    while (depth <= 3 && position >= span) {
        position -= span;
        span *= per_block;
        depth++;
    }
    if (depth > 3)
        return FORWARD;
    *leaf = it->block[DIRECT + depth - 1];
    for (span /= per_block; depth > 1; depth--) {
        const enum outcome outcome = read_pointers(w, *leaf, position / span, 1, leaf);
        if (outcome != DONE)
            return outcome;
        position %= span;
        span /= per_block;
    }
    *index = position;
    *left = per_block - position;
    return DONE;
}

enum outcome map_blocks(worker *w, const inode *it, uint64_t first, size_t count, uint64_t *pointers)
{
    size_t done = 0;

    if (count > MAX_POINTERS || it->flags & (ENCRYPTED | INLINE_DATA))
        return FORWARD;
    if (it->flags & EXTENTS)
        return map_extents(w, it, first, count, pointers);
    for (; done < count && first + done < DIRECT; done++)
        pointers[done] = it->block[first + done];
    while (done < count) {
        uint64_t leaf;
        size_t index, left;
        enum outcome outcome = find_leaf(w, it, first + done, &leaf, &index, &left);
        if (outcome != DONE)
            return outcome;
        left = at_most(left, count - done);
        outcome = read_pointers(w, leaf, index, left, pointers + done);
        if (outcome != DONE)
            return outcome;
        done += left;
    }
    return are_usual(w->fp, pointers, count) ? DONE : FORWARD;
}

/* -- Directories. */

int is_usual_directory(const fastpath *fp, const inode *it)
{
    return S_ISDIR(it->mode) && !(it->flags & (ENCRYPTED | INLINE_DATA | CASEFOLD)) && it->size && it->size % fp->config.block_size == 0
           && it->size <= at_most(MAX_DIRECTORY_SIZE, fp->config.size);
}

/* Whether no block comes twice: a small image could claim to hold a huge directory. */
static int are_distinct(const uint64_t *pointers, size_t count)
{
    int rise = 1;

    for (size_t index = 1; index < count; index++)
        rise &= pointers[index - 1] < pointers[index];
    for (size_t index = 1; !rise && index < count; index++)
        for (size_t other = 0; other < index; other++)
            if (pointers[index] && pointers[index] == pointers[other])
                return 0;
    return 1;
}

enum outcome map_directory(worker *w, const inode *it, uint64_t first, size_t count, uint64_t *pointers)
{
    const enum outcome outcome = map_blocks(w, it, first, count, pointers);
    return outcome == DONE && !are_distinct(pointers, count) ? FORWARD : outcome;
}

int read_entry(const fastpath *fp, const uint8_t *block, size_t offset, directory_entry *to)
{
    const uint8_t *at = block + offset;
    const size_t left = fp->config.block_size - offset;

    if (left < LEAST_ENTRY)
        return 0;
    to->ino = load_32(at);
    to->rec_len = load_16(at + 4);
    to->name_size = fp->config.has_filetype ? at[6] : load_16(at + 6);
    to->name = at + ENTRY_HEADER;
    return to->rec_len >= LEAST_ENTRY && to->rec_len % 4 == 0 && to->rec_len <= left
           && (!to->ino || (to->name_size <= to->rec_len - ENTRY_HEADER && to->name_size <= 255));
}

/* FORWARD, too, if the block is broken. */
static enum outcome find_in_block(worker *w, const uint8_t *block, const uint8_t *name, size_t size, uint64_t *ino)
{
    directory_entry entry;

    for (size_t offset = 0; offset < w->fp->config.block_size; offset += entry.rec_len) {
        if (!read_entry(w->fp, block, offset, &entry))
            return FORWARD;
        if (entry.ino && entry.name_size == size && memcmp(entry.name, name, size) == 0) {
            *ino = entry.ino;
            return DONE;
        }
    }
    return DONE;
}

enum outcome find_name(worker *w, const inode *directory, const uint8_t *name, size_t size, uint64_t *ino)
{
    const uint64_t blocks = directory->size / w->fp->config.block_size;

    *ino = 0;
    if (!is_usual_directory(w->fp, directory) || blocks > MAX_DIRECTORY_BLOCKS)
        return FORWARD;
    enum outcome outcome = map_directory(w, directory, 0, blocks, w->pointers);
    for (size_t index = 0; outcome == DONE && index < blocks && !*ino; index++) {
        const uint8_t *block;
        if (!w->pointers[index])
            return FORWARD;
        outcome = look_at_directory(w, directory, w->pointers[index], &block);
        if (outcome == DONE)
            outcome = find_in_block(w, block, name, size, ino);
    }
    return outcome;
}
