/* Vectors as wide as the machine's, through GCC's extension; by name where order or rounding would be left open. */

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif
#include <stddef.h>
#include <stdint.h>

#if defined(__AVX512F__)
#define LANES 16
#define ROWS 6 /* 6 x 4 sums of the 32 registers */
#elif defined(__AVX2__)
#define LANES 8
#define ROWS 3 /* 3 x 4 sums of the 16 registers */
#else
#define LANES 4
#define ROWS 4 /* 4 x 4 sums of the 32 registers of an ARM */
#endif

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef int32_t ivec __attribute__((vector_size(4 * LANES)));
typedef float vec_u __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

#define INLINE static inline __attribute__((always_inline))
#if defined(__clang__)
#define UNROLLED _Pragma("unroll")
#else
#define UNROLLED _Pragma("GCC unroll 24")
#endif
#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define MAX(a, b) ((a) > (b) ? (a) : (b))

INLINE vec load(const float *from) { return *(const vec_u *)from; }
INLINE void store(float *to, vec value) { *(vec_u *)to = value; }
INLINE vec spread(float value) { return value - (vec){}; }
INLINE vec pick(ivec mask, vec yes, vec no) { return (vec)((mask & (ivec)yes) | (~mask & (ivec)no)); }

/* Whole numbers of a byte each, as floats. By name, because GCC 12 converts a vector of bytes one by one. */
INLINE vec load_bytes(const int8_t *from) {
#if defined(__AVX512F__)
    return (vec)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)from)));
#elif defined(__AVX2__)
    return (vec)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)from)));
#else
    return (vec){from[0], from[1], from[2], from[3]};
#endif
}

/* Keeps a loaded value in a register: otherwise GCC loads it again for each of its uses, as operands from memory. */
#if defined(__x86_64__)
#define HOLD(value) __asm__("" : "+v"(value))
#else
#define HOLD(value) (void)(value)
#endif

/* a * b + c, rounded once. By name: left to itself, GCC fuses in some loops and not in others, for a Zen in few. */
INLINE vec fused(vec a, vec b, vec c) {
#if defined(__AVX512F__)
    return (vec)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif LANES == 8 && defined(__FMA__)
    return (vec)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__ARM_NEON)
    return (vec)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
    return a * b + c;
#endif
}

/* The sum of a vector's lanes, in the one order that sum4 has too. */
INLINE float sum(vec v) {
    float four[LANES / 4];
    UNROLLED for (int i = 0; i < LANES / 4; i++)
        four[i] = (v[4 * i] + v[4 * i + 2]) + (v[4 * i + 1] + v[4 * i + 3]);
#if LANES == 16
    return (four[0] + four[1]) + (four[2] + four[3]);
#elif LANES == 8
    return four[0] + four[1];
#else
    return four[0];
#endif
}

typedef float vec4 __attribute__((vector_size(16)));
typedef float vec4_u __attribute__((vector_size(16), aligned(4), may_alias));

/* The sums of four vectors: transposed by halves, which takes a quarter of the steps of four sums. */
INLINE vec4 sum4(vec a, vec b, vec c, vec d) {
#if LANES == 16
    vec ab = __builtin_shufflevector(a, b, 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29) +
             __builtin_shufflevector(a, b, 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31);
    vec cd = __builtin_shufflevector(c, d, 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29) +
             __builtin_shufflevector(c, d, 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31);
    vec all = __builtin_shufflevector(ab, cd, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29) +
              __builtin_shufflevector(ab, cd, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
    return (__builtin_shufflevector(all, all, 0, 1, 2, 3) + __builtin_shufflevector(all, all, 4, 5, 6, 7)) +
           (__builtin_shufflevector(all, all, 8, 9, 10, 11) + __builtin_shufflevector(all, all, 12, 13, 14, 15));
#elif LANES == 8
    vec ab = __builtin_shufflevector(a, b, 0, 8, 1, 9, 4, 12, 5, 13) +
             __builtin_shufflevector(a, b, 2, 10, 3, 11, 6, 14, 7, 15);
    vec cd = __builtin_shufflevector(c, d, 0, 8, 1, 9, 4, 12, 5, 13) +
             __builtin_shufflevector(c, d, 2, 10, 3, 11, 6, 14, 7, 15);
    vec all = __builtin_shufflevector(ab, cd, 0, 1, 8, 9, 4, 5, 12, 13) +
              __builtin_shufflevector(ab, cd, 2, 3, 10, 11, 6, 7, 14, 15);
    return __builtin_shufflevector(all, all, 0, 1, 2, 3) + __builtin_shufflevector(all, all, 4, 5, 6, 7);
#else
    vec ab = __builtin_shufflevector(a, b, 0, 4, 1, 5) + __builtin_shufflevector(a, b, 2, 6, 3, 7);
    vec cd = __builtin_shufflevector(c, d, 0, 4, 1, 5) + __builtin_shufflevector(c, d, 2, 6, 3, 7);
    return __builtin_shufflevector(ab, cd, 0, 1, 4, 5) + __builtin_shufflevector(ab, cd, 2, 3, 6, 7);
#endif
}

/* e to the power of x, to about one unit in the last place; 0 below -87.3, infinite above 88.4, NaN for NaN.
 * Source: Cephes' expf. */
INLINE vec exponential(vec x) {
    const vec magic = spread(12582912.0f); /* 1.5 * 2^23: adding it rounds to a whole number in the low bits */
    x = pick(x < -88.0f, spread(-88.0f), x);
    x = pick(x > 89.0f, spread(89.0f), x);
    vec shifted = fused(x, spread(1.44269504088896341f), magic), whole = shifted - magic;
    vec r = fused(whole, spread(2.12194440e-4f), fused(whole, spread(-0.693359375f), x));
    vec p = spread(1.9875691500e-4f);
    p = fused(p, r, spread(1.3981999507e-3f));
    p = fused(p, r, spread(8.3334519073e-3f));
    p = fused(p, r, spread(4.1665795894e-2f));
    p = fused(p, r, spread(1.6666665459e-1f));
    p = fused(p, r, spread(5.0000001201e-1f));
    p = fused(p * r, r, r) + 1.0f;
    ivec power = (ivec)shifted - (ivec)magic + 127;
    power = ((power < 255) & power) | ((power >= 255) & 255); /* what NaN left there is bounded too */
    power = (power > 0) & power;
    return p * (vec)(power << 23);
}
