/* The native kernels: digests of many blocks, AES over many sectors; one call a batch.
 *
 * Who calls (hashing.py, sectors.py) has checked all lengths. Nothing here keeps a pointer to the caller's memory, and every
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
 * `iv_mask`: the bits of a sector's number that count. NULL: no memory, or sizes that cannot be. */
sector_cipher *sector_cipher_new(enum chain_mode chain_mode, int essiv, const uint8_t *key, size_t key_size,
                                 size_t sector_size, uint64_t iv_mask);
void sector_cipher_free(sector_cipher *self);

/* Decrypt or encrypt `size` bytes of whole sectors, of CHAIN_ECB whole AES blocks. `out` is `in`, or does not
 * overlap it. `number` is that of the first sector, in units of 512 bytes. */
int sector_cipher_run(sector_cipher *self, int encrypts, const uint8_t *in, uint8_t *out, size_t size, uint64_t number);

const char *libcrypto_version(void);

#endif
