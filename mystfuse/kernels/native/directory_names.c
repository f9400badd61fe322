/* Names in the blocks of ext2's directories.
 *
 * Sources: fs/ext2/dir.c (entries); J.-P. Aumasson, D. J. Bernstein, "SipHash: a fast short-input PRF", 2012 (one round a
 * word and three at the end, as Python's own hash of bytes). */
#include "kernel.h"

#include <string.h>

enum { HEADER = 8, MIN_REC_LEN = 12, MAX_NAME = 255 };

typedef struct {
    uint32_t ino;
    size_t rec_len, name_len;
    const uint8_t *name;
} entry;

static uint32_t little_endian(const uint8_t *bytes, int count)
{
    uint32_t value = 0;
    for (int i = count - 1; i >= 0; i--)
        value = value << 8 | bytes[i];
    return value;
}

/* The entry at `offset` of a block; 0 if its length is unusual. The name may be longer than the entry. */
static inline int read_entry(const uint8_t *block, size_t size, int has_filetype, size_t offset, entry *to)
{
    const uint8_t *at = block + offset;

    if (size - offset < MIN_REC_LEN)
        return 0;
    to->ino = little_endian(at, 4);
    to->rec_len = little_endian(at + 4, 2);
    to->name_len = has_filetype ? at[6] : little_endian(at + 6, 2);
    to->name = at + HEADER;
    return to->rec_len >= MIN_REC_LEN && to->rec_len % 4 == 0 && to->rec_len <= size - offset;
}

static int is_dots(const uint8_t *name, size_t size)
{
    return (size == 1 || size == 2) && name[0] == '.' && name[size - 1] == '.';
}

static int is_possible(const uint8_t *name, size_t size)
{
    return size && size <= MAX_NAME && !memchr(name, '/', size) && !memchr(name, 0, size) && !is_dots(name, size);
}

int64_t directory_find(const uint8_t *block, size_t size, int has_filetype, const uint8_t *name, size_t name_size)
{
    size_t previous = 0;
    entry it;

    if (!is_possible(name, name_size))
        return DIRECTORY_NOT_FOUND;
    for (size_t offset = 0; offset < size; offset += it.rec_len) {
        if (!read_entry(block, size, has_filetype, offset, &it))
            return DIRECTORY_UNUSUAL;
        if (it.ino && it.name_len == name_size && name_size <= it.rec_len - HEADER && !memcmp(it.name, name, name_size))
            return (int64_t)offset << 32 | (int64_t)previous;
        previous = offset + 1;
    }
    return DIRECTORY_NOT_FOUND;
}

static inline uint64_t rotate(uint64_t value, int bits)
{
    return value << bits | value >> (64 - bits);
}

static inline void sip_round(uint64_t v[4])
{
    v[0] += v[1], v[2] += v[3];
    v[1] = rotate(v[1], 13) ^ v[0], v[3] = rotate(v[3], 16) ^ v[2];
    v[0] = rotate(v[0], 32);
    v[2] += v[1], v[0] += v[3];
    v[1] = rotate(v[1], 17) ^ v[2], v[3] = rotate(v[3], 21) ^ v[0];
    v[2] = rotate(v[2], 32);
}

static inline uint64_t word(const uint8_t *bytes, size_t count)
{
    uint64_t value = 0;
    for (size_t i = 0; i < count; i++)
        value |= (uint64_t)bytes[i] << 8 * i;
    return value;
}

uint32_t directory_hash(const uint8_t *secret, const uint8_t *name, size_t name_size)
{
    const uint64_t k0 = word(secret, 8), k1 = word(secret + 8, 8);
    uint64_t v[4] = {
        k0 ^ 0x736f6d6570736575, k1 ^ 0x646f72616e646f6d, k0 ^ 0x6c7967656e657261, k1 ^ 0x7465646279746573,
    };
    size_t done = 0;

    for (; done + 8 <= name_size; done += 8) {
        const uint64_t message = word(name + done, 8);
        v[3] ^= message;
        sip_round(v);
        v[0] ^= message;
    }
    const uint64_t last = word(name + done, name_size - done) | (uint64_t)name_size << 56;
    v[3] ^= last;
    sip_round(v);
    v[0] ^= last;
    v[2] ^= 0xff;
    for (int round = 0; round < 3; round++)
        sip_round(v);
    return (uint32_t)(v[0] ^ v[1] ^ v[2] ^ v[3]);
}

int64_t directory_keys(const uint8_t *secret, const uint8_t *block, size_t size, int has_filetype, uint32_t number,
                       uint64_t *keys)
{
    int64_t count = 0;
    entry it;

    for (size_t offset = 0; offset < size; offset += it.rec_len) {
        if (!read_entry(block, size, has_filetype, offset, &it))
            return DIRECTORY_UNUSUAL;
        if (!it.ino)
            continue;
        if (it.name_len > it.rec_len - HEADER)
            return DIRECTORY_UNUSUAL;
        if (is_possible(it.name, it.name_len))
            keys[count++] = (uint64_t)directory_hash(secret, it.name, it.name_len) << 32 | number;
        else if (number || !is_dots(it.name, it.name_len) || offset != (it.name_len - 1) * (size_t)MIN_REC_LEN)
            return DIRECTORY_UNUSUAL;
    }
    return count;
}

void directory_divide(const uint64_t *keys, size_t count, int bits, uint64_t *out, uint32_t *ends)
{
    const size_t parts = (size_t)1 << bits;
    /* Twice, as a shift by 64 is no shift. */
    const int shift = 63 - bits;
    uint32_t begin = 0;

    memset(ends, 0, parts * sizeof *ends);
    for (size_t i = 0; i < count; i++)
        ends[keys[i] >> shift >> 1]++;
    for (size_t part = 0; part < parts; part++) {
        const uint32_t size = ends[part];
        ends[part] = begin;
        begin += size;
    }
    /* Where a part begins moves on to where it ends. */
    for (size_t i = 0; i < count; i++)
        out[ends[keys[i] >> shift >> 1]++] = keys[i];
}

int64_t directory_room(const uint8_t *block, size_t end, int has_filetype, size_t needed)
{
    entry it;

    for (size_t offset = 0; offset < end; offset += it.rec_len) {
        if (!read_entry(block, end, has_filetype, offset, &it) || it.name_len > it.rec_len - HEADER)
            return DIRECTORY_UNUSUAL;
        const size_t used = it.ino ? (HEADER + it.name_len + 3) & ~(size_t)3 : 0;
        if (it.rec_len >= used + needed)
            return (int64_t)offset;
    }
    return DIRECTORY_NOT_FOUND;
}

int64_t directory_hashes(const uint8_t *block, size_t end, int has_filetype, int version, const uint32_t *seed,
                         uint64_t *entries)
{
    int64_t count = 0;
    entry it;

    for (size_t offset = 0; offset < end; offset += it.rec_len) {
        if (!read_entry(block, end, has_filetype, offset, &it))
            return DIRECTORY_UNUSUAL;
        if (!it.ino)
            continue;
        if (!it.name_len || it.name_len > MAX_NAME || it.name_len > it.rec_len - HEADER)
            return DIRECTORY_UNUSUAL;
        const uint64_t used = (HEADER + it.name_len + 3) & ~(size_t)3;
        entries[count++] = (uint64_t)dx_hash(version, seed, it.name, it.name_len) << 32 | (uint64_t)offset << 16 | used;
    }
    return count;
}
