/* Processes that change and look at a few files, each call noted in a log; see operators.c, and records.py, which reads the
 * enumerators below.
 *
 * Every object has one writer. A *file* has its name and its inode for ever; a *name* comes, goes and moves, and each
 * making of it is another inode. What is written has its version in every eight bytes, so that a torn, foreign or old
 * piece shows. */
#ifndef OPERATORS_H
#define OPERATORS_H

#include <stdint.h>
#include <sys/types.h>

enum layout {
    WRITERS = 3,
    READERS = 4,
    DIRECTORIES = 2,
    NAMES = 6,     /* of each writer in each directory */
    FILES = 3,     /* of each writer */
    FILLERS = 40,  /* names in each directory that nobody changes */
    FIRST_NAME = 100, /* number of the first object that is a name */
    PAGE_CELLS = 64,
    SMALL_CELLS = 64,
    PAGE_CELL = 4096, /* bytes: in the file that is written whole pages at a time */
    SMALL_CELL = 512, /* bytes: in the file that is also truncated */
    NAME_BYTES = 64,  /* the content of a file with a changing name */
};

/* The files of a writer. */
enum which { OF_PAGES, OF_SMALL_CELLS, OF_ATTRIBUTES };

enum kind {
    /* by writers; the values of each are given */
    DO_WRITE,    /* first cell, cells, version, cells written */
    DO_RESIZE,   /* size in bytes */
    DO_CHMOD,    /* permissions */
    DO_CHOWN,    /* user and group: one number */
    DO_TIME,     /* seconds of the modification time */
    DO_XATTR,    /* version, 0: remove it */
    DO_CREATE,   /* inode number, mode */
    DO_FILL,     /* version: the content of a file with a changing name */
    DO_SYMLINK,  /* inode number, version (its target) */
    DO_MKDIR,    /* inode number, mode */
    DO_LINK,     /* the new object */
    DO_RENAME,   /* the other object */
    DO_EXCHANGE, /* the other object */
    DO_UNLINK,   /* nothing */
    DO_RMDIR,    /* nothing */
    /* by readers */
    SEE_CELL,       /* cell, bytes, up to four versions in the order of their first appearance */
    SEE_ATTRIBUTES, /* inode number, mode, links, size, user and group, seconds of the modification time */
    SEE_XATTR,      /* version, 0: there is none */
    SEE_TARGET,     /* version */
    SEE_OPENED,     /* inode number, version of the content, again after a while, mode, links, size: all by the handle */
    SEE_LISTING,    /* a bit for each name, those seen twice, fillers, a name seen + 1, its inode number */
};

/* How a reader looked. */
enum how {
    BY_CACHE,  /* read(2), stat(2), by path or handle */
    BY_DIRECT, /* O_DIRECT */
    BY_MAP,    /* a mapping */
    BY_FORCE,  /* statx(2) with AT_STATX_FORCE_SYNC */
};

enum { VALUES = 6 };
static const uint64_t NO_VERSION = UINT64_MAX; /* a piece that nobody has written */

struct record {
    uint16_t kind, error, object, how;
    int64_t start, end; /* CLOCK_MONOTONIC, ns */
    uint64_t value[VALUES];
};

/* What all processes share. */
struct shared {
    uint64_t by_writers, by_readers; /* calls made so far */
    uint64_t wanted;
    uint64_t is_over;
};

extern struct shared *shared;

uint64_t dice(uint64_t sides);
int64_t now(void);
void die(const char *what) __attribute__((noreturn));

/* log: one a process */
void open_log(const char *directory, int process);
struct record *begin(enum kind kind, int object);
/* Ends a call and returns its result; a negative one means that errno says why. */
long finish(struct record *record, long result);

/* the world */
int file_object(int writer, enum which which);
int name_object(int writer, int directory, int slot);
int file_writer(int object);
const char *path_of(int object);
int cell_size(int object);
int cell_count(int object);
/* Fills a cell with a version. */
void stamp(char *bytes, size_t length, int object, uint64_t cell, uint64_t version);
/* The versions in a cell, in the order of their first appearance; at most `room`. */
void versions_in(const char *bytes, size_t length, int object, uint64_t cell, uint64_t *versions, int room);

void write_for_ever(int writer);
/* One call in `share` goes past the kernel's caches. */
void read_for_ever(int reader, uint64_t share);
void set_up(void);

#endif
