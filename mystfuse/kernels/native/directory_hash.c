/* The hashes by which ext3 and ext4 put names in order. Source: fs/ext4/hash.c of the kernel. */
#include "kernel.h"

#include <string.h>

enum { LEGACY, HALF_MD4, TEA, VERSIONS };

/* Up to `words` words of a name, its last one filled up with its length. */
static void load_words(const uint8_t *name, size_t size, int is_unsigned, uint32_t *to, size_t words)
{
    uint32_t filler = (uint32_t)size | (uint32_t)size << 8;
    size_t done = 0;

    filler |= filler << 16;
    if (size > words * 4)
        size = words * 4;
    for (size_t word = 0; word < words; word++) {
        uint32_t value = filler;
        for (; done < size && done < word * 4 + 4; done++)
            value = (is_unsigned ? name[done] : (uint32_t)(int8_t)name[done]) + (value << 8);
        to[word] = value;
    }
}

static uint32_t rotate_left(uint32_t value, int bits)
{
    return value << bits | value >> (32 - bits);
}

/* One step of MD4: `state` holds a, b, c, d, and `at` says which of them is changed. */
static void half_md4(uint32_t state[4], const uint32_t in[8])
{
    static const uint8_t ORDER[3][8] = {{0, 1, 2, 3, 4, 5, 6, 7}, {1, 3, 5, 7, 0, 2, 4, 6}, {3, 7, 2, 6, 1, 5, 0, 4}};
    static const uint8_t SHIFTS[3][4] = {{3, 7, 11, 19}, {3, 5, 9, 13}, {3, 9, 11, 15}};
    static const uint32_t CONSTANTS[3] = {0, 0x5a827999, 0x6ed9eba1};
    uint32_t v[4];

    memcpy(v, state, sizeof v);
    for (int round = 0; round < 3; round++)
        for (int step = 0; step < 8; step++) {
            uint32_t *to = &v[-step & 3];
            const uint32_t x = v[(1 - step) & 3], y = v[(2 - step) & 3], z = v[(3 - step) & 3];
            const uint32_t mixed = round == 0 ? z ^ (x & (y ^ z)) : round == 1 ? (x & y) + ((x ^ y) & z) : x ^ y ^ z;
            *to = rotate_left(*to + mixed + in[ORDER[round][step]] + CONSTANTS[round], SHIFTS[round][step & 3]);
        }
    for (int i = 0; i < 4; i++)
        state[i] += v[i];
}

static void tea(uint32_t state[4], const uint32_t in[4])
{
    uint32_t sum = 0, left = state[0], right = state[1];

    for (int round = 0; round < 16; round++) {
        sum += 0x9e3779b9;
        left += ((right << 4) + in[0]) ^ (right + sum) ^ ((right >> 5) + in[1]);
        right += ((left << 4) + in[2]) ^ (left + sum) ^ ((left >> 5) + in[3]);
    }
    state[0] += left;
    state[1] += right;
}

static uint32_t legacy(const uint8_t *name, size_t size, int is_unsigned)
{
    uint32_t latest = 0x12a3fe2d, before = 0x37abe8f9;

    for (size_t i = 0; i < size; i++) {
        const uint32_t byte = is_unsigned ? name[i] : (uint32_t)(int8_t)name[i];
        uint32_t next = before + (latest ^ (byte * 7152373));
        if (next & 0x80000000)
            next -= 0x7fffffff;
        before = latest;
        latest = next;
    }
    return latest << 1;
}

uint32_t dx_hash(int version, const uint32_t *seed, const uint8_t *name, size_t size)
{
    const int is_unsigned = version >= VERSIONS, kind = is_unsigned ? version - VERSIONS : version;
    uint32_t state[4] = {0x67452301, 0xefcdab89, 0x98badcfe, 0x10325476}, in[8], hash;

    if (seed[0] || seed[1] || seed[2] || seed[3])
        memcpy(state, seed, sizeof state);
    if (kind == LEGACY) {
        hash = legacy(name, size, is_unsigned);
    } else {
        const size_t words = kind == HALF_MD4 ? 8 : 4;
        for (size_t done = 0; done < size; done += words * 4) {
            load_words(name + done, size - done, is_unsigned, in, words);
            if (kind == HALF_MD4)
                half_md4(state, in);
            else
                tea(state, in);
        }
        hash = kind == HALF_MD4 ? state[1] : state[0];
    }
    hash &= ~(uint32_t)1;
    /* The largest one marks the end of a listing. */
    return hash == 0xfffffffe ? 0xfffffffc : hash;
}
