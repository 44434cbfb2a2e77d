/* adapter.h - LoRA on the command line: the options of a new adapter, and opening what may be a model's directory or a
   PEFT directory with its base model. */
#ifndef FT_ADAPTER_H
#define FT_ADAPTER_H

#ifndef _WIN32
#include <unistd.h>
#endif

typedef struct adapter_choice { /* of a new adapter; 0 and NULL: the library's defaults, PEFT's customary ones */
  long long rank;
  double alpha, dropout;
  const char *targets, *modules_to_save;
  bool rslora, dora;
} adapter_choice;

/* clang-format off */
#define ADAPTER_OPTIONS(a) \
      {"--lora-r", ARGUMENT_INTEGER, &(a).rank, "rank of LoRA's updates (8)"}, \
      {"--lora-alpha", ARGUMENT_NUMBER, &(a).alpha, "they are scaled by alpha / r (16)"}, \
      {"--lora-dropout", ARGUMENT_NUMBER, &(a).dropout, "dropout of what they read (0.1)"}, \
      {"--lora-targets", ARGUMENT_TEXT, &(a).targets, \
       "names of linear layers, a,b; all-linear; or a regular expression (query and value)"}, \
      {"--lora-modules-to-save", ARGUMENT_TEXT, &(a).modules_to_save, "modules to train whole beside the head, a,b"}, \
      {"--rslora", ARGUMENT_FLAG, &(a).rslora, "scale by alpha / sqrt(r)"}, \
      {"--dora", ARGUMENT_FLAG, &(a).dora, "learn the weights' magnitude apart from their direction"}
/* clang-format on */

static adapter_choice adapter_default(void) {
  adapter_choice choice;
  memset(&choice, 0, sizeof choice);
  choice.rank = 8, choice.alpha = 16, choice.dropout = 0.1;
  return choice;
}

/* What is wrong with the options, or NULL. */
static const char *adapter_check(const adapter_choice *choice) {
  if (choice->rank < 1 || choice->rank > 65536) return "--lora-r is at least 1";
  if (choice->alpha == 0) return "--lora-alpha is not 0";
  if (choice->dropout < 0 || choice->dropout >= 1) return "--lora-dropout is at least 0 and below 1";
  return NULL;
}

static ft_adapter *adapter_create(ft_context *context, const ft_model *model, const adapter_choice *choice,
                                  uint64_t seed) {
  ft_adapter_options options;
  memset(&options, 0, sizeof options);
  options.rank = (int)choice->rank;
  options.alpha = choice->alpha;
  options.dropout = choice->dropout > 0 ? choice->dropout : -1;
  options.targets = choice->targets;
  options.modules_to_save = choice->modules_to_save;
  options.rslora = choice->rslora;
  options.dora = choice->dora;
  options.seed = seed;
  return ft_adapter_create(context, model, &options);
}

static bool adapter_has_file(const char *directory, const char *name) {
  char path[4352];
  FILE *file;
  snprintf(path, sizeof path, "%s/%s", directory, name);
  file = fopen(path, "rb");
  if (file) fclose(file);
  return file != NULL;
}

/* What base_model_name_or_path shall be: a directory's whole path, so that the adapter can be used from anywhere; a
   name on the hub as it is. path has 4096 bytes. */
static void adapter_base_path(const char *model, char *path) {
  snprintf(path, 4096, "%s", model);
#ifndef _WIN32
  if (model[0] != '/' && adapter_has_file(model, "config.json") && getcwd(path, 4096)) {
    size_t length = strlen(path);
    snprintf(path + length, 4096 - length, "/%s", strncmp(model, "./", 2) == 0 ? model + 2 : model);
  }
#endif
}

typedef struct adapter_opened { /* a model, and the adapter that runs with it or NULL */
  ft_model *model;
  ft_adapter *adapter;
  char tokenizer[4096]; /* the directory that has one */
} adapter_opened;

static void adapter_close(adapter_opened *opened) {
  ft_adapter_free(opened->adapter);
  ft_model_free(opened->model);
}

/* Opens a model's directory, or a PEFT directory with its base model, which `base` names if it is not NULL. An error is
   the context's. */
static bool adapter_open(ft_context *context, const char *directory, const char *base, const ft_model_options *options,
                         adapter_opened *opened) {
  static const char *const tokenizers[] = {"tokenizer.json", "vocab.txt", "vocab.json", "spiece.model"};
  ft_model_options with_head;
  ft_adapter_base *found;
  char path[4096]; /* of what may be a name on the hub */
  int i;
  memset(opened, 0, sizeof *opened);
  if (ft_model_path(context, directory, path, sizeof path) != FT_OK) return false;
  directory = path;
  snprintf(opened->tokenizer, sizeof opened->tokenizer, "%s", directory);
  if (!adapter_has_file(directory, "adapter_config.json"))
    return (opened->model = ft_model_load(context, directory, options)) != NULL;
  if (!(found = ft_adapter_base_read(context, directory))) return false;
  with_head = found->options;
  if (options) {
    with_head.encoder_only = with_head.encoder_only || options->encoder_only;
    with_head.shapes_only = options->shapes_only;
  }
  if (!base) base = found->model;
  if (base)
    opened->model = ft_model_load(context, base, &with_head);
  else
    ft_error_set(context, FT_ERROR_ARGUMENT, "the adapter does not name its base model: give it with --base");
  for (i = 0; i < 4 && !adapter_has_file(directory, tokenizers[i]);) ++i;
  if (i == 4 && base) snprintf(opened->tokenizer, sizeof opened->tokenizer, "%s", base);
  if (opened->model) opened->adapter = ft_adapter_load(context, opened->model, directory);
  ft_adapter_base_free(found);
  return opened->adapter != NULL;
}

#endif
