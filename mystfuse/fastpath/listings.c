/* READDIRPLUS: the entries of a directory with their inodes' attributes, as fuse/readdir.py lists them. */
#include "internal.h"

#include <string.h>
#include <sys/stat.h>

enum {
    AFTER_DOT = 1, /* positions of a listing; the others are bytes of the directory */
    AFTER_DOTS = 2,
    TOGETHER = 32 << 10, /* bytes of a directory whose blocks are looked up together, as ext2/directory.py does */
    POSITION_BITS = 32,
    VERSION_BITS = 30, /* beside Python's, which have one bit more */
};

typedef struct {
    uint8_t *at;
    size_t left;
    int is_full;
    uint64_t version; /* of the blocks, as it is in positions */
} listing;

/* The kernel keeps a listing from its first part to its end, without looking whether the directory has changed, and then goes on in it
 * with other listings that have begun before that (fs/fuse/readdir.c, fuse_readdir_cached), by position. So positions behind a change
 * are others than those before it. */
static uint64_t version_in_positions(const fastpath *fp)
{
    return (fp->written.states & (((uint64_t)1 << VERSION_BITS) - 1)) << POSITION_BITS;
}

/* One entry, with the inode's attributes if there is one. */
static void list(const fastpath *fp, listing *to, const uint8_t *name, size_t size, uint64_t ino, uint32_t mode,
                 uint64_t next, const inode *it)
{
    struct fuse_direntplus entry;
    const size_t head = FUSE_NAME_OFFSET_DIRENTPLUS, length = FUSE_DIRENT_ALIGN(head + size);

    to->is_full = length > to->left;
    if (to->is_full)
        return;
    memset(&entry, 0, sizeof entry);
    if (it != NULL)
        show_entry(fp, it, &entry.entry_out);
    entry.dirent.ino = ino;
    entry.dirent.off = to->version | next;
    entry.dirent.namelen = (uint32_t)size;
    entry.dirent.type = (mode & S_IFMT) >> 12;
    memset(to->at + length - 8, 0, 8);
    memcpy(to->at, &entry, head);
    memcpy(to->at + head, name, size);
    to->at += length;
    to->left -= length;
}

/* The inode number of `..`. */
static enum outcome find_parent(worker *w, const inode *directory, uint64_t *parent)
{
    directory_entry entry;
    const uint8_t *block;

    *parent = ROOT_INO;
    if (directory->ino == ROOT_INO)
        return DONE;
    enum outcome outcome = map_blocks(w, directory, 0, 1, w->pointers);
    if (outcome == DONE)
        outcome = w->pointers[0] ? look_at_directory(w, directory, w->pointers[0], &block) : FORWARD;
    if (outcome != DONE)
        return outcome;
    if (!read_entry(w->fp, block, 12, &entry) || !entry.ino || entry.name_size != 2 || memcmp(entry.name, "..", 2) != 0)
        return FORWARD;
    *parent = entry.ino;
    return DONE;
}

static enum outcome list_dots(worker *w, const inode *directory, uint64_t position, listing *to)
{
    uint64_t parent;
    const enum outcome outcome = position < AFTER_DOTS ? find_parent(w, directory, &parent) : DONE;

    if (outcome != DONE || position >= AFTER_DOTS)
        return outcome;
    if (position < AFTER_DOT)
        list(w->fp, to, (const uint8_t *)".", 1, directory->ino, S_IFDIR, AFTER_DOT, NULL);
    if (!to->is_full)
        list(w->fp, to, (const uint8_t *)"..", 2, parent, S_IFDIR, AFTER_DOTS, NULL);
    return DONE;
}

static int is_possible(const directory_entry *entry)
{
    return entry->name_size && !memchr(entry->name, '/', entry->name_size) && !memchr(entry->name, 0, entry->name_size)
           && !is_dots(entry->name, entry->name_size);
}

/* The usual `.` and `..` at the front. */
static int is_leading_dot(const directory_entry *entry, uint64_t offset)
{
    return is_dots(entry->name, entry->name_size)
           && ((offset == 0 && entry->name_size == 1) || (offset == 12 && entry->name_size == 2));
}

static enum outcome list_entry(worker *w, const inode *directory, const directory_entry *entry, uint64_t offset, listing *to)
{
    inode found;

    if (!entry->ino || is_leading_dot(entry, offset))
        return DONE;
    if (!is_possible(entry) || entry->ino == ROOT_INO
        || is_control_name(w->fp, directory->ino, entry->name, entry->name_size))
        return FORWARD;
    const enum outcome outcome = read_inode(w, entry->ino, &found);
    if (outcome == DONE)
        list(w->fp, to, entry->name, entry->name_size, found.ino, found.mode, offset + entry->rec_len, &found);
    return outcome;
}

/* Entries of one block of a directory from a byte of the directory on. */
static enum outcome list_block(worker *w, const inode *directory, uint64_t logical, uint64_t from, listing *to)
{
    const size_t size = w->fp->config.block_size;
    const uint8_t *block;
    directory_entry entry;
    const uint64_t left = directory->size / size - logical;

    enum outcome outcome = map_directory(w, directory, logical, at_most(left, size < TOGETHER ? TOGETHER / size : 1), w->pointers);
    if (outcome == DONE)
        outcome = w->pointers[0] ? look_at_directory(w, directory, w->pointers[0], &block) : FORWARD;
    for (size_t offset = 0; outcome == DONE && !to->is_full && offset < size; offset += entry.rec_len) {
        if (!read_entry(w->fp, block, offset, &entry))
            return FORWARD;
        if (logical * size + offset >= from)
            outcome = list_entry(w, directory, &entry, logical * size + offset, to);
    }
    return outcome;
}

static enum outcome list_from(worker *w, const inode *directory, uint64_t position, listing *to)
{
    const uint64_t block_size = w->fp->config.block_size, blocks = directory->size / block_size;
    const uint64_t from = position <= AFTER_DOTS ? 0 : position;
    enum outcome outcome = list_dots(w, directory, position, to);

    for (uint64_t logical = from / block_size; outcome == DONE && !to->is_full && logical < blocks; logical++)
        outcome = list_block(w, directory, logical, from, to);
    return outcome;
}

/* The kernel takes a reference to the inode of every entry but dots. */
static void count_listed(worker *w, size_t size, int is_known)
{
    struct fuse_direntplus entry;

    for (size_t at = 0; at < size; at += FUSE_DIRENTPLUS_SIZE(&entry)) {
        memcpy(&entry, payload(w) + at, FUSE_NAME_OFFSET_DIRENTPLUS);
        if (!entry.entry_out.nodeid)
            continue;
        if (is_known)
            fastpath_known(w->fp, entry.entry_out.nodeid);
        else
            fastpath_forgotten(w->fp, entry.entry_out.nodeid, 1);
    }
}

enum outcome answer_readdirplus(worker *w, const call *it)
{
    struct fuse_read_in in;
    inode directory;

    if (it->size < sizeof in)
        return FORWARD;
    memcpy(&in, it->body, sizeof in);
    enum outcome outcome = read_inode(w, it->ino, &directory);
    if (outcome != DONE || !is_usual_directory(w->fp, &directory))
        return outcome == WAIT ? WAIT : FORWARD;
    const size_t room = at_most(in.size, MAX_LISTING);
    listing to = {payload(w), room, 0, version_in_positions(w->fp)};
    outcome = list_from(w, &directory, in.offset & (((uint64_t)1 << POSITION_BITS) - 1), &to);
    /* What comes before something unusual; the next request begins there. */
    if (outcome == WAIT || (outcome == FORWARD && to.left == room) || (to.is_full && to.left == room))
        return outcome == WAIT ? WAIT : FORWARD;
    count_listed(w, room - to.left, 1);
    if (!send_reply(w, it->header->unique, 0, room - to.left))
        count_listed(w, room - to.left, 0);
    return DONE;
}
