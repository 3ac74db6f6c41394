/* A sequence of layers in one call: at batch 1 the calls of small layers cost more than the layers. */
#include "export.h"
#include "vectors.h"
#include "weights.h"
#include <stdlib.h>

/* The order of weights.py. */
enum { PRODUCT, LAYER_NORM, GELU, UNIT, SOFTMAX };

typedef struct {
  Matrix w;                  /* of a product */
  const float *scale, *bias; /* of a layer norm; a product has only the bias, or NULL */
  float epsilon;             /* of a layer norm */
  int32_t kind;
} Stage;

static void layer_norm(const Stage *stage, const float *x, int64_t width, float *y) {
  float mean = 0, square = 0;
  for (int64_t i = 0; i < width; i++) mean += x[i];
  mean /= (float)width;
  for (int64_t i = 0; i < width; i++) square += (x[i] - mean) * (x[i] - mean);
  float scale = 1 / sqrtf(square / (float)width + stage->epsilon);
  for (int64_t i = 0; i < width; i++) y[i] = (x[i] - mean) * scale * stage->scale[i] + stage->bias[i];
}

static void apply(const Stage *stage, const float *x, int64_t width, float *y) {
  switch (stage->kind) {
  case LAYER_NORM: layer_norm(stage, x, width, y); break;
  case GELU: gelu(x, width, y); break;
  case UNIT: {
    float size = at_least(norm(x, width), LEAST_NORM);
    for (int64_t i = 0; i < width; i++) y[i] = x[i] / size;
    break;
  }
  default: memcpy(y, x, sizeof(float) * width); softmax(y, width, -INFINITY);
  }
}

/* y [count, the last width] of x [count, width]; widest is the largest width in between. */
EXPORT int32_t nextvec_weights_chain(const Stage *stages, int64_t num_stages, int64_t widest, const float *x, int64_t count,
                                     int64_t width, float *y) {
  float *room = malloc(sizeof(float) * 2 * count * widest);
  int done = room != NULL;
  for (int64_t n = 0; done && n < num_stages; n++) {
    const Stage *stage = stages + n;
    float *out = n == num_stages - 1 ? y : room + n % 2 * count * widest;
    if (stage->kind == PRODUCT) {
      done = weights_product(&stage->w, (Vectors){x, width, count}, stage->bias, out);
      width = stage->w.rows;
    } else
      for (int64_t b = 0; b < count; b++) apply(stage, x + b * width, width, out + b * width);
    x = out;
  }
  free(room);
  return done;
}
