/* Salted SHA-256 and SHA-512 of many equal blocks, as dm-verity wants them.
 *
 * SHA-256 is the hottest loop of all. The processor's SHA instructions are bound by latency: a round must wait for the one
 * before it. So a single message, all that libcrypto takes, leaves half of the unit idle; the rounds of three independent
 * blocks fill it. Everything else (SHA-512, processors without the instructions) is libcrypto's.
 *
 * Sources: FIPS 180-4; Intel, "Intel SHA Extensions", July 2013 (what the instructions do). */
#include "kernel.h"

#include <openssl/evp.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__) && defined(__GNUC__)
#define HAS_SHA_NI 1
#include <cpuid.h>
#include <immintrin.h>
#else
#define HAS_SHA_NI 0
#endif

enum { SHA256_BLOCK = 64, SHA256_DIGEST = 32 };

struct hasher {
    EVP_MD *algorithm;
    size_t digest_size;
    int salt_first;
    int uses_instructions;
    size_t salt_size;
    uint8_t salt[MAX_SALT_SIZE];
    /* The state behind the whole SHA-256 blocks of a salt in front, as the instructions keep it. */
    _Alignas(16) uint8_t midstate[2][16];
};

static int instructions_allowed = 1;

#if HAS_SHA_NI

#define SHA_NI __attribute__((target("sha,sse4.1,ssse3")))

enum {
    LANES = 3,
    /* What is left of a block, a salt behind it, 0x80 and the length. */
    MAX_TAIL = (SHA256_BLOCK - 1 + MAX_SALT_SIZE + 1 + 8 + SHA256_BLOCK - 1) / SHA256_BLOCK * SHA256_BLOCK,
};

static _Alignas(64) const uint32_t ROUND_CONSTANTS[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};

/* The instructions want the eight words of the state as (A, B, E, F) and (C, D, G, H), the first one on top. */
typedef struct {
    __m128i abef, cdgh;
} state;

SHA_NI static inline state initial_state(void)
{
    return (state){
        _mm_set_epi32(0x6a09e667, (int)0xbb67ae85, 0x510e527f, (int)0x9b05688c),
        _mm_set_epi32(0x3c6ef372, (int)0xa54ff53a, 0x1f83d9ab, 0x5be0cd19),
    };
}

/* Compress `count` SHA-256 blocks into each of `lanes` states. `lanes` is a constant wherever this is inlined, so that all
 * inner loops are unrolled and everything stays in registers. */
SHA_NI __attribute__((always_inline)) static inline void
compress(const int lanes, state *states, const uint8_t *const *messages, size_t count)
{
    const __m128i big_endian = _mm_set_epi8(12, 13, 14, 15, 8, 9, 10, 11, 4, 5, 6, 7, 0, 1, 2, 3);
    const __m128i *constants = (const __m128i *)ROUND_CONSTANTS;

    for (size_t offset = 0; offset < count * SHA256_BLOCK; offset += SHA256_BLOCK) {
        __m128i abef[LANES], cdgh[LANES];
        __m128i w[LANES][4]; /* The last 16 words of the message schedule. */

#pragma GCC unroll 3
        for (int lane = 0; lane < lanes; lane++) {
            abef[lane] = states[lane].abef;
            cdgh[lane] = states[lane].cdgh;
        }
#pragma GCC unroll 16
        for (int step = 0; step < 16; step++) { /* of four rounds */
            __m128i wk[LANES];
#pragma GCC unroll 3
            for (int lane = 0; lane < lanes; lane++) {
                __m128i *next = &w[lane][step % 4];
                if (step < 4) {
                    const __m128i *message = (const __m128i *)(messages[lane] + offset);
                    *next = _mm_shuffle_epi8(_mm_loadu_si128(message + step), big_endian);
                } else {
                    /* W[t] = s1(W[t-2]) + W[t-7] + s0(W[t-15]) + W[t-16], for four t. */
                    const __m128i *last = &w[lane][(step + 3) % 4];
                    __m128i t_7 = _mm_alignr_epi8(*last, w[lane][(step + 2) % 4], 4);
                    __m128i t_16_15 = _mm_sha256msg1_epu32(*next, w[lane][(step + 1) % 4]);
                    *next = _mm_sha256msg2_epu32(_mm_add_epi32(t_16_15, t_7), *last);
                }
                wk[lane] = _mm_add_epi32(*next, _mm_load_si128(constants + step));
            }
            /* Two rounds move (A, B, E, F) to (C, D, G, H) and give a new (A, B, E, F): the two change their names. */
#pragma GCC unroll 3
            for (int lane = 0; lane < lanes; lane++)
                cdgh[lane] = _mm_sha256rnds2_epu32(cdgh[lane], abef[lane], wk[lane]);
#pragma GCC unroll 3
            for (int lane = 0; lane < lanes; lane++)
                abef[lane] = _mm_sha256rnds2_epu32(abef[lane], cdgh[lane], _mm_shuffle_epi32(wk[lane], 0x0e));
        }
#pragma GCC unroll 3
        for (int lane = 0; lane < lanes; lane++) {
            states[lane].abef = _mm_add_epi32(states[lane].abef, abef[lane]);
            states[lane].cdgh = _mm_add_epi32(states[lane].cdgh, cdgh[lane]);
        }
    }
}

SHA_NI static inline void store_digest(state final, uint8_t *digest)
{
    /* Words from the lowest: F E B A, H G D C. */
    const __m128i swapped = _mm_set_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    __m128i abef = _mm_shuffle_epi8(final.abef, swapped), cdgh = _mm_shuffle_epi8(final.cdgh, swapped);
    _mm_storeu_si128((__m128i *)digest, _mm_unpacklo_epi64(abef, cdgh));
    _mm_storeu_si128((__m128i *)(digest + 16), _mm_unpackhi_epi64(abef, cdgh));
}

/* How the messages of one call fall into SHA-256 blocks. A salt in front whose size is not a multiple of 64 moves the data
 * against them. So that no block has to be copied whole, a message is compressed from three places:
 *
 *   head   the rest of the salt and the first bytes of the data: one SHA-256 block, or none
 *   data   where it is, at any address
 *   tail   the last bytes of the data, a salt behind it, the padding; the same for all but the bytes of the data
 */
typedef struct {
    size_t head_salt, head_data, body_blocks, tail_data, tail_blocks;
    uint8_t head[LANES][SHA256_BLOCK];
    uint8_t tail[LANES][MAX_TAIL];
} layout;

/* block_size >= SHA256_BLOCK */
static void lay_out(const hasher *self, size_t block_size, layout *to)
{
    const size_t suffix = self->salt_first ? 0 : self->salt_size;
    const uint64_t bits = ((uint64_t)block_size + self->salt_size) * 8;

    to->head_salt = self->salt_first ? self->salt_size % SHA256_BLOCK : 0;
    to->head_data = to->head_salt ? SHA256_BLOCK - to->head_salt : 0;
    to->body_blocks = (block_size - to->head_data) / SHA256_BLOCK;
    to->tail_data = (block_size - to->head_data) % SHA256_BLOCK;
    to->tail_blocks = (to->tail_data + suffix + 1 + 8 + SHA256_BLOCK - 1) / SHA256_BLOCK;
    for (int lane = 0; lane < LANES; lane++) {
        uint8_t *tail = to->tail[lane], *end = tail + to->tail_blocks * SHA256_BLOCK;
        memcpy(to->head[lane], self->salt + self->salt_size - to->head_salt, to->head_salt);
        memset(tail, 0, MAX_TAIL);
        memcpy(tail + to->tail_data, self->salt, suffix);
        tail[to->tail_data + suffix] = 0x80;
        for (int byte = 0; byte < 8; byte++)
            end[-1 - byte] = (uint8_t)(bits >> 8 * byte);
    }
}

/* The digests of `lanes` consecutive blocks. */
SHA_NI __attribute__((always_inline)) static inline void
digest_lanes(const int lanes, const hasher *self, layout *places, const uint8_t *data, size_t block_size, uint8_t *digests)
{
    state states[LANES];
    const uint8_t *bodies[LANES], *heads[LANES], *tails[LANES];

    for (int lane = 0; lane < lanes; lane++) {
        const uint8_t *block = data + (size_t)lane * block_size;
        states[lane].abef = _mm_load_si128((const __m128i *)self->midstate[0]);
        states[lane].cdgh = _mm_load_si128((const __m128i *)self->midstate[1]);
        memcpy(places->head[lane] + places->head_salt, block, places->head_data);
        memcpy(places->tail[lane], block + block_size - places->tail_data, places->tail_data);
        heads[lane] = places->head[lane];
        bodies[lane] = block + places->head_data;
        tails[lane] = places->tail[lane];
    }
    compress(lanes, states, heads, places->head_data > 0);
    compress(lanes, states, bodies, places->body_blocks);
    compress(lanes, states, tails, places->tail_blocks);
    for (int lane = 0; lane < lanes; lane++)
        store_digest(states[lane], digests + lane * SHA256_DIGEST);
}

SHA_NI static void digest_1(const hasher *self, layout *places, const uint8_t *data, size_t size, uint8_t *digests)
{
    digest_lanes(1, self, places, data, size, digests);
}

SHA_NI static void digest_2(const hasher *self, layout *places, const uint8_t *data, size_t size, uint8_t *digests)
{
    digest_lanes(2, self, places, data, size, digests);
}

SHA_NI static void digest_3(const hasher *self, layout *places, const uint8_t *data, size_t size, uint8_t *digests)
{
    digest_lanes(3, self, places, data, size, digests);
}

SHA_NI static void start_midstate(hasher *self)
{
    state start = initial_state();
    const uint8_t *salt = self->salt;
    compress(1, &start, &salt, self->salt_first ? self->salt_size / SHA256_BLOCK : 0);
    _mm_store_si128((__m128i *)self->midstate[0], start.abef);
    _mm_store_si128((__m128i *)self->midstate[1], start.cdgh);
}

/* Write digests, or compare with `expected` and stop at the first that differs, its index in *index. */
static void run_instructions(const hasher *self, const uint8_t *data, size_t block_size, size_t count, uint8_t *digests,
                             const uint8_t *expected, size_t *index)
{
    layout places;
    uint8_t computed[LANES * SHA256_DIGEST];

    lay_out(self, block_size, &places);
    for (size_t done = 0; done < count;) {
        const size_t left = count - done;
        /* Four are two and two: one by itself takes as long as two. */
        const size_t lanes = left >= 3 && left != 4 ? 3 : left >= 2 ? 2 : 1;
        const uint8_t *blocks = data + done * block_size;
        uint8_t *to = expected ? computed : digests + done * SHA256_DIGEST;

        (lanes == 3 ? digest_3 : lanes == 2 ? digest_2 : digest_1)(self, &places, blocks, block_size, to);
        if (expected && memcmp(computed, expected + done * SHA256_DIGEST, lanes * SHA256_DIGEST) != 0) {
            *index = done;
            while (memcmp(to, expected + *index * SHA256_DIGEST, SHA256_DIGEST) == 0) {
                to += SHA256_DIGEST;
                ++*index;
            }
            return;
        }
        done += lanes;
    }
    if (expected)
        *index = count;
}

static int processor_has_instructions(void)
{
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_SSSE3) || !(c & bit_SSE4_1))
        return 0;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & (1u << 29)) /* SHA */;
}

#else

enum { LANES = 0 };

static int processor_has_instructions(void)
{
    return 0;
}

static void start_midstate(hasher *self)
{
    (void)self;
}

static void run_instructions(const hasher *self, const uint8_t *data, size_t block_size, size_t count, uint8_t *digests,
                             const uint8_t *expected, size_t *index)
{
    (void)self, (void)data, (void)block_size, (void)count, (void)digests, (void)expected, (void)index;
}

#endif

static int run_libcrypto(const hasher *self, const uint8_t *data, size_t block_size, size_t count, uint8_t *digests,
                         const uint8_t *expected, size_t *index)
{
    const size_t size = self->digest_size;
    uint8_t computed[EVP_MAX_MD_SIZE];
    size_t done = 0;
    /* Starting anew and hashing the salt again is cheaper than copying a context that has the salt: a copy allocates. */
    EVP_MD_CTX *context = EVP_MD_CTX_new();
    int good = context != NULL;

    for (; good && done < count; done++) {
        const uint8_t *block = data + done * block_size;
        uint8_t *to = expected ? computed : digests + done * size;

        good = EVP_DigestInit_ex(context, self->algorithm, NULL)
               && (!self->salt_first || EVP_DigestUpdate(context, self->salt, self->salt_size))
               && EVP_DigestUpdate(context, block, block_size)
               && (self->salt_first || EVP_DigestUpdate(context, self->salt, self->salt_size))
               && EVP_DigestFinal_ex(context, to, NULL);
        if (good && expected && memcmp(computed, expected + done * size, size) != 0)
            break;
    }
    EVP_MD_CTX_free(context);
    if (expected)
        *index = done;
    return good;
}

static int run(const hasher *self, const uint8_t *data, size_t block_size, size_t count, uint8_t *digests,
               const uint8_t *expected, size_t *index)
{
    if (self->uses_instructions && block_size >= SHA256_BLOCK) {
        run_instructions(self, data, block_size, count, digests, expected, index);
        return 1;
    }
    return run_libcrypto(self, data, block_size, count, digests, expected, index);
}

void hasher_allow_instructions(int allowed)
{
    instructions_allowed = allowed;
}

int hasher_lanes(void)
{
    return instructions_allowed && processor_has_instructions() ? LANES : 0;
}

hasher *hasher_new(const char *algorithm, const uint8_t *salt, size_t salt_size, int salt_first)
{
    if (salt_size > MAX_SALT_SIZE)
        return NULL;
    /* No aligned_alloc: malloc's 16 bytes are what the midstate asks for. */
    hasher *self = calloc(1, sizeof *self);
    if (self == NULL)
        return NULL;
    self->algorithm = EVP_MD_fetch(NULL, algorithm, NULL);
    if (self->algorithm == NULL) {
        free(self);
        return NULL;
    }
    self->digest_size = (size_t)EVP_MD_get_size(self->algorithm);
    self->salt_first = salt_first;
    self->salt_size = salt_size;
    if (salt_size)
        memcpy(self->salt, salt, salt_size);
    self->uses_instructions = EVP_MD_is_a(self->algorithm, "SHA256") && hasher_lanes();
    if (self->uses_instructions)
        start_midstate(self);
    return self;
}

void hasher_free(hasher *self)
{
    if (self != NULL)
        EVP_MD_free(self->algorithm);
    free(self);
}

size_t hasher_digest_size(const hasher *self)
{
    return self->digest_size;
}

int hasher_digests(const hasher *self, const uint8_t *data, size_t block_size, size_t count, uint8_t *digests)
{
    return run(self, data, block_size, count, digests, NULL, NULL);
}

int hasher_first_mismatch(const hasher *self, const uint8_t *data, size_t block_size, size_t count,
                          const uint8_t *expected, size_t *index)
{
    *index = count;
    return run(self, data, block_size, count, NULL, expected, index);
}
