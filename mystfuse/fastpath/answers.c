/* Answers to the kernel's requests. Each function answers one kind, or says why it does not; then it has changed nothing.
 *
 * Source: include/uapi/linux/fuse.h of the kernel; what the answers hold is that of fuse/operations.py. */
#include "internal.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

static const uint64_t HANDLE = (uint64_t)1 << 63; /* of a file opened for reading; the other bits are 0 */

enum {
    LONGEST_TARGET = 4096,
    ENCRYPTED = 0x00000800,
    UNUSUAL_CONTENTS = ENCRYPTED | 0x10000000, /* and those in the inode */
    SHOWN_WHOLE = 149, /* see ext2/encrypted_names.py */
    DIGEST = 32,
};

/* -- Attributes. */

static uint32_t shown_uid(const fastpath_config *config, uint32_t uid)
{
    return config->replaces_uid ? config->uid : config->maps_root && uid == 0 ? config->root_uid : uid;
}

static uint32_t shown_gid(const fastpath_config *config, uint32_t gid)
{
    return config->replaces_gid ? config->gid : config->maps_root && gid == 0 ? config->root_gid : gid;
}

/* See Inode.st_size. */
static uint64_t shown_size(const inode *it)
{
    if (!(it->flags & ENCRYPTED) || !S_ISLNK(it->mode))
        return it->size;
    const uint64_t name = it->size > 2 ? it->size - 2 : 0;
    const uint64_t shown = 8 + (name <= SHOWN_WHOLE ? name : SHOWN_WHOLE + DIGEST);
    return (shown * 8 + 5) / 6;
}

static void show(const fastpath *fp, const inode *it, struct fuse_attr *to)
{
    *to = (struct fuse_attr){
        .ino = it->ino,
        .size = shown_size(it),
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

void show_entry(const fastpath *fp, const inode *it, struct fuse_entry_out *to)
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
    return size >= 2 && size <= 256 && memchr(body, 0, size) == body + size - 1 && !memchr(body, '/', size);
}

int is_dots(const uint8_t *name, size_t size)
{
    return (size == 1 || size == 2) && name[0] == '.' && name[size - 1] == '.';
}

int is_control_name(const fastpath *fp, uint64_t directory, const uint8_t *name, size_t size)
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
    return atomic_load_explicit(&w->fp->has_given_up, memory_order_relaxed) || read_inode(w, ino, &found) != DONE;
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
    if (found.flags & UNUSUAL_CONTENTS)
        return FORWARD;
    const int is_fast = found.i_blocks <= (found.file_acl ? w->fp->config.attribute_sectors : 0);
    const uint64_t longest = (is_fast ? sizeof found.bytes : at_most(block_size, LONGEST_TARGET)) - 1;
    if (!S_ISLNK(found.mode) || !found.size || found.size > longest)
        return FORWARD;
    target = found.bytes;
    if (!is_fast) {
        /* i_blocks may count blocks of attributes instead. */
        if (found.size < sizeof found.bytes)
            return FORWARD;
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

/* Python's open(3) and others ask every file whether it is a terminal. Commands about inodes' flags are Python's. */
static enum outcome answer_ioctl(worker *w, const call *it)
{
    struct fuse_ioctl_in in;

    if (it->size < sizeof in)
        return FORWARD;
    memcpy(&in, it->body, sizeof in);
    const uint32_t type = in.cmd >> 8 & 0xff; /* _IOC_TYPE */
    if (type == 'f' || type == 'v' || type == 'X')
        return FORWARD;
    send_reply(w, it->header->unique, ENOTTY, 0);
    return DONE;
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
    [FUSE_IOCTL] = answer_ioctl,
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
