#pragma once

/* Reduces W sums of W lanes to one register of W sums, in order: each step adds the halves of two registers. */
#define FOLD(pairs, low, high)                                                                                        \
  UNROLL for (int i = 0; i < pairs; i++) s[i] =                                                                       \
      __builtin_shufflevector(s[2 * i], s[2 * i + 1], low) + __builtin_shufflevector(s[2 * i], s[2 * i + 1], high);
#if W == 16
#define LOW8 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23
#define HIGH8 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31
#define LOW4 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27
#define HIGH4 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31
#define LOW2 0, 1, 4, 5, 8, 9, 12, 13, 16, 17, 20, 21, 24, 25, 28, 29
#define HIGH2 2, 3, 6, 7, 10, 11, 14, 15, 18, 19, 22, 23, 26, 27, 30, 31
#define LOW1 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30
#define HIGH1 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31
#define FOLDS FOLD(8, LOW8, HIGH8) FOLD(4, LOW4, HIGH4) FOLD(2, LOW2, HIGH2) FOLD(1, LOW1, HIGH1)
#elif W == 8
#define LOW4 0, 1, 2, 3, 8, 9, 10, 11
#define HIGH4 4, 5, 6, 7, 12, 13, 14, 15
#define LOW2 0, 1, 4, 5, 8, 9, 12, 13
#define HIGH2 2, 3, 6, 7, 10, 11, 14, 15
#define LOW1 0, 2, 4, 6, 8, 10, 12, 14
#define HIGH1 1, 3, 5, 7, 9, 11, 13, 15
#define FOLDS FOLD(4, LOW4, HIGH4) FOLD(2, LOW2, HIGH2) FOLD(1, LOW1, HIGH1)
#else
#define LOW2 0, 1, 4, 5
#define HIGH2 2, 3, 6, 7
#define LOW1 0, 2, 4, 6
#define HIGH1 1, 3, 5, 7
#define FOLDS FOLD(2, LOW2, HIGH2) FOLD(1, LOW1, HIGH1)
#endif
