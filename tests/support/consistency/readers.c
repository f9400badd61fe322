/* Readers: each looks at any writer's files and names, in every way that the kernel has. */
#define _GNU_SOURCE
#include "operators.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <unistd.h>

static int kept[WRITERS * FILES]; /* handles for the whole time, of half of the files; else -1 */
static const char *maps[WRITERS]; /* of the files of pages; the mappings keep them in the kernel */
static char *page;
static uint64_t asking; /* one call in so many goes past the kernel's caches: */
static int is_asking;   /* this one does */

static int any_file(void)
{
    return dice(WRITERS * FILES);
}

static int any_name(void)
{
    return FIRST_NAME + dice(WRITERS * DIRECTORIES * NAMES);
}

static void note_cell(struct record *record, const char *bytes, ssize_t length, int cell, enum how how)
{
    long result = finish(record, length);

    record->how = how;
    record->value[0] = cell;
    record->value[1] = result < 0 ? 0 : result;
    if (result > 0)
        versions_in(bytes, result, record->object, cell, record->value + 2, 4);
}

static void read_cell(void)
{
    int object = file_object(dice(WRITERS), dice(2));
    int size = cell_size(object), cell = dice(cell_count(object)), is_direct = is_asking && dice(2);
    int is_kept = kept[object] >= 0 && !is_direct;

    if (!is_asking && !is_kept)
        return;
    if (is_kept && is_asking)
        posix_fadvise(kept[object], 0, 0, POSIX_FADV_DONTNEED);
    int file = is_kept ? kept[object] : open(path_of(object), O_RDONLY | O_CLOEXEC | (is_direct ? O_DIRECT : 0));
    struct record *record = begin(SEE_CELL, object);
    ssize_t length = file < 0 ? -1 : pread(file, page, size, cell * size);
    note_cell(record, page, length, cell, is_direct ? BY_DIRECT : BY_CACHE);
    if (!is_kept && file >= 0)
        close(file);
}

static void read_map(void)
{
    int writer = dice(WRITERS), cell = dice(PAGE_CELLS);
    const char *bytes = maps[writer] + cell * PAGE_CELL;

    if (!maps[writer])
        return;
    if (is_asking)
        madvise((void *)bytes, PAGE_CELL, MADV_DONTNEED);
    struct record *record = begin(SEE_CELL, file_object(writer, OF_PAGES));
    memcpy(page, bytes, PAGE_CELL);
    note_cell(record, page, PAGE_CELL, cell, BY_MAP);
}

static void note_attributes(struct record *record, const struct statx *seen, enum how how, int result)
{
    finish(record, result);
    record->how = how;
    if (result)
        return;
    record->value[0] = seen->stx_ino;
    record->value[1] = seen->stx_mode;
    record->value[2] = seen->stx_nlink;
    record->value[3] = seen->stx_size;
    record->value[4] = (uint64_t)seen->stx_uid << 32 | seen->stx_gid;
    record->value[5] = seen->stx_mtime.tv_sec;
}

static void look_at(int object)
{
    int file = object < FIRST_NAME ? kept[object] : -1;
    const char *path = file >= 0 ? "" : path_of(object);
    enum how how = is_asking && dice(2) ? BY_FORCE : BY_CACHE;
    int flags = AT_SYMLINK_NOFOLLOW | (file >= 0 ? AT_EMPTY_PATH : 0) |
                (how == BY_FORCE ? AT_STATX_FORCE_SYNC : AT_STATX_SYNC_AS_STAT);
    struct statx seen;
    struct record *record = begin(SEE_ATTRIBUTES, object);

    note_attributes(record, &seen, how, statx(file >= 0 ? file : AT_FDCWD, path, flags, STATX_BASIC_STATS, &seen));
}

static void look_at_xattr(int object)
{
    uint64_t value = 0;
    const char *path = path_of(object);
    struct record *record = begin(SEE_XATTR, object);
    ssize_t length = lgetxattr(path, "user.version", &value, sizeof value);

    if (length < 0 && errno == ENODATA)
        length = value = 0;
    else if (length >= 0 && length != sizeof value)
        value = NO_VERSION;
    record->value[0] = value;
    finish(record, length);
}

static void look_at_target(int object)
{
    char target[200];
    const char *path = path_of(object);
    struct record *record = begin(SEE_TARGET, object);
    ssize_t length = readlink(path, target, sizeof target - 1);

    finish(record, length);
    if (length < 0)
        return;
    target[length] = 0;
    char *end;
    record->value[0] = strtoul(target, &end, 10);
    if (*end || length != (ssize_t)(8 + record->value[0] % 70))
        record->value[0] = NO_VERSION;
}

/* The version of the content of a file with a changing name; 0: it is empty. */
static uint64_t content(int file)
{
    char bytes[NAME_BYTES];
    uint64_t versions[2];
    ssize_t length = pread(file, bytes, sizeof bytes, 0);

    if (length < 0)
        return errno == EISDIR ? 0 : NO_VERSION;
    if (length && length != NAME_BYTES)
        return NO_VERSION;
    versions_in(bytes, length, 0, 0, versions, 2);
    return versions[0] == versions[1] ? versions[0] : NO_VERSION;
}

/* Opens a name, and looks again a while later: the file may have lost its name, but nothing else. */
static void open_name(int object)
{
    const char *path = path_of(object);
    struct record *record = begin(SEE_OPENED, object);
    int file = open(path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    struct stat attributes;

    if (file < 0) {
        finish(record, -1);
        return;
    }
    record->value[1] = content(file);
    if (!dice(8)) {
        usleep(dice(3000));
        posix_fadvise(file, 0, 0, POSIX_FADV_DONTNEED);
    }
    record->value[2] = content(file);
    int result = fstat(file, &attributes);
    finish(record, result);
    record->value[0] = attributes.st_ino;
    record->value[3] = attributes.st_mode;
    record->value[4] = attributes.st_nlink;
    record->value[5] = attributes.st_size;
    close(file);
}

struct entry {
    uint64_t ino;
    int64_t offset;
    unsigned short length;
    unsigned char type;
    char name[];
};

static void note_entry(struct record *record, const struct entry *entry)
{
    unsigned number;

    if (!strncmp(entry->name, "filler", 6))
        record->value[2]++;
    else if (sscanf(entry->name, "n%u", &number) == 1 && number < WRITERS * NAMES) {
        uint64_t bit = UINT64_C(1) << number;
        record->value[1] |= record->value[0] & bit;
        record->value[0] |= bit;
        if (!record->value[3] || !dice(4)) {
            record->value[3] = number + 1;
            record->value[4] = entry->ino;
        }
    }
}

static void list(void)
{
    int directory = dice(DIRECTORIES);
    char path[16], buffer[8192] __attribute__((aligned(8)));
    /* Mostly all names in one call. */
    size_t room = dice(4) ? sizeof buffer : 1024;
    snprintf(path, sizeof path, "d%d", directory);
    struct record *record = begin(SEE_LISTING, directory);
    int file = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    long length = -1;

    while (file >= 0 && (length = syscall(SYS_getdents64, file, buffer, room)) > 0)
        for (long offset = 0; offset < length;) {
            const struct entry *entry = (const struct entry *)(buffer + offset);
            note_entry(record, entry);
            offset += entry->length;
        }
    finish(record, length);
    if (file >= 0)
        close(file);
}

/* One call, or none. */
static void look_around(void)
{
    switch (dice(is_asking ? 10 : 6)) {
    case 0:
        read_cell();
        break;
    case 1:
        read_map();
        break;
    case 2:
    case 3:
        look_at(any_file());
        break;
    case 4:
    case 5:
        look_at(any_name());
        break;
    case 6:
        look_at_xattr(dice(2) ? any_name() : any_file());
        break;
    case 7:
        look_at_target(any_name());
        break;
    case 8:
        open_name(any_name());
        break;
    default:
        list();
    }
}

static void open_file(int object, int is_kept)
{
    struct record *record = begin(SEE_CELL, object);
    int file = open(path_of(object), O_RDONLY | O_CLOEXEC);

    kept[object] = -1;
    if (file < 0) {
        finish(record, -1);
        return;
    }
    if (object % FILES == OF_PAGES) {
        const char *map = mmap(NULL, PAGE_CELLS * PAGE_CELL, PROT_READ, MAP_SHARED, file, 0);
        maps[object / FILES] = map == MAP_FAILED ? NULL : map;
    }
    if (is_kept)
        kept[object] = file;
    else
        close(file);
}

void read_for_ever(int reader, uint64_t share)
{
    asking = share;
    if (posix_memalign((void **)&page, PAGE_CELL, PAGE_CELL))
        die("memory");
    /* A file that no process has open is forgotten by the kernel when its name is dropped. */
    for (int object = 0; object < WRITERS * FILES; object++)
        open_file(object, (object + reader) % 3 == 0 && object % FILES != OF_ATTRIBUTES);
    while (!__atomic_load_n(&shared->is_over, __ATOMIC_RELAXED)) {
        is_asking = !dice(asking);
        look_around();
    }
}
