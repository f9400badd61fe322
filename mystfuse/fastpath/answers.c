/* Answers to the kernel's requests. Each function answers one kind, or says why it does not; then it has changed nothing.
 *
 * Source: include/uapi/linux/fuse.h of the kernel; what the answers hold is that of fuse/operations.py. */
#include "internal.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

typedef struct {
    const struct fuse_in_header *header;
    uint64_t ino;
    const uint8_t *body;
    size_t size; /* of the body */
} call;

static const uint64_t HANDLE = (uint64_t)1 << 63; /* of a file opened for reading; the other bits are 0 */
static const uint32_t FILLED = UINT32_MAX;        /* in place of a pointer: these bytes are in the reply */

enum {
    LONGEST_TARGET = 4096,
    AFTER_DOT = 1, /* positions of a listing; the others are bytes of the directory */
    AFTER_DOTS = 2,
    SEQUENTIAL = 64 << 10, /* bytes: the kernel asks for so many if a program reads on */
    AHEAD = 4 << 20,       /* bytes that storage is asked for then */
};

static void hold(worker *w)
{
    pthread_rwlock_rdlock(&w->fp->written.state);
}

static void let_go(worker *w)
{
    pthread_rwlock_unlock(&w->fp->written.state);
}

static uint8_t *payload(worker *w)
{
    return w->reply + sizeof(struct fuse_out_header);
}

/* -- Attributes. */

static uint32_t shown_uid(const fastpath_config *config, uint32_t uid)
{
    return config->replaces_uid ? config->uid : config->maps_root && uid == 0 ? config->root_uid : uid;
}

static uint32_t shown_gid(const fastpath_config *config, uint32_t gid)
{
    return config->replaces_gid ? config->gid : config->maps_root && gid == 0 ? config->root_gid : gid;
}

static void show(const fastpath *fp, const inode *it, struct fuse_attr *to)
{
    *to = (struct fuse_attr){
        .ino = it->ino,
        .size = it->size,
        .blocks = it->i_blocks,
        .atime = (uint64_t)it->seconds[0],
        .mtime = (uint64_t)it->seconds[1],
        .ctime = (uint64_t)it->seconds[2],
        .atimensec = it->nanoseconds[0],
        .mtimensec = it->nanoseconds[1],
        .ctimensec = it->nanoseconds[2],
        .mode = it->mode,
        .nlink = it->links,
        .uid = shown_uid(&fp->config, it->uid),
        .gid = shown_gid(&fp->config, it->gid),
        .rdev = it->rdev,
        .blksize = (uint32_t)fp->config.block_size,
    };
}

static void show_entry(const fastpath *fp, const inode *it, struct fuse_entry_out *to)
{
    memset(to, 0, sizeof *to);
    to->nodeid = it->ino;
    to->generation = it->generation;
    to->entry_valid = to->attr_valid = fp->config.name_seconds;
    show(fp, it, &to->attr);
}

static enum outcome answer_getattr(worker *w, const call *it)
{
    struct fuse_attr_out out;
    inode found;

    const enum outcome outcome = read_inode(w, it->ino, &found);
    if (outcome != DONE)
        return outcome;
    memset(&out, 0, sizeof out);
    out.attr_valid = w->fp->config.name_seconds;
    show(w->fp, &found, &out.attr);
    memcpy(payload(w), &out, sizeof out);
    send_reply(w, it->header->unique, 0, sizeof out);
    return DONE;
}

/* -- Names. */

/* Whether the body is a name and its end. */
static int is_name(const uint8_t *body, size_t size)
{
    return size >= 2 && size <= 256 && memchr(body, 0, size) == body + size - 1;
}

static int is_dots(const uint8_t *name, size_t size)
{
    return (size == 1 || size == 2) && name[0] == '.' && name[size - 1] == '.';
}

static int is_control_name(const fastpath *fp, uint64_t directory, const uint8_t *name, size_t size)
{
    const char *control = fp->config.control_name;
    return fp->config.control_ino && directory == ROOT_INO && strlen(control) == size && memcmp(control, name, size) == 0;
}

static void send_absent(worker *w, const call *it)
{
    struct fuse_entry_out out = {.entry_valid = w->fp->config.name_seconds};
    memcpy(payload(w), &out, sizeof out);
    send_reply(w, it->header->unique, 0, sizeof out);
}

static enum outcome answer_lookup(worker *w, const call *it)
{
    struct fuse_entry_out out;
    inode directory, found;
    uint64_t ino;

    if (!is_name(it->body, it->size) || is_dots(it->body, it->size - 1)
        || is_control_name(w->fp, it->ino, it->body, it->size - 1))
        return FORWARD;
    enum outcome outcome = read_inode(w, it->ino, &directory);
    if (outcome == DONE)
        outcome = find_name(w, &directory, it->body, it->size - 1, &ino);
    if (outcome != DONE)
        return outcome;
    if (!ino) {
        send_absent(w, it);
        return DONE;
    }
    outcome = ino == ROOT_INO ? FORWARD : read_inode(w, ino, &found);
    if (outcome != DONE)
        return outcome;
    show_entry(w->fp, &found, &out);
    memcpy(payload(w), &out, sizeof out);
    fastpath_known(w->fp, ino);
    if (!send_reply(w, it->header->unique, 0, sizeof out))
        fastpath_forgotten(w->fp, ino, 1);
    return DONE;
}

/* Whether Python has to look at an inode that the kernel has forgotten: it may have no name any more. */
static int may_be_orphan(worker *w, uint64_t ino)
{
    inode found;

    if (atomic_load_explicit(&w->fp->has_given_up, memory_order_relaxed))
        return 1;
    /* An inode that the image has as it is has links, or the kernel would not know it. So missing blocks need no waiting for. */
    return read_inode(w, ino, &found) == FORWARD;
}

static void forget(worker *w, uint64_t nodeid, uint64_t lookups)
{
    const fastpath *fp = w->fp;
    const uint64_t ino = ino_of(nodeid);

    if (fp->config.control_ino && ino >= fp->config.control_ino)
        return;
    if (fastpath_forgotten(w->fp, ino, lookups) == 0 && fp->written.used && may_be_orphan(w, ino))
        tell_forgotten(w->fp, ino);
}

static enum outcome answer_forget(worker *w, const call *it)
{
    struct fuse_forget_in in;

    if (it->size >= sizeof in) {
        memcpy(&in, it->body, sizeof in);
        forget(w, it->header->nodeid, in.nlookup);
    }
    return DONE;
}

static enum outcome answer_batch_forget(worker *w, const call *it)
{
    struct fuse_batch_forget_in in;
    struct fuse_forget_one one;

    if (it->size < sizeof in)
        return DONE;
    memcpy(&in, it->body, sizeof in);
    for (size_t index = 0; index < in.count && (it->size - sizeof in) / sizeof one > index; index++) {
        memcpy(&one, it->body + sizeof in + index * sizeof one, sizeof one);
        forget(w, one.nodeid, one.nlookup);
    }
    return DONE;
}

/* -- Symbolic links and attributes of the other kind. */

static enum outcome answer_readlink(worker *w, const call *it)
{
    const size_t block_size = w->fp->config.block_size;
    const uint8_t *target;
    inode found;

    enum outcome outcome = read_inode(w, it->ino, &found);
    if (outcome != DONE)
        return outcome;
    const int is_fast = found.i_blocks <= (found.file_acl ? block_size / 512 : 0);
    const uint64_t longest = (is_fast ? sizeof found.bytes : at_most(block_size, LONGEST_TARGET)) - 1;
    if (!S_ISLNK(found.mode) || !found.size || found.size > longest)
        return FORWARD;
    target = found.bytes;
    if (!is_fast) {
        outcome = map_blocks(w, &found, 0, 1, w->pointers);
        if (outcome == DONE)
            outcome = w->pointers[0] ? look_at_block(w, w->pointers[0], &target) : FORWARD;
    }
    if (outcome != DONE)
        return outcome;
    if (memchr(target, 0, found.size))
        return FORWARD;
    memcpy(payload(w), target, found.size);
    send_reply(w, it->header->unique, 0, found.size);
    return DONE;
}

/* DONE: the inode has no extended attributes. */
static enum outcome find_no_xattrs(worker *w, uint64_t ino)
{
    inode found;
    const enum outcome outcome = w->fp->config.has_xattrs ? read_inode(w, ino, &found) : FORWARD;
    return outcome == DONE && (found.file_acl || found.has_body_xattrs) ? FORWARD : outcome;
}

static int is_usual_xattr(const uint8_t *name, size_t size)
{
    static const char *const usual[] = {"security.capability", "security.ima", "security.evm", "security.selinux",
                                        "system.posix_acl_access", "system.posix_acl_default"};
    for (size_t index = 0; index < sizeof usual / sizeof *usual; index++)
        if (strlen(usual[index]) == size && memcmp(usual[index], name, size) == 0)
            return 1;
    return 0;
}

static enum outcome answer_getxattr(worker *w, const call *it)
{
    const size_t head = sizeof(struct fuse_getxattr_in);

    if (it->size < head || !is_name(it->body + head, it->size - head)
        || !is_usual_xattr(it->body + head, it->size - head - 1))
        return FORWARD;
    const enum outcome outcome = find_no_xattrs(w, it->ino);
    if (outcome == DONE)
        send_reply(w, it->header->unique, ENODATA, 0);
    return outcome;
}

static enum outcome answer_listxattr(worker *w, const call *it)
{
    const struct fuse_getxattr_out none = {0};
    struct fuse_getxattr_in in;

    if (it->size < sizeof in)
        return FORWARD;
    memcpy(&in, it->body, sizeof in);
    const enum outcome outcome = find_no_xattrs(w, it->ino);
    if (outcome != DONE)
        return outcome;
    memcpy(payload(w), &none, sizeof none);
    send_reply(w, it->header->unique, 0, in.size ? 0 : sizeof none);
    return DONE;
}

/* -- Files and directories that are opened. */

static enum outcome answer_open(worker *w, const call *it)
{
    const struct fuse_open_out out = {.fh = HANDLE, .open_flags = FOPEN_KEEP_CACHE};
    struct fuse_open_in in;
    inode found;

    if (it->size < sizeof in)
        return FORWARD;
    memcpy(&in, it->body, sizeof in);
    if ((in.flags & O_ACCMODE) != O_RDONLY || (in.flags & O_TRUNC))
        return FORWARD;
    const enum outcome outcome = read_inode(w, it->ino, &found);
    if (outcome != DONE)
        return outcome;
    if (!S_ISREG(found.mode))
        return FORWARD;
    memcpy(payload(w), &out, sizeof out);
    count(&w->fp->open_files, 1);
    if (!send_reply(w, it->header->unique, 0, sizeof out))
        count(&w->fp->open_files, (uint64_t)-1);
    return DONE;
}

static enum outcome answer_release(worker *w, const call *it)
{
    struct fuse_release_in in;

    if (it->size < sizeof in)
        return FORWARD;
    memcpy(&in, it->body, sizeof in);
    if (in.fh != HANDLE)
        return FORWARD;
    count(&w->fp->open_files, (uint64_t)-1);
    send_reply(w, it->header->unique, 0, 0);
    return DONE;
}

/* Directories need no handle: the kernel does not ask again, and keeps listings until the directory changes. */
static enum outcome answer_opendir(worker *w, const call *it)
{
    send_reply(w, it->header->unique, ENOSYS, 0);
    return DONE;
}

/* -- Listings. */

typedef struct {
    uint8_t *at;
    size_t left;
    int is_full;
} listing;

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
    entry.dirent.off = next;
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
        outcome = w->pointers[0] ? look_at_block(w, w->pointers[0], &block) : FORWARD;
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
    uint32_t number;

    enum outcome outcome = map_blocks(w, directory, logical, 1, &number);
    if (outcome == DONE)
        outcome = number ? look_at_block(w, number, &block) : FORWARD;
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

static enum outcome answer_readdirplus(worker *w, const call *it)
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
    listing to = {payload(w), room, 0};
    outcome = list_from(w, &directory, in.offset, &to);
    /* What comes before something unusual; the next request begins there. */
    if (outcome == WAIT || (outcome == FORWARD && to.left == room) || (to.is_full && to.left == room))
        return outcome == WAIT ? WAIT : FORWARD;
    count_listed(w, room - to.left, 1);
    if (!send_reply(w, it->header->unique, 0, room - to.left))
        count_listed(w, room - to.left, 0);
    return DONE;
}

/* -- File data. */

typedef struct {
    uint64_t start, end; /* bytes of the file */
    uint64_t first;      /* block */
    size_t blocks;
} range;

/* The bytes of the range in one of its blocks: where in the block, where in the reply, how many. */
static size_t clip(const fastpath *fp, const range *in, size_t index, size_t *in_block, size_t *in_reply)
{
    const uint64_t size = fp->config.block_size, begin = (in->first + index) * size;
    const uint64_t low = begin > in->start ? begin : in->start, high = at_most(begin + size, in->end);
    *in_block = low - begin;
    *in_reply = low - in->start;
    return high - low;
}

/* Copy what was written, and the zeros of holes; the image's blocks are left in worker.pointers. With `state` held. */
static enum outcome copy_written(worker *w, const range *in)
{
    for (size_t index = 0; index < in->blocks; index++) {
        const uint8_t *written = NULL;
        size_t in_block, in_reply;
        const uint32_t pointer = w->pointers[index];
        if (pointer && written_find(w->fp, pointer, &written) != DONE)
            return FORWARD;
        if (pointer && written == NULL)
            continue;
        const size_t size = clip(w->fp, in, index, &in_block, &in_reply);
        if (pointer)
            memcpy(payload(w) + in_reply, written + in_block, size);
        else
            memset(payload(w) + in_reply, 0, size);
        w->pointers[index] = FILLED;
    }
    return DONE;
}

/* With `state` held. */
static enum outcome locate(worker *w, const call *it, const struct fuse_read_in *in, range *to)
{
    const uint64_t size = w->fp->config.block_size;
    inode found;

    const enum outcome outcome = read_inode(w, it->ino, &found);
    if (outcome != DONE)
        return outcome;
    if (!S_ISREG(found.mode) || in->size > MAX_DATA)
        return FORWARD;
    *to = (range){.start = in->offset, .end = at_most(found.size, in->offset + in->size)};
    if (in->offset >= found.size || !in->size) {
        to->end = to->start;
        return DONE;
    }
    to->first = to->start / size;
    to->blocks = (to->end - 1) / size + 1 - to->first;
    const enum outcome mapped = map_blocks(w, &found, to->first, to->blocks, w->pointers);
    return mapped == DONE ? copy_written(w, to) : mapped;
}

/* Blocks from `index` on that follow each other on the device. */
static size_t run_length(const worker *w, const range *in, size_t index)
{
    size_t length = 1;
    while (index + length < in->blocks && w->pointers[index + length] == w->pointers[index] + length)
        length++;
    return length;
}

static enum outcome read_runs(worker *w, const range *in)
{
    const uint64_t block_size = w->fp->config.block_size;

    for (size_t index = 0, length; index < in->blocks; index += length) {
        size_t in_block, in_reply, last_in_block, last_in_reply;
        length = 1;
        if (w->pointers[index] == FILLED)
            continue;
        length = run_length(w, in, index);
        const size_t first_size = clip(w->fp, in, index, &in_block, &in_reply);
        const size_t last_size = clip(w->fp, in, index + length - 1, &last_in_block, &last_in_reply);
        const size_t size = length == 1 ? first_size : last_in_reply + last_size - in_reply;
        const uint64_t offset = w->pointers[index] * block_size + in_block;
        const enum outcome outcome = device_read(w, offset, size, payload(w) + in_reply);
        if (outcome == WAIT && in->end - in->start >= SEQUENTIAL)
            device_expect(w, offset + size, AHEAD);
        if (outcome != DONE)
            return outcome;
    }
    return DONE;
}

static enum outcome answer_read(worker *w, const call *it)
{
    struct fuse_read_in in;
    range part;

    if (it->size < sizeof in)
        return FORWARD;
    memcpy(&in, it->body, sizeof in);
    if (in.offset > INT64_MAX - MAX_DATA)
        return FORWARD;
    hold(w);
    enum outcome outcome = locate(w, it, &in, &part);
    let_go(w);
    if (outcome == DONE)
        outcome = read_runs(w, &part);
    if (outcome == DONE)
        send_reply(w, it->header->unique, 0, part.end - part.start);
    return outcome;
}

/* -- All. */

typedef enum outcome answerer(worker *w, const call *it);

static answerer *const answerers[FASTPATH_MAX_OPCODE] = {
    [FUSE_LOOKUP] = answer_lookup,
    [FUSE_FORGET] = answer_forget,
    [FUSE_GETATTR] = answer_getattr,
    [FUSE_READLINK] = answer_readlink,
    [FUSE_OPEN] = answer_open,
    [FUSE_READ] = answer_read,
    [FUSE_RELEASE] = answer_release,
    [FUSE_GETXATTR] = answer_getxattr,
    [FUSE_LISTXATTR] = answer_listxattr,
    [FUSE_OPENDIR] = answer_opendir,
    [FUSE_BATCH_FORGET] = answer_batch_forget,
    [FUSE_READDIRPLUS] = answer_readdirplus,
};

/* Of the control directory's inodes Python alone knows. */
static int is_control(const fastpath *fp, const call *it)
{
    const uint32_t opcode = it->header->opcode;
    return fp->config.control_ino && it->ino >= fp->config.control_ino && opcode != FUSE_FORGET
           && opcode != FUSE_BATCH_FORGET && opcode != FUSE_OPENDIR;
}

enum outcome answer(worker *w)
{
    struct fuse_in_header header;

    memcpy(&header, w->request, sizeof header);
    const call it = {&header, ino_of(header.nodeid), w->request + sizeof header, w->request_size - sizeof header};
    answerer *const function = header.opcode < FASTPATH_MAX_OPCODE ? answerers[header.opcode] : NULL;
    if (function == NULL || is_control(w->fp, &it))
        return FORWARD;
    if (atomic_load_explicit(&w->fp->has_given_up, memory_order_relaxed) && function != answer_forget
        && function != answer_batch_forget && function != answer_release)
        return FORWARD;
    if (function == answer_read)
        return answer_read(w, &it);
    hold(w);
    const enum outcome outcome = function(w, &it);
    let_go(w);
    return outcome;
}
