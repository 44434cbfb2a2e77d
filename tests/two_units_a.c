/* two_units_a.c - the unit of a program that holds the implementation. Together with two_units_b.c, which sees the
   declarations alone, and two_units_static.c, which has a private copy, it must link and run. */
#undef FT_STATIC /* whatever the compiler's command line says */
#define FT_IMPLEMENTATION
#include "../finetune.h"
#include "../finetune.h" /* a second time: no effect */

#ifdef __cplusplus
extern "C" {
#endif
int two_units_b(ft_context *context);
int two_units_static(void);
#ifdef __cplusplus
}
#endif

int main(void) {
  ft_context *context = ft_context_create(NULL);
  int shared = context ? two_units_b(context) : 0, alone = two_units_static();
  printf("shared implementation: %s; private implementation: %s\n", shared ? "right" : "WRONG",
         alone ? "right" : "WRONG");
  ft_context_free(context);
  return shared && alone ? 0 : 1;
}
