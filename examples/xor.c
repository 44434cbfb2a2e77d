/* xor.c - a two-layer network learns XOR, on the small operations alone.

   Build:  cc -O2 examples/xor.c -o xor -lm
   Run:    ./xor
   Output: the loss every 200 steps, falling from about 0.7 to below 0.01, then the four answers:
             0 xor 0 = 0.00 ... 0 xor 1 = 1.00 ... 1 xor 0 = 1.00 ... 1 xor 1 = 0.00
             learned */
#define FT_IMPLEMENTATION
#include "../finetune.h"

#include <stdio.h>

enum { HIDDEN = 8, STEPS = 1000, PARAMETERS = 4 };

/* y [4, 1] = tanh(x [4, 2] W1 [2, 8] + b1 [8]) W2 [8, 1] + b2 [1] */
static ft_tensor *network(ft_context *context, ft_tensor *x, ft_tensor **p) {
  ft_tensor *hidden = ft_activate(context, FT_TANH, ft_add(context, ft_matmul(context, x, p[0]), p[1]));
  return ft_add(context, ft_matmul(context, hidden, p[2]), p[3]);
}

/* Plain gradient descent: w = w - rate dL/dw. */
static void descend(ft_context *context, ft_tensor *parameter, double rate) {
  ft_real weights[2 * HIDDEN], gradient[2 * HIDDEN];
  int64_t i;
  ft_tensor_read(context, parameter, weights);
  ft_gradient_read(context, parameter, gradient);
  for (i = 0; i < ft_tensor_count(parameter); ++i) weights[i] -= (ft_real)rate * gradient[i];
  ft_tensor_write(context, parameter, weights);
  ft_gradient_zero(context, parameter);
}

int main(void) {
  static const ft_real inputs[8] = {0, 0, 0, 1, 1, 0, 1, 1}, answers[4] = {0, 1, 1, 0};
  static const int64_t shapes[PARAMETERS][2] = {{2, HIDDEN}, {HIDDEN, 0}, {HIDDEN, 1}, {1, 0}};
  const int64_t x_shape[2] = {4, 2}, y_shape[2] = {4, 1};
  ft_context *context = ft_context_create(NULL);
  ft_tensor *x = ft_tensor_create(context, FT_F32, 2, x_shape), *y = ft_tensor_create(context, FT_F32, 2, y_shape);
  ft_tensor *parameters[PARAMETERS], *logits = NULL, *loss;
  ft_real values[2 * HIDDEN], value;
  unsigned random = 1;
  int i, k, step, right = 0;
  ft_tensor_write(context, x, inputs);
  ft_tensor_write(context, y, answers);
  for (k = 0; k < PARAMETERS; ++k) { /* matrices start random in [-1, 1], biases at 0 */
    parameters[k] = ft_tensor_create(context, FT_F32, shapes[k][1] ? 2 : 1, shapes[k]);
    parameters[k]->requires_gradient = true;
    for (i = 0; i < 2 * HIDDEN; ++i) {
      random = random * 1664525u + 1013904223u;
      values[i] = shapes[k][1] ? (ft_real)(random >> 8) / 8388608 - 1 : 0;
    }
    ft_tensor_write(context, parameters[k], values);
  }
  for (step = 0; step <= STEPS; ++step) {
    ft_tape_clear(context);
    logits = network(context, x, parameters);
    loss = ft_binary_cross_entropy_loss(context, logits, y, 4);
    if (ft_backward(context, loss) != FT_OK) {
      printf("error: %s\n", ft_error_message(context));
      return 1;
    }
    ft_tensor_read(context, loss, &value);
    if (step % 200 == 0) printf("step %4d  loss %.4f\n", step, (double)value);
    for (k = 0; k < PARAMETERS; ++k) descend(context, parameters[k], 0.5);
  }
  ft_tensor_read(context, ft_activate(context, FT_SIGMOID, logits), values);
  for (i = 0; i < 4; ++i) {
    printf("%g xor %g = %.2f\n", (double)inputs[2 * i], (double)inputs[2 * i + 1], (double)values[i]);
    right += (values[i] > 0.5f) == (answers[i] > 0.5f);
  }
  printf(right == 4 ? "learned\n" : "not learned\n");
  for (k = 0; k < PARAMETERS; ++k) ft_tensor_free(parameters[k]);
  ft_tensor_free(x);
  ft_tensor_free(y);
  ft_context_free(context);
  return right != 4;
}
