/* AES over many sectors, as dm-crypt does it.
 *
 * Starting a cipher of libcrypto's anew for every initialization vector costs as much as decrypting 512 bytes. So libcrypto does
 * plain AES (ECB) over many sectors in one call; what chaining adds is made here. The reference implementation is pure/sectors.py.
 *
 * Keys are in libcrypto's contexts alone, which cleanses them. Tweaks and vectors are cleansed before a call ends.
 *
 * Sources: IEEE 1619-2018 (XTS), NIST SP 800-38A (CBC, ECB), the kernel's dm-crypt (initialization vectors). */
#include "kernel.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/sha.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

enum {
    AES_BLOCK = 16,
    UNIT = 512,      /* what a sector's number counts */
    STEP = 8 << 10,  /* bytes at a time, so that they and their tweaks stay in the first-level cache */
    MAX_SECTORS = STEP / UNIT,
    LANES = 16, /* sectors that CBC encrypts side by side */
};

/* The contexts of one call. Even ECB has state in libcrypto. */
typedef struct {
    EVP_CIPHER_CTX *decrypt, *encrypt; /* of the data */
    EVP_CIPHER_CTX *vectors;           /* of XTS's tweaks, or of CBC's numbers of sectors (essiv) */
} contexts;

struct sector_cipher {
    enum chain_mode chain_mode;
    size_t sector_size;
    uint64_t iv_mask;
    contexts *original; /* Only ever copied from. */
    _Atomic(contexts *) spare; /* A copy that no thread uses at the moment: making one costs as much as some sectors. */
};

static void contexts_free(contexts *self)
{
    if (self == NULL)
        return;
    EVP_CIPHER_CTX_free(self->decrypt);
    EVP_CIPHER_CTX_free(self->encrypt);
    EVP_CIPHER_CTX_free(self->vectors);
    free(self);
}

static int copy_context(EVP_CIPHER_CTX **to, const EVP_CIPHER_CTX *from)
{
    if (from == NULL)
        return 1;
    *to = EVP_CIPHER_CTX_new();
    return *to != NULL && EVP_CIPHER_CTX_copy(*to, from);
}

static contexts *contexts_copy(const contexts *original)
{
    contexts *copy = calloc(1, sizeof *copy);
    if (copy != NULL
        && !(copy_context(&copy->decrypt, original->decrypt) && copy_context(&copy->encrypt, original->encrypt)
             && copy_context(&copy->vectors, original->vectors))) {
        contexts_free(copy);
        return NULL;
    }
    return copy;
}

static EVP_CIPHER_CTX *aes_ecb(const uint8_t *key, size_t key_size, int encrypts)
{
    const EVP_CIPHER *cipher = key_size == 16   ? EVP_aes_128_ecb()
                               : key_size == 24 ? EVP_aes_192_ecb()
                               : key_size == 32 ? EVP_aes_256_ecb()
                                                : NULL;
    EVP_CIPHER_CTX *context = cipher ? EVP_CIPHER_CTX_new() : NULL;
    if (context != NULL
        && !(EVP_CipherInit_ex(context, cipher, NULL, key, NULL, encrypts) && EVP_CIPHER_CTX_set_padding(context, 0))) {
        EVP_CIPHER_CTX_free(context);
        return NULL;
    }
    return context;
}

/* size <= STEP, of whole blocks; in place too */
static int run_aes(EVP_CIPHER_CTX *context, uint8_t *out, const uint8_t *in, size_t size)
{
    int written;
    return EVP_CipherUpdate(context, out, &written, in, (int)size) && (size_t)written == size;
}

/* The numbers of the field and of sectors are little-endian. */
static inline uint64_t little_endian(uint64_t number)
{
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    return __builtin_bswap64(number);
#else
    return number;
#endif
}

/* Eight and sixteen bytes are copied by __builtin_memcpy: of _FORTIFY_SOURCE's memcpy the compiler makes a run-time check for each,
 * and no vector instructions, which halves the speed of XTS. */
static inline uint64_t load_64(const uint8_t *bytes)
{
    uint64_t number;
    __builtin_memcpy(&number, bytes, sizeof number);
    return little_endian(number);
}

static inline void store_64(uint8_t *bytes, uint64_t number)
{
    number = little_endian(number);
    __builtin_memcpy(bytes, &number, sizeof number);
}

/* Of any alignment, byte order does not matter. out may be left. */
static inline void add(uint8_t *out, const uint8_t *left, const uint8_t *right, size_t size)
{
    for (size_t start = 0; start < size; start += AES_BLOCK) {
        uint64_t a[2], b[2];
        __builtin_memcpy(a, left + start, AES_BLOCK);
        __builtin_memcpy(b, right + start, AES_BLOCK);
        a[0] ^= b[0];
        a[1] ^= b[1];
        __builtin_memcpy(out + start, a, AES_BLOCK);
    }
}

static void number_sectors(const sector_cipher *self, uint8_t *vectors, size_t count, uint64_t number)
{
    for (size_t index = 0; index < count; index++) {
        store_64(vectors + index * AES_BLOCK, (number + index * (self->sector_size / UNIT)) & self->iv_mask);
        store_64(vectors + index * AES_BLOCK + 8, 0);
    }
}

/* E(number) * x^j in GF(2^128) for block j of each sector. */
static void spread_tweaks(uint8_t *tweaks, const uint8_t *encrypted, size_t count, size_t sector_size)
{
    for (size_t sector = 0; sector < count; sector++) {
        uint64_t low = load_64(encrypted + sector * AES_BLOCK), high = load_64(encrypted + sector * AES_BLOCK + 8);
        for (size_t start = 0; start < sector_size; start += AES_BLOCK) {
            store_64(tweaks, low);
            store_64(tweaks + 8, high);
            tweaks += AES_BLOCK;
            /* What falls out on top comes back as x^7 + x^2 + x + 1. */
            const uint64_t carried = 0x87 & -(high >> 63);
            high = high << 1 | low >> 63;
            low = low << 1 ^ carried;
        }
    }
}

static int run_step(const sector_cipher *self, contexts *use, int encrypts, const uint8_t *in, uint8_t *out, size_t size,
                    uint64_t number)
{
    EVP_CIPHER_CTX *aes = encrypts ? use->encrypt : use->decrypt;
    uint8_t vectors[MAX_SECTORS * AES_BLOCK], before[STEP];
    const size_t sector_size = self->sector_size, count = size / sector_size;
    int good = 1;

    if (self->chain_mode == CHAIN_ECB)
        return run_aes(aes, out, in, size);
    number_sectors(self, vectors, count, number);
    if (use->vectors != NULL)
        good = run_aes(use->vectors, vectors, vectors, count * AES_BLOCK);
    if (self->chain_mode == CHAIN_XTS) {
        spread_tweaks(before, vectors, count, sector_size);
        add(out, in, before, size);
        good = good && run_aes(aes, out, out, size);
    } else {
        /* What each block was added to: the one before it, in the first of a sector the vector. */
        memcpy(before + AES_BLOCK, in, size - AES_BLOCK);
        for (size_t sector = 0; sector < count; sector++)
            memcpy(before + sector * sector_size, vectors + sector * AES_BLOCK, AES_BLOCK);
        good = good && run_aes(aes, out, in, size);
    }
    add(out, out, before, size);
    OPENSSL_cleanse(vectors, count * AES_BLOCK);
    OPENSSL_cleanse(before, size);
    return good;
}

/* CBC adds to each block the encrypted one before it, so a sector goes block by block: but many sectors at a time, for AES
 * takes several blocks in hardly more time than one. size <= LANES sectors; in place too. */
static int chain_sectors(const sector_cipher *self, contexts *use, const uint8_t *in, uint8_t *out, size_t size,
                         uint64_t number)
{
    uint8_t lanes[LANES * AES_BLOCK];
    const size_t sector_size = self->sector_size, count = size / sector_size;
    int good = 1;

    number_sectors(self, lanes, count, number);
    if (use->vectors != NULL)
        good = run_aes(use->vectors, lanes, lanes, count * AES_BLOCK);
    for (size_t start = 0; good && start < sector_size; start += AES_BLOCK) {
        for (size_t sector = 0; sector < count; sector++)
            add(lanes + sector * AES_BLOCK, lanes + sector * AES_BLOCK, in + sector * sector_size + start, AES_BLOCK);
        good = run_aes(use->encrypt, lanes, lanes, count * AES_BLOCK);
        for (size_t sector = 0; sector < count; sector++)
            memcpy(out + sector * sector_size + start, lanes + sector * AES_BLOCK, AES_BLOCK);
    }
    OPENSSL_cleanse(lanes, count * AES_BLOCK);
    return good;
}

sector_cipher *sector_cipher_new(enum chain_mode chain_mode, int essiv, const uint8_t *key, size_t key_size,
                                 size_t sector_size, uint64_t iv_mask)
{
    const size_t data_key_size = chain_mode == CHAIN_XTS ? key_size / 2 : key_size;
    uint8_t hashed[SHA256_DIGEST_LENGTH];

    if (sector_size < UNIT || sector_size > MAX_SECTOR_SIZE || STEP % sector_size
        || (chain_mode == CHAIN_XTS && key_size % 2))
        return NULL;
    sector_cipher *self = calloc(1, sizeof *self);
    contexts *original = calloc(1, sizeof *original);
    if (self == NULL || original == NULL) {
        free(self);
        free(original);
        return NULL;
    }
    self->chain_mode = chain_mode;
    self->sector_size = sector_size;
    self->iv_mask = iv_mask;
    self->original = original;
    atomic_init(&self->spare, NULL);
    original->decrypt = aes_ecb(key, data_key_size, 0);
    original->encrypt = aes_ecb(key, data_key_size, 1);
    int good = original->decrypt != NULL && original->encrypt != NULL;
    if (chain_mode == CHAIN_XTS) {
        original->vectors = aes_ecb(key + data_key_size, data_key_size, 1);
        good = good && original->vectors != NULL;
    } else if (chain_mode == CHAIN_CBC && essiv) {
        if (EVP_Digest(key, key_size, hashed, NULL, EVP_sha256(), NULL))
            original->vectors = aes_ecb(hashed, sizeof hashed, 1);
        OPENSSL_cleanse(hashed, sizeof hashed);
        good = good && original->vectors != NULL;
    }
    if (!good) {
        sector_cipher_free(self);
        return NULL;
    }
    return self;
}

void sector_cipher_free(sector_cipher *self)
{
    if (self == NULL)
        return;
    contexts_free(self->original);
    contexts_free(atomic_load(&self->spare));
    free(self);
}

int sector_cipher_run(sector_cipher *self, int encrypts, const uint8_t *in, uint8_t *out, size_t size, uint64_t number)
{
    contexts *use = atomic_exchange(&self->spare, NULL), *none = NULL;
    if (use == NULL)
        use = contexts_copy(self->original);
    const int chains = encrypts && self->chain_mode == CHAIN_CBC;
    const size_t step = chains ? LANES * self->sector_size : STEP;
    int good = use != NULL;

    for (size_t start = 0; good && start < size; start += step) {
        const size_t length = size - start < step ? size - start : step;
        good = chains ? chain_sectors(self, use, in + start, out + start, length, number + start / UNIT)
                      : run_step(self, use, encrypts, in + start, out + start, length, number + start / UNIT);
    }
    /* A context that has failed is in no known state. */
    if (!good || !atomic_compare_exchange_strong(&self->spare, &none, use))
        contexts_free(use);
    return good;
}

const char *libcrypto_version(void)
{
    return OpenSSL_version(OPENSSL_VERSION_STRING);
}
