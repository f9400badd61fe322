/* What the files of the fast path share. fastpath.h has the rules. */
#ifndef MYSTFUSE_FASTPATH_INTERNAL_H
#define MYSTFUSE_FASTPATH_INTERNAL_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include "../kernels/native/cache.h"
#include "../kernels/native/kernel.h"
#include "fastpath.h"

#include <linux/fuse.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <sys/uio.h>
#include <time.h>

enum {
    MAX_DATA = 1 << 20,            /* bytes of data in a request or reply */
    REQUEST_ROOM = MAX_DATA + (64 << 10),
    REPLY_ROOM = MAX_DATA + 4096,
    PAGE = 4096,
    MAX_LISTING = 128 << 10,       /* bytes of a reply to READDIR */
    SLICE = 128 << 10, /* bytes that are fetched and verified together, so that they are still in the processor's cache */
    MAX_POINTERS = MAX_DATA / 1024 + 1,
    MAX_BLOCK = 64 << 10,
    ROOT_INO = 2,
};

/* What came of an attempt. */
enum outcome {
    DONE,
    WAIT,    /* bytes of the image must be waited for: worker.wanted */
    FORWARD, /* Python shall see to it */
};

/* -- written.c: the blocks written since the mount. */
typedef struct {
    uint64_t number; /* + 1; 0: none */
    int64_t slot;
} written_entry;

typedef struct {
    pthread_rwlock_t state;
    written_entry *entries;
    size_t capacity, used; /* a power of two, or 0 */
    const uint8_t **arenas;
    size_t arena_count;
    uint64_t states; /* how many there have been */
} written_blocks;

int written_init(written_blocks *self);
void written_destroy(written_blocks *self);
/* Where a block is, with `state` held. DONE: *at is its memory, or NULL if the image's block counts. FORWARD: in the store. */
enum outcome written_find(const fastpath *fp, uint64_t number, const uint8_t **at);

typedef struct {
    uint64_t ino, size;
    uint64_t i_blocks, file_acl;
    uint32_t mode, uid, gid, links, flags, generation, rdev;
    int64_t seconds[3]; /* of access, modification, change */
    uint32_t nanoseconds[3];
    uint32_t block[15];
    uint8_t bytes[60]; /* the same, as they are */
    int has_body_xattrs;
} inode;

/* A block of an extent tree, checked. */
typedef struct {
    uint64_t number, ino, low, high, state; /* number 0: none */
    uint32_t generation, depth;
    uint8_t *bytes;
} extent_node;

/* -- The workers. */
typedef struct {
    _Atomic uint64_t answered[FASTPATH_MAX_OPCODE], forwarded[FASTPATH_MAX_OPCODE];
    _Atomic uint64_t bytes_fetched, bytes_decrypted;
} counters;

typedef struct worker {
    fastpath *fp;
    pthread_t thread;
    counters counters;

    uint8_t *request; /* REQUEST_ROOM */
    size_t request_size;
    /* REPLY_ROOM: a header, and what follows, which begins a page: where both sides of a copy are 16 bytes apart, some
     * processors copy at a fifth of their speed. */
    uint8_t *reply, *reply_memory;
    size_t reply_size;
    int is_test; /* the reply stays here */

    uint8_t *verified;  /* whole blocks of the hash tree around what is asked for */
    uint8_t *decrypted; /* whole sectors around it */
    uint8_t *hash_block;
    uint8_t *metadata;  /* a block of the file system on its way into the cache */
    uint8_t *directory; /* a block of a directory that is being looked at */
    uint64_t pointers[MAX_POINTERS];
    extent_node nodes[2]; /* the latest leaf, and the latest index block */
    uint8_t digests[SLICE / 512 * MAX_DIGEST_SIZE];

    /* What was found last, which most requests ask for again. */
    inode latest;
    uint64_t latest_state; /* written.states at that time */
    uint64_t latest_group, latest_table; /* + 1, 0: none; the place of an inode table never changes */

    struct {
        uint64_t offset;
        size_t size;
    } wanted; /* of the image */
    uint8_t *fetched; /* MAX_DATA: bytes of the image that have been waited for */
    uint64_t fetched_offset;
    size_t fetched_size;

    int is_waiting;                   /* for storage; the pool's lock guards it */
    _Atomic int owner;                /* of the request */
    _Atomic int64_t waiting_since;    /* nanoseconds of CLOCK_MONOTONIC; 0: not */
    int is_started;
} worker;

struct fastpath_request {
    fastpath_request *next;
    size_t size;
    uint8_t bytes[];
};

struct fastpath {
    fastpath_config config;
    cache *blocks;
    const hash_tree_shape *shape; /* of config.tree, or NULL */
    written_blocks written;
    _Atomic uint64_t *counts;
    _Atomic uint64_t *checked; /* blocks of directories whose checksums match (ext4.c); NULL without checksums */
    size_t counts_size;
    _Atomic int part_has_nowait[FASTPATH_MAX_PARTS];
    _Atomic int64_t given_up_until; /* until when nobody waits for a fetcher */

    worker *workers;
    int worker_count;
    pthread_mutex_t pool;
    pthread_cond_t wanted, waiting; /* a listener is wanted; a worker waits for storage */
    _Atomic int listening;          /* workers that read /dev/fuse, or are about to; the pool's lock guards changes */
    _Atomic int absent;             /* workers that have left their places to wait; likewise */
    int idle;                       /* workers that could read */
    _Atomic int64_t parallel_until; /* when one worker is enough again */
    _Atomic int64_t last_wait;      /* nanoseconds */
    pthread_t pump, watchdog;
    int pump_started, watchdog_started;
    _Atomic int has_begun, is_stopping, has_ended, has_given_up, running;

    pthread_mutex_t queue;
    pthread_cond_t queued;
    fastpath_request *first, **last;
    _Atomic uint64_t arrivals; /* in the queue, or for libfuse; the queue's lock guards changes */
    int is_taking;             /* Python takes requests, and need not be told of more; the queue's lock guards these */
    int is_told;               /* event_fd is readable */
    int64_t last_take;         /* nanoseconds that Python has waited for a request; Python's alone */
    int event_fd;

    _Atomic uint64_t open_files;
    _Atomic int64_t last_request;
};

/* -- device.c: the image's verified, decrypted bytes, without waiting. */
size_t device_room(const fastpath *fp);
enum outcome device_read(worker *w, uint64_t offset, size_t size, uint8_t *out);
/* Wait for worker.wanted. No lock may be held. */
enum outcome device_wait(worker *w);
/* Tell the kernel to fetch bytes of the device before long. */
void device_expect(worker *w, uint64_t offset, size_t size);

/* -- elsewhere.c: images elsewhere. `offset` is a place in the part's file. */
/* Whether a range is there, by the map; without waiting for storage unless it may. */
int elsewhere_is_stored(const fastpath_part *part, uint64_t offset, size_t size, int may_wait);
/* Ask the fetcher for a range, without waiting. */
void elsewhere_ask(const fastpath_part *part, uint64_t offset, size_t size);
/* The same, and wait until it is there; 0: it has not come in time. */
int elsewhere_wait(fastpath *fp, const fastpath_part *part, uint64_t offset, size_t size);

/* -- ext2.c: the file system's structures, with `state` held. */
enum outcome read_inode(worker *w, uint64_t ino, inode *to);
/* Pointers to blocks of a file; 0 for a hole. At most MAX_POINTERS. */
enum outcome map_blocks(worker *w, const inode *it, uint64_t first, size_t count, uint64_t *pointers);
/* Any part of a block of the file system that is metadata. */
enum outcome read_block(worker *w, uint64_t number, size_t offset, size_t size, uint8_t *out);
/* The block's bytes, in memory that lasts until the next call, or until `state` is given back. */
enum outcome look_at_block(worker *w, uint64_t number, const uint8_t **at);
/* The inode number of a name; 0: there is none. */
enum outcome find_name(worker *w, const inode *directory, const uint8_t *name, size_t size, uint64_t *ino);

typedef struct {
    uint32_t ino; /* 0: a free entry */
    size_t rec_len, name_size;
    const uint8_t *name;
} directory_entry;

/* The same for blocks of a directory, among which none may come twice. */
enum outcome map_directory(worker *w, const inode *it, uint64_t first, size_t count, uint64_t *pointers);
/* Whether it is a directory of a usual size. */
int is_usual_directory(const fastpath *fp, const inode *it);
/* The entry at an offset of a block of a directory; 0: something is not as usual. */
int read_entry(const fastpath *fp, const uint8_t *block, size_t offset, directory_entry *to);

/* -- ext4.c, with `state` held. */
int init_checked(fastpath *fp);
/* Whether the checksum of an inode, all of whose bytes are given, matches. */
int is_checked_inode(const fastpath *fp, uint64_t ino, const uint8_t *bytes);
/* As look_at_block, for a block of a directory: its checksum, if it has one, matches. */
enum outcome look_at_directory(worker *w, const inode *directory, uint64_t number, const uint8_t **at);
/* Where the inode table of a group begins. */
enum outcome find_extended_table(worker *w, uint64_t group, uint64_t *table);
/* As map_blocks, for an inode with extents. */
enum outcome map_extents(worker *w, const inode *it, uint64_t first, size_t count, uint64_t *pointers);

/* -- answers.c, listings.c, file_data.c */
typedef struct {
    const struct fuse_in_header *header;
    uint64_t ino;
    const uint8_t *body;
    size_t size; /* of the body */
} call;

/* Answer worker.request. WAIT and FORWARD leave nothing behind. */
enum outcome answer(worker *w);
enum outcome answer_readdirplus(worker *w, const call *it);
/* It holds `state` itself, and not while it reads from the device. */
enum outcome answer_read(worker *w, const call *it);
void show_entry(const fastpath *fp, const inode *it, struct fuse_entry_out *to);
int is_dots(const uint8_t *name, size_t size);
int is_control_name(const fastpath *fp, uint64_t directory, const uint8_t *name, size_t size);

static inline void hold(worker *w)
{
    pthread_rwlock_rdlock(&w->fp->written.state);
}

static inline void let_go(worker *w)
{
    pthread_rwlock_unlock(&w->fp->written.state);
}

static inline uint8_t *payload(worker *w)
{
    return w->reply + sizeof(struct fuse_out_header);
}

/* -- messages.c */
/* Send worker.reply; 0: the kernel does not want it. */
int send_reply(worker *w, uint64_t unique, int error, size_t size);
/* The same for any message. A reply that is not delivered hangs its caller for ever. */
int write_message(fastpath *fp, const struct iovec *parts, int count);
fastpath_request *copy_request(const uint8_t *bytes, size_t size);
void put_request(fastpath *fp, fastpath_request *request);
/* Copy and put; without memory, the request fails. */
void queue_request(fastpath *fp, const uint8_t *bytes, size_t size);
void tell_forgotten(fastpath *fp, uint64_t ino);
int goes_to_python(const fastpath *fp, uint32_t opcode);
void prepare_for_libfuse(uint8_t *request, size_t size);
/* 0: with MSG_DONTWAIT, the socket has no room now. */
int send_to_libfuse(fastpath *fp, const uint8_t *request, size_t size, int flags);
int64_t now(void);
/* A time of CLOCK_MONOTONIC, so many nanoseconds from now. */
void deadline(struct timespec *time, int64_t nanoseconds);

/* -- workers.c, pump_and_watchdog.c, threads.c */
enum request_owner { WORKER, WAITING, WATCHDOG };

void *work(void *argument);
void *pump(void *argument);
void *watch(void *argument);
/* Wake everybody up to see that it is over. */
void tell_end(fastpath *fp);
int worker_init(worker *w, fastpath *fp);
void worker_destroy(worker *w);

/* -- Waiting for the next request without sleeping, since waking a thread takes as long as most answers. In nanoseconds. */
static const int64_t LOOKING = 60000; /* how long */
static const int64_t BURST = 200000;  /* not after a wait of more than that: requests do not come one after the other */

/* A pause between two looks. */
static inline void spin(void)
{
    for (int count = 20; count; count--)
#if defined(__x86_64__) || defined(__i386__)
        __builtin_ia32_pause();
#elif defined(__aarch64__)
        __asm__ volatile("yield");
#else
        atomic_signal_fence(memory_order_seq_cst);
#endif
}

static inline uint32_t opcode_of(const uint8_t *request)
{
    return ((const struct fuse_in_header *)(const void *)request)->opcode;
}

static inline uint64_t ino_of(uint64_t nodeid)
{
    return nodeid == FUSE_ROOT_ID ? ROOT_INO : nodeid;
}

static inline void count(_Atomic uint64_t *counter, uint64_t by)
{
    atomic_fetch_add_explicit(counter, by, memory_order_relaxed);
}

static inline uint32_t load_32(const uint8_t *bytes)
{
    return (uint32_t)bytes[0] | (uint32_t)bytes[1] << 8 | (uint32_t)bytes[2] << 16 | (uint32_t)bytes[3] << 24;
}

static inline uint32_t load_16(const uint8_t *bytes)
{
    return (uint32_t)bytes[0] | (uint32_t)bytes[1] << 8;
}

static inline uint64_t at_most(uint64_t left, uint64_t right)
{
    return left < right ? left : right;
}

#endif
