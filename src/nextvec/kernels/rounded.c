/* Products of many vectors with int8 weights, the vectors rounded to 8 bits as well; for AVX2 and AVX-512.
 *
 * A few numbers of a transformer's vectors are far larger than the rest and would leave the rest few codes. So each block of
 * 128 numbers is first multiplied by a Hadamard matrix, which spreads them over the block (Ashkboos et al. 2024, QuaRot). The
 * weights hold the inverse, so the exact product stays the same. Sums of codes are exact. */
#if defined(__AVX2__)
#include "ordered.h"
#include "rounded.h"
#include "export.h"
#include <stdlib.h>

#define PANEL 64 /* rows; the order of the weights is that of weights.c */
#define ZERO 128 /* their code of 0 */
#define LARGEST 127
#define BLOCK 128
#define REGISTERS (BLOCK / W)

static const int32_t PLACES[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

/* One stage of the fast Walsh-Hadamard transform, between places of a register. */
INLINE floats mixed_places(floats x, int apart) {
  ints places = *(const loose_ints *)PLACES;
#ifdef __clang__
  floats other;
  UNROLL for (int i = 0; i < W; i++) other[i] = x[i ^ apart];
#else
  floats other = __builtin_shuffle(x, places ^ apart);
#endif
  ints minus = ((places & apart) != 0) & INT32_MIN;
  return other + (floats)((ints)x ^ minus);
}

/* Multiplies a block by the Hadamard matrix; returns the larger of `most` and the sizes of its numbers. */
INLINE floats rotate(float *x, floats most) {
  floats v[REGISTERS];
  UNROLL for (int i = 0; i < REGISTERS; i++) v[i] = *(const loose_floats *)(x + i * W);
  UNROLL for (int apart = 1; apart < W; apart *= 2)
    UNROLL for (int i = 0; i < REGISTERS; i++) v[i] = mixed_places(v[i], apart);
  UNROLL for (int apart = 1; apart < REGISTERS; apart *= 2)
    UNROLL for (int i = 0; i < REGISTERS; i++)
      if (!(i & apart)) {
        floats a = v[i], b = v[i + apart];
        v[i] = a + b, v[i + apart] = a - b;
      }
  UNROLL for (int i = 0; i < REGISTERS; i++) {
    *(loose_floats *)(x + i * W) = v[i];
    most = larger(most, (floats)((ints)v[i] & INT32_MAX));
  }
  return most;
}

void rounded_from(float *x, int64_t width, const Rounded *to, int64_t at) {
  floats sizes = all(1e-30f);
  for (int64_t i = 0; i < width; i += BLOCK) sizes = rotate(x + i, sizes);
  float most = largest_lane(sizes), inverse = LARGEST / most;
  Code *codes = to->codes + at * width;
  int32_t sum = 0;
  for (int64_t i = 0; i < width; i++) {
    int32_t code = (int32_t)rintf(x[i] * inverse);
    codes[i] = (Code)code, sum += code;
  }
  to->scales[at] = most / LARGEST;
  to->offsets[at] = ZERO * sum;
}

/* Below: sums of the products of a panel with n vectors from x, [n][PANEL]. */
#if defined(__AVX512VNNI__)
#define GROUP 6 /* vectors at once: as many as fit the registers */
#define PARTS (PANEL / W)

INLINE void sum_panel(const uint8_t *w, int64_t width, const Code *x, int n, int32_t *out) {
  __m512i sums[GROUP][PARTS];
  UNROLL for (int b = 0; b < n; b++)
    UNROLL for (int p = 0; p < PARTS; p++) sums[b][p] = _mm512_setzero_si512();
  for (int64_t k = 0; k < width; k += 4, w += 4 * PANEL) {
    __m512i codes[PARTS];
    UNROLL for (int p = 0; p < PARTS; p++) codes[p] = _mm512_loadu_si512(w + p * 64);
    UNROLL for (int b = 0; b < n; b++)
      UNROLL for (int p = 0; p < PARTS; p++)
        /* In assembly: see add_products of weights.c. */
        __asm__("vpdpbusd %2%{1to16%}, %1, %0"
                : "+v"(sums[b][p])
                : "v"(codes[p]), "m"(*(const int8_t(*)[4])(x + b * width + k)));
  }
  UNROLL for (int b = 0; b < n; b++)
    UNROLL for (int p = 0; p < PARTS; p++) _mm512_storeu_si512(out + b * PANEL + p * W, sums[b][p]);
}
#else
#define GROUP 5
#define PARTS 2
#define COLUMNS 4 /* of a register: two sums each */

INLINE void sum_part(const uint8_t *w, int64_t width, const Code *x, int n, int32_t *out) {
  ints sums[GROUP][PARTS] = {0};
  for (int64_t k = 0; k < width; k += 4, w += 4 * PANEL) {
    __m256i codes[PARTS];
    UNROLL for (int p = 0; p < PARTS; p++)
      codes[p] = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)(w + p * 4 * COLUMNS)));
    UNROLL for (int b = 0; b < n; b++) {
      int64_t four;
      memcpy(&four, x + b * width + k, sizeof four);
      UNROLL for (int p = 0; p < PARTS; p++) sums[b][p] += (ints)_mm256_madd_epi16(codes[p], _mm256_set1_epi64x(four));
    }
  }
  UNROLL for (int b = 0; b < n; b++) {
    __m256i sum = _mm256_hadd_epi32((__m256i)sums[b][0], (__m256i)sums[b][1]);
    _mm256_storeu_si256((__m256i *)(out + b * PANEL), _mm256_permute4x64_epi64(sum, 0xd8));
  }
}

INLINE void sum_panel(const uint8_t *w, int64_t width, const Code *x, int n, int32_t *out) {
  for (int at = 0; at < PANEL; at += PARTS * COLUMNS) sum_part(w + 4 * at, width, x, n, out + at);
}
#endif

/* Separate code for each number of vectors, so that their sums stay in registers. */
static void sum_group(const uint8_t *w, int64_t width, const Code *x, int64_t n, int32_t *out) {
  switch (n) {
  case 1: sum_panel(w, width, x, 1, out); break;
  case 2: sum_panel(w, width, x, 2, out); break;
  case 3: sum_panel(w, width, x, 3, out); break;
  case 4: sum_panel(w, width, x, 4, out); break;
#if GROUP == 6
  case 5: sum_panel(w, width, x, 5, out); break;
#endif
  default: sum_panel(w, width, x, GROUP, out);
  }
}

void rounded_product(const Matrix *w, const Rounded *x, int64_t count, const float *bias, float *y) {
  const uint8_t *codes = w->codes;
  for (int64_t row = 0; row < w->rows; row += PANEL, codes += PANEL * w->width)
    for (int64_t first = 0; first < count; first += GROUP) {
      int32_t sums[GROUP * PANEL];
      int64_t n = count - first < GROUP ? count - first : GROUP;
      sum_group(codes, w->width, x->codes + first * w->width, n, sums);
      for (int64_t b = 0; b < n; b++) {
        float scale = x->scales[first + b], *out = y + (first + b) * w->rows + row;
        int32_t offset = x->offsets[first + b];
        for (int r = 0; r < PANEL; r++)
          out[r] = (float)(sums[b * PANEL + r] - offset) * scale * w->scales[row + r] + bias[row + r];
      }
    }
}

/* y [count, rows] of x [count, width], which becomes the rotated vectors. Returns 0 where memory is lacking. */
EXPORT int32_t nextvec_rounded_product(const Matrix *w, float *x, int64_t count, const float *bias, float *y) {
  int64_t codes = (count * w->width * (int64_t)sizeof(Code) + 7) / 8 * 8;
  char *room = malloc(codes + count * (sizeof(float) + sizeof(int32_t)));
  if (!room) return 0;
  Rounded rounded = {(Code *)room, (float *)(room + codes), (int32_t *)(room + codes) + count};
  for (int64_t n = 0; n < count; n++) rounded_from(x + n * w->width, w->width, &rounded, n);
  rounded_product(w, &rounded, count, bias, y);
  free(room);
  return 1;
}
#endif
