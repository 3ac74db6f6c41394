/* Every row against every query, at the speed of reading rows. Approximate products rule most rows out; the exact product
 * decides for the others. A row is ruled out when its product plus the largest possible error does not exceed the worst
 * score that is kept. The products are never sorted, and never stored all at once. */
#include "export.h"
#include "scan.h"
#include "fold.h"
#include <math.h>
#include <stdlib.h>

#define ROWS 16    /* rows of a block: widened to floats they fill most of a first-level cache */
#define FEW 16     /* up to this many queries, rows are widened while they are multiplied, not before */

/* The structures of scan_library.py, field by field. */
typedef struct {
  const void *codes, *rows;     /* [N, D] read first; the rows that decide */
  const float *scales, *errors; /* [N] of int8 codes */
  int64_t first, dim;           /* number of the first row */
  int32_t code, row;            /* how codes and rows are stored */
} Stored;

typedef struct {
  const float *vectors;          /* [Q, D] */
  const int16_t *codes;          /* [Q, D] multiplied with int8 rows */
  const float *scales, *lengths; /* [Q] of the codes; lengths of the vectors, rounded up */
  const float *slack;            /* [Q] the most by which an exact product exceeds the approximate one */
  int64_t count;
} Queries;

typedef struct {
  const uint8_t *allowed; /* [allowed_rows] by row number; NULL: all rows are allowed */
  int64_t allowed_rows;
  const int64_t *excluded, *ends; /* row numbers, query by query, and the end of each query's; NULL: none */
  int64_t words;                  /* of 64 bits: one bit for every row */
} Asked;

typedef struct {
  const Asked *asked;
  const uint64_t *excluded; /* [Q, words] one bit for every row: setting bits is cheaper than sorting numbers */
} Filter;

/* Rows start:stop of a part. */
typedef struct {
  const Stored *part;
  int64_t start, stop;
} Piece;

typedef struct {
  float *scores; /* [Q, K] one heap for each query, the worst on top */
  int64_t *rows, *filled;
  int64_t k;
  float *upper; /* [Q, places] by row number: what the exact product does not exceed. NULL: exact products are wanted */
  int64_t places;
} Best;

/* Working memory: ROWS * D floats, and ROWS * Q of each of the others. */
typedef struct {
  void *wide;
  int32_t *sums;
  float *products;
} Scratch;

/* Two ways to compute W products, of W / columns rows with `columns` queries; product c * (W / columns) + r is that of row
 * r with query c. Memory reaches its full bandwidth only when it is read in order: a strip reads one row after another, as
 * they are stored, with several partial sums for each product. A tile reads several rows at once, from a block that was
 * widened in order before, and uses every number for several products. */
INLINE floats float_strip(const char *rows, int stored, const float *queries, int64_t dim, const int columns) {
  const int high = W / columns, deep = 4 / columns;
  const int64_t size = stored == FLOAT32 ? 4 : 2, whole = dim - dim % (W * deep);
  floats s[W];
  for (int r = 0; r < high; r++, rows += dim * size) {
    floats sums[4] = {0};
    int64_t i = 0;
    for (; i < whole; i += W * deep) {
      UNROLL for (int d = 0; d < deep; d++) {
        floats x = load(rows, stored, i + d * W);
        UNROLL for (int c = 0; c < columns; c++) sums[d * columns + c] += x * load(queries + c * dim, FLOAT32, i + d * W);
      }
    }
    for (; i < dim; i += W) {
      floats x = load_part(rows, stored, i, dim);
      UNROLL for (int c = 0; c < columns; c++) sums[c] += x * load_part(queries + c * dim, FLOAT32, i, dim);
    }
    UNROLL for (int c = 0; c < columns; c++) {
      s[c * high + r] = sums[c];
      UNROLL for (int d = 1; d < deep; d++) s[c * high + r] += sums[d * columns + c];
    }
  }
  FOLDS
  return s[0];
}

INLINE floats float_tile(const float *rows, const float *queries, int64_t dim, const int columns) {
  const int high = W / columns;
  const int64_t whole = dim - dim % W;
  floats s[W] = {0}, x[W];
  for (int64_t i = 0; i < whole; i += W) {
    UNROLL for (int r = 0; r < high; r++) x[r] = load(rows + r * dim, FLOAT32, i);
    UNROLL for (int c = 0; c < columns; c++) {
      floats y = load(queries + c * dim, FLOAT32, i);
      UNROLL for (int r = 0; r < high; r++) s[c * high + r] += x[r] * y;
    }
  }
  if (whole < dim)
    UNROLL for (int c = 0; c < columns; c++) {
      floats y = load_part(queries + c * dim, FLOAT32, whole, dim);
      UNROLL for (int r = 0; r < high; r++) s[c * high + r] += load_part(rows + r * dim, FLOAT32, whole, dim) * y;
    }
  FOLDS
  return s[0];
}

#if W > 4
INLINE ints load_codes(const void *row, int stored, int64_t i) {
#if W == 16
  if (stored == INT8) return (ints)_mm512_cvtepi8_epi16(_mm256_loadu_si256((const void *)((const int8_t *)row + i)));
  return (ints)_mm512_loadu_si512((const int16_t *)row + i);
#else
  if (stored == INT8) return (ints)_mm256_cvtepi8_epi16(_mm_loadu_si128((const void *)((const int8_t *)row + i)));
  return (ints)_mm256_loadu_si256((const void *)((const int16_t *)row + i));
#endif
}

INLINE ints load_part_of_codes(const void *row, int stored, int64_t i, int64_t dim) {
  if (dim - i >= 2 * W) return load_codes(row, stored, i);
  int16_t part[2 * W] = {0};
  for (int j = 0; j < dim - i; j++) part[j] = stored == INT8 ? ((const int8_t *)row)[i + j] : ((const int16_t *)row)[i + j];
  return load_codes(part, INT16, 0);
}

INLINE ints add_products(ints sums, ints x, ints y) {
#if W == 16
  return (ints)_mm512_dpwssd_epi32((__m512i)sums, (__m512i)x, (__m512i)y);
#else
  return sums + (ints)_mm256_madd_epi16((__m256i)x, (__m256i)y);
#endif
}

INLINE ints int_strip(const int8_t *rows, const int16_t *queries, int64_t dim, const int columns) {
  const int high = W / columns, deep = 4 / columns;
  const int64_t whole = dim - dim % (2 * W * deep);
  ints s[W];
  for (int r = 0; r < high; r++, rows += dim) {
    ints sums[4] = {0};
    int64_t i = 0;
    for (; i < whole; i += 2 * W * deep) {
      UNROLL for (int d = 0; d < deep; d++) {
        ints x = load_codes(rows, INT8, i + 2 * W * d);
        UNROLL for (int c = 0; c < columns; c++)
          sums[d * columns + c] = add_products(sums[d * columns + c], x, load_codes(queries + c * dim, INT16, i + 2 * W * d));
      }
    }
    for (; i < dim; i += 2 * W) {
      ints x = load_part_of_codes(rows, INT8, i, dim);
      UNROLL for (int c = 0; c < columns; c++)
        sums[c] = add_products(sums[c], x, load_part_of_codes(queries + c * dim, INT16, i, dim));
    }
    UNROLL for (int c = 0; c < columns; c++) {
      s[c * high + r] = sums[c];
      UNROLL for (int d = 1; d < deep; d++) s[c * high + r] += sums[d * columns + c];
    }
  }
  FOLDS
  return s[0];
}

INLINE ints int_tile(const int16_t *rows, const int16_t *queries, int64_t dim, const int columns) {
  const int high = W / columns;
  const int64_t whole = dim - dim % (2 * W);
  ints s[W] = {0}, x[W];
  for (int64_t i = 0; i < whole; i += 2 * W) {
    UNROLL for (int r = 0; r < high; r++) x[r] = load_codes(rows + r * dim, INT16, i);
    UNROLL for (int c = 0; c < columns; c++) {
      ints y = load_codes(queries + c * dim, INT16, i);
      UNROLL for (int r = 0; r < high; r++) s[c * high + r] = add_products(s[c * high + r], x[r], y);
    }
  }
  if (whole < dim)
    UNROLL for (int c = 0; c < columns; c++) {
      ints y = load_part_of_codes(queries + c * dim, INT16, whole, dim);
      UNROLL for (int r = 0; r < high; r++)
        s[c * high + r] = add_products(s[c * high + r], load_part_of_codes(rows + r * dim, INT16, whole, dim), y);
    }
  FOLDS
  return s[0];
}
#else
/* For processors without instructions that multiply integers in pairs. */
#define PLAIN(name, type)                                                                                             \
  static ints name(const type *rows, const int16_t *queries, int64_t dim, int columns) {                              \
    ints s = {0};                                                                                                     \
    for (int c = 0; c < columns; c++)                                                                                 \
      for (int r = 0; r < W / columns; r++) {                                                                         \
        int32_t sum = 0;                                                                                              \
        for (int64_t i = 0; i < dim; i++) sum += (int32_t)rows[r * dim + i] * queries[c * dim + i];                   \
        s[c * (W / columns) + r] = sum;                                                                               \
      }                                                                                                               \
    return s;                                                                                                         \
  }
PLAIN(int_strip, int8_t)
PLAIN(int_tile, int16_t)
#endif

/* out[q * ROWS + r] of ROWS consecutive rows, by strips (of the stored rows) or tiles (of the widened rows). */
#define PRODUCTS(columns, one)                                                                                        \
  for (; c + columns <= q->count; c += columns)                                                                       \
    for (int r = 0; r < ROWS; r += W / columns) {                                                                     \
      __typeof__(one) sums = one;                                                                                     \
      for (int i = 0; i < columns; i++)                                                                               \
        memcpy(out + (c + i) * ROWS + r, (char *)&sums + i * (4 * W / columns), 4 * W / columns);                       \
    }

#define WIDEST (W == 16 ? 4 : 2)

static void float_strips(const char *rows, int stored, const Queries *q, int64_t dim, float *out) {
  int64_t c = 0, bytes = dim * (stored == FLOAT32 ? 4 : 2);
  if (stored == FLOAT32) {
    PRODUCTS(WIDEST, float_strip(rows + r * bytes, FLOAT32, q->vectors + c * dim, dim, WIDEST))
    PRODUCTS(2, float_strip(rows + r * bytes, FLOAT32, q->vectors + c * dim, dim, 2))
    PRODUCTS(1, float_strip(rows + r * bytes, FLOAT32, q->vectors + c * dim, dim, 1))
  } else {
    PRODUCTS(WIDEST, float_strip(rows + r * bytes, FLOAT16, q->vectors + c * dim, dim, WIDEST))
    PRODUCTS(2, float_strip(rows + r * bytes, FLOAT16, q->vectors + c * dim, dim, 2))
    PRODUCTS(1, float_strip(rows + r * bytes, FLOAT16, q->vectors + c * dim, dim, 1))
  }
}

static void float_tiles(const float *rows, const Queries *q, int64_t dim, float *out) {
  int64_t c = 0;
  PRODUCTS(WIDEST, float_tile(rows + r * dim, q->vectors + c * dim, dim, WIDEST))
  PRODUCTS(1, float_tile(rows + r * dim, q->vectors + c * dim, dim, 1))
}

static void int_strips(const int8_t *rows, const Queries *q, int64_t dim, int32_t *out) {
  int64_t c = 0;
  PRODUCTS(WIDEST, int_strip(rows + r * dim, q->codes + c * dim, dim, WIDEST))
  PRODUCTS(2, int_strip(rows + r * dim, q->codes + c * dim, dim, 2))
  PRODUCTS(1, int_strip(rows + r * dim, q->codes + c * dim, dim, 1))
}

static void int_tiles(const int16_t *rows, const Queries *q, int64_t dim, int32_t *out) {
  int64_t c = 0;
  PRODUCTS(WIDEST, int_tile(rows + r * dim, q->codes + c * dim, dim, WIDEST))
  PRODUCTS(1, int_tile(rows + r * dim, q->codes + c * dim, dim, 1))
}

/* Widens the rows of a block to floats, or int8 rows to int16; missing rows become zeros. */
static void widen(const Stored *s, const char *rows, int64_t count, void *wide) {
  int64_t n = count * s->dim, all = ROWS * s->dim, i = 0;
  if (s->code == INT8) {
    for (; i < n; i++) ((int16_t *)wide)[i] = ((const int8_t *)rows)[i];
    memset((int16_t *)wide + n, 0, 2 * (all - n));
  } else {
    for (; i + W <= n; i += W) *(loose_floats *)((float *)wide + i) = load(rows, s->code, i);
    if (i < n) {
      floats x = load_part(rows, s->code, i, n);
      memcpy((float *)wide + i, &x, 4 * (n - i));
    }
    memset((float *)wide + n, 0, 4 * (all - n));
  }
}

/* Scales the products of codes, and adds the largest possible error of the rows. */
static void scale(const Stored *s, const Queries *q, int64_t row, int64_t count, const int32_t *sums, float *out) {
  float scales[ROWS] = {0}, errors[ROWS] = {0};
  memcpy(scales, s->scales + row, 4 * count);
  memcpy(errors, s->errors + row, 4 * count);
  for (int64_t c = 0; c < q->count; c++)
    for (int r = 0; r < ROWS; r++)
      out[c * ROWS + r] = (float)sums[c * ROWS + r] * (scales[r] * q->scales[c]) + errors[r] * q->lengths[c];
}

/* out[q * ROWS + r]: the exact product exceeds it by at most the query's slack. */
static void block_products(const Stored *s, const Queries *q, int64_t row, int64_t count, Scratch *scratch) {
  int64_t bytes = s->dim * (s->code == FLOAT32 ? 4 : s->code == FLOAT16 ? 2 : 1);
  const char *rows = (const char *)s->codes + row * bytes;
  int strips = count == ROWS && q->count <= FEW;
  if (!strips) widen(s, rows, count, scratch->wide);
  if (s->code == INT8) {
    if (strips) int_strips((const int8_t *)rows, q, s->dim, scratch->sums);
    else int_tiles(scratch->wide, q, s->dim, scratch->sums);
    scale(s, q, row, count, scratch->sums, scratch->products);
  } else if (strips)
    float_strips(rows, s->code, q, s->dim, scratch->products);
  else
    float_tiles(scratch->wide, q, s->dim, scratch->products);
}

/* Whether x is worse than y: a lower product, or an equal product of a later row. */
INLINE int worse(float x, int64_t x_row, float y, int64_t y_row) { return x < y || (x == y && x_row > y_row); }

/* Replaces the worst pair of a heap, and sifts the new pair down. */
static void sink(float *scores, int64_t *rows, int64_t count, float score, int64_t row) {
  int64_t i = 0;
  for (int64_t down = 1; down < count; down = 2 * i + 1) {
    if (down + 1 < count && worse(scores[down + 1], rows[down + 1], scores[down], rows[down])) down++;
    if (!worse(scores[down], rows[down], score, row)) break;
    scores[i] = scores[down], rows[i] = rows[down];
    i = down;
  }
  scores[i] = score, rows[i] = row;
}

/* Adds a pair to a heap, and sifts it up. */
static void rise(float *scores, int64_t *rows, int64_t i, float score, int64_t row) {
  for (int64_t up = (i - 1) / 2; i && worse(score, row, scores[up], rows[up]); i = up, up = (i - 1) / 2)
    scores[i] = scores[up], rows[i] = rows[up];
  scores[i] = score, rows[i] = row;
}

INLINE int exceeds(const float *products, float threshold) {
  int any = 0;
  for (int r = 0; r < ROWS; r++) any |= products[r] > threshold;
  return any;
}

INLINE int admitted(const Filter *f, int64_t c, int64_t name) {
  if (f->asked->allowed && (name >= f->asked->allowed_rows || !f->asked->allowed[name])) return 0;
  return !f->excluded || !(f->excluded[c * f->asked->words + name / 64] >> name % 64 & 1);
}

static int64_t keep_best(const Stored *s, const Queries *q, int64_t c, int64_t row, int64_t count, const float *products,
                         const Filter *f, const Best *best) {
  float *scores = best->scores + c * best->k;
  int64_t *rows = best->rows + c * best->k, *filled = best->filled + c, decided = 0;
  int64_t bytes = s->dim * (s->row == FLOAT32 ? 4 : 2);
  for (int r = 0; r < count; r++) {
    int64_t name = s->first + row + r;
    if (*filled == best->k && !(products[r] > scores[0] - q->slack[c])) continue;
    if (!admitted(f, c, name)) continue;
    float score = products[r] + q->slack[c];
    if (!best->upper) {
      score = scan_product((const char *)s->rows + (row + r) * bytes, s->row, q->vectors + c * s->dim, s->dim);
      decided++;
    }
    /* Rows come in ascending order: in a tie, the row that is already kept is the lower one. */
    if (*filled < best->k) rise(scores, rows, (*filled)++, score, name);
    else if (score > scores[0]) sink(scores, rows, best->k, score, name);
  }
  return decided;
}

/* Rows that a mask leaves out get a bound as well, where others of their block do not. */
INLINE void store_upper(const Stored *s, const Queries *q, int64_t c, int64_t row, int64_t count, const float *products,
                        const Best *best) {
  float *upper = best->upper + c * best->places + s->first + row;
  for (int r = 0; r < count; r++) upper[r] = products[r] + q->slack[c];
}

INLINE int none_allowed(const Filter *f, int64_t name, int64_t count) {
  if (!f->asked->allowed) return 0;
  int any = 0;
  for (int64_t r = name; r < name + count && r < f->asked->allowed_rows; r++) any |= f->asked->allowed[r];
  return !any;
}

static void mark(const Asked *asked, int64_t queries, uint64_t *bits) {
  const int64_t *name = asked->excluded;
  for (int64_t c = 0; c < queries; c++, bits += asked->words)
    for (; name < asked->excluded + asked->ends[c]; name++) bits[*name / 64] |= (uint64_t)1 << *name % 64;
}

static void leave_out(const Asked *asked, int64_t queries, float *upper, int64_t places) {
  const int64_t *name = asked->excluded;
  for (int64_t c = 0; c < queries; c++, upper += places)
    for (; name < asked->excluded + asked->ends[c]; name++) upper[*name] = -INFINITY;
}

/* Sorts what is kept, best first; missing places become -1. */
static void sort(const Best *best, int64_t queries) {
  for (int64_t c = 0; c < queries; c++) {
    float *scores = best->scores + c * best->k;
    int64_t *rows = best->rows + c * best->k;
    for (int64_t left = best->filled[c]; left > 1; left--) {
      float worst = scores[0];
      int64_t worst_row = rows[0];
      sink(scores, rows, left - 1, scores[left - 1], rows[left - 1]);
      scores[left - 1] = worst, rows[left - 1] = worst_row;
    }
    for (int64_t n = best->filled[c]; n < best->k; n++) scores[n] = -INFINITY, rows[n] = -1;
  }
}

INLINE int any_above(floats products, float threshold) {
#if W == 16
  return _mm512_cmp_ps_mask((__m512)products, _mm512_set1_ps(threshold), _CMP_GT_OQ) != 0;
#else
  ints above = products > threshold;
  int any = 0;
  UNROLL for (int r = 0; r < W; r++) any |= above[r];
  return any;
#endif
}

/* The products of W rows with one query, as block_products computes them. */
INLINE floats products_of_one(const Stored *s, const Queries *q, int64_t row, const int64_t dim) {
  if (s->code == FLOAT32) return float_strip((const char *)s->codes + row * dim * 4, FLOAT32, q->vectors, dim, 1);
  if (s->code == FLOAT16) return float_strip((const char *)s->codes + row * dim * 2, FLOAT16, q->vectors, dim, 1);
  floats sums = __builtin_convertvector(int_strip((const int8_t *)s->codes + row * dim, q->codes, dim, 1), floats);
  return sums * (*(const loose_floats *)(s->scales + row) * q->scales[0]) +
         *(const loose_floats *)(s->errors + row) * q->lengths[0];
}

/* One query, the usual case of a server: only rows pass through memory, which is the bottleneck. */
INLINE int64_t read_for_one(const Stored *s, const Queries *q, int64_t start, int64_t stop, const Filter *f, const Best *best,
                            Scratch *scratch, const int64_t dim) {
  int64_t decided = 0;
  for (int64_t row = start; row < stop; row += W) {
    int64_t count = stop - row < W ? stop - row : W;
    if (none_allowed(f, s->first + row, count)) continue;
    floats products;
    if (count == W)
      products = products_of_one(s, q, row, dim);
    else {
      block_products(s, q, row, count, scratch);
      memcpy(&products, scratch->products, sizeof products);
    }
    if (best->upper) store_upper(s, q, 0, row, count, (const float *)&products, best);
    if (!any_above(products, best->filled[0] == best->k ? best->scores[0] - q->slack[0] : -INFINITY)) continue;
    memcpy(scratch->products, &products, sizeof products);
    decided += keep_best(s, q, 0, row, count, scratch->products, f, best);
  }
  return decided;
}

/* Updates the best of each query with rows start:stop; returns the number of exact products. */
static int64_t read_rows(const Stored *s, const Queries *q, int64_t start, int64_t stop, const Filter *f, const Best *best,
                         Scratch *scratch) {
  const float *products = scratch->products;
  int64_t decided = 0;
  /* Common widths as compile-time constants: the loop over a row then has no branch. */
  if (q->count == 1 && s->dim == 384) return read_for_one(s, q, start, stop, f, best, scratch, 384);
  if (q->count == 1 && s->dim == 768) return read_for_one(s, q, start, stop, f, best, scratch, 768);
  if (q->count == 1) return read_for_one(s, q, start, stop, f, best, scratch, s->dim);
  for (int64_t row = start; row < stop; row += ROWS) {
    int64_t count = stop - row < ROWS ? stop - row : ROWS;
    if (none_allowed(f, s->first + row, count)) continue;
    block_products(s, q, row, count, scratch);
    for (int64_t c = 0; c < q->count; c++) {
      if (best->upper) store_upper(s, q, c, row, count, products + c * ROWS, best);
      float worst = best->filled[c] == best->k ? best->scores[c * best->k] - q->slack[c] : -INFINITY;
      if (exceeds(products + c * ROWS, worst)) decided += keep_best(s, q, c, row, count, products + c * ROWS, f, best);
    }
  }
  return decided;
}

/* A query's copy, codes and bounds, and working memory, in one allocation that begins at a cache line. */
typedef struct {
  void *start;
  Queries queries;
  Scratch scratch;
  char *more; /* as many bytes as the caller has asked for */
} Room;

/* Allocates and fills the room. Returns 0, -1 where a query is not finite, or -2 where memory is lacking. */
static int prepare(Room *room, const float *vectors, int64_t queries, int64_t dim, int32_t most, double longest, double error,
                   double up, int64_t more) {
  int64_t line = 64, bytes[] = {queries * dim * 4, most ? queries * dim * 2 : 0, 3 * queries * 4, ROWS * dim * 4,
                                ROWS * queries * 4, ROWS * queries * 4, more};
  enum { PARTS = sizeof bytes / sizeof *bytes };
  int64_t all = line;
  for (int i = 0; i < PARTS; i++) all += bytes[i] = (bytes[i] + line - 1) & -line;
  room->start = malloc(all);
  if (!room->start) return -2;
  char *parts[PARTS], *at = (char *)(((uintptr_t)room->start + line - 1) & ~(uintptr_t)(line - 1));
  for (int i = 0; i < PARTS; at += bytes[i++]) parts[i] = at;
  float *own = (float *)parts[0], *bounds = (float *)parts[2];
  int16_t *codes = (int16_t *)parts[1];
  memcpy(own, vectors, queries * dim * 4);
  room->queries = (Queries){own, codes, bounds, bounds + queries, bounds + 2 * queries, queries};
  room->scratch = (Scratch){parts[3], (int32_t *)parts[4], (float *)parts[5]};
  room->more = parts[6];
  if (nextvec_scan_bounds(own, queries, dim, most, longest, error, up, codes, bounds, bounds + queries, bounds + 2 * queries))
    return 0;
  free(room->start);
  return -1;
}

/* The k best of all pieces for each query, best first; with `upper`, by the upper bounds of the products, which it receives
 * for all rows but those of blocks without an allowed row. It is one call because the rows evict all other code from the cache.
 * Returns the number of exact products; -1 where a query is not finite, -2 where memory is lacking. */
EXPORT int64_t nextvec_scan_nearest(const Piece *pieces, int64_t count, const float *vectors, int64_t queries, int64_t dim,
                                    int32_t most, double longest, double error, double up, const Asked *asked, float *scores,
                                    int64_t *rows, int64_t k, float *upper, int64_t places) {
  int64_t words = asked->excluded ? asked->words : 0, bits = 8 * queries * (words + 1), decided = 0;
  Room room;
  int failed = prepare(&room, vectors, queries, dim, most, longest, error, up, bits);
  if (failed) return failed;
  uint64_t *excluded = (uint64_t *)room.more;
  memset(excluded, 0, bits);
  Best best = {scores, rows, (int64_t *)(excluded + queries * words), k, upper, places};
  Filter f = {asked, words ? excluded : 0};
  if (words) mark(asked, queries, excluded);
  for (const Piece *p = pieces; p < pieces + count; p++)
    decided += read_rows(p->part, &room.queries, p->start, p->stop, &f, &best, &room.scratch);
  sort(&best, queries);
  /* Every thread does so for all rows, after it has stored the bounds of its own. */
  if (upper && words) leave_out(asked, queries, upper, places);
  free(room.start);
  return decided;
}

/* upper [queries, count]: what the exact products of chosen rows do not exceed. Returns 0, or as nextvec_scan_nearest. */
EXPORT int32_t nextvec_scan_upper(const Stored *part, const int64_t *chosen, int64_t count, const float *vectors,
                                  int64_t queries, int64_t dim, int32_t most, double longest, double error, double up,
                                  float *upper) {
  int64_t bytes = dim * (part->code == FLOAT32 ? 4 : part->code == FLOAT16 ? 2 : 1);
  Room room;
  int failed = prepare(&room, vectors, queries, dim, most, longest, error, up, ROWS * bytes);
  if (failed) return failed;
  float scales[ROWS], errors[ROWS];
  Stored block = *part; /* the rows side by side */
  block.codes = room.more, block.scales = scales, block.errors = errors;
  for (int64_t i = 0; i < count; i += ROWS) {
    int64_t n = count - i < ROWS ? count - i : ROWS;
    for (int64_t r = 0; r < n; r++) {
      int64_t row = chosen[i + r];
      memcpy(room.more + r * bytes, (const char *)part->codes + row * bytes, bytes);
      if (part->code == INT8) scales[r] = part->scales[row], errors[r] = part->errors[row];
    }
    block_products(&block, &room.queries, 0, n, &room.scratch);
    for (int64_t c = 0; c < queries; c++)
      for (int64_t r = 0; r < n; r++)
        upper[c * count + i + r] = room.scratch.products[c * ROWS + r] + room.queries.slack[c];
  }
  free(room.start);
  return 0;
}

/* The square of the longest row's length, summed in float. */
EXPORT float nextvec_scan_longest(const void *rows, int32_t stored, int64_t count, int64_t dim) {
  float longest = 0;
  const char *row = rows;
  for (int64_t r = 0; r < count; r++, row += dim * (stored == FLOAT32 ? 4 : 2)) {
    floats squares[2] = {0};
    for (int64_t i = 0; i < dim; i += 2 * W) {
      floats x = load_part(row, stored, i, dim);
      squares[0] += x * x;
      if (i + W < dim) x = load_part(row, stored, i + W, dim), squares[1] += x * x;
    }
    float sum = 0;
    for (int j = 0; j < W; j++) sum += squares[0][j] + squares[1][j];
    if (sum > longest) longest = sum;
  }
  return longest;
}
