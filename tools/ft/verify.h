/* verify.h - compares the library with PyTorch's numbers in a golden.safetensors file, written by tools/golden.py.

   The file holds one batch with its logits, loss, hidden states and gradients, and a training run of several steps with
   losses, gradient norms, learning rates and final weights. The error of a tensor is max|ours - theirs| / scale over
   real tokens; scale is max|theirs|, for gradients at least 1e-4 of the largest gradient of any tensor. Of a final
   weight at least 99.9 % of the elements must be within tolerance. Key biases are left out: their gradient is zero in
   exact arithmetic, so what either side computes is rounding. Nothing is written but the report. */
#ifndef FT_VERIFY_H
#define FT_VERIFY_H

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct verify_group { /* one line of the report */
  const char *name;
  double tolerance;
  int tensors, failed;
  double worst;
  char worst_name[200];
} verify_group;

enum {
  VERIFY_LOGITS,
  VERIFY_LOSS,
  VERIFY_HIDDEN,
  VERIFY_GRAD,
  VERIFY_LOSSES,
  VERIFY_NORMS,
  VERIFY_RATES,
  VERIFY_FINAL,
  VERIFY_GROUPS
};

typedef struct verify_state {
  ft_context *context;
  ft_safetensors *golden;
  ft_model *model;
  ft_adapter *adapter; /* of trained=lora, else NULL */
  const char *path;
  verify_group group[VERIFY_GROUPS];
  double largest_gradient; /* of any tensor */
  char message[6000];      /* why the file cannot be used, or "" */
} verify_state;

static bool verify_fail(verify_state *v, const char *what, const char *name) {
  if (!v->message[0]) snprintf(v->message, sizeof v->message, "%s: %s %s", v->path, what, name);
  return false;
}

/* An entry as floats; the caller frees. NULL if it is missing or unreadable. */
static float *verify_floats(verify_state *v, const char *name, const ft_safetensors_entry **entry) {
  float *values;
  *entry = ft_safetensors_find(v->golden, name);
  if (!*entry) return NULL;
  values = (float *)malloc(((size_t)(*entry)->count + 1) * sizeof *values);
  if (values && ft_safetensors_read_float(v->context, v->golden, *entry, values) == FT_OK) return values;
  free(values);
  verify_fail(v, "cannot read", name);
  return NULL;
}

static int64_t *verify_ints(verify_state *v, const char *name, const ft_safetensors_entry **entry) {
  int64_t *values;
  *entry = ft_safetensors_find(v->golden, name);
  if (!*entry) return NULL;
  values = (int64_t *)malloc(((size_t)(*entry)->count + 1) * sizeof *values);
  if (values && ft_safetensors_read_int(v->context, v->golden, *entry, values) == FT_OK) return values;
  free(values);
  verify_fail(v, "cannot read", name);
  return NULL;
}

static double verify_number(const verify_state *v, const char *key, double fallback) {
  const char *text = ft_safetensors_metadata(v->golden, key);
  return text ? strtod(text, NULL) : fallback;
}

static bool verify_text_is(const verify_state *v, const char *key, const char *value, bool fallback) {
  const char *text = ft_safetensors_metadata(v->golden, key);
  return text ? strcmp(text, value) == 0 : fallback;
}

static void verify_count(verify_state *v, int group, const char *name, double error, bool within) {
  verify_group *g = &v->group[group];
  ++g->tensors;
  if (!within) ++g->failed;
  if (g->tensors == 1 || error > g->worst) {
    g->worst = error;
    snprintf(g->worst_name, sizeof g->worst_name, "%s", name);
  }
}

static double verify_largest(const float *values, int64_t count) {
  double largest = 0;
  int64_t i;
  for (i = 0; i < count; ++i)
    if (fabs((double)values[i]) > largest) largest = fabs((double)values[i]);
  return largest;
}

/* |ours - theirs| / scale; what is not a finite number is an error beyond every tolerance. */
static double verify_error(double ours, double theirs, double scale) {
  double difference = fabs(ours - theirs);
  if (!ft_is_finite(ours) || !ft_is_finite(theirs)) return 1e30;
  return scale > 0 ? difference / scale : difference;
}

static void verify_tensor(verify_state *v, int group, const char *name, const float *ours, const float *theirs,
                          int64_t count, double scale) {
  double worst = 0;
  int64_t i;
  for (i = 0; i < count; ++i) {
    double error = verify_error(ours[i], theirs[i], scale);
    if (error > worst) worst = error;
  }
  verify_count(v, group, name, worst, worst <= v->group[group].tolerance);
}

/* ---- batches ---- */

typedef struct verify_batch {
  ft_batch batch;
  int64_t rows, length; /* of the padded arrays */
  int32_t *labels;      /* [rows]; of tokens [packed tokens] */
  float *targets;
  int32_t *labelled; /* of tokens: those whose label counts; NULL: not asked for */
  int64_t labelled_count;
} verify_batch;

static void verify_batch_free(verify_batch *b) {
  ft_batch_free(&b->batch);
  free(b->labels);
  free(b->targets);
  free(b->labelled);
  memset(b, 0, sizeof *b);
}

/* Packs the rows of input_ids [rows, length] by attention_mask, which must be ones followed by zeros. */
static bool verify_pack(verify_state *v, verify_batch *b, const int64_t *ids, const int64_t *mask,
                        const int64_t *types) {
  int64_t size = b->rows * b->length, row, i, used = 0;
  int32_t *packed = (int32_t *)malloc(((size_t)size + 1) * sizeof(int32_t));
  int32_t *packed_types = (int32_t *)malloc(((size_t)size + 1) * sizeof(int32_t));
  int64_t *offsets = (int64_t *)malloc(((size_t)b->rows + 1) * sizeof(int64_t));
  bool ok = packed && packed_types && offsets;
  for (row = 0; ok && row < b->rows; ++row) {
    int64_t valid = 0;
    offsets[row] = used;
    while (valid < b->length && mask[row * b->length + valid] == 1) ++valid;
    for (i = valid; i < b->length; ++i) ok = ok && mask[row * b->length + i] == 0;
    for (i = 0; i < valid; ++i, ++used) {
      int64_t id = ids[row * b->length + i], type = types ? types[row * b->length + i] : 0;
      packed[used] = id >= 0 && id < INT32_MAX ? (int32_t)id : -1;
      packed_types[used] = type >= 0 && type < INT32_MAX ? (int32_t)type : -1;
    }
    offsets[row + 1] = used;
  }
  ok = ok && ft_batch_set(v->context, &b->batch, packed, packed_types, offsets, b->rows) == FT_OK;
  free(packed);
  free(packed_types);
  free(offsets);
  return ok || verify_fail(v, "cannot pack", "input_ids by attention_mask");
}

static bool verify_over_tokens(const verify_state *v) {
  ft_task task = ft_model_config(v->model)->task;
  return task == FT_TASK_TOKENS || task == FT_TASK_MASKED;
}

/* labels [rows], or of tokens [rows, length], of which the real tokens' are kept. */
static bool verify_read_labels(verify_state *v, verify_batch *b, const char *name) {
  const ft_safetensors_entry *entry = ft_safetensors_find(v->golden, name);
  const ft_config *config = ft_model_config(v->model);
  bool classes = config->task != FT_TASK_MULTI_LABEL && config->task != FT_TASK_REGRESSION;
  int64_t columns = verify_over_tokens(v) ? b->length : classes ? 1 : config->labels, row, i, used = 0, *values;
  if (!entry || entry->count != b->rows * columns) return verify_fail(v, "wrong or missing", name);
  if (!classes) return (b->targets = verify_floats(v, name, &entry)) != NULL;
  values = verify_ints(v, name, &entry);
  b->labels = (int32_t *)malloc(((size_t)entry->count + 1) * sizeof(int32_t));
  for (row = 0; values && b->labels && row < b->rows; ++row) {
    for (i = 0; i < columns && (columns == 1 || i < b->batch.lengths[row]); ++i) {
      int64_t value = values[row * columns + i];
      b->labels[used++] = value >= -100 && value < INT32_MAX ? (int32_t)value : INT32_MAX;
    }
  }
  free(values);
  return values && b->labels;
}

/* Leaves only the labelled tokens' labels, and lists those tokens: as a masked language model trains. */
static bool verify_keep_labelled(verify_batch *b) {
  int64_t i;
  b->labelled = (int32_t *)malloc(((size_t)b->batch.tokens + 1) * sizeof(int32_t));
  for (i = 0; b->labelled && i < b->batch.tokens; ++i) {
    if (b->labels[i] < 0) continue;
    b->labels[b->labelled_count] = b->labels[i];
    b->labelled[b->labelled_count++] = (int32_t)i;
  }
  return b->labelled != NULL;
}

static bool verify_read_batch(verify_state *v, const char *prefix, verify_batch *b) {
  const ft_safetensors_entry *id_entry, *mask_entry, *type_entry;
  char name[64];
  int64_t *ids, *mask, *types;
  bool ok;
  memset(b, 0, sizeof *b);
  snprintf(name, sizeof name, "%sinput_ids", prefix);
  ids = verify_ints(v, name, &id_entry);
  snprintf(name, sizeof name, "%sattention_mask", prefix);
  mask = verify_ints(v, name, &mask_entry);
  snprintf(name, sizeof name, "%stoken_type_ids", prefix);
  types = verify_ints(v, name, &type_entry);
  ok = ids && mask && id_entry->dimensions == 2 && mask_entry->count == id_entry->count &&
       (!types || type_entry->count == id_entry->count);
  if (ok) {
    b->rows = id_entry->shape[0];
    b->length = id_entry->shape[1];
    ok = verify_pack(v, b, ids, mask, types);
  } else {
    verify_fail(v, "wrong or missing input_ids, attention_mask or token_type_ids of", *prefix ? prefix : "the batch");
  }
  free(ids);
  free(mask);
  free(types);
  snprintf(name, sizeof name, "%slabels", prefix);
  return ok && verify_read_labels(v, b, name);
}

/* ---- comparisons ---- */

static bool verify_library_failed(verify_state *v) {
  return verify_fail(v, "the library reports:", ft_error_message(v->context));
}

/* Our tensor's values on the host as floats; the caller frees. */
static float *verify_read_tensor(verify_state *v, const ft_tensor *tensor, bool gradient) {
  int64_t i, count = ft_tensor_count(tensor);
  ft_real *raw = (ft_real *)malloc(((size_t)count + 1) * sizeof *raw);
  float *values = (float *)malloc(((size_t)count + 1) * sizeof *values);
  ft_status status = FT_ERROR_MEMORY;
  if (raw && values)
    status = gradient ? ft_gradient_read(v->context, tensor, raw) : ft_tensor_read(v->context, tensor, raw);
  for (i = 0; status == FT_OK && i < count; ++i) values[i] = (float)raw[i];
  free(raw);
  if (status == FT_OK) return values;
  free(values);
  return NULL;
}

/* NAME [rows, length, columns], or [rows, 1, columns] with the first tokens alone, against ours [tokens, columns];
   padding is not compared. */
static bool verify_padded(verify_state *v, int group, const char *name, const verify_batch *b,
                          const ft_tensor *tensor) {
  const ft_safetensors_entry *entry;
  int64_t row, i, columns = tensor->shape[1], stored, compared = 0;
  float *theirs = verify_floats(v, name, &entry), *ours = verify_read_tensor(v, tensor, false);
  float *real = NULL, *mine = NULL;
  bool ok = theirs && ours && entry->dimensions == 3 && entry->shape[0] == b->rows && entry->shape[2] == columns &&
            (entry->shape[1] == b->length || entry->shape[1] == 1);
  if (ok) {
    stored = entry->shape[1];
    real = (float *)malloc(((size_t)entry->count + 1) * sizeof *real);
    mine = (float *)malloc(((size_t)entry->count + 1) * sizeof *mine);
    for (row = 0; real && mine && row < b->rows; ++row) {
      int64_t tokens = b->batch.lengths[row] < stored ? b->batch.lengths[row] : stored;
      for (i = 0; i < tokens * columns; ++i, ++compared) {
        real[compared] = theirs[row * stored * columns + i];
        mine[compared] = ours[b->batch.offsets[row] * columns + i];
      }
    }
    ok = real && mine;
    if (ok) verify_tensor(v, group, name, mine, real, compared, verify_largest(real, compared));
  }
  free(theirs);
  free(ours);
  free(real);
  free(mine);
  return ok || verify_fail(v, "wrong or missing", name);
}

static bool verify_logits(verify_state *v, const ft_output *output) {
  const ft_safetensors_entry *entry;
  float *theirs = verify_floats(v, "logits", &entry), *ours = verify_read_tensor(v, output->logits, false);
  bool ok = theirs && ours && entry->count == ft_tensor_count(output->logits);
  if (ok) verify_tensor(v, VERIFY_LOGITS, "logits", ours, theirs, entry->count, verify_largest(theirs, entry->count));
  free(theirs);
  free(ours);
  return ok || verify_fail(v, "wrong or missing", "logits");
}

/* The parameters of the model, then the adapter's; NULL: there are no more. */
static const ft_parameter *verify_parameter(const verify_state *v, int64_t index) {
  int64_t own = ft_model_parameter_count(v->model);
  if (index < own) return ft_model_parameter(v->model, index);
  return index - own < ft_adapter_parameter_count(v->adapter) ? ft_adapter_parameter(v->adapter, index - own) : NULL;
}

/* What the golden file calls a parameter, kind.NAME in name [300]. Of an adapter's parameters, NAME is peft's
   named_parameters(): with "default" behind lora_A and the like, or "modules_to_save.default" behind the module that
   was saved, of which this one may be a part. */
static const ft_safetensors_entry *verify_find(verify_state *v, const char *kind, const ft_parameter *parameter,
                                               char *name) {
  const char *own = parameter->name, *low = strstr(own, ".lora_"), *end = strchr(low ? low + 1 : own, '.'), *dot;
  const ft_safetensors_entry *entry;
  snprintf(name, 300, "%s.%s", kind, own);
  if ((entry = ft_safetensors_find(v->golden, name)) != NULL || !v->adapter) return entry;
  if (low) {
    snprintf(name, 300, "%s.%.*s.default%s", kind, end ? (int)(end - own) : (int)strlen(own), own,
             end ? end : ".weight");
    return ft_safetensors_find(v->golden, name);
  }
  for (dot = strchr(own, '.'); dot && !entry; dot = strchr(dot + 1, '.')) {
    snprintf(name, 300, "%s.%.*s.modules_to_save.default%s", kind, (int)(dot - own), own, dot);
    entry = ft_safetensors_find(v->golden, name);
  }
  return entry;
}

static bool verify_is_key_bias(const char *name) { return strstr(name, ".key.bias") || strstr(name, ".k_lin.bias"); }

/* kind + NAME of a parameter, e.g. "grad.classifier.weight": ours and theirs in the same order, all elements or those
   that index.NAME lists. Returns how many, or -1. */
static int64_t verify_pair(verify_state *v, const char *kind, const ft_parameter *parameter, bool gradient,
                           float **ours, float **theirs) {
  char name[300];
  const ft_safetensors_entry *entry, *index_entry;
  int64_t *index, count = ft_tensor_count(parameter->tensor), i;
  *ours = *theirs = NULL;
  verify_find(v, "index", parameter, name);
  index = verify_ints(v, name, &index_entry);
  verify_find(v, kind, parameter, name);
  *theirs = verify_floats(v, name, &entry);
  *ours = verify_read_tensor(v, parameter->tensor, gradient);
  if (!*theirs || !*ours || entry->count != (index ? index_entry->count : count)) {
    free(index);
    verify_fail(v, "wrong or missing", name);
    return -1;
  }
  for (i = 0; index && i < index_entry->count; ++i) { /* in place only if the indices rise */
    if (index[i] < i || index[i] >= count || (i > 0 && index[i] <= index[i - 1])) {
      free(index);
      verify_fail(v, "indices out of order in index of", name);
      return -1;
    }
    (*ours)[i] = (*ours)[index[i]];
  }
  free(index);
  return entry->count;
}

static double verify_gradient_scale(verify_state *v, const ft_parameter *parameter, const float *theirs,
                                    int64_t count) {
  char name[300];
  const ft_safetensors_entry *entry;
  double scale = verify_largest(theirs, count);
  float *stored;
  verify_find(v, "scale.grad", parameter, name);
  stored = verify_floats(v, name, &entry);
  if (stored && entry->count == 1) scale = fabs((double)stored[0]);
  free(stored);
  return scale;
}

static bool verify_gradients(verify_state *v) {
  const ft_parameter *parameter;
  int64_t i, count;
  int pass;
  for (pass = 0; pass < 2; ++pass) { /* first the largest gradient of any tensor, then the comparison */
    for (i = 0; (parameter = verify_parameter(v, i)) != NULL; ++i) {
      float *ours, *theirs;
      double scale;
      if (!parameter->tensor->requires_gradient || verify_is_key_bias(parameter->name)) continue;
      if ((count = verify_pair(v, "grad", parameter, true, &ours, &theirs)) >= 0) {
        scale = verify_gradient_scale(v, parameter, theirs, count);
        if (pass == 0 && scale > v->largest_gradient) v->largest_gradient = scale;
        if (scale < 1e-4 * v->largest_gradient) scale = 1e-4 * v->largest_gradient;
        if (pass == 1) verify_tensor(v, VERIFY_GRAD, parameter->name, ours, theirs, count, scale);
      }
      free(ours);
      free(theirs);
      if (count < 0) return false;
    }
  }
  return true;
}

static bool verify_final(verify_state *v) {
  const ft_parameter *parameter;
  int64_t i, k, count;
  for (i = 0; (parameter = verify_parameter(v, i)) != NULL; ++i) {
    float *ours, *theirs;
    if (!parameter->tensor->requires_gradient || verify_is_key_bias(parameter->name)) continue;
    if ((count = verify_pair(v, "final", parameter, false, &ours, &theirs)) >= 0) {
      double scale = verify_largest(theirs, count), tolerance = v->group[VERIFY_FINAL].tolerance, worst_within = 0;
      int64_t outside = 0;
      for (k = 0; k < count; ++k) {
        double error = verify_error(ours[k], theirs[k], scale);
        if (error > tolerance) ++outside;
        if (error > worst_within) worst_within = error;
      }
      verify_count(v, VERIFY_FINAL, parameter->name, worst_within, (double)outside <= 0.001 * (double)count);
    }
    free(ours);
    free(theirs);
    if (count < 0) return false;
  }
  return true;
}

/* The model's forward pass and loss; hidden states if asked for. The loss stays on the tape. */
static ft_tensor *verify_forward(verify_state *v, const verify_batch *b, bool hidden, ft_output *output) {
  ft_forward_options options;
  memset(&options, 0, sizeof options);
  options.hidden_states = hidden;
  options.adapter = v->adapter;
  options.rows = b->labelled;
  options.row_count = b->labelled_count;
  if (ft_model_forward(v->context, v->model, &b->batch, &options, output) != FT_OK) return NULL;
  return ft_model_loss(v->context, v->model, output->logits, b->labels, b->targets, 0);
}

static bool verify_read_loss(verify_state *v, ft_tensor *loss, float *value) {
  ft_real raw;
  if (!loss || ft_tensor_read(v->context, loss, &raw) != FT_OK) return verify_library_failed(v);
  *value = (float)raw;
  return true;
}

static bool verify_one_batch(verify_state *v) {
  verify_batch b;
  ft_output output;
  ft_tensor *loss;
  const ft_safetensors_entry *entry;
  char name[32];
  float ours = 0, *theirs = NULL;
  int i, layers = ft_model_config(v->model)->layers;
  bool ok = verify_read_batch(v, "", &b);
  if (ok) {
    loss = verify_forward(v, &b, true, &output);
    ok = verify_read_loss(v, loss, &ours) &&
         (verify_over_tokens(v) ? verify_padded(v, VERIFY_LOGITS, "logits", &b, output.logits)
                                : verify_logits(v, &output));
    theirs = verify_floats(v, "loss", &entry);
    if (ok && (!theirs || entry->count != 1)) ok = verify_fail(v, "wrong or missing", "loss");
    if (ok) verify_tensor(v, VERIFY_LOSS, "loss", &ours, theirs, 1, fabs((double)theirs[0]));
    for (i = 0; ok && i <= layers; ++i) {
      snprintf(name, sizeof name, "hidden.%d", i);
      ok = verify_padded(v, VERIFY_HIDDEN, name, &b, output.hidden_states[i]);
    }
    if (ok && ft_backward(v->context, loss) != FT_OK) ok = verify_library_failed(v);
    ok = ok && verify_gradients(v);
  }
  for (i = 0; verify_parameter(v, i); ++i) ft_gradient_zero(v->context, verify_parameter(v, i)->tensor);
  ft_tape_clear(v->context);
  verify_batch_free(&b);
  free(theirs);
  return ok;
}

static bool verify_step(verify_state *v, ft_optimizer *optimizer, int64_t step, float *loss_value, float *norm_value,
                        float *rate_value) {
  char prefix[32];
  verify_batch b;
  ft_output output;
  double norm = 0, rate, max_norm = verify_number(v, "max_grad_norm", 1.0);
  ft_schedule schedule = FT_SCHEDULE_LINEAR;
  const char *name = ft_safetensors_metadata(v->golden, "scheduler");
  ft_tensor *loss;
  bool ok;
  if (name && !ft_schedule_parse(name, &schedule)) return verify_fail(v, "unknown scheduler", name);
  rate = verify_number(v, "lr", 0) * ft_schedule_factor(schedule, step, (int64_t)verify_number(v, "warmup_steps", 0),
                                                        (int64_t)verify_number(v, "total_steps", 0));
  snprintf(prefix, sizeof prefix, "train.%lld.", (long long)step);
  ok = verify_read_batch(v, prefix, &b);
  if (ok && verify_over_tokens(v)) ok = verify_keep_labelled(&b);
  if (ok) {
    loss = verify_forward(v, &b, false, &output);
    ok = verify_read_loss(v, loss, loss_value);
    if (ok &&
        (ft_backward(v->context, loss) != FT_OK || ft_optimizer_gradient_norm(v->context, optimizer, &norm) != FT_OK ||
         ft_optimizer_step(v->context, optimizer, rate, ft_clip_factor(norm, max_norm)) != FT_OK))
      ok = verify_library_failed(v);
    if (ok) {
      *norm_value = (float)norm;
      *rate_value = (float)rate;
    }
  }
  ft_tape_clear(v->context);
  verify_batch_free(&b);
  return ok;
}

/* A curve of one number a step. Learning rates are exact but for rounding, so each is held to its own size. */
static bool verify_curve(verify_state *v, int group, const char *name, const float *ours, int64_t steps) {
  const ft_safetensors_entry *entry;
  float *theirs = verify_floats(v, name, &entry);
  bool ok = theirs && entry->count == steps;
  int64_t k;
  if (ok && group == VERIFY_RATES)
    for (k = 0; k < steps; ++k) verify_tensor(v, group, name, ours + k, theirs + k, 1, fabs((double)theirs[k]));
  else if (ok)
    verify_tensor(v, group, name, ours, theirs, steps, verify_largest(theirs, steps));
  free(theirs);
  return ok || verify_fail(v, "wrong or missing", name);
}

static bool verify_run(verify_state *v) {
  const ft_safetensors_entry *entry = ft_safetensors_find(v->golden, "losses");
  int64_t steps = entry ? entry->count : 0, k;
  ft_adamw_options options;
  ft_optimizer *optimizer;
  float *curves;
  bool ok;
  if (steps < 1 || steps > 100000) return verify_fail(v, "wrong or missing", "losses");
  memset(&options, 0, sizeof options);
  options.beta1 = verify_number(v, "beta1", 0.9);
  options.beta2 = verify_number(v, "beta2", 0.999);
  options.epsilon = verify_number(v, "eps", 1e-8);
  options.weight_decay = verify_number(v, "weight_decay", 0);
  optimizer = ft_optimizer_create(v->context, v->model, v->adapter, &options);
  curves = (float *)malloc((size_t)(3 * steps) * sizeof *curves);
  ok = optimizer && curves;
  if (!optimizer) verify_library_failed(v);
  for (k = 0; ok && k < steps; ++k)
    ok = verify_step(v, optimizer, k, &curves[k], &curves[steps + k], &curves[2 * steps + k]);
  ok = ok && verify_curve(v, VERIFY_LOSSES, "losses", curves, steps) &&
       verify_curve(v, VERIFY_NORMS, "grad_norms", curves + steps, steps) &&
       verify_curve(v, VERIFY_RATES, "lrs", curves + 2 * steps, steps) && verify_final(v);
  free(curves);
  ft_optimizer_free(optimizer);
  return ok;
}

/* ---- the model ---- */

/* init.NAME tensors replace the model's before anything runs. */
static bool verify_apply_initial(verify_state *v) {
  int64_t i;
  for (i = 0; i < ft_safetensors_count(v->golden); ++i) {
    const ft_safetensors_entry *entry = ft_safetensors_at(v->golden, i), *found;
    const ft_parameter *parameter;
    int64_t k;
    float *values;
    ft_real *converted;
    bool ok;
    if (strncmp(entry->name, "init.", 5) != 0) continue;
    parameter = ft_model_find(v->model, entry->name + 5);
    if (!parameter || ft_tensor_count(parameter->tensor) != entry->count)
      return verify_fail(v, "the model has no such parameter, or one of another shape:", entry->name);
    values = verify_floats(v, entry->name, &found);
    converted = (ft_real *)malloc(((size_t)entry->count + 1) * sizeof *converted);
    for (k = 0; values && converted && k < entry->count; ++k) converted[k] = (ft_real)values[k];
    ok = values && converted && ft_tensor_write(v->context, parameter->tensor, converted) == FT_OK;
    free(values);
    free(converted);
    if (!ok) return verify_fail(v, "cannot apply", entry->name);
  }
  return true;
}

static bool verify_load_adapter(verify_state *v, const char *directory) {
  char path[4096];
  snprintf(path, sizeof path, "%s/adapter", directory);
  ft_model_train_all(v->model, false);
  v->adapter = ft_adapter_load(v->context, v->model, path);
  return v->adapter || verify_library_failed(v);
}

static bool verify_load(verify_state *v, const char *directory, const char *model_directory) {
  const ft_safetensors_entry *logits = ft_safetensors_find(v->golden, "logits");
  const ft_safetensors_entry *labels = ft_safetensors_find(v->golden, "labels");
  ft_model_options options;
  int64_t columns = logits && logits->dimensions >= 2 ? logits->shape[logits->dimensions - 1] : 0;
  if (!labels || columns < 1 || columns > 1 << 24) return verify_fail(v, "wrong or missing", "logits or labels");
  memset(&options, 0, sizeof options);
  options.labels = (int)columns;
  if (verify_text_is(v, "task", "mlm", false))
    options.task = FT_TASK_MASKED;
  else if (verify_text_is(v, "task", "tok", false))
    options.task = FT_TASK_TOKENS;
  else if (verify_text_is(v, "task", "seq", true))
    options.task = labels->dtype == FT_I64 || labels->dtype == FT_I32 ? FT_TASK_SINGLE_LABEL
                   : labels->dimensions == 2                          ? FT_TASK_MULTI_LABEL
                                                                      : FT_TASK_REGRESSION;
  else
    return verify_fail(v, "task is seq, tok or mlm, not", ft_safetensors_metadata(v->golden, "task"));
  v->model = ft_model_load(v->context, model_directory, &options);
  if (!v->model) return verify_library_failed(v);
  if (verify_text_is(v, "trained", "head", false)) ft_model_train_head(v->model);
  if (!verify_apply_initial(v)) return false;
  return verify_text_is(v, "trained", "lora", false) ? verify_load_adapter(v, directory) : true;
}

static void verify_report(const verify_state *v, FILE *out) {
  int i;
  for (i = 0; i < VERIFY_GROUPS; ++i) {
    const verify_group *g = &v->group[i];
    fprintf(out, "%-4s %-10s %3d tensors, worst %.2e (tolerance %.0e) %s\n", g->failed || !g->tensors ? "FAIL" : "ok",
            g->name, g->tensors, g->worst, g->tolerance, g->worst_name);
  }
}

/* Compares directory/golden.safetensors with the model of model_directory (NULL: the same). Returns true only if every
   group is there and within tolerance; out (may be NULL) receives a line for each group, or why the file cannot be
   used. */
static bool verify_directory(ft_context *context, const char *directory, const char *model_directory, FILE *out) {
  static const struct {
    const char *name;
    double tolerance;
  } groups[VERIFY_GROUPS] = {{"logits", 1e-5}, {"loss", 5e-6},       {"hidden", 1e-5}, {"grad", 1e-4},
                             {"losses", 5e-6}, {"grad_norms", 5e-5}, {"lrs", 1e-6},    {"final", 1e-4}};
  verify_state v;
  char path[4096];
  bool ok;
  int i;
  memset(&v, 0, sizeof v);
  for (i = 0; i < VERIFY_GROUPS; ++i) v.group[i].name = groups[i].name, v.group[i].tolerance = groups[i].tolerance;
  snprintf(path, sizeof path, "%s/golden.safetensors", directory);
  v.context = context;
  v.path = path;
  v.golden = ft_safetensors_open(context, path);
  ok = v.golden ? verify_load(&v, directory, model_directory ? model_directory : directory) && verify_one_batch(&v) &&
                      verify_run(&v)
                : verify_library_failed(&v);
  if (ok && out) verify_report(&v, out);
  if (!ok && out) fprintf(out, "FAIL %s\n", v.message);
  for (i = 0; i < VERIFY_GROUPS; ++i) ok = ok && v.group[i].tensors > 0 && v.group[i].failed == 0;
  ft_adapter_free(v.adapter);
  ft_model_free(v.model);
  ft_safetensors_close(v.golden);
  return ok;
}

#endif
