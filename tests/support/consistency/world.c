/* The objects that writers change: their names on disk, and what is in them. */
#define _GNU_SOURCE
#include "operators.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

int file_object(int writer, enum which which)
{
    return writer * FILES + which;
}

int name_object(int writer, int directory, int slot)
{
    return FIRST_NAME + (directory * WRITERS + writer) * NAMES + slot;
}

int file_writer(int object)
{
    return object / FILES;
}

const char *path_of(int object)
{
    static char path[64];
    int number = object - FIRST_NAME;

    if (object < FIRST_NAME)
        snprintf(path, sizeof path, "d%d/file%d", object % DIRECTORIES, object);
    else
        snprintf(path, sizeof path, "d%d/n%d", number / (WRITERS * NAMES), number % (WRITERS * NAMES));
    return path;
}

int cell_size(int object)
{
    return object % FILES == OF_PAGES ? PAGE_CELL : SMALL_CELL;
}

int cell_count(int object)
{
    return object % FILES == OF_PAGES ? PAGE_CELLS : SMALL_CELLS;
}

static uint64_t word(int object, uint64_t cell, uint64_t version)
{
    return (uint64_t)(object + 1) << 48 | cell << 32 | version;
}

void stamp(char *bytes, size_t length, int object, uint64_t cell, uint64_t version)
{
    uint64_t value = word(object, cell, version);

    for (size_t offset = 0; offset < length; offset += sizeof value)
        memcpy(bytes + offset, &value, sizeof value);
}

void versions_in(const char *bytes, size_t length, int object, uint64_t cell, uint64_t *versions, int room)
{
    int found = 0;

    for (size_t offset = 0; offset + sizeof(uint64_t) <= length; offset += sizeof(uint64_t)) {
        uint64_t value;
        memcpy(&value, bytes + offset, sizeof value);
        uint64_t version = value & UINT32_MAX;
        if (value && value != word(object, cell, version))
            version = NO_VERSION;
        int index = 0;
        while (index < found && versions[index] != version)
            index++;
        if (index == found) {
            /* More at once than a log tells of: nobody writes that fast. */
            versions[index < room ? index : room - 1] = index < room ? version : NO_VERSION;
            found += index < room;
        }
    }
    for (int index = found; index < room; index++)
        versions[index] = found ? versions[0] : 0;
}

static void make_file(int object)
{
    struct record *record = begin(DO_CREATE, object);
    int file = open(path_of(object), O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
    struct stat attributes = {0};

    if (file < 0 || fstat(file, &attributes))
        die(path_of(object));
    record->value[0] = attributes.st_ino;
    record->value[1] = attributes.st_mode;
    finish(record, 0);
    char bytes[PAGE_CELL];
    for (int cell = 0; object % FILES != OF_ATTRIBUTES && cell < cell_count(object); cell++) {
        record = begin(DO_WRITE, object);
        record->value[0] = cell;
        record->value[1] = record->value[3] = 1;
        record->value[2] = 1;
        stamp(bytes, cell_size(object), object, cell, 1);
        if (!attributes.st_size && write(file, bytes, cell_size(object)) != cell_size(object))
            die(path_of(object));
        finish(record, 0);
    }
    close(file);
}

/* Makes all files, or takes those of an earlier run that made no calls. */
void set_up(void)
{
    char path[300];

    for (int directory = 0; directory < DIRECTORIES; directory++) {
        snprintf(path, sizeof path, "d%d", directory);
        if (mkdir(path, 0777) && errno != EEXIST)
            die(path);
        for (int filler = 0; filler < FILLERS; filler++) {
            /* Long names, so that the directory has several blocks. */
            snprintf(path, sizeof path, "d%d/filler%02d%0100d", directory, filler, 0);
            int file = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
            if (file < 0)
                die(path);
            close(file);
        }
    }
    for (int object = 0; object < WRITERS * FILES; object++)
        make_file(object);
}
