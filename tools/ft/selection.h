/* selection.h - what trains: the options that ft train and ft inspect share, and what they do to a model. */
#ifndef FT_SELECTION_H
#define FT_SELECTION_H

typedef struct selection {
  const char *method;      /* "full" or "head": what trains before the patterns are applied; or "lora" */
  arguments_list patterns; /* --freeze and --unfreeze, in their order */
  long long head_size;
  const char *head_activation;
  adapter_choice adapter; /* of method lora */
} selection;

/* clang-format off */
#define SELECTION_OPTIONS(s) \
      {"--method", ARGUMENT_TEXT, &(s).method, "full; head: only what stands outside the base model; or lora (full)"}, \
      {"--freeze", ARGUMENT_LIST, &(s).patterns, "parameters of matching names do not train: * any characters, ? one"}, \
      {"--unfreeze", ARGUMENT_LIST, &(s).patterns, "they do; all --freeze and --unfreeze are applied in their order"}, \
      {"--head-size", ARGUMENT_INTEGER, &(s).head_size, "another width of the dense layer before the classifier"}, \
      {"--head-activation", ARGUMENT_TEXT, &(s).head_activation, "and another activation: gelu, relu, silu, tanh, ..."}, \
      ADAPTER_OPTIONS((s).adapter)
/* clang-format on */

static selection selection_default(void) {
  selection s;
  memset(&s, 0, sizeof s);
  s.method = "full";
  s.adapter = adapter_default();
  return s;
}

static bool selection_is_head(const selection *s) { return strcmp(s->method, "head") == 0; }
static bool selection_is_lora(const selection *s) { return strcmp(s->method, "lora") == 0; }

/* What is wrong with the options, or NULL. */
static const char *selection_check(const selection *s) {
  ft_unary activation;
  if (!selection_is_head(s) && !selection_is_lora(s) && strcmp(s->method, "full") != 0)
    return "--method is full, head or lora";
  if (selection_is_lora(s) && s->patterns.count) return "--freeze and --unfreeze do not go with --method lora";
  if (adapter_check(&s->adapter)) return adapter_check(&s->adapter);
  if (s->head_size < 0 || s->head_size > 65536) return "--head-size is at most 65536";
  if (s->head_activation && !ft_activation_parse(s->head_activation, &activation))
    return "--head-activation is gelu, gelu_new, gelu_pytorch_tanh, relu, silu or tanh";
  return NULL;
}

static void selection_options(const selection *s, ft_model_options *options) {
  options->head_size = (int)s->head_size;
  if (s->head_activation) ft_activation_parse(s->head_activation, &options->head_activation);
}

/* Decides what trains. A pattern without effect is more likely misspelt than meant. */
static bool selection_apply(const selection *s, ft_model *model) {
  int64_t k, count = ft_model_parameter_count(model);
  int i;
  if (selection_is_head(s)) ft_model_train_head(model);
  if (selection_is_lora(s)) ft_model_train_all(model, false);
  for (i = 0; i < s->patterns.count; ++i) {
    const char *option = s->patterns.option[i], *pattern = s->patterns.value[i];
    if (ft_model_train_matching(model, pattern, strcmp(option, "--unfreeze") == 0) > 0) continue;
    fprintf(stderr, "error: %s \"%s\" matches no parameter; their names are like", option, pattern);
    for (k = 0; k<count; k += count> 4 ? (count - 1) / 4 : 1)
      fprintf(stderr, "%s %s", k ? "," : "", ft_model_parameter(model, k)->name);
    fprintf(stderr, "\n");
    return false;
  }
  return true;
}

/* Opens a model or a PEFT directory (see adapter_open) with what trains chosen; false after saying why not on stderr.
   The caller closes what was opened in both cases. */
static bool selection_open(ft_context *context, const char *directory, const char *base, const selection *s,
                           ft_model_options *options, adapter_opened *opened) {
  bool ok;
  selection_options(s, options);
  ok = adapter_open(context, directory, base, options, opened);
  if (ok && !selection_apply(s, opened->model)) return false;
  if (ok && opened->adapter) ft_model_train_all(opened->model, false);
  if (ok && !opened->adapter && selection_is_lora(s))
    ok = (opened->adapter = adapter_create(context, opened->model, &s->adapter, 42)) != NULL;
  if (!ok) common_failed(context);
  return ok;
}

#endif
