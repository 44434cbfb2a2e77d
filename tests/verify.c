/* verify.c - the whole model against PyTorch: every directory of tests/golden (and of ../shared/golden, where that is)
   holds a small model with reference numbers for logits, hidden states, gradients and a training run, which
   tools/ft/verify.h compares. Then the comparison itself is tested: it must notice each number being changed by 1 %. */
#define FT_IMPLEMENTATION
#include "../finetune.h"
#include "../tools/ft/verify.h"
#include "check.h"
#include "files.h"

static ft_context *context;
static char directory[600];

static void check_golden(const char *golden, const char *model) {
  bool right = verify_directory(context, golden, model, NULL);
  if (!right) { /* once more, to show where */
    printf("%s:\n", golden);
    verify_directory(context, golden, model, stdout);
  }
  CHECK(right);
}

static void check_shared(const char *golden, const char *model) {
  char reason[300];
  snprintf(reason, sizeof reason, "%s is not here", golden);
  if (ft__file_exists(files_path(golden, "golden.safetensors")))
    check_golden(golden, model);
  else
    SKIP(reason);
}

static void test_golden(void) {
  check_golden("tests/golden/bert-cosine-3labels", NULL);
  check_golden("tests/golden/bert-legacy", NULL);
  check_golden("tests/golden/bert-multilabel", NULL);
  check_golden("tests/golden/bert-pairs", NULL);
  check_golden("tests/golden/bert-sampled", "tests/golden/bert-pairs");
  check_golden("tests/golden/distilbert", NULL);
  check_golden("tests/golden/distilbert-head", NULL);
  check_golden("tests/golden/distilbert-regression", NULL);
  check_golden("tests/golden/albert-groups", NULL);
  check_golden("tests/golden/albert-masked", NULL);
  check_golden("tests/golden/bert-masked", NULL);
  check_golden("tests/golden/bert-tokens", NULL);
  check_golden("tests/golden/distilbert-masked", NULL);
  check_golden("tests/golden/distilbert-tokens", NULL);
  check_golden("tests/golden/electra", NULL);
  check_golden("tests/golden/electra-masked", NULL);
  check_golden("tests/golden/roberta", NULL);
  check_golden("tests/golden/roberta-masked", NULL);
  check_golden("tests/golden/roberta-tokens", NULL);
  check_golden("tests/golden/albert-lora", "tests/golden/albert-groups");
  check_golden("tests/golden/bert-dora", "tests/golden/bert-pairs");
  check_golden("tests/golden/bert-lora", "tests/golden/bert-pairs");
  check_golden("tests/golden/bert-lora-patterns", "tests/golden/bert-cosine-3labels");
  check_golden("tests/golden/bert-tokens-lora", "tests/golden/bert-tokens");
  check_golden("tests/golden/distilbert-lora", "tests/golden/distilbert");
  check_golden("tests/golden/roberta-lora", "tests/golden/roberta");
  check_shared("../shared/golden/distilbert-lora", NULL);
  check_shared("../shared/golden/bert", NULL);
  check_shared("../shared/golden/distilbert", NULL);
  check_shared("../shared/golden/distilbert-head", NULL);
  check_shared("../shared/golden/albert", NULL);
  check_shared("../shared/golden/bert-mlm", NULL);
  check_shared("../shared/golden/bert-tok", NULL);
  check_shared("../shared/golden/electra", NULL);
  check_shared("../shared/golden/roberta", NULL);
  if (getenv("FT_TEST_QUICK"))
    SKIP("../shared/golden/minilm-rt is too large for a quick run (FT_TEST_QUICK)");
  else
    check_shared("../shared/golden/minilm-rt", "../shared/models/minilm"); /* 22 million parameters */
}

/* ---- tampering ---- */

typedef struct golden_file { /* a safetensors file in memory, its header read here and not by the library's reader */
  char *bytes, *changed;     /* [size]: as it is, and a copy to change */
  size_t size, data;         /* data: where the tensors start */
  ft_json *header;
} golden_file;

static void golden_open(golden_file *g, const char *path) {
  memset(g, 0, sizeof *g);
  g->bytes = ft__file_read(context, path, &g->size);
  CHECK(g->bytes && g->size > 8);
  if (!g->bytes) exit(1);
  g->data = 8 + ((size_t)(unsigned char)g->bytes[0] | (size_t)(unsigned char)g->bytes[1] << 8 |
                 (size_t)(unsigned char)g->bytes[2] << 16); /* headers below 16 MiB */
  g->header = ft_json_parse(context, g->bytes + 8, g->data - 8, path);
  g->changed = (char *)malloc(g->size);
  CHECK(g->header && g->changed);
  if (!g->header || !g->changed) exit(1);
  memcpy(g->changed, g->bytes, g->size);
}

static void golden_close(golden_file *g) {
  ft_json_free(g->header);
  ft__release(context, g->bytes);
  free(g->changed);
}

/* Where a tensor's bytes start, and how many elements of `bytes` it has. */
static size_t golden_tensor(const golden_file *g, const ft_json *entry, size_t bytes, int64_t *count) {
  const ft_json *begin = ft_json_get(entry, "data_offsets")->child;
  *count = (begin->next->integer - begin->integer) / (int64_t)bytes;
  return g->data + (size_t)begin->integer;
}

static float golden_value(const golden_file *g, size_t start, int64_t index) {
  float value;
  memcpy(&value, g->bytes + start + (size_t)index * sizeof value, sizeof value);
  return value;
}

static void golden_put(golden_file *g, size_t start, int64_t index, float value) {
  memcpy(g->changed + start + (size_t)index * sizeof value, &value, sizeof value);
}

/* Writes what is in g->changed (`size` bytes of it), compares, and restores it. */
static bool golden_passes(golden_file *g, const char *model, size_t size) {
  bool passes;
  files_write(directory, "golden.safetensors", g->changed, size);
  passes = verify_directory(context, directory, model, NULL);
  memcpy(g->changed, g->bytes, g->size);
  return passes;
}

/* Is element `index` of hidden.N [rows, stored, columns] of a real token? Others are padding and not compared. */
static bool is_real(const golden_file *g, const ft_json *entry, int64_t index) {
  const ft_json *shape = ft_json_get(entry, "shape")->child;
  const ft_json *mask_shape = ft_json_get(ft_json_get(g->header, "attention_mask"), "shape")->child;
  int64_t stored = shape->next->integer, columns = shape->next->next->integer, count, mask;
  size_t start = golden_tensor(g, ft_json_get(g->header, "attention_mask"), sizeof mask, &count);
  int64_t row = index / (stored * columns), token = index / columns % stored;
  memcpy(&mask, g->bytes + start + (size_t)(row * mask_shape->next->integer + token) * sizeof mask, sizeof mask);
  return mask == 1;
}

/* The largest element of a tensor of floats. */
static int64_t largest_element(const golden_file *g, const ft_json *entry, size_t start, int64_t count) {
  bool hidden = strncmp(entry->key, "hidden.", 7) == 0;
  int64_t i, largest = -1;
  for (i = 0; i < count; ++i)
    if ((!hidden || is_real(g, entry, i)) &&
        (largest < 0 || fabs(golden_value(g, start, i)) > fabs(golden_value(g, start, largest))))
      largest = i;
  return largest;
}

static void check_noticed(golden_file *g, const char *model, const char *name) {
  bool passes = golden_passes(g, model, g->size);
  if (passes) printf("not noticed: %s changed by 1 %%\n", name);
  CHECK(!passes);
}

/* Every number that is compared, changed by 1 %, tensor by tensor. Returns how many changes were tried. */
static int tamper_with_values(golden_file *g, const char *model) {
  const ft_json *entry;
  int tried = 0;
  for (entry = g->header->child; entry; entry = entry->next) {
    bool final = strncmp(entry->key, "final.", 6) == 0, rates = strcmp(entry->key, "lrs") == 0;
    int64_t count, i, largest;
    size_t start;
    if (!final && !rates && strncmp(entry->key, "grad.", 5) != 0 && strncmp(entry->key, "hidden.", 7) != 0 &&
        strcmp(entry->key, "logits") != 0 && strcmp(entry->key, "loss") != 0 && strcmp(entry->key, "losses") != 0 &&
        strcmp(entry->key, "grad_norms") != 0)
      continue;
    start = golden_tensor(g, entry, sizeof(float), &count);
    largest = largest_element(g, entry, start, count);
    for (i = 0; i < count && rates; ++i) {
      if (golden_value(g, start, i) == 0) continue;
      golden_put(g, start, i, 1.01f * golden_value(g, start, i));
      check_noticed(g, model, entry->key);
      ++tried;
    }
    if (rates) continue;
    for (i = 0; i < (count + 99) / 100 && final; ++i) /* 1 % of the elements, by 1 % of the largest */
      golden_put(g, start, i * 100, golden_value(g, start, i * 100) + 0.01f * golden_value(g, start, largest));
    if (!final) golden_put(g, start, largest, 1.01f * golden_value(g, start, largest));
    check_noticed(g, model, entry->key);
    ++tried;
  }
  return tried;
}

/* Renames a tensor in the header to one of which nothing is known. */
static void check_rename(golden_file *g, const char *model, const char *name) {
  char quoted[200];
  size_t i, length;
  bool found = false;
  snprintf(quoted, sizeof quoted, "\"%s\":", name);
  length = strlen(quoted);
  for (i = 8; i + length < g->data && !found; ++i) {
    if (memcmp(g->changed + i, quoted, length) != 0) continue;
    g->changed[i + 1] = '#';
    found = true;
  }
  CHECK(found);
  CHECK(!golden_passes(g, model, g->size));
}

/* Writes the file again without one tensor (NULL: with all of them). */
static bool passes_without(const char *golden, const char *model, const char *left_out) {
  golden_file g;
  ft_safetensors *file = ft_safetensors_open(context, files_path(golden, "golden.safetensors"));
  ft_safetensors_item items[500];
  const char *metadata[64];
  const ft_json *member;
  int64_t i, count = 0, strings = 0, elements;
  bool passes;
  golden_open(&g, files_path(golden, "golden.safetensors"));
  for (i = 0; i < ft_safetensors_count(file) && count < 500; ++i) {
    const ft_safetensors_entry *entry = ft_safetensors_at(file, i);
    if (left_out && strcmp(entry->name, left_out) == 0) continue;
    items[count].name = entry->name;
    items[count].dtype = entry->dtype;
    items[count].dimensions = entry->dimensions;
    memcpy(items[count].shape, entry->shape, sizeof entry->shape);
    items[count++].data = g.bytes + golden_tensor(&g, ft_json_get(g.header, entry->name), 1, &elements);
  }
  CHECK(count == ft_safetensors_count(file) - (left_out ? 1 : 0));
  for (member = ft_json_get(g.header, "__metadata__")->child; member && strings < 64; member = member->next) {
    metadata[strings++] = member->key;
    metadata[strings++] = member->string;
  }
  CHECK(ft_safetensors_write(context, files_path(directory, "golden.safetensors"), items, count, metadata, strings) ==
        FT_OK);
  passes = verify_directory(context, directory, model, NULL);
  ft_safetensors_close(file);
  golden_close(&g);
  return passes;
}

static void test_values(golden_file *g, const char *golden, const char *model, int values) {
  int tried;
  golden_open(g, files_path(golden, "golden.safetensors"));
  CHECK(golden_passes(g, model, g->size)); /* the file as it is */
  tried = tamper_with_values(g, model);
  if (tried != values) printf("%s: %d numbers changed, %d expected\n", golden, tried, values);
  CHECK(tried == values);
}

static void test_tampering(const char *golden, const char *model, int values) {
  golden_file g;
  test_values(&g, golden, model, values);
  check_rename(&g, model, "logits");
  check_rename(&g, model, "hidden.1");
  check_rename(&g, model, "grad.classifier.weight");
  check_rename(&g, model, "final.classifier.bias");
  check_rename(&g, model, "losses");
  check_rename(&g, model, "train.2.input_ids");
  CHECK(!golden_passes(&g, model, g.size - 1)); /* truncated by a byte, and by more */
  CHECK(!golden_passes(&g, model, g.size / 2));
  CHECK(!golden_passes(&g, model, g.data));
  CHECK(!golden_passes(&g, model, 7));
  CHECK(!golden_passes(&g, model, 0));
  golden_close(&g);
  CHECK(passes_without(golden, model, NULL));
  CHECK(!passes_without(golden, model, "logits"));
  CHECK(!passes_without(golden, model, "loss"));
  CHECK(!passes_without(golden, model, "hidden.2"));
  CHECK(!passes_without(golden, model, "grad.classifier.bias"));
  CHECK(!passes_without(golden, model, "grad_norms"));
  CHECK(!passes_without(golden, model, "lrs"));
  CHECK(!passes_without(golden, model, "labels"));
  CHECK(!passes_without(golden, model, "attention_mask"));
  CHECK(!passes_without(golden, model, "train.4.labels"));
  CHECK(!passes_without(golden, model, "final.classifier.weight"));
}

/* A reference whose adapter is beside it. */
static void test_adapter(const char *golden, const char *model, int values) {
  golden_file g;
  char from[700], adapter[700];
  snprintf(from, sizeof from, "%s/adapter", golden);
  snprintf(adapter, sizeof adapter, "%s/adapter", directory);
  CHECK(ft__directory_create(context, adapter) == FT_OK);
  files_copy(context, from, adapter, "adapter_config.json");
  files_copy(context, from, adapter, "adapter_model.safetensors");
  test_values(&g, golden, model, values);
  golden_close(&g);
  files_end(adapter);
}

int main(void) {
  golden_file masked;
  ft_context_options options;
  memset(&options, 0, sizeof options);
  options.threads = 1;
  context = ft_context_create(&options);
  if (!context) return 1;
  files_begin(context, directory, "verify");
  test_golden();
  /* logits, loss, 3 hidden states, losses, norms, 4 rates that are not 0, and gradients and final weights of all
     parameters but the key biases: 40 - 2 of DistilBERT with two layers, 41 - 2 of BERT */
  test_tampering("tests/golden/distilbert", "tests/golden/distilbert", 11 + 2 * 38);
  test_tampering("tests/golden/bert-sampled", "tests/golden/bert-pairs", 11 + 2 * 39);
  /* logits, loss, 3 hidden states, losses, norms, 1 rate, and 42 - 2 parameters */
  test_values(&masked, "tests/golden/bert-masked", "tests/golden/bert-masked", 8 + 2 * 40);
  golden_close(&masked);
  test_adapter("tests/golden/bert-lora", "tests/golden/bert-pairs", 8 + 2 * 10); /* 4 updates and the head */
  test_adapter("tests/golden/bert-dora", "tests/golden/bert-pairs", 8 + 2 * 14); /* and 4 magnitudes */
  CHECK(!verify_directory(context, "tests/golden/bert-pairs", "tests/golden/bert-legacy", NULL)); /* another model */
  CHECK(!verify_directory(context, "tests/golden/nowhere", NULL, NULL));
  files_end(directory);
  ft_context_free(context);
  FINISH();
}
