/* The fast path: a few C threads own /dev/fuse, answer what they can from verified blocks, and hand everything else over.
 *
 *     kernel -- /dev/fuse --> workers (threads.c) --answered (answers.c)--> kernel
 *                                 |--> queue: requests that Python decodes itself (fuse/direct_requests.py)
 *                                 `--> socket pair --> libfuse, pyfuse3 --> fuse/operations.py;  replies come back the same way
 *
 * C decides nothing. An answer is a function of the image's verified blocks and of the blocks that Python has committed. Whatever is
 * not as usual, or cannot be had from memory and storage soon, goes to Python, unchanged: a digest that does not match, a broken
 * inode, a feature, an error of storage, a block in the overlay's store. So errors, logs, and everything hostile stay in one place.
 *
 * Invariants:
 *
 * 1. No byte of the image leaves device.c that has not been read once into our own memory and verified there (and then decrypted).
 * 2. `state` (a lock that prefers its writer) guards the table of written blocks, and the memory that it points to. Workers hold it
 *    shared while they look; Python holds it while it commits, from before the first change until the table has all of them. So
 *    every answer is made of one state, and a commit is visible to all workers before Python replies to whoever asked for it.
 * 3. A worker replies to a look-up, a listing or attributes while it still holds `state`. To a READ it replies later: what it has
 *    copied was true while it held `state`, blocks of the image never change, and the kernel keeps pages locked (or, for O_DIRECT,
 *    the call open) until the reply; a write to them that follows waits for that.
 * 4. What the kernel does with answers is ordered by its own locks: names by the directory's i_rwsem (look-ups and listings shared,
 *    changes exclusive), attributes by attr_version (an answer that began before a change is dropped), pages by the page lock.
 *    Listings that it keeps it tells apart by their positions, which every commit changes (listings.c).
 * 5. `counts` has the kernel's look-up count of every inode number. A worker adds to it before it replies, and takes it back if the
 *    kernel did not get the reply. An inode without a name lives until its count is 0: Python looks after its commit, and is told of
 *    each FORGET that leaves 0 for an inode without links. The kernel forgets no inode that is open, so nobody counts handles.
 * 6. Handles of files opened for reading have no state: FASTPATH_HANDLE and nothing else.
 * 7. No worker waits for storage while it holds a lock, and none waits while no other one reads /dev/fuse: where none is left, the
 *    request goes to Python. A request has one owner: a worker that has waited for config.patience loses it to the watchdog, which
 *    hands it to Python; what storage brings later is dropped.
 * 8. Threads block all signals but FASTPATH_SIGNAL, and never take Python's lock. Locks are taken in this order: `state`, a set of a
 *    cache, the pool's or the queue's.
 * 9. Every table is bounded: caches by their capacity, the table of written blocks by the overlay's limit, `counts` by the number of
 *    inodes, the queue by the requests that the kernel has waiting. */
#ifndef MYSTFUSE_FASTPATH_H
#define MYSTFUSE_FASTPATH_H

#include <stddef.h>
#include <stdint.h>

enum {
    FASTPATH_MAX_PARTS = 3,
    FASTPATH_MAX_OPCODE = 64,
    FASTPATH_IN_STORE = -1,
    FASTPATH_OF_THE_IMAGE = -2,
};

typedef struct fastpath fastpath;

/* Bytes `start` to `end` of the image: a file, from its byte `offset` on. */
typedef struct {
    int fd;
    int is_in_memory; /* on a file system that knows no RWF_NOWAIT, and needs none */
    uint64_t start, end, offset;
    int map_fd, fetcher_fd; /* of an image elsewhere: which chunks are there, and a socket to ask for others; -1: all are there */
} fastpath_part;

typedef struct {
    /* The image's bytes. */
    size_t part_count;
    fastpath_part parts[3];

    /* What verifies them, shared with Python; NULL for an image without a hash tree. */
    struct hash_tree *tree;

    /* The decrypted payload; `cipher` is NULL for an image that is not encrypted. */
    struct sector_cipher *cipher;
    uint64_t payload_offset, payload_size, iv_tweak;
    size_t sector_size;

    /* The file system, as ext2/superblock.py has it. */
    uint64_t size;
    size_t block_size, inode_size;
    uint64_t blocks_count, first_data_block, blocks_per_group, groups_count, descriptors, table_blocks;
    uint64_t inodes_count, inodes_per_group, first_ino;
    int has_filetype;
    uint64_t attribute_sectors; /* that a block of extended attributes adds to i_blocks */

    /* What ext4 adds; zeros for ext2. */
    int is_extended;
    uint32_t usual_flags; /* of i_flags, those that mean no block map, and may be set */
    int has_huge_files, has_large_directories, is_64bit, has_flexible_groups;
    size_t descriptor_size;
    const uint64_t *descriptor_blocks; /* where the descriptors are, with meta_bg; else NULL: one behind the other */
    uint64_t descriptor_block_count;
    int has_checksums;            /* crc32c of all metadata */
    int has_descriptor_checksums; /* crc16 of group descriptors alone */
    uint32_t checksum_seed;
    uint8_t uuid[16];

    /* How it is shown. Of owners: whether uid or gid replace all, or (maps_root) those that are 0. */
    int maps_root, replaces_uid, replaces_gid;
    uint32_t root_uid, root_gid, uid, gid;
    int has_xattrs;            /* whether the mount has extended attributes */
    uint64_t control_ino;      /* inodes from here on are the control directory's; 0 without it */
    const char *control_name;  /* its name in the root, of at most 255 bytes */
    uint64_t name_seconds;     /* how long the kernel may keep names and attributes */

    /* The kernel. Of INIT's reply: flags that are cleared and set, and limits that are lowered or set (0: as they are). */
    int fuse_fd, socket_fd;
    uint32_t init_clear, init_set, max_write;
    uint16_t max_background;
    uint64_t python_opcodes; /* a bit for each opcode that goes to the queue rather than to libfuse */
    int listeners;           /* threads that read /dev/fuse at the same time */
    int spare;               /* threads that take their places when they wait for storage */
    int may_spin;            /* there are processors enough to wait for a moment without sleeping */
    int64_t patience;        /* nanoseconds that a worker waits for storage at most */
    size_t arena_size;       /* bytes of an arena of the overlay */
} fastpath_config;

/* NULL: no memory, or impossible sizes. Everything that the configuration points to must outlive it. */
fastpath *fastpath_new(const fastpath_config *config);
/* After fastpath_stop has returned 1 alone. */
void fastpath_free(fastpath *self);

/* Begin to serve; 0: no thread can be started (then none is left). */
int fastpath_start(fastpath *self);
/* End all threads; 0: some are still waiting for storage. */
int fastpath_stop(fastpath *self);
/* Whether the kernel has the answer to INIT. */
int fastpath_has_begun(fastpath *self);
/* Whether the kernel has ended the mount. */
int fastpath_has_ended(fastpath *self);

/* -- What Python commits. Between lock and unlock it may change blocks in memory and call the functions below. */
void fastpath_lock(fastpath *self);
void fastpath_unlock(fastpath *self);
/* Room for so many more written blocks, and for arenas up to a number; 0: no memory. */
int fastpath_reserve(fastpath *self, size_t blocks, size_t arenas);
/* Where an arena is; NULL: nowhere any more. */
void fastpath_arena(fastpath *self, size_t number, const void *memory);
/* Each block is in a slot of the arenas now, in the overlay's store, or as the image has it. After a reserve this cannot fail. */
void fastpath_written(fastpath *self, const uint64_t *numbers, const int64_t *slots, size_t count);
/* Python cannot say what it has committed, for want of memory: from now on everything is handed over. */
void fastpath_give_up(fastpath *self);

/* -- Look-up counts, by inode number (the root's is 2). */
void fastpath_known(fastpath *self, uint64_t ino);
/* Returns what is left. */
uint64_t fastpath_forgotten(fastpath *self, uint64_t ino, uint64_t count);
uint64_t fastpath_count(fastpath *self, uint64_t ino);

/* -- Requests for Python. */
typedef struct fastpath_request fastpath_request;

/* An eventfd that is readable while requests are waiting, but for the time from fastpath_take to fastpath_pause. */
int fastpath_event(fastpath *self);
/* No more are taken for now. */
void fastpath_pause(fastpath *self);
/* The next request, waiting up to so many microseconds for one or for one that goes to libfuse; NULL if there is none. */
fastpath_request *fastpath_take(fastpath *self, uint32_t microseconds);
const uint8_t *fastpath_bytes(const fastpath_request *request);
size_t fastpath_size(const fastpath_request *request);
void fastpath_done(fastpath_request *request);
/* Answer it: `error` is 0 or an errno. 0: the kernel does not want the answer any more. */
int fastpath_reply(fastpath *self, uint64_t unique, int error, const uint8_t *data, size_t size);

/* The kernel drops the attributes that it keeps of an inode. */
void fastpath_drop_attributes(fastpath *self, uint64_t nodeid);

/* -- What the status says. */
typedef struct {
    uint64_t answered[64], forwarded[64]; /* by opcode */
    uint64_t bytes_fetched, bytes_decrypted;
    uint64_t open_files;
    double last_request; /* seconds of CLOCK_MONOTONIC */
} fastpath_status;

void fastpath_get_status(fastpath *self, fastpath_status *status);

/* -- For tests: the answer to one request as a worker would give it, without a kernel. Returns 1 and the reply (of at most `room`
 * bytes), or 0: it would be handed over. */
int fastpath_answer(fastpath *self, const uint8_t *request, size_t size, uint8_t *reply, size_t room, size_t *reply_size);

#endif
