/* The native kernels: digests of many blocks, the hash tree, AES over many sectors, names in directories, checksums; one call for
 * many.
 *
 * Who calls (hashing.py, hash_tree.py, sectors.py, directory_names.py, directory_hash.py, checksums.py, fastpath/) has checked all
 * lengths. Nothing here keeps a pointer to the caller's memory, and every object but tree_paths may be used from several threads at
 * once. Functions that can fail return 0 then: there was no memory, or OpenSSL has not the algorithm. */
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

/* -- hash_tree.c: dm-verity's hash tree. Here, and nowhere else, is decided whether bytes are those that the root hash stands for.
 *
 * A block is checked in memory that nobody else changes. Verified hash blocks are kept, up to a limit; what is kept was checked by
 * a digest that came from the root hash. Levels count from the lowest, whose blocks have the digests of the data; the root hash is
 * the digest above the highest. */

enum { MAX_TREE_LEVELS = 64, MAX_DIGEST_SIZE = 64 };

typedef struct hash_tree hash_tree;

typedef struct {
    uint64_t data_blocks;
    size_t data_block_size, hash_block_size, digest_size, digests_per_block;
    size_t level_count; /* 0: the root hash is the digest of the one data block */
    uint64_t level_offset[64]; /* in bytes, where the tree is */
    uint64_t level_blocks[64];
    uint8_t root_hash[64];
} hash_tree_shape;

/* `cache_size`: bytes of hash blocks to keep; at least a few paths are. The hasher must outlive it. NULL: no memory, or an
 * impossible shape. */
hash_tree *hash_tree_new(const hasher *hasher, const hash_tree_shape *shape, size_t cache_size);
void hash_tree_free(hash_tree *self);
const hash_tree_shape *hash_tree_shape_of(const hash_tree *self);

/* The digests of `count` neighbours, of which `first` is the first one's number, below one block of a level (level_count: the
 * root hash). 0: that block is not kept. */
int hash_tree_digests(hash_tree *self, size_t level, uint64_t first, size_t count, uint8_t *digests);
/* The same from a hash block that hash_tree_keep has accepted. */
void hash_tree_digests_in(const hash_tree *self, const uint8_t *block, uint64_t first, size_t count, uint8_t *digests);

/* Check a hash block by its digest, which hash_tree_digests gave, and keep it; or refuse it. */
enum { TREE_KEPT = 1, TREE_REFUSED = 0, TREE_NO_MEMORY = -1, TREE_NOT_ASKED = -2 };
int hash_tree_keep(hash_tree *self, size_t level, uint64_t index, const uint8_t *block, const uint8_t *expected);

/* Compare data blocks, the first of which has the number `first`, with their joined digests, which hash_tree_digests gave; *index is
 * that of the first that differs, `count` if there is none. 0: no memory. */
int hash_tree_first_mismatch(hash_tree *self, uint64_t first, const uint8_t *data, size_t count, const uint8_t *expected,
                             size_t *index);

/* How many blocks passed. */
uint64_t hash_tree_blocks_verified(const hash_tree *self);
uint64_t hash_tree_hash_blocks_verified(const hash_tree *self);

/* Units of the image in which a block has passed, by the first time, as many as are noted: their size in bytes, how many, and the
 * numbers of at most `room` of them, of which it returns how many. */
uint64_t hash_tree_touched_unit(const hash_tree *self);
size_t hash_tree_touched_count(const hash_tree *self);
size_t hash_tree_touched_units(const hash_tree *self, uint32_t *units, size_t room);

/* -- tree_paths.c: what one request needs of the hash tree: the digests of its data blocks, and the hash blocks on the way to them
 * that are missing. It keeps the digests that it has found, so that it gets on however small the cache is. One thread at a time. */

typedef struct tree_paths tree_paths;

typedef struct {
    size_t level;
    uint64_t index; /* within the level */
} hash_block_key;

/* `extents`: pairs of offset and length, in bytes: runs of whole data blocks, in order, none overlapping. The tree must outlive it.
 * NULL: no memory, or other extents. */
tree_paths *tree_paths_new(hash_tree *tree, const uint64_t *extents, size_t count);
void tree_paths_free(tree_paths *self);

/* Look what is kept. Returns how many hash blocks are missing, or TREE_NO_MEMORY. */
int64_t tree_paths_look(tree_paths *self);
/* Those that were missing when it last looked, the highest level first, until it looks again. */
const hash_block_key *tree_paths_missing(const tree_paths *self);
/* Hand in a missing one; the one above, if that is missing too, comes first. The memory is read once. TREE_KEPT, TREE_REFUSED,
 * TREE_NO_MEMORY, TREE_NOT_ASKED. */
int tree_paths_give(tree_paths *self, size_t level, uint64_t index, const uint8_t *unverified_block);

/* Compare the data of a run. Returns the number of the first data block at or behind `from` that differs, or one of these. Any
 * threads at a time. */
enum { TREE_NO_MISMATCH = -3 };
int64_t tree_paths_mismatch(const tree_paths *self, size_t run, const uint8_t *data, size_t size, uint64_t from);

/* The joined digests of a run, as long as this lives; NULL while a hash block is missing. */
const uint8_t *tree_paths_digests(const tree_paths *self, size_t run);

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
 * Blocks of ext2's directories. They may hold anything. Of one in which something is not as usual the functions say so, and
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

/* The offset of the first entry, up to byte `end`, that has room for one of `needed` bytes behind it, or in its place. */
int64_t directory_room(const uint8_t *block, size_t end, int has_filetype, size_t needed);

/* For each name up to byte `end` of a block, its dx_hash << 32 | its entry's offset << 16 | the bytes that the entry needs.
 * `entries` has room for end / 12 of them. Returns how many there are. */
int64_t directory_hashes(const uint8_t *block, size_t end, int has_filetype, int version, const uint32_t *seed,
                         uint64_t *entries);

/* -- directory_hash.c */

/* The hash of a name in an indexed directory. `version`: 0 legacy, 1 half MD4, 2 TEA; and 3 more if bytes are unsigned. `seed` has
 * four words. */
uint32_t dx_hash(int version, const uint32_t *seed, const uint8_t *name, size_t size);

/* -- checksums.c: ext4's, without the inversion at the beginning and the end that other users of CRCs make. */

uint32_t crc32c_update(uint32_t crc, const uint8_t *data, size_t size);
/* The same without the processor's instruction; for comparing. */
uint32_t crc32c_update_by_tables(uint32_t crc, const uint8_t *data, size_t size);
uint32_t crc16_update(uint32_t crc, const uint8_t *data, size_t size);

#endif
