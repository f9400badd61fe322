/* An image elsewhere: which of its bytes the fetcher has stored (remote/chunk_map.py), and asking it for others (remote/protocol.py).
 *
 * Nothing it says is believed: the map saves vain verifications, and tells how long to wait. What does not come in time is Python's,
 * which has the whole time-out. */
#include "internal.h"

#include <endian.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum {
    CHUNK = 16 << 10, /* bytes, for each of which the map has an entry of four bytes */
    MOST_CHUNKS = MAX_DATA / CHUNK + 2,
    READ = 1,         /* the protocol's number of a question */
    HINT = 2,         /* its flag: no answer is wanted */
    MAX_READ = 1 << 20,
};

static const int64_t SHORTEST = 200000, LONGEST = 2000000; /* nanoseconds between two looks at the map */
static const int64_t GIVEN_UP = 5000000000;               /* nanoseconds without waiting, after waiting in vain */

struct question {
    uint8_t kind, unused[3];
    uint32_t request;
    uint64_t offset;
    uint32_t length, flags, milliseconds;
} __attribute__((packed));

int elsewhere_is_stored(const fastpath_part *part, uint64_t offset, size_t size, int may_wait)
{
    uint32_t entries[MOST_CHUNKS];
    const uint64_t first = offset / CHUNK, last = (offset + size - 1) / CHUNK;
    const size_t count = (size_t)(last - first + 1);
    const struct iovec vector = {entries, count * sizeof *entries};

    if (!size || count > MOST_CHUNKS)
        return 0;
    if (preadv2(part->map_fd, &vector, 1, (off_t)(first * sizeof *entries), may_wait || part->is_in_memory ? 0 : RWF_NOWAIT)
        != (ssize_t)vector.iov_len)
        return 0;
    for (size_t index = 0; index < count; index++)
        if (!entries[index])
            return 0;
    return 1;
}

void elsewhere_ask(const fastpath_part *part, uint64_t offset, size_t size)
{
    while (size) {
        const uint32_t length = (uint32_t)at_most(size, MAX_READ);
        const struct question question = {
            .kind = READ, .request = htole32(1), .offset = htole64(offset), .length = htole32(length), .flags = htole32(HINT)};
        /* Lost where the fetcher has too much to do: Python will ask. */
        send(part->fetcher_fd, &question, sizeof question, MSG_DONTWAIT | MSG_NOSIGNAL);
        offset += length;
        size -= length;
    }
}

int elsewhere_wait(fastpath *fp, const fastpath_part *part, uint64_t offset, size_t size)
{
    const int64_t start = now();

    if (start < atomic_load_explicit(&fp->given_up_until, memory_order_relaxed))
        return 0;
    elsewhere_ask(part, offset, size);
    for (;;) {
        const int64_t waited = now() - start;
        int64_t pause = waited / 8;
        pause = pause < SHORTEST ? SHORTEST : pause > LONGEST ? LONGEST : pause;
        const struct timespec time = {0, pause};
        nanosleep(&time, NULL);
        if (elsewhere_is_stored(part, offset, size, 1))
            return 1;
        if (atomic_load(&fp->is_stopping) || atomic_load(&fp->has_ended))
            return 0;
        if (waited > fp->config.patience) {
            atomic_store_explicit(&fp->given_up_until, now() + GIVEN_UP, memory_order_relaxed);
            return 0;
        }
    }
}
