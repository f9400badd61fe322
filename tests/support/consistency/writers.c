/* Writers: each changes its own files and names, one call after the other, and knows what they are. */
#define _GNU_SOURCE
#include "operators.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

enum type { ABSENT, REGULAR, SYMLINK, DIRECTORY };

static int me;
static uint64_t version = 1000; /* set_up's are below */
static int buffered[2], direct;  /* handles of the first two files; the first one again, with O_DIRECT */
static char *pages;
static int has_second_name;
static enum type types[DIRECTORIES][NAMES];
static uint64_t files[DIRECTORIES][NAMES]; /* which file a name is of: links of one have one number */

struct name {
    int directory, slot;
};

static enum type *type_of(struct name name)
{
    return &types[name.directory][name.slot];
}

static uint64_t *file_of(struct name name)
{
    return &files[name.directory][name.slot];
}

static int object_of(struct name name)
{
    return name_object(me, name.directory, name.slot);
}

static struct name any_name(void)
{
    return (struct name){dice(DIRECTORIES), dice(NAMES)};
}

static void write_cells(enum which which)
{
    int object = file_object(me, which);
    int size = cell_size(object), count = cell_count(object);
    int cell = dice(count);
    int cells = dice(4) ? 1 : 1 + dice(count - cell);

    version++;
    for (int index = 0; index < cells; index++)
        stamp(pages + index * size, size, object, cell + index, version);
    int file = which == OF_PAGES && !dice(3) ? direct : buffered[which];
    struct record *record = begin(DO_WRITE, object);
    record->value[0] = cell;
    record->value[1] = cells;
    record->value[2] = version;
    ssize_t written = pwrite(file, pages, cells * size, cell * size);
    record->how = file == direct ? BY_DIRECT : BY_CACHE;
    record->value[3] = written < 0 ? 0 : written / size;
    finish(record, written);
}

static void resize(int object, uint64_t size)
{
    const char *path = path_of(object);
    struct record *record = begin(DO_RESIZE, object);

    record->value[0] = size;
    finish(record, object < FIRST_NAME && object % FILES != OF_ATTRIBUTES ? ftruncate(buffered[object % FILES], size)
                                                                          : truncate(path, size));
}

static void change_mode(int object)
{
    const char *path = path_of(object);
    int mode = dice(0777);
    struct record *record = begin(DO_CHMOD, object);

    record->value[0] = mode;
    finish(record, chmod(path, mode));
}

static void change_owner(int object)
{
    const char *path = path_of(object);
    struct record *record = begin(DO_CHOWN, object);

    record->value[0] = ++version;
    finish(record, lchown(path, version, version));
}

static void change_time(int object)
{
    const char *path = path_of(object);
    struct record *record = begin(DO_TIME, object);
    struct timespec times[2] = {{.tv_nsec = UTIME_OMIT}, {.tv_sec = 1000000000 + ++version}};

    record->value[0] = times[1].tv_sec;
    finish(record, utimensat(AT_FDCWD, path, times, AT_SYMLINK_NOFOLLOW));
}

static void change_xattr(int object, int may_remove)
{
    const char *path = path_of(object);
    struct record *record = begin(DO_XATTR, object);

    if (may_remove && !dice(4)) {
        int result = removexattr(path, "user.version");
        if (!result || errno != ENODATA)
            finish(record, result);
        return;
    }
    record->value[0] = ++version;
    finish(record, setxattr(path, "user.version", &version, sizeof version, 0));
}

static void change_links(int object)
{
    char second[80];
    snprintf(second, sizeof second, "second%d", me);
    const char *path = path_of(object);
    struct record *record = begin(has_second_name ? DO_UNLINK : DO_LINK, object);
    int result = has_second_name ? unlink(second) : link(path, second);

    has_second_name ^= !finish(record, result);
}

static void change_file(void)
{
    int attributes = file_object(me, OF_ATTRIBUTES), cells = file_object(me, OF_SMALL_CELLS);

    switch (dice(12)) {
    case 0:
    case 1:
    case 2:
        write_cells(OF_PAGES);
        break;
    case 3:
    case 4:
    case 5:
        write_cells(OF_SMALL_CELLS);
        break;
    case 6:
        resize(cells, dice(SMALL_CELLS + 1) * SMALL_CELL);
        break;
    case 7:
        /* Longer and shorter, and a size that there never was. */
        resize(attributes, ++version * 7919 % (1 << 24));
        break;
    case 8:
        change_mode(dice(2) ? attributes : cells);
        break;
    case 9:
        change_owner(attributes);
        break;
    case 10:
        dice(2) ? change_time(attributes) : change_links(attributes);
        break;
    default:
        change_xattr(dice(2) ? attributes : cells, 1);
    }
}

static void create(struct name name)
{
    int object = object_of(name);
    const char *path = path_of(object);
    struct stat attributes = {0};
    struct record *record = begin(DO_CREATE, object);
    int file = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600 + dice(0100));

    if (file >= 0 && fstat(file, &attributes)) {
        finish(record, -1);
        close(file);
        return;
    }
    record->value[0] = attributes.st_ino;
    record->value[1] = attributes.st_mode;
    if (finish(record, file) < 0)
        return;
    *type_of(name) = REGULAR;
    *file_of(name) = version + 1;
    char content[NAME_BYTES];
    stamp(content, sizeof content, 0, 0, ++version);
    record = begin(DO_FILL, object);
    record->value[0] = version;
    finish(record, write(file, content, sizeof content));
    close(file);
}

static void make_other(struct name name, enum type type)
{
    int object = object_of(name);
    const char *path = path_of(object);
    char target[80];
    struct stat attributes = {0};
    version++;
    snprintf(target, sizeof target, "%0*lu", (int)(8 + version % 70), (unsigned long)version);
    struct record *record = begin(type == SYMLINK ? DO_SYMLINK : DO_MKDIR, object);
    int result = type == SYMLINK ? symlink(target, path) : mkdir(path, 0700 + dice(0100));

    if (!result)
        result = lstat(path, &attributes);
    record->value[0] = attributes.st_ino;
    record->value[1] = type == SYMLINK ? version : attributes.st_mode;
    record->value[2] = attributes.st_mode;
    if (finish(record, result))
        return;
    *type_of(name) = type;
    *file_of(name) = version;
}

static void add_link(struct name old, struct name new)
{
    char path[80];
    strcpy(path, path_of(object_of(old)));
    const char *target = path_of(object_of(new));
    struct record *record = begin(DO_LINK, object_of(old));

    record->value[0] = object_of(new);
    if (finish(record, link(path, target)))
        return;
    *type_of(new) = *type_of(old);
    *file_of(new) = *file_of(old);
}

static void move(struct name old, struct name new, int exchange)
{
    char path[80];
    strcpy(path, path_of(object_of(old)));
    const char *target = path_of(object_of(new));
    struct record *record = begin(exchange ? DO_EXCHANGE : DO_RENAME, object_of(old));

    record->value[0] = object_of(new);
    if (finish(record, renameat2(AT_FDCWD, path, AT_FDCWD, target, exchange ? RENAME_EXCHANGE : 0)))
        return;
    enum type replaced = *type_of(new);
    uint64_t other = *file_of(new);
    /* Two names of one file stay as they are. */
    if (*file_of(old) == other && replaced != ABSENT)
        return;
    *type_of(new) = *type_of(old);
    *file_of(new) = *file_of(old);
    *type_of(old) = exchange ? replaced : ABSENT;
    *file_of(old) = other;
}

static void take_away(struct name name)
{
    int is_directory = *type_of(name) == DIRECTORY;
    const char *path = path_of(object_of(name));
    struct record *record = begin(is_directory ? DO_RMDIR : DO_UNLINK, object_of(name));

    if (!finish(record, is_directory ? rmdir(path) : unlink(path)))
        *type_of(name) = ABSENT;
}

static void change_name(void)
{
    struct name name = any_name(), other = any_name();
    enum type type = *type_of(name), others = *type_of(other);
    int is_same = name.directory == other.directory && name.slot == other.slot;

    if (type == ABSENT) {
        int number = dice(10);
        if (number < 7)
            create(name);
        else
            make_other(name, number < 9 ? SYMLINK : DIRECTORY);
        return;
    }
    switch (dice(10)) {
    case 0:
    case 1:
    case 2:
        if (!is_same && (others == ABSENT || (type != DIRECTORY && others != DIRECTORY)))
            move(name, other, 0);
        break;
    case 3:
        if (!is_same && others != ABSENT)
            move(name, other, 1);
        break;
    case 4:
        if (type == REGULAR && others == ABSENT)
            add_link(name, other);
        break;
    case 5:
        if (type == REGULAR)
            resize(object_of(name), NAME_BYTES + ++version % 100000);
        break;
    case 6:
        if (type == REGULAR)
            change_xattr(object_of(name), 0);
        break;
    case 7:
        type == SYMLINK ? change_time(object_of(name)) : change_mode(object_of(name));
        break;
    default:
        take_away(name);
    }
}

void write_for_ever(int writer)
{
    me = writer;
    for (int which = OF_PAGES; which <= OF_SMALL_CELLS; which++) {
        buffered[which] = open(path_of(file_object(me, which)), O_RDWR | O_CLOEXEC);
        if (buffered[which] < 0)
            die("open");
    }
    direct = open(path_of(file_object(me, OF_PAGES)), O_WRONLY | O_DIRECT | O_CLOEXEC);
    if (direct < 0 || posix_memalign((void **)&pages, PAGE_CELL, PAGE_CELLS * PAGE_CELL))
        die("O_DIRECT");
    while (!__atomic_load_n(&shared->is_over, __ATOMIC_RELAXED)) {
        if (dice(2))
            change_file();
        else
            change_name();
        /* Moments without a change, in which there is only one right answer. */
        if (!dice(64))
            usleep(dice(3000));
    }
}
