/* CRC-32C (Castagnoli) and CRC-16 (ANSI), as ext4 uses them: fs/ext4/super.c, ext4_chksum and ext4_group_desc_csum, of the kernel.
 *
 * CRC-32C by the processor's instruction where it has one, else by eight tables ("slicing by 8"; M. E. Kounavis and F. L. Berry, A
 * Systematic Approach to Building High Performance Software-Based CRC Generators, 2005). */
#include "kernel.h"

#include <pthread.h>
#include <string.h>

#if defined(__x86_64__)
#include <nmmintrin.h>
#elif defined(__aarch64__)
#include <arm_acle.h>
#include <sys/auxv.h>
#ifndef HWCAP_CRC32
#define HWCAP_CRC32 (1 << 7)
#endif
#endif

static const uint32_t POLYNOMIAL = 0x82f63b78; /* of RFC 3720, reflected */

static uint32_t tables[8][256];
static int has_instruction;
static pthread_once_t is_ready = PTHREAD_ONCE_INIT;

static void prepare(void)
{
    for (uint32_t byte = 0; byte < 256; byte++) {
        uint32_t crc = byte;
        for (int bit = 0; bit < 8; bit++)
            crc = crc >> 1 ^ (crc & 1 ? POLYNOMIAL : 0);
        tables[0][byte] = crc;
    }
    for (int table = 1; table < 8; table++)
        for (int byte = 0; byte < 256; byte++)
            tables[table][byte] = tables[table - 1][byte] >> 8 ^ tables[0][tables[table - 1][byte] & 0xff];
#if defined(__x86_64__)
    has_instruction = __builtin_cpu_supports("sse4.2") != 0;
#elif defined(__aarch64__)
    has_instruction = (getauxval(AT_HWCAP) & HWCAP_CRC32) != 0;
#endif
}

static uint64_t load_64(const uint8_t *bytes)
{
    uint64_t value;
    memcpy(&value, bytes, sizeof value);
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    value = __builtin_bswap64(value);
#endif
    return value;
}

static uint32_t update_by_tables(uint32_t crc, const uint8_t *data, size_t size)
{
    for (; size >= 8; data += 8, size -= 8) {
        const uint64_t word = load_64(data) ^ crc;
        crc = 0;
        for (int index = 0; index < 8; index++)
            crc ^= tables[7 - index][word >> (8 * index) & 0xff];
    }
    for (; size; data++, size--)
        crc = crc >> 8 ^ tables[0][(crc ^ *data) & 0xff];
    return crc;
}

#if defined(__x86_64__)
__attribute__((target("sse4.2"))) static uint32_t update_by_instruction(uint32_t crc, const uint8_t *data, size_t size)
{
    uint64_t wide = crc;
    for (; size >= 8; data += 8, size -= 8)
        wide = _mm_crc32_u64(wide, load_64(data));
    crc = (uint32_t)wide;
    for (; size; data++, size--)
        crc = _mm_crc32_u8(crc, *data);
    return crc;
}
#elif defined(__aarch64__)
__attribute__((target("+crc"))) static uint32_t update_by_instruction(uint32_t crc, const uint8_t *data, size_t size)
{
    for (; size >= 8; data += 8, size -= 8)
        crc = __crc32cd(crc, load_64(data));
    for (; size; data++, size--)
        crc = __crc32cb(crc, *data);
    return crc;
}
#endif

uint32_t crc32c_update(uint32_t crc, const uint8_t *data, size_t size)
{
    pthread_once(&is_ready, prepare);
#if defined(__x86_64__) || defined(__aarch64__)
    if (has_instruction)
        return update_by_instruction(crc, data, size);
#endif
    return update_by_tables(crc, data, size);
}

uint32_t crc32c_update_by_tables(uint32_t crc, const uint8_t *data, size_t size)
{
    pthread_once(&is_ready, prepare);
    return update_by_tables(crc, data, size);
}

uint32_t crc16_update(uint32_t crc, const uint8_t *data, size_t size)
{
    for (; size; data++, size--) {
        crc ^= *data;
        for (int bit = 0; bit < 8; bit++)
            crc = crc >> 1 ^ (crc & 1 ? 0xa001 : 0);
    }
    return crc;
}
