/* two_units_b.c - a unit that uses what two_units_a.c implements: a context passes between them. */
#undef FT_STATIC
#include "../finetune.h"

#ifdef __cplusplus
extern "C" {
#endif
int two_units_b(ft_context *context);
#ifdef __cplusplus
}
#endif

int two_units_b(ft_context *context) {
  static const ft_real two[2] = {2, 3};
  const int64_t shape[1] = {2};
  ft_real sum = 0;
  ft_tensor *x = ft_tensor_create(context, FT_F32, 1, shape);
  ft_tensor_write(context, x, two);
  ft_tensor_read(context, ft_sum(context, ft_multiply(context, x, x), -1), &sum); /* 2 * 2 + 3 * 3 */
  ft_tensor_free(x);
  return sum == 13 && ft_error_status(context) == FT_OK;
}
