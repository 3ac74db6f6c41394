/* One step of the model `pooled` (models/pooled.py): the map of its space, the means, the recall of the working memory, the
 * gates and the queries. A step reads the weights and the state once. It copies no rows: the newest is written behind those
 * that the state holds. The passages of a batch lie apart from each other in memory, each where its session keeps it. */
#include "export.h"
#include "recall.h"
#include "vectors.h"
#include "weights.h"
#include <stdlib.h>

#define HEADS 2
/* The first word of a place behind held rows that no step has claimed: a NaN that no computation gives. */
#define FREE 0x7fe5f4eeu

typedef uint32_t __attribute__((may_alias)) word;

/* The structures of kernels/pooled.py, field by field. */
typedef struct {
  Matrix space;        /* [dim, width]: the map of the vectors read; its codes are NULL where there is none */
  const float *centre; /* [width], subtracted before the map */
  const float *decays, *weights, *lag_logits;                        /* [means], [mixed], [lags]; mixed = means + 1 + HEADS */
  const float *inner, *inner_bias, *outer, *outer_bias;              /* [hidden, features], [outputs, hidden]; NULL: no gates */
  Heads heads;
  int64_t dim, means, lags, size, hidden;                            /* size: of the working memory */
  float amplitude, spread, shortest, absent;
} Pooled;

typedef struct {
  float *means, *total, *read, *written; /* [means, dim], [dim], [1], [places] */
  uint8_t *filled;                       /* [places] */
} State;

typedef struct {
  State before, after;
  float *rows;   /* [places, dim], the latest last */
  float *moved;  /* NULL: the newest row is written behind `rows`. Else new memory, to which the rows are copied first */
  int64_t places, room; /* rows held before; free places behind them, or behind the newest in new memory */
  int64_t claimed;      /* whether a place for the newest row was found */
} Passage;

/* Working memory of one passage. */
typedef struct {
  float *recalled, *written, *features, *hidden, *gates, *mixture;
  uint8_t *filled;
} Scratch;

/* The place behind the rows, if no other step from the same state has claimed it: an atomic operation, because sessions that
 * share a state may step in several threads. */
static int claim(const Passage *p, int64_t dim) {
  uint32_t expected = FREE;
  return p->room > 0 && __atomic_compare_exchange_n((word *)(p->rows + p->places * dim), &expected, 0, 0, __ATOMIC_ACQ_REL,
                                                    __ATOMIC_RELAXED);
}

/* The rows of the new memory, whose free places are marked. */
static float *move(const Passage *p, int64_t dim) {
  if (p->places) memcpy(p->moved, p->rows, sizeof(float) * p->places * dim);
  for (int64_t n = 1; n <= p->room; n++) *(word *)(p->moved + (p->places + n) * dim) = FREE;
  return p->moved;
}

static void to_unit(float *x, int64_t dim) {
  float scale = 1 / at_least(norm(x, dim), LEAST_NORM);
  for (int64_t d = 0; d < dim; d++) x[d] *= scale;
}

/* A vector that is mixed, and its length and cosine with the newest one as the gates read them; returns the factor that
 * scales it to unit length. */
static float relate(const Pooled *m, const float *x, const float *newest, float *length, float *cosine) {
  float size = norm(x, m->dim), scale = 1 / at_least(size, m->shortest);
  if (length) *length = size * 2 - 1;
  *cosine = dot(x, newest, m->dim) * scale * m->spread - 1;
  return scale;
}

static void layer(const float *w, const float *bias, const float *x, int64_t rows, int64_t width, float *y) {
  for (int64_t r = 0; r < rows; r++) y[r] = dot(w + r * width, x, width) + bias[r];
}

/* gates [outputs]: added to the weights of the mixture, to those of the lags and to the amplitude; zeros without gates. */
static void set_gates(const Pooled *m, const Scratch *s, int64_t features, int64_t outputs) {
  if (!m->inner) {
    memset(s->gates, 0, sizeof(float) * outputs);
    return;
  }
  layer(m->inner, m->inner_bias, s->features, m->hidden, features, s->hidden);
  for (int64_t i = 0; i < m->hidden; i += W)
    store(s->hidden + i, tangent(load(s->hidden + i, m->hidden - i)), m->hidden - i);
  layer(m->outer, m->outer_bias, s->hidden, outputs, m->hidden, s->gates);
}

/* The state after the newest vector, besides the rows, and what the gates read; `scales` [mixed] of the vectors mixed. */
static void update(const Pooled *m, const Passage *p, const float *rows, const Scratch *s, float *scales) {
  const float *newest = rows + p->places * m->dim;
  float *lengths = s->features + 1, *cosines = lengths + m->means;
  int64_t kept = p->places < m->size ? p->places + 1 : m->size, dim = m->dim;
  *p->after.read = *p->before.read + 1;
  s->features[0] = logf(*p->after.read) / 2 - 1;
  for (int64_t k = 0; k < m->means; k++) {
    float *mean = p->after.means + k * dim, decay = m->decays[k];
    const float *before = p->before.means + k * dim;
    for (int64_t d = 0; d < dim; d++) mean[d] = decay * before[d] + (1 - decay) * newest[d];
    *scales++ = relate(m, mean, newest, lengths++, cosines++);
  }
  for (int64_t d = 0; d < dim; d++) p->after.total[d] = p->before.total[d] + newest[d];
  *scales++ = relate(m, p->after.total, newest, NULL, cosines++);
  memcpy(s->written, p->before.written, sizeof(float) * p->places);
  memcpy(s->filled, p->before.filled, p->places);
  s->written[p->places] = 0, s->filled[p->places] = 1;
  memcpy(p->after.written, s->written + p->places + 1 - kept, sizeof(float) * kept);
  memcpy(p->after.filled, s->filled + p->places + 1 - kept, kept);
  recall(newest, rows, s->written, s->filled, m->heads, p->places + 1, dim, s->recalled);
  for (int64_t h = 0; h < HEADS; h++) *scales++ = relate(m, s->recalled + h * dim, newest, NULL, cosines++);
  for (int64_t l = 0; l < m->lags; l++)
    *cosines++ = (l <= p->places ? dot(newest - l * dim, newest, dim) : 0) * m->spread - 1;
}

static void mix(const Pooled *m, const Passage *p, const Scratch *s, const float *scales) {
  memset(s->mixture, 0, sizeof(float) * m->dim);
  for (int64_t v = 0; v < m->means + 1 + HEADS; v++) {
    const float *x = v < m->means ? p->after.means + v * m->dim
                     : v == m->means ? p->after.total : s->recalled + (v - m->means - 1) * m->dim;
    float weight = (m->weights[v] + s->gates[v]) * scales[v];
    for (int64_t d = 0; d < m->dim; d++) s->mixture[d] += weight * x[d];
  }
}

/* The queries and their log weights (models/pooling.py): y [lags * (dim + 1)]; with fewer than two, one unit vector [dim]. */
static void pool(const Pooled *m, const Passage *p, const float *newest, const Scratch *s, float *y) {
  const float *gates = s->gates + m->means + 1 + HEADS;
  float amplitude = m->amplitude + gates[m->lags], *log_weights = y + m->lags * m->dim, most = -INFINITY, sum = 0;
  for (int64_t l = 0; l < m->lags; l++) {
    float share = l <= p->places ? amplitude : 0;
    const float *x = newest - (l <= p->places ? l : 0) * m->dim;
    for (int64_t d = 0; d < m->dim; d++) y[l * m->dim + d] = s->mixture[d] + share * x[d];
  }
  if (!m->lags) memcpy(y, s->mixture, sizeof(float) * m->dim);
  if (m->lags < 2) {
    to_unit(y, m->dim);
    return;
  }
  for (int64_t l = 0; l < m->lags; l++) {
    int there = l <= p->places && s->filled[p->places - l];
    log_weights[l] = there ? m->lag_logits[l] + gates[l] : -INFINITY;
    most = log_weights[l] > most ? log_weights[l] : most;
  }
  for (int64_t l = 0; l < m->lags; l++) sum += expf(log_weights[l] - most);
  for (int64_t l = 0; l < m->lags; l++) log_weights[l] = at_least(log_weights[l] - most - logf(sum), m->absent);
}

/* x [batch, width]; y [batch, output]. Returns 1; 0 where passages that are not `claimed` need new memory, before anything
 * else was written; -1 where memory is lacking. */
EXPORT int32_t nextvec_pooled_step(const Pooled *m, Passage *passages, int64_t batch, const float *x, float *y) {
  int64_t dim = m->dim, mixed = m->means + 1 + HEADS, features = 1 + m->means + mixed + m->lags, outputs = mixed + m->lags + 1;
  int64_t width = m->space.codes ? m->space.width : 0, output = m->lags < 2 ? dim : m->lags * (dim + 1), waiting = 0;
  for (Passage *p = passages; p < passages + batch; p++) {
    p->claimed = p->claimed || p->moved || claim(p, dim);
    waiting += !p->claimed;
  }
  if (waiting) return 0;
  int64_t floats_needed = (HEADS + 1) * dim + m->size + 1 + features + m->hidden + outputs + mixed;
  float *room = malloc(sizeof(float) * (floats_needed + (width ? batch * (width + dim) : 0)) + m->size + 1);
  if (!room) return -1;
  Scratch s = {.recalled = room};
  s.mixture = s.recalled + HEADS * dim, s.written = s.mixture + dim, s.features = s.written + m->size + 1;
  s.hidden = s.features + features, s.gates = s.hidden + m->hidden;
  float *scales = s.gates + outputs, *centred = room + floats_needed, *mapped = centred + batch * width;
  s.filled = (uint8_t *)(width ? mapped + batch * dim : centred);
  int done = 1;
  if (width) {
    for (int64_t b = 0; b < batch; b++)
      for (int64_t d = 0; d < width; d++) centred[b * width + d] = x[b * width + d] - m->centre[d];
    done = weights_product(&m->space, (Vectors){centred, width, batch}, NULL, mapped);
    x = mapped;
  }
  for (int64_t b = 0; done && b < batch; b++, x += dim, y += output) {
    const Passage *p = passages + b;
    float *rows = p->moved ? move(p, dim) : p->rows, *newest = rows + p->places * dim;
    memcpy(newest, x, sizeof(float) * dim);
    to_unit(newest, dim);
    update(m, p, rows, &s, scales);
    set_gates(m, &s, features, outputs);
    mix(m, p, &s, scales);
    pool(m, p, newest, &s, y);
  }
  free(room);
  return done ? 1 : -1;
}
