/* READ: where the bytes of a file are, and what is there. */
#include "internal.h"

#include <string.h>
#include <sys/stat.h>

enum {
    SEQUENTIAL = 64 << 10, /* bytes: the kernel asks for so many if a program reads on */
    AHEAD = 4 << 20,       /* bytes that storage is asked for then */
};

static const uint64_t FILLED = UINT64_MAX; /* in place of a pointer: these bytes are in the reply */

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
        const uint64_t pointer = w->pointers[index];
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
    while (index + length < in->blocks && w->pointers[index + length] != FILLED
           && w->pointers[index + length] == w->pointers[index] + length)
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

enum outcome answer_read(worker *w, const call *it)
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
