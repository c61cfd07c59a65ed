/* XXH3 with 128 bits, seed 0, for more than 240 bytes, fed in whole pieces: written after doc/xxhash_spec.md of xxHash.
 * The digest must be the one that the xxhash package gives, which seals blocks; tests compare the two. */

#include <stdint.h>
#include <string.h>
#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif
#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "digests are read as little-endian words"
#endif

typedef uint8_t u8;
typedef uint32_t u32;
typedef uint64_t u64;

enum { STRIPE = 64, ROUND = 1024, SECRET = 192 };

static const u8 secret[SECRET] __attribute__((aligned(64))) = {
  0xb8, 0xfe, 0x6c, 0x39, 0x23, 0xa4, 0x4b, 0xbe, 0x7c, 0x01, 0x81, 0x2c, 0xf7, 0x21, 0xad, 0x1c,
  0xde, 0xd4, 0x6d, 0xe9, 0x83, 0x90, 0x97, 0xdb, 0x72, 0x40, 0xa4, 0xa4, 0xb7, 0xb3, 0x67, 0x1f,
  0xcb, 0x79, 0xe6, 0x4e, 0xcc, 0xc0, 0xe5, 0x78, 0x82, 0x5a, 0xd0, 0x7d, 0xcc, 0xff, 0x72, 0x21,
  0xb8, 0x08, 0x46, 0x74, 0xf7, 0x43, 0x24, 0x8e, 0xe0, 0x35, 0x90, 0xe6, 0x81, 0x3a, 0x26, 0x4c,
  0x3c, 0x28, 0x52, 0xbb, 0x91, 0xc3, 0x00, 0xcb, 0x88, 0xd0, 0x65, 0x8b, 0x1b, 0x53, 0x2e, 0xa3,
  0x71, 0x64, 0x48, 0x97, 0xa2, 0x0d, 0xf9, 0x4e, 0x38, 0x19, 0xef, 0x46, 0xa9, 0xde, 0xac, 0xd8,
  0xa8, 0xfa, 0x76, 0x3f, 0xe3, 0x9c, 0x34, 0x3f, 0xf9, 0xdc, 0xbb, 0xc7, 0xc7, 0x0b, 0x4f, 0x1d,
  0x8a, 0x51, 0xe0, 0x4b, 0xcd, 0xb4, 0x59, 0x31, 0xc8, 0x9f, 0x7e, 0xc9, 0xd9, 0x78, 0x73, 0x64,
  0xea, 0xc5, 0xac, 0x83, 0x34, 0xd3, 0xeb, 0xc3, 0xc5, 0x81, 0xa0, 0xff, 0xfa, 0x13, 0x63, 0xeb,
  0x17, 0x0d, 0xdd, 0x51, 0xb7, 0xf0, 0xda, 0x49, 0xd3, 0x16, 0x55, 0x26, 0x29, 0xd4, 0x68, 0x9e,
  0x2b, 0x16, 0xbe, 0x58, 0x7d, 0x47, 0xa1, 0xfc, 0x8f, 0xf8, 0xb8, 0xd1, 0x7a, 0xd0, 0x31, 0xce,
  0x45, 0xcb, 0x3a, 0x8f, 0x95, 0x16, 0x04, 0x28, 0xaf, 0xd7, 0xfb, 0xca, 0xbb, 0x4b, 0x40, 0x7e,
};

#define PRIME32_1 0x9E3779B1u
#define PRIME32_2 0x85EBCA77u
#define PRIME32_3 0xC2B2AE3Du
#define PRIME64_1 0x9E3779B185EBCA87ull
#define PRIME64_2 0xC2B2AE3D27D4EB4Full
#define PRIME64_3 0x165667B19E3779F9ull
#define PRIME64_4 0x85EBCA77C2B2AE63ull
#define PRIME64_5 0x27D4EB2F165667C5ull
#define PRIME_MX1 0x165667919E3779F9ull

typedef struct {
  u64 lane[8];
} __attribute__((aligned(64))) sums;

static const sums first_sums = {
    {PRIME32_3, PRIME64_1, PRIME64_2, PRIME64_3, PRIME64_4, PRIME32_2, PRIME64_5, PRIME32_1}};

static inline u64 word(const u8 *at) {
  u64 value;
  memcpy(&value, at, sizeof value);
  return value;
}

/* Step 2: `count` stripes with rising places in the secret; then, where a round ends, the scramble. With `to`, aligned
 * to a stripe, what is taken is stored there as well, past the caches: each byte is read once, and digested as stored. */
#if defined(__AVX512F__)
#define CAN_STREAM 1
static inline void take(sums *acc, const u8 *data, int count, int scramble, u8 *to) {
  __m512i a = _mm512_load_si512(acc->lane);
  for (int n = 0; n < count; n++) {
    __m512i d = _mm512_loadu_si512(data + n * STRIPE);
    if (to) _mm512_stream_si512((void *)(to + n * STRIPE), d);
    __m512i v = _mm512_xor_si512(d, _mm512_loadu_si512(secret + n * 8));
    __m512i product = _mm512_mul_epu32(v, _mm512_srli_epi64(v, 32));
    a = _mm512_add_epi64(a, _mm512_shuffle_epi32(d, (_MM_PERM_ENUM)0x4E));
    a = _mm512_add_epi64(a, product);
  }
  if (scramble) {
    a = _mm512_xor_si512(_mm512_xor_si512(a, _mm512_srli_epi64(a, 47)), _mm512_loadu_si512(secret + SECRET - 64));
    __m512i prime = _mm512_set1_epi32((int)PRIME32_1);
    __m512i high = _mm512_slli_epi64(_mm512_mul_epu32(_mm512_srli_epi64(a, 32), prime), 32);
    a = _mm512_add_epi64(_mm512_mul_epu32(a, prime), high);
  }
  _mm512_store_si512(acc->lane, a);
}
#elif defined(__AVX2__)
#define CAN_STREAM 1
static inline void take(sums *acc, const u8 *data, int count, int scramble, u8 *to) {
  __m256i a[2];
  for (int half = 0; half < 2; half++) a[half] = _mm256_load_si256((const __m256i *)(acc->lane + 4 * half));
  for (int n = 0; n < count; n++) {
    for (int half = 0; half < 2; half++) {
      __m256i d = _mm256_loadu_si256((const __m256i *)(data + n * STRIPE + 32 * half));
      if (to) _mm256_stream_si256((__m256i *)(to + n * STRIPE + 32 * half), d);
      __m256i v = _mm256_xor_si256(d, _mm256_loadu_si256((const __m256i *)(secret + n * 8 + 32 * half)));
      __m256i product = _mm256_mul_epu32(v, _mm256_srli_epi64(v, 32));
      a[half] = _mm256_add_epi64(a[half], _mm256_shuffle_epi32(d, 0x4E));
      a[half] = _mm256_add_epi64(a[half], product);
    }
  }
  for (int half = 0; half < 2; half++) {
    if (scramble) {
      __m256i key = _mm256_loadu_si256((const __m256i *)(secret + SECRET - 64 + 32 * half));
      __m256i mixed = _mm256_xor_si256(_mm256_xor_si256(a[half], _mm256_srli_epi64(a[half], 47)), key);
      __m256i prime = _mm256_set1_epi32((int)PRIME32_1);
      __m256i high = _mm256_slli_epi64(_mm256_mul_epu32(_mm256_srli_epi64(mixed, 32), prime), 32);
      a[half] = _mm256_add_epi64(_mm256_mul_epu32(mixed, prime), high);
    }
    _mm256_store_si256((__m256i *)(acc->lane + 4 * half), a[half]);
  }
}
#else
#define CAN_STREAM 0
static inline void take(sums *acc, const u8 *data, int count, int scramble, u8 *to) {
  (void)to;
  for (int n = 0; n < count; n++) {
    for (int i = 0; i < 8; i++) {
      u64 d = word(data + n * STRIPE + 8 * i), v = d ^ word(secret + n * 8 + 8 * i);
      acc->lane[i ^ 1] += d;
      acc->lane[i] += (u64)(u32)v * (v >> 32);
    }
  }
  for (int i = 0; scramble && i < 8; i++) {
    u64 a = acc->lane[i];
    acc->lane[i] = (a ^ (a >> 47) ^ word(secret + SECRET - 64 + 8 * i)) * PRIME32_1;
  }
}
#endif

/* Whole rounds; never the last one of a digest, which `finish` takes. */
static void take_rounds(sums *acc, const u8 *data, size_t num_rounds) {
  for (size_t i = 0; i < num_rounds; i++) take(acc, data + i * ROUND, ROUND / STRIPE, 1, NULL);
}

static u64 merge(const sums *acc, u64 result, const u8 *key) {
  for (int i = 0; i < 4; i++) {
    u64 even = acc->lane[2 * i] ^ word(key + 16 * i), odd = acc->lane[2 * i + 1] ^ word(key + 16 * i + 8);
    __uint128_t product = (__uint128_t)even * odd;
    result += (u64)product ^ (u64)(product >> 64);
  }
  result ^= result >> 37;
  result *= PRIME_MX1;
  return result ^ (result >> 32);
}

/* Step 3 and 4: `rest` is what no round has taken, 1 to 1024 bytes, the end of `length` bytes that lie together. */
static void finish(sums *acc, const u8 *rest, size_t num_rest, size_t length, u8 *digest) {
  take(acc, rest, (int)((num_rest - 1) / STRIPE), 0, NULL);
  const u8 *last = rest + num_rest - STRIPE;
  sums end = *acc;
  for (int i = 0; i < 8; i++) {
    u64 d = word(last + 8 * i), v = d ^ word(secret + SECRET - 71 + 8 * i);
    end.lane[i ^ 1] += d;
    end.lane[i] += (u64)(u32)v * (v >> 32);
  }
  u64 low = merge(&end, length * PRIME64_1, secret + 11);
  u64 high = __builtin_bswap64(merge(&end, ~(length * PRIME64_2), secret + SECRET - 75));
  low = __builtin_bswap64(low); /* written with the most significant byte first, the high half before the low one */
  memcpy(digest, &high, 8);
  memcpy(digest + 8, &low, 8);
}
