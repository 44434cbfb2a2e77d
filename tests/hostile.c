/* hostile.c - what broken files do: thousands of mutations of small files, each of which must end in an error or a
   right result, within bounded memory, with everything released; also when any allocation may fail. Deterministic. */
#define FT_IMPLEMENTATION
#include "../finetune.h"
#include "check.h"

/* ---- An allocator that counts, fills, limits, and fails on demand. ---- */

typedef struct allocation {
  size_t size;
  double align; /* what follows is aligned for anything */
} allocation;

static size_t live, live_limit, live_peak;
static int64_t allocations, fail_every; /* every fail_every-th allocation fails; 0: none */
static bool limit_exceeded;

static void *counting_allocate(void *user_data, size_t bytes) {
  allocation *memory;
  (void)user_data;
  if (fail_every && ++allocations % fail_every == 0) return NULL;
  if (bytes > live_limit || live + bytes > live_limit) {
    limit_exceeded = true;
    return NULL;
  }
  memory = (allocation *)malloc(sizeof *memory + bytes);
  if (!memory) return NULL;
  memset(memory + 1, 0xA5, bytes);
  memory->size = bytes;
  live += bytes;
  if (live > live_peak) live_peak = live;
  return memory + 1;
}

static void counting_release(void *user_data, void *pointer) {
  allocation *memory = (allocation *)pointer - 1;
  (void)user_data;
  live -= memory->size;
  memset(pointer, 0x5A, memory->size);
  free(memory);
}

static ft_context *context;
static char directory[600];
static volatile unsigned touched; /* keeps reads from being optimised away */

static void touch(const char *text, size_t length) {
  size_t i;
  for (i = 0; i <= length; ++i) touched += (unsigned char)text[i];
}

/* ---- Loaders: each takes the bytes of a file and uses all that came out of it. True: it was accepted. ---- */

static const char *in_directory(const char *name) {
  static char path[800];
  snprintf(path, sizeof path, "%s/%s", directory, name);
  return path;
}

static void put_file(const char *name, const void *bytes, size_t size) {
  FILE *file;
  remove(in_directory(name)); /* some file systems wait for the disk when a file is overwritten, not when it is new */
  file = fopen(in_directory(name), "wb");
  CHECK(file != NULL);
  if (!file) return;
  CHECK(fwrite(bytes, 1, size, file) == size);
  fclose(file);
}

static bool load_json(const char *bytes, size_t size) {
  ft_json *root = ft_json_parse(context, bytes, size, "hostile");
  bool accepted = root != NULL;
  if (root) { /* what is written must be read again */
    ft__string out;
    memset(&out, 0, sizeof out);
    out.context = context;
    ft__append_json(&out, root, 2);
    ft_json_free(root);
    if (!out.failed) {
      root = ft_json_parse(context, out.text, (size_t)out.length, "again");
      if (!fail_every) CHECK(root != NULL);
      ft_json_free(root);
    }
    ft__string_free(&out);
  }
  return accepted;
}

static bool use_tensors(ft_safetensors *file) {
  int64_t i;
  for (i = 0; i < ft_safetensors_count(file); ++i) {
    const ft_safetensors_entry *entry = ft_safetensors_at(file, i);
    void *values = ft__allocate(context, (size_t)entry->count * 8);
    CHECK(fail_every || ft_safetensors_find(file, entry->name) == entry);
    if (values) {
      if (ft_safetensors_read_float(context, file, entry, (float *)values) != FT_OK)
        ft_safetensors_read_int(context, file, entry, (int64_t *)values);
      ft__release(context, values);
    }
  }
  ft_safetensors_close(file);
  return file != NULL;
}

static bool load_safetensors_memory(const char *bytes, size_t size) {
  return use_tensors(ft_safetensors_parse(context, bytes, size, "hostile"));
}

static bool load_safetensors_file(const char *bytes, size_t size) {
  put_file("hostile.safetensors", bytes, size);
  return use_tensors(ft_safetensors_open(context, in_directory("hostile.safetensors")));
}

static bool load_index(const char *bytes, size_t size) {
  put_file("model.safetensors.index.json", bytes, size);
  return use_tensors(ft_safetensors_open(context, directory));
}

static bool load_table(const char *bytes, size_t size, ft_table_format format) {
  ft_table *table = ft_table_parse(context, bytes, size, "hostile", format);
  int64_t i;
  int task;
  for (i = 0; table && i < table->rows * table->columns; ++i) touch(table->cells[i].text, table->cells[i].length);
  for (task = FT_TASK_SINGLE_LABEL; table && task <= FT_TASK_REGRESSION; ++task) {
    ft_dataset_options options;
    ft_dataset *dataset;
    memset(&options, 0, sizeof options);
    options.task = (ft_task)task;
    dataset = ft_dataset_from_table(context, table, &options);
    for (i = 0; dataset && i < dataset->rows; ++i) {
      touch(dataset->texts[i].text, dataset->texts[i].length);
      if (dataset->labels) CHECK(dataset->labels[i] >= 0 && dataset->labels[i] < dataset->label_count);
    }
    ft_dataset_free(dataset);
  }
  ft_table_free(table);
  return table != NULL;
}

static bool load_csv(const char *bytes, size_t size) { return load_table(bytes, size, FT_TABLE_CSV); }

static bool load_tsv(const char *bytes, size_t size) { return load_table(bytes, size, FT_TABLE_TSV); }

static bool load_jsonl(const char *bytes, size_t size) { return load_table(bytes, size, FT_TABLE_JSONL); }

static bool load_csv_file(const char *bytes, size_t size) {
  ft_dataset *dataset;
  put_file("hostile.csv", bytes, size);
  dataset = ft_dataset_read(context, in_directory("hostile.csv"), NULL);
  ft_dataset_free(dataset);
  return dataset != NULL;
}

#ifndef HOSTILE_FILES_ONLY
static bool load_tokenizer(void) {
  static const char text[] = "A film, a [MASK] caf\xC3\xA9! <mask>the harbour's\x0B\xEF\xBC\xA1 \xE4\xB8\xAD\xFF";
  ft_tokenizer *tokenizer = ft_tokenizer_load(context, directory);
  ft_encoding encoding;
  ft_encode_options options;
  int64_t i;
  memset(&encoding, 0, sizeof encoding);
  memset(&options, 0, sizeof options);
  options.offsets = true;
  if (tokenizer &&
      ft_tokenizer_encode(context, tokenizer, text, sizeof text - 1, text, 7, &options, &encoding) == FT_OK)
    for (i = 0; i < encoding.count; ++i) {
      CHECK(encoding.ids[i] >= 0 && encoding.ids[i] < ft_tokenizer_size(tokenizer));
      CHECK(encoding.begin[i] >= 0 && encoding.begin[i] <= encoding.end[i] && encoding.end[i] < (int)sizeof text);
    }
  ft_encoding_free(&encoding);
  ft_tokenizer_free(tokenizer);
  return tokenizer != NULL;
}

static bool load_vocabulary(const char *bytes, size_t size) {
  put_file("vocab.txt", bytes, size);
  return load_tokenizer();
}

static bool load_tokenizer_json(const char *bytes, size_t size) {
  put_file("tokenizer.json", bytes, size);
  return load_tokenizer();
}

static bool load_merges(const char *bytes, size_t size) {
  put_file("merges.txt", bytes, size);
  return load_tokenizer();
}

static bool load_pieces(const char *bytes, size_t size) {
  put_file("vocab.json", bytes, size);
  return load_tokenizer();
}

static bool load_sentencepiece(const char *bytes, size_t size) {
  put_file("spiece.model", bytes, size);
  return load_tokenizer();
}

static bool load_tokenizer_config(const char *bytes, size_t size) {
  put_file("tokenizer_config.json", bytes, size);
  return load_tokenizer();
}

static bool load_model(void) {
  ft_model_options options;
  ft_model *model;
  memset(&options, 0, sizeof options);
  model = ft_model_load(context, directory, &options);
  ft_model_free(model);
  return model != NULL;
}

static bool load_config(const char *bytes, size_t size) {
  put_file("config.json", bytes, size);
  return load_model();
}

static bool load_weights(const char *bytes, size_t size) {
  put_file("model.safetensors", bytes, size);
  return load_model();
}
#endif

/* ---- Mutations ---- */

static uint64_t random_state;

static size_t random_below(size_t limit) {
  random_state = random_state * 6364136223846793005u + 1442695040888963407u;
  return limit ? (size_t)(random_state >> 33) % limit : 0;
}

/* Something awkward to put into a file. */
static size_t awkward(char *out, size_t room) {
  static const char *const pieces[] = {"0",
                                       "-1",
                                       "99999999999999999999",
                                       "9223372036854775807",
                                       "4294967296",
                                       "1e999",
                                       "\"",
                                       "\\",
                                       "\\uD800",
                                       "\xFF",
                                       "\xE2\x82",
                                       "[",
                                       "]",
                                       "{",
                                       "}",
                                       ",",
                                       ":",
                                       "\n",
                                       "\r",
                                       "\r\n",
                                       ";",
                                       "NaN",
                                       "null",
                                       "\"\"",
                                       "\xEF\xBB\xBF",
                                       "\t",
                                       "{}",
                                       "[]",
                                       "1.5",
                                       "true",
                                       "[0,0]",
                                       "\"__metadata__\":{},"};
  size_t choice = random_below(sizeof pieces / sizeof pieces[0] + 1), length;
  if (choice == sizeof pieces / sizeof pieces[0]) { /* a zero byte, which no literal above can end in */
    out[0] = 0;
    return 1;
  }
  length = strlen(pieces[choice]);
  if (length > room) length = room;
  memcpy(out, pieces[choice], length);
  return length;
}

/* Makes one of several small changes to bytes [size], which have room for `room`. Returns the new size. */
static size_t mutate(char *bytes, size_t size, size_t room) {
  size_t at = random_below(size), span = 1 + random_below(12), to = random_below(size);
  char piece[64];
  size_t length = awkward(piece, sizeof piece);
  if (span > size - at) span = size - at;
  switch (random_below(6)) {
    case 0: /* flip a bit */
      if (size) bytes[at] = (char)(bytes[at] ^ 1 << random_below(8));
      return size;
    case 1: /* delete a span */
      memmove(bytes + at, bytes + at + span, size - at - span);
      return size - span;
    case 2: /* insert something awkward */
      if (size + length > room) return size;
      memmove(bytes + at + length, bytes + at, size - at);
      memcpy(bytes + at, piece, length);
      return size + length;
    case 3: /* repeat a span elsewhere */
      if (size + span > room || span > sizeof piece) return size;
      memcpy(piece, bytes + at, span);
      memmove(bytes + to + span, bytes + to, size - to);
      memcpy(bytes + to, piece, span);
      return size + span;
    case 4: /* put something awkward in the place of a number */
      while (at < size && !(bytes[at] >= '0' && bytes[at] <= '9')) ++at;
      for (span = 0; at + span < size && bytes[at + span] >= '0' && bytes[at + span] <= '9';) ++span;
      if (size - span + length > room) return size;
      memmove(bytes + at + length, bytes + at + span, size - at - span);
      memcpy(bytes + at, piece, length);
      return size - span + length;
    default: /* overwrite a byte */
      if (size) bytes[at] = (char)random_below(256);
      return size;
  }
}

/* ---- Running a loader ---- */

typedef struct target {
  const char *name;
  bool (*load)(const char *bytes, size_t size);
  size_t context_bytes; /* what the other files of its directory hold */
  bool arenas;          /* leaves memory in the context, which then is looked at when that is freed */
} target;

static int64_t inputs, accepted_inputs;

/* Loads bytes (from memory of exactly their size, so that a sanitizer sees each step beyond) and checks the memory. */
static void attempt(const target *t, const char *bytes, size_t size, int64_t failing) {
  char *exact = (char *)malloc(size ? size : 1);
  size_t before = live;
  CHECK(exact != NULL);
  if (!exact) return;
  memcpy(exact, bytes, size);
  limit_exceeded = false;
  live_limit = before + ((size_t)16 << 20) + 64 * (size + t->context_bytes);
  allocations = 0;
  fail_every = failing;
  if (t->load(exact, size)) ++accepted_inputs;
  fail_every = 0;
  ++inputs;
  CHECK(!limit_exceeded);
  if (!t->arenas) CHECK(live == before);
  if (limit_exceeded || (!t->arenas && live != before))
    printf("  %s: input %lld of %lu bytes, every %lld. allocation fails: %lu bytes left\n", t->name, (long long)inputs,
           (unsigned long)size, (long long)failing, (unsigned long)(live - before));
  free(exact);
}

static void context_open(void) {
  ft_context_options options;
  memset(&options, 0, sizeof options);
  options.threads = 1;
  options.allocator.allocate = counting_allocate;
  options.allocator.release = counting_release;
  live_limit = (size_t)1 << 30;
  context = ft_context_create(&options);
  CHECK(context != NULL);
}

static void context_close(const target *t) {
  ft_context_free(context);
  CHECK(live == 0);
  if (live) printf("  %s: %lu bytes are left when the context is gone\n", t->name, (unsigned long)live);
  live = 0;
}

/* The seed as it is (it must be accepted), cut off at up to `cuts` lengths, and changed in `count` ways; with failing
   allocations for some of these. */
static void attack(const target *t, const char *seed, size_t size, size_t cuts, int count) {
  static const int64_t failing[] = {1, 2, 3, 4, 5, 7, 11, 16, 23, 40};
  size_t room = size + 256, i, cut_step = size / cuts + 1;
  char *bytes = (char *)malloc(room);
  int64_t before = accepted_inputs;
  int n, changes;
  context_open();
  CHECK(bytes != NULL);
  if (!bytes || !context) return;
  random_state = size;
  attempt(t, seed, size, 0);
  CHECK(accepted_inputs == before + 1);
  if (accepted_inputs != before + 1) printf("  %s: %s\n", t->name, ft_error_message(context));
  for (i = 0; i < sizeof failing / sizeof failing[0]; ++i) attempt(t, seed, size, failing[i]);
  for (i = 0; i < size; i += cut_step) attempt(t, seed, i, i % 5 == 4 ? failing[i / 5 % 10] : 0);
  for (n = 0; n < count; ++n) {
    size_t length = size;
    memcpy(bytes, seed, size);
    for (changes = n % 3; changes >= 0; --changes) length = mutate(bytes, length, room);
    attempt(t, bytes, length, n % 6 == 5 ? failing[n / 6 % 10] : 0);
  }
  free(bytes);
  context_close(t);
}

/* ---- Seeds ---- */

static const char json_seed[] =
    "{\"a\": [1, -2.5e-3, 12345678901234567890, true, false, null, {}], \"b\\u00e9\\uD83D\\uDE00\": \"x\\n\\\"y\\\\\","
    " \"long name of a member\": {\"c\": {\"d\": [[[]]]}, \"\xC3\xA9\": \"\xE2\x82\xAC\"}, \"e\": 0.1}";
static const char csv_seed[] =
    "text,label\r\n\"A film, \"\"great\"\"\nindeed\",1\r\nplain,0\n\nother \xC3\xA9,1\n\"\",0\r\n\"x\",0.5e1\n";
static const char tsv_seed[] = "id\ttext\tlabel\n1\tsome text\t1\n2\t\"a\ttab\"\t2\n3\tmore\t-1\n4\t\t1\n";
static const char jsonl_seed[] =
    "{\"text\": \"one\\ntwo\", \"label\": 1}\n\n{\"label\": 2, \"text\": [1, {\"a\": null}]}\n{\"text\": null, "
    "\"label\": 0}\n";
static const char index_seed[] =
    "{\"metadata\": {\"total_size\": 40}, \"weight_map\": {\"a\": \"one.safetensors\", \"b\": \"two.safetensors\", "
    "\"c\": \"two.safetensors\"}}";

/* A safetensors file with every kind of tensor, made by hand. */
static size_t safetensors_seed(char *out) {
  static const char header[] =
      "{\"__metadata__\":{\"format\":\"pt\"},\"a\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,24]},"
      "\"b\":{\"dtype\":\"I64\",\"shape\":[],\"data_offsets\":[24,32]},"
      "\"c\":{\"dtype\":\"BF16\",\"shape\":[1,2],\"data_offsets\":[32,36]},"
      "\"none\":{\"dtype\":\"F16\",\"shape\":[0],\"data_offsets\":[36,36]},"
      "\"d\":{\"dtype\":\"F8_E5M2\",\"shape\":[3],\"data_offsets\":[36,39]},"
      "\"e\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[39,40]}} ";
  size_t length = sizeof header - 1, i;
  memset(out, 0, 8);
  out[0] = (char)(length & 255);
  out[1] = (char)(length >> 8);
  memcpy(out + 8, header, length);
  for (i = 0; i < 40; ++i) out[8 + length + i] = (char)(i * 7);
  return 8 + length + 40;
}

static void put_shards(void) {
  static const float values[] = {1, 2, 3, 4};
  ft_safetensors_item items[2];
  memset(items, 0, sizeof items);
  items[0].name = "a";
  items[0].dimensions = 1;
  items[0].shape[0] = 4;
  items[0].data = values;
  items[1] = items[0];
  context_open();
  CHECK(ft_safetensors_write(context, in_directory("one.safetensors"), items, 1, NULL, 0) == FT_OK);
  items[0].name = "b";
  items[1].name = "c";
  CHECK(ft_safetensors_write(context, in_directory("two.safetensors"), items, 2, NULL, 0) == FT_OK);
  ft_context_free(context);
}

/* Large inputs that tempt a reader into depth, or into work that grows as the square of their size. */
static void test_large(void) {
  static const target json = {"large JSON", load_json, 0, false}, csv = {"large CSV", load_csv, 0, false};
  enum { SIZE = 200000 };
  static const char *const repeated[] = {"[", "{\"a\":", "\"\\", "1", "[1],", ",", "\"\"", "\"\n", "-", "0.0", "\xFF"};
  char *bytes = (char *)malloc(SIZE);
  size_t i, k;
  CHECK(bytes != NULL);
  if (!bytes) return;
  context_open();
  for (k = 0; k < sizeof repeated / sizeof repeated[0]; ++k) {
    for (i = 0; i < SIZE; ++i) bytes[i] = repeated[k][i % strlen(repeated[k])];
    attempt(&json, bytes, SIZE, 0);
    attempt(&csv, bytes, SIZE, 0);
    bytes[0] = '[';
    attempt(&json, bytes, SIZE, 0);
    memcpy(bytes, "text\n\"", 6);
    attempt(&csv, bytes, SIZE, 0);
  }
  free(bytes);
  context_close(&json);
}

#ifndef HOSTILE_FILES_ONLY
/* Copies a file of tests/ into the working directory; returns its bytes, which the caller frees. */
static char *copy_file(const char *from, const char *name, size_t *size) {
  char path[300], *bytes = NULL;
  FILE *file;
  *size = 0;
  snprintf(path, sizeof path, "tests/%s/%s", from, name);
  file = fopen(path, "rb");
  CHECK(file != NULL);
  if (!file) return NULL;
  bytes = (char *)malloc((size_t)1 << 20);
  if (bytes) *size = fread(bytes, 1, (size_t)1 << 20, file);
  fclose(file);
  put_file(name, bytes, *size);
  return bytes;
}

static void test_tokenizers(void) {
  static const char vocabulary[] =
      "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\nfilm\n##s\n,\n!\ncaf\n##e\n\xE4\xB8\xAD\nplain\r\n##ly\n";
  static const char config[] =
      "{\"do_lower_case\": true, \"model_max_length\": 64, \"tokenizer_class\": \"BertTokenizer\"}";
  static const target in_vocabulary = {"vocab.txt", load_vocabulary, 4096, true};
  static const target in_config = {"tokenizer_config.json", load_tokenizer_config, 4096, true};
  target in_tokenizer = {"tokenizer.json", load_tokenizer_json, 4096, true};
  size_t size;
  char *tokenizer;
  put_file("tokenizer_config.json", config, sizeof config - 1);
  attack(&in_vocabulary, vocabulary, sizeof vocabulary - 1, 1000, 300);
  put_file("vocab.txt", vocabulary, sizeof vocabulary - 1);
  attack(&in_config, config, sizeof config - 1, 1000, 150);
  put_file("tokenizer_config.json", config, sizeof config - 1);
  tokenizer = copy_file("golden/bert-pairs", "tokenizer.json", &size);
  if (tokenizer) attack(&in_tokenizer, tokenizer, size, 200, 500);
  free(tokenizer);
  remove(in_directory("tokenizer.json"));
  remove(in_directory("vocab.txt"));
  remove(in_directory("tokenizer_config.json"));
}

/* The files of the other tokenizers: each changed with those that it needs beside it. */
static void test_other_tokenizers(void) {
  static const char *const names[] = {"bytes",  "characters", "fallback",    "unigram",
                                      "merges", "merges",     "albert-json", "albert"};
  static const char *const files[] = {"tokenizer.json", "tokenizer.json", "tokenizer.json", "tokenizer.json",
                                      "merges.txt",     "vocab.json",     "tokenizer.json", "spiece.model"};
  static const char *const beside[] = {NULL, NULL, NULL, NULL, "vocab.json", "merges.txt", NULL, NULL};
  size_t i;
  for (i = 0; i < sizeof names / sizeof names[0]; ++i) {
    target in_file = {files[i], load_tokenizer_json, 65536, true};
    char from[64], *bytes, *other = NULL;
    size_t size, other_size;
    if (strcmp(files[i], "merges.txt") == 0) in_file.load = load_merges;
    if (strcmp(files[i], "vocab.json") == 0) in_file.load = load_pieces;
    if (strcmp(files[i], "spiece.model") == 0) in_file.load = load_sentencepiece;
    snprintf(from, sizeof from, "tokenizers/%s", names[i]);
    bytes = copy_file(from, files[i], &size);
    if (beside[i]) other = copy_file(from, beside[i], &other_size);
    if (bytes) attack(&in_file, bytes, size, 60, 250);
    remove(in_directory(files[i]));
    if (beside[i]) remove(in_directory(beside[i]));
    free(bytes);
    free(other);
  }
}

static void test_models(void) {
  target in_config = {"config.json", load_config, 0, true}, in_weights = {"model.safetensors", load_weights, 0, true};
  size_t config_size, weights_size;
  char *config = copy_file("golden/distilbert", "config.json", &config_size);
  char *weights = copy_file("golden/distilbert", "model.safetensors", &weights_size);
  in_config.context_bytes = weights_size;
  in_weights.context_bytes = config_size;
  if (config && weights) {
    attack(&in_config, config, config_size, 200, 400);
    put_file("config.json", config, config_size);
    attack(&in_weights, weights, weights_size, 100, 200);
  }
  free(config);
  free(weights);
  remove(in_directory("config.json"));
  remove(in_directory("model.safetensors"));
}
#endif

int main(void) {
  static const target json = {"JSON", load_json, 0, false};
  static const target memory = {"safetensors in memory", load_safetensors_memory, 0, false};
  static const target file = {"safetensors file", load_safetensors_file, 0, false};
  static const target index = {"index", load_index, 512, false};
  static const target csv = {"CSV", load_csv, 0, false}, csv_file = {"CSV file", load_csv_file, 0, false};
  static const target tsv = {"TSV", load_tsv, 0, false}, jsonl = {"JSONL", load_jsonl, 0, false};
  const char *base = getenv("TMPDIR");
  char seed[1024];
  size_t size = safetensors_seed(seed);
  snprintf(directory, sizeof directory, "%.500s/finetune-hostile-%lu", base ? base : "/tmp", ft__process());
  CHECK(ft__make_directory(directory) == 0);
  attack(&json, json_seed, sizeof json_seed - 1, 1000, 1500);
  attack(&memory, seed, size, 1000, 1500);
  attack(&file, seed, size, 1000, 400);
  attack(&csv, csv_seed, sizeof csv_seed - 1, 1000, 700);
  attack(&csv_file, csv_seed, sizeof csv_seed - 1, 1000, 100);
  attack(&tsv, tsv_seed, sizeof tsv_seed - 1, 1000, 500);
  attack(&jsonl, jsonl_seed, sizeof jsonl_seed - 1, 1000, 700);
  put_shards();
  attack(&index, index_seed, sizeof index_seed - 1, 1000, 400);
  remove(in_directory("model.safetensors.index.json"));
  test_large();
#ifndef HOSTILE_FILES_ONLY
  test_tokenizers();
  test_other_tokenizers();
  test_models();
#endif
  remove(in_directory("hostile.safetensors"));
  remove(in_directory("hostile.csv"));
  remove(in_directory("one.safetensors"));
  remove(in_directory("two.safetensors"));
  CHECK(remove(directory) == 0);
  CHECK(inputs >= 3000);
  printf("%lld inputs, %lld of them accepted, at most %lu bytes\n", (long long)inputs, (long long)accepted_inputs,
         (unsigned long)live_peak);
  FINISH();
}
