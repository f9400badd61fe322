/* Answers verified READs of one file of an image from /dev/fuse, and does nothing else: what is physically possible.
 *
 *     limit FUSE IMAGE SIZE SALT ROOT-HASH LEVEL... EXTENT...
 *
 * FUSE is the descriptor of a mounted /dev/fuse; SIZE the file's bytes; salt and root hash are in hexadecimal digits ("-": no
 * salt). A LEVEL of the hash tree (SHA-256, blocks of 4096 bytes, salt in front) is @OFFSET:BLOCKS, that of the data's digests
 * first; an EXTENT of the file BLOCK:COUNT, in the order of the file. The file is `big` in the root directory.
 *
 * Two threads, each with a descriptor of its own, answer whatever the kernel asks. Who calls has checked the arguments; here
 * every size that comes from the kernel is checked. */
#define _GNU_SOURCE
#include "kernel.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/fuse.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum {
    BLOCK = 4096,
    DIGEST = 32,
    DIGESTS = BLOCK / DIGEST, /* in a hash block */
    TOGETHER = 32, /* hash blocks that are fetched from storage at once */
    MAX_LEVELS = 8,
    THREADS = 2,
    /* Not the mebibyte that the kernel would ask for: several requests of one read-ahead keep both threads busy, and each
     * fits the processor's cache. */
    MAX_READ = 128 << 10,
    MAX_REQUEST = 64 << 10,
    FILE_INODE = 2,
    FOR_EVER = 86400, /* seconds */
};

typedef struct {
    uint64_t offset, blocks;
    uint8_t *content;
    atomic_bool *trusted; /* of each block: `content` has it, and it has been checked */
} level;

typedef struct {
    uint64_t logical, physical, count;
} extent;

static int fuse, image;
static uint64_t file_size;
static uint8_t root_hash[DIGEST];
static hasher *sha256;
static level levels[MAX_LEVELS];
static int level_count;
static extent *extents;
static size_t extent_count;
static pthread_mutex_t tree_lock = PTHREAD_MUTEX_INITIALIZER;

static void die(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    fputs("limit: ", stderr);
    vfprintf(stderr, format, arguments);
    fputs("\n", stderr);
    exit(1);
}

/* -- The hash tree. */

static int read_fully(uint8_t *to, size_t size, uint64_t offset)
{
    while (size) {
        ssize_t count = pread(image, to, size, (off_t)offset);
        if (count <= 0)
            return 0;
        to += count;
        size -= (size_t)count;
        offset += (uint64_t)count;
    }
    return 1;
}

static int has_digests(const uint8_t *blocks, size_t count, const uint8_t *expected)
{
    size_t index;
    return hasher_first_mismatch(sha256, blocks, BLOCK, count, expected, &index) && index == count;
}

/* Have a hash block in memory, checked up to the root. Called with the lock. */
static int load(int at, uint64_t index)
{
    level *self = &levels[at];
    if (atomic_load_explicit(&self->trusted[index], memory_order_relaxed))
        return 1;
    const uint8_t *expected = root_hash;
    if (at + 1 < level_count) {
        if (!load(at + 1, index / DIGESTS))
            return 0;
        expected = levels[at + 1].content + index * DIGEST;
    }
    uint8_t *block = self->content + index * BLOCK;
    /* A hash block stands for half a mebibyte of data, so random reads soon want its neighbours. */
    posix_fadvise(image, (off_t)(self->offset + index / TOGETHER * TOGETHER * BLOCK), TOGETHER * BLOCK, POSIX_FADV_WILLNEED);
    if (!read_fully(block, BLOCK, self->offset + index * BLOCK) || !has_digests(block, 1, expected))
        return 0;
    atomic_store_explicit(&self->trusted[index], 1, memory_order_release);
    return 1;
}

/* The digests of data blocks from `first` to `last` are in memory, and good. */
static int have_digests(uint64_t first, uint64_t last)
{
    for (uint64_t index = first / DIGESTS; index <= last / DIGESTS; index++) {
        if (atomic_load_explicit(&levels[0].trusted[index], memory_order_acquire))
            continue;
        pthread_mutex_lock(&tree_lock);
        int good = load(0, index);
        pthread_mutex_unlock(&tree_lock);
        if (!good)
            return 0;
    }
    return 1;
}

/* -- The file. */

static const extent *extent_of(uint64_t block)
{
    size_t low = 0, high = extent_count;
    while (high - low > 1) {
        size_t middle = (low + high) / 2;
        *(extents[middle].logical <= block ? &low : &high) = middle;
    }
    return &extents[low];
}

/* Read and check whole blocks of the file. */
static int read_blocks(uint8_t *to, uint64_t block, uint64_t count)
{
    while (count) {
        const extent *found = extent_of(block);
        uint64_t skipped = block - found->logical, physical = found->physical + skipped;
        if (skipped >= found->count)
            return 0;
        uint64_t run = found->count - skipped < count ? found->count - skipped : count;
        if (!read_fully(to, run * BLOCK, physical * BLOCK) || !have_digests(physical, physical + run - 1)
            || !has_digests(to, run, levels[0].content + physical * DIGEST))
            return 0;
        to += run * BLOCK;
        block += run;
        count -= run;
    }
    return 1;
}

/* -- FUSE. */

static int reply(int to, uint64_t unique, int error, const void *data, size_t size)
{
    struct fuse_out_header header = {.len = (uint32_t)(sizeof header + size), .error = -error, .unique = unique};
    struct iovec parts[] = {{&header, sizeof header}, {(void *)data, size}};
    /* ENOENT: nobody waits for it any more. */
    return writev(to, parts, 2) >= 0 || errno == ENOENT;
}

static struct fuse_attr attributes(uint64_t inode)
{
    uint64_t size = inode == FILE_INODE ? file_size : BLOCK;
    return (struct fuse_attr){
        .ino = inode,
        .size = size,
        .blocks = (size + 511) / 512,
        .mode = inode == FILE_INODE ? S_IFREG | 0644 : S_IFDIR | 0755,
        .nlink = inode == FILE_INODE ? 1 : 2,
        .uid = getuid(),
        .gid = getgid(),
        .blksize = BLOCK,
    };
}

static int answer_init(int to, uint64_t unique, const struct fuse_init_in *in)
{
    struct fuse_init_out out = {
        .major = FUSE_KERNEL_VERSION,
        .minor = FUSE_KERNEL_MINOR_VERSION,
        .max_readahead = in->max_readahead,
        .flags = in->flags & (FUSE_ASYNC_READ | FUSE_MAX_PAGES | FUSE_PARALLEL_DIROPS | FUSE_NO_OPENDIR_SUPPORT),
        .max_background = 48,
        .congestion_threshold = 36,
        .max_write = BLOCK,
        .time_gran = 1,
        .max_pages = MAX_READ / BLOCK,
    };
    return reply(to, unique, 0, &out, sizeof out);
}

static int answer_lookup(int to, uint64_t unique, uint64_t parent, const char *name)
{
    struct fuse_entry_out out = {.entry_valid = FOR_EVER, .attr_valid = FOR_EVER};
    if (parent == FUSE_ROOT_ID && strcmp(name, "big") == 0) {
        out.nodeid = FILE_INODE;
        out.attr = attributes(FILE_INODE);
    }
    return reply(to, unique, 0, &out, sizeof out);
}

static int answer_read(int to, uint64_t unique, const struct fuse_read_in *in, uint8_t *buffer)
{
    if (in->offset % BLOCK || in->size > MAX_READ)
        return reply(to, unique, EINVAL, NULL, 0);
    uint64_t left = in->offset < file_size ? file_size - in->offset : 0;
    uint64_t size = in->size < left ? in->size : left;
    if (!read_blocks(buffer, in->offset / BLOCK, (size + BLOCK - 1) / BLOCK))
        return reply(to, unique, EIO, NULL, 0);
    return reply(to, unique, 0, buffer, size);
}

/* Answer one request, `size` bytes with its header. */
static int answer(int to, const uint8_t *request, size_t size, uint8_t *buffer)
{
    const struct fuse_in_header *header = (const void *)request;
    const void *body = request + sizeof *header;
    size_t body_size = size - sizeof *header;
    uint64_t unique = header->unique;

    switch (header->opcode) {
    case FUSE_INIT:
        if (body_size >= offsetof(struct fuse_init_in, flags2))
            return answer_init(to, unique, body);
        break;
    case FUSE_LOOKUP:
        if (body_size && ((const char *)body)[body_size - 1] == 0)
            return answer_lookup(to, unique, header->nodeid, body);
        break;
    case FUSE_READ:
        if (body_size >= sizeof(struct fuse_read_in) && header->nodeid == FILE_INODE)
            return answer_read(to, unique, body, buffer);
        break;
    case FUSE_GETATTR:
        return reply(to, unique, 0,
                     &(struct fuse_attr_out){.attr_valid = FOR_EVER, .attr = attributes(header->nodeid)},
                     sizeof(struct fuse_attr_out));
    case FUSE_OPEN:
        return reply(to, unique, 0, &(struct fuse_open_out){.open_flags = FOPEN_KEEP_CACHE}, sizeof(struct fuse_open_out));
    case FUSE_STATFS:
        return reply(to, unique, 0, &(struct fuse_statfs_out){.st = {.bsize = BLOCK, .frsize = BLOCK, .namelen = 255}},
                     sizeof(struct fuse_statfs_out));
    case FUSE_RELEASE:
    case FUSE_DESTROY:
        return reply(to, unique, 0, NULL, 0);
    case FUSE_FORGET:
    case FUSE_BATCH_FORGET:
    case FUSE_INTERRUPT:
        return 1; /* They have no reply. */
    }
    return reply(to, unique, ENOSYS, NULL, 0);
}

/* A descriptor of its own spares threads a lock; without one they share. */
static int clone_descriptor(void)
{
    uint32_t original = (uint32_t)fuse;
    int own = open("/dev/fuse", O_RDWR | O_CLOEXEC);
    if (own >= 0 && ioctl(own, FUSE_DEV_IOC_CLONE, &original) == 0)
        return own;
    if (own >= 0)
        close(own);
    return fuse;
}

/* Until the mount has ended. */
static void *serve(void *unused)
{
    int descriptor = clone_descriptor();
    uint8_t *request = aligned_alloc(BLOCK, MAX_REQUEST), *buffer = aligned_alloc(BLOCK, MAX_READ);
    if (request == NULL || buffer == NULL)
        die("no memory");
    for (;;) {
        ssize_t size = read(descriptor, request, MAX_REQUEST);
        if (size < 0 && errno == ENODEV)
            return unused;
        if (size < 0 && (errno == EINTR || errno == EAGAIN || errno == ENOENT))
            continue;
        if (size < (ssize_t)sizeof(struct fuse_in_header))
            die("/dev/fuse: %s", size < 0 ? strerror(errno) : "a short request");
        if (!answer(descriptor, request, (size_t)size, buffer) && errno != ENODEV)
            die("/dev/fuse: reply: %s", strerror(errno));
    }
}

/* -- Arguments. */

static size_t parse_hexadecimal(const char *text, uint8_t *to, size_t room)
{
    size_t size = 0;
    unsigned byte;
    for (; size < room && sscanf(text + 2 * size, "%2x", &byte) == 1; size++)
        to[size] = (uint8_t)byte;
    return size;
}

static void add_level(const char *text)
{
    level *self = &levels[level_count++];
    if (level_count > MAX_LEVELS || sscanf(text, "@%" SCNu64 ":%" SCNu64, &self->offset, &self->blocks) != 2)
        die("%s: no level", text);
    self->content = aligned_alloc(BLOCK, self->blocks * BLOCK);
    self->trusted = calloc(self->blocks, sizeof *self->trusted);
    if (self->content == NULL || self->trusted == NULL)
        die("no memory");
}

static void add_extent(const char *text)
{
    extent *self = &extents[extent_count];
    if (sscanf(text, "%" SCNu64 ":%" SCNu64, &self->physical, &self->count) != 2)
        die("%s: no extent", text);
    if ((self->physical + self->count - 1) / DIGESTS >= levels[0].blocks)
        die("%s: outside of the hash tree", text);
    self->logical = extent_count ? self[-1].logical + self[-1].count : 0;
    extent_count++;
}

int main(int count, char **words)
{
    uint8_t salt[MAX_SALT_SIZE];
    pthread_t threads[THREADS];

    if (count < 8)
        die("arguments are missing");
    fuse = atoi(words[1]);
    image = open(words[2], O_RDONLY | O_CLOEXEC);
    if (image < 0)
        die("%s: %s", words[2], strerror(errno));
    file_size = strtoull(words[3], NULL, 10);
    sha256 = hasher_new("SHA256", salt, parse_hexadecimal(words[4], salt, sizeof salt), 1);
    extents = calloc((size_t)count, sizeof *extents);
    if (sha256 == NULL || extents == NULL || parse_hexadecimal(words[5], root_hash, DIGEST) != DIGEST)
        die("no SHA-256, no memory, or no root hash");
    for (int index = 6; index < count; index++)
        (words[index][0] == '@' ? add_level : add_extent)(words[index]);
    for (int index = 0; index < THREADS; index++)
        if (pthread_create(&threads[index], NULL, serve, NULL) != 0)
            die("no thread");
    for (int index = 0; index < THREADS; index++)
        pthread_join(threads[index], NULL);
    return 0;
}
