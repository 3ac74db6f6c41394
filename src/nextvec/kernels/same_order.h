/* Before everything else in a file whose results have the same bits at every level: sums keep the order in which they are
 * written. */
#pragma once
#ifdef __clang__
#pragma clang fp reassociate(off)
#else
#pragma GCC optimize("no-associative-math")
#endif
