/* The native kernels: digests of many blocks, AES over many sectors, names in directories; one call for many.
 *
 * Who calls (hashing.py, sectors.py, directory.py) has checked all lengths. Nothing here keeps a pointer to the caller's memory, and every
 * object may be used from several threads at once. Functions that can fail return 0 then: OpenSSL had no memory, or not the
 * algorithm. */
#ifndef MYSTFUSE_KERNEL_H
#define MYSTFUSE_KERNEL_H

#include <stddef.h>
#include <stdint.h>

enum { MAX_SALT_SIZE = 256, MAX_SECTOR_SIZE = 4096 };

/* -- hashing.c */

typedef struct hasher hasher;

/* Whether hashers that are made from now on use the processor's SHA instructions, if it has them. */
void hasher_allow_instructions(int allowed);
/* How many blocks are hashed at once with them; 0 if they are not used. */
int hasher_lanes(void);

/* digest(salt || block), or digest(block || salt) unless salt_first. NULL: no memory, no such algorithm, or a salt of more
 * than MAX_SALT_SIZE. */
hasher *hasher_new(const char *algorithm, const uint8_t *salt, size_t salt_size, int salt_first);
void hasher_free(hasher *self);
size_t hasher_digest_size(const hasher *self);

/* Digests of `count` consecutive blocks, joined. */
int hasher_digests(const hasher *self, const uint8_t *data, size_t block_size, size_t count, uint8_t *digests);

/* Compare with joined digests; *index is that of the first block with another digest, `count` if there is none. */
int hasher_first_mismatch(const hasher *self, const uint8_t *data, size_t block_size, size_t count,
                          const uint8_t *expected, size_t *index);

/* -- sectors.c */

typedef struct sector_cipher sector_cipher;

enum chain_mode { CHAIN_ECB, CHAIN_CBC, CHAIN_XTS };

/* AES. The key of CHAIN_XTS is two keys. `essiv` (of CHAIN_CBC): numbers of sectors are encrypted with the key's SHA-256.
 * `iv_mask`: the bits of a sector's number that count. NULL: no memory, or impossible sizes. */
sector_cipher *sector_cipher_new(enum chain_mode chain_mode, int essiv, const uint8_t *key, size_t key_size,
                                 size_t sector_size, uint64_t iv_mask);
void sector_cipher_free(sector_cipher *self);

/* Decrypt or encrypt `size` bytes of whole sectors, of CHAIN_ECB whole AES blocks. `out` is `in`, or does not
 * overlap it. `number` is that of the first sector, in units of 512 bytes. */
int sector_cipher_run(sector_cipher *self, int encrypts, const uint8_t *in, uint8_t *out, size_t size, uint64_t number);

const char *libcrypto_version(void);

/* -- directory_names.c
 *
 * Blocks of ext2's directories. They may hold anything. Of one in which something is not as usual both functions say so, and
 * nothing else: what is to be done about it is decided by Python. */

enum { DIRECTORY_NOT_FOUND = -1, DIRECTORY_UNUSUAL = -2 };

/* Where `name` is: its entry's offset << 32 | the offset of the entry in front of it + 1, or 0 for the first of a block. */
int64_t directory_find(const uint8_t *block, size_t size, int has_filetype, const uint8_t *name, size_t name_size);

/* A hash of a name (SipHash-1-3) with 16 bytes of `secret`, so that an image cannot hold names that collide. */
uint32_t directory_hash(const uint8_t *secret, const uint8_t *name, size_t name_size);

/* For each name in a block, hash << 32 | `number`; `.` and `..` at the front of block 0 are left out. `keys` has room for
 * size / 12 of them. Returns how many there are. */
int64_t directory_keys(const uint8_t *secret, const uint8_t *block, size_t size, int has_filetype, uint32_t number,
                       uint64_t *keys);

/* Put keys in the order of their first `bits` bits (at most 16): `out` has room for all, `ends` for 1 << bits numbers, where
 * each part ends. */
void directory_divide(const uint64_t *keys, size_t count, int bits, uint64_t *out, uint32_t *ends);

#endif
