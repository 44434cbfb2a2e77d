/* two_units_static.c - a unit with an implementation of its own, invisible to the others: FT_STATIC. */
#ifndef FT_STATIC
#define FT_STATIC
#endif
#define FT_IMPLEMENTATION
#include "../finetune.h"

#ifdef __cplusplus
extern "C" {
#endif
int two_units_static(void);
#ifdef __cplusplus
}
#endif

int two_units_static(void) {
  int64_t order[3];
  ft_context *context = ft_context_create(NULL);
  int made = context != NULL;
  ft_shuffle(order, 3, 42); /* torch.randperm(3) after torch.manual_seed(42) */
  ft_context_free(context);
  return made && order[0] == 0 && order[1] == 2 && order[2] == 1;
}
