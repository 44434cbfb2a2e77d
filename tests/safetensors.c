/* safetensors.c - reading and writing named arrays; files. */
#define FT_IMPLEMENTATION
#include "../finetune.h"
#include "check.h"

static ft_context *context;
static char directory[600];

static const char *in_directory(const char *name) {
  static char path[800];
  snprintf(path, sizeof path, "%s/%s", directory, name);
  return path;
}

/* A file in memory: a header, with its size before it, and data_size bytes of data that count 0, 1, 2, ... */
static unsigned char file_bytes[4096];
static size_t file_build(const char *header, size_t data_size) {
  size_t length = strlen(header), i;
  memset(file_bytes, 0, 8);
  file_bytes[0] = (unsigned char)(length & 255);
  file_bytes[1] = (unsigned char)(length >> 8);
  memcpy(file_bytes + 8, header, length);
  for (i = 0; i < data_size; ++i) file_bytes[8 + length + i] = (unsigned char)i;
  return 8 + length + data_size;
}

static void refused(const char *header, size_t data_size, const char *message) {
  size_t size = file_build(header, data_size);
  ft_safetensors *file = ft_safetensors_parse(context, file_bytes, size, "test");
  CHECK(file == NULL);
  CHECK(strncmp(ft_error_message(context), "test: ", 6) == 0);
  CHECK(strstr(ft_error_message(context), message) != NULL);
  if (!strstr(ft_error_message(context), message))
    printf("  %s\n  should speak of: %s\n", ft_error_message(context), message);
  ft_safetensors_close(file);
}

static void test_read(void) {
  size_t size = file_build(
      "{\"b\":{\"dtype\":\"F32\",\"shape\":[2,1],\"data_offsets\":[8,16]},\"__metadata__\":{\"format\":\"pt\"},"
      "\"none\":{\"dtype\":\"F32\",\"shape\":[3,0,2],\"data_offsets\":[8,8]},"
      "\"a\":{\"dtype\":\"I64\",\"shape\":[],\"data_offsets\":[0,8]},"
      "\"c\":{\"dtype\":\"F8_E4M3\",\"shape\":[2],\"data_offsets\":[16,18]},"
      "\"d\":{\"dtype\":\"F4\",\"shape\":[2],\"data_offsets\":[18,19]},"
      "\"e\":{\"dtype\":\"NEW\",\"shape\":[5],\"data_offsets\":[19,21]}}   ",
      21);
  ft_safetensors *file = ft_safetensors_parse(context, file_bytes, size, "test");
  const ft_safetensors_entry *entry = ft_safetensors_find(file, "b");
  float floats[2] = {0, 0};
  int64_t integer = 0;
  uint32_t bits;
  CHECK(file && ft_safetensors_count(file) == 6);
  CHECK(entry && entry->dimensions == 2 && entry->shape[0] == 2 && entry->shape[1] == 1 && entry->count == 2);
  CHECK(entry && entry->dtype == FT_F32 && strcmp(entry->name, "b") == 0 && entry == ft_safetensors_at(file, 0));
  CHECK(ft_safetensors_read_float(context, file, entry, floats) == FT_OK);
  memcpy(&bits, &floats[1], 4);
  CHECK(bits == 0x0F0E0D0C);
  CHECK(ft_safetensors_read_int(context, file, ft_safetensors_find(file, "a"), &integer) == FT_OK);
  CHECK(integer == 0x0706050403020100);
  entry = ft_safetensors_find(file, "none");
  CHECK(entry && entry->count == 0 && entry->dimensions == 3);
  CHECK(ft_safetensors_read_float(context, file, entry, floats) == FT_OK);
  CHECK(ft_safetensors_read_float(context, file, ft_safetensors_find(file, "a"), floats) == FT_ERROR_UNSUPPORTED);
  CHECK(ft_safetensors_read_int(context, file, ft_safetensors_find(file, "b"), &integer) == FT_ERROR_UNSUPPORTED);
  CHECK(ft_safetensors_read_float(context, file, ft_safetensors_find(file, "c"), floats) == FT_ERROR_UNSUPPORTED);
  CHECK(strstr(ft_error_message(context), "tensor \"c\" of dtype F8_E4M3") != NULL);
  CHECK(ft_safetensors_read_int(context, file, ft_safetensors_find(file, "d"), &integer) == FT_ERROR_UNSUPPORTED);
  CHECK(ft_safetensors_read_int(context, file, ft_safetensors_find(file, "e"), &integer) == FT_ERROR_UNSUPPORTED);
  CHECK_TEXT(ft_safetensors_metadata(file, "format"), "pt");
  CHECK(!ft_safetensors_metadata(file, "other") && !ft_safetensors_find(file, "f") && !ft_safetensors_at(file, 6));
  CHECK(ft_safetensors_read_float(context, file, NULL, floats) != FT_OK);
  ft_safetensors_close(file);
  ft_safetensors_close(NULL);
  size = file_build("{}", 0);
  file = ft_safetensors_parse(context, file_bytes, size, "test");
  CHECK(file && ft_safetensors_count(file) == 0);
  ft_safetensors_close(file);
}

static void test_errors(void) {
  static const struct {
    const char *header;
    size_t data_size;
    const char *message;
  } cases[] = {
      {" {}", 0, "must begin with {"},
      {"[]", 0, "must begin with {"},
      {"{", 0, "line 1, column 2"},
      {"{}", 1, "end at byte 0 of 1"},
      {"{\"a\":5}", 0, "tensor \"a\" must have"},
      {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1]}}", 4, "tensor \"a\" must have"},
      {"{\"a\":{\"dtype\":\"F32\",\"data_offsets\":[0,4]}}", 4, "tensor \"a\" must have"},
      {"{\"a\":{\"dtype\":5,\"shape\":[1],\"data_offsets\":[0,4]}}", 4, "tensor \"a\" must have"},
      {"{\"a\":{\"dtype\":\"F32\",\"shape\":[-1],\"data_offsets\":[0,4]}}", 4, "tensor \"a\" must have"},
      {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1.0],\"data_offsets\":[0,4]}}", 4, "tensor \"a\" must have"},
      {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4,8]}}", 4, "tensor \"a\" must have"},
      {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,18446744073709551620]}}", 4,
       "tensor \"a\" must have"},
      {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1,1,1,1,1,1,1,1,1],\"data_offsets\":[0,4]}}", 4, "9 dimensions"},
      {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,4]}}", 4, "2 elements of dtype F32"},
      {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,0]}}", 4, "data_offsets 4 and 0"},
      {"{\"a\":{\"dtype\":\"F32\",\"shape\":[4611686018427387904,4],\"data_offsets\":[0,0]}}", 0, "overflows"},
      {"{\"a\":{\"dtype\":\"F32\",\"shape\":[4294967296,4294967296,0],\"data_offsets\":[0,0]}}", 0, "overflows"},
      {"{\"a\":{\"dtype\":\"F4\",\"shape\":[3],\"data_offsets\":[0,1]}}", 1, "3 elements of dtype F4"},
      {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", 3, "ends at byte 4 of 3"},
      {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", 5, "end at byte 4 of 5"},
      {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[1,5]}}", 5, "begins at byte 1"},
      {"{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]},\"b\":{\"dtype\":\"U8\",\"shape\":[4],"
       "\"data_offsets\":[2,6]}}",
       6, "tensor \"b\" begins at byte 2 of the data, the one before it ends at 4"},
      {"{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]},\"b\":{\"dtype\":\"U8\",\"shape\":[4],"
       "\"data_offsets\":[0,4]}}",
       4, "the one before it ends at 4"},
      {"{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]},\"b\":{\"dtype\":\"U8\",\"shape\":[0],"
       "\"data_offsets\":[2,2]}}",
       4, "tensor \"b\" begins at byte 2"},
      {"{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]},\"a\":{\"dtype\":\"U8\",\"shape\":[4],"
       "\"data_offsets\":[4,8]}}",
       8, "\"a\" twice"},
      {"{\"a\\u0000b\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1, "zero byte"},
      {"{\"__metadata__\":[]}", 0, "__metadata__ must be an object"},
      {"{\"__metadata__\":{\"a\":1}}", 0, "\"a\" must be a string"}};
  size_t i, size;
  for (i = 0; i < sizeof cases / sizeof cases[0]; ++i) refused(cases[i].header, cases[i].data_size, cases[i].message);
  size = file_build("{}", 0);
  CHECK(!ft_safetensors_parse(context, file_bytes, 7, "test"));
  CHECK(!ft_safetensors_parse(context, file_bytes, size - 1, "test"));
  file_bytes[7] = 0x80; /* a header of 2^63 bytes and more */
  CHECK(!ft_safetensors_parse(context, file_bytes, size, "test"));
  CHECK(strstr(ft_error_message(context), "header of 9223372036854775810 bytes") != NULL);
  CHECK(!ft_safetensors_open(context, "tests/no such file"));
  CHECK(!ft_safetensors_open(context, "tests"));
  CHECK(strstr(ft_error_message(context), "neither model.safetensors nor model.safetensors.index.json") != NULL);
}

/* Every half against its definition: (-1)^s 2^(e-15) 1.f, subnormals 2^-14 0.f. */
static void test_half(void) {
  uint32_t half, wrong = 0;
  for (half = 0; half < 65536; ++half) {
    int exponent = (int)(half >> 10 & 31);
    double fraction = (double)(half & 1023) / 1024;
    double expected = exponent ? ldexp(1 + fraction, exponent - 15) : ldexp(fraction, -14);
    float value = ft__float_from_half(half);
    uint32_t bits;
    memcpy(&bits, &value, 4);
    if (bits >> 31 != half >> 15) ++wrong;
    if (exponent == 31) {
      if ((bits & 0x7FFFFFFF) != (0x7F800000 | (half & 1023) << 13)) ++wrong;
    } else if ((double)fabsf(value) != expected) {
      ++wrong;
    }
  }
  CHECK(wrong == 0);
}

/* What the reference implementation (Python, safetensors 0.8) writes for these tensors. */
static const char reference_header[] =
    "{\"__metadata__\":{\"format\":\"pt \\\"x\\\"\"},\"i64\":{\"dtype\":\"I64\",\"shape\":[2],\"data_offsets\":[0,16]},"
    "\"f64\":{\"dtype\":\"F64\",\"shape\":[1],\"data_offsets\":[16,24]},\"a.f32\":{\"dtype\":\"F32\",\"shape\":[],"
    "\"data_offsets\":[24,28]},\"empty\":{\"dtype\":\"F32\",\"shape\":[0,3],\"data_offsets\":[28,28]},"
    "\"z.f32\":{\"dtype\":\"F32\",\"shape\":[2,2],\"data_offsets\":[28,44]},\"\xC3\xA9\\\"\\\\\":{\"dtype\":\"F32\","
    "\"shape\":[1],\"data_offsets\":[44,48]},\"i32\":{\"dtype\":\"I32\",\"shape\":[2],\"data_offsets\":[48,56]},"
    "\"bf16\":{\"dtype\":\"BF16\",\"shape\":[1],\"data_offsets\":[56,58]},\"f16\":{\"dtype\":\"F16\",\"shape\":[2],"
    "\"data_offsets\":[58,62]},\"u8\":{\"dtype\":\"U8\",\"shape\":[3],\"data_offsets\":[62,65]}}     ";
static const unsigned char reference_data[] = {
    1, 0,    0,    0,    0,    0,    0,    0, 0xFE, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0,
    0, 0,    0,    0,    0,    0xE0, 0x3F, 0, 0,    0x50, 0x40, 0,    0,    0x80, 0x3F, 0,    0,
    0, 0x40, 0,    0,    0x40, 0x40, 0,    0, 0x80, 0x40, 0,    0,    0x10, 0x41, 7,    0,    0,
    0, 0xF9, 0xFF, 0xFF, 0xFF, 0xC0, 0x3F, 0, 0x3E, 0,    0xB4, 1,    2,    0xFF};

static const int64_t i64[] = {1, -2};
static const double f64[] = {0.5};
static const float matrix[] = {1, 2, 3, 4}, scalar[] = {3.25f}, nine[] = {9};
static const int32_t i32[] = {7, -7};
static const uint16_t bf16[] = {0x3FC0}, f16[] = {0x3E00, 0xB400};
static const unsigned char u8[] = {1, 2, 255};
static const ft_safetensors_item mixed[] = {
    {"z.f32", FT_F32, 2, {2, 2}, matrix},  {"u8", FT_U8, 1, {3}, u8},    {"a.f32", FT_F32, 0, {0}, scalar},
    {"i64", FT_I64, 1, {2}, i64},          {"f64", FT_F64, 1, {1}, f64}, {"bf16", FT_BF16, 1, {1}, bf16},
    {"empty", FT_F32, 2, {0, 3}, NULL},    {"i32", FT_I32, 1, {2}, i32}, {"f16", FT_F16, 1, {2}, f16},
    {"\xC3\xA9\"\\", FT_F32, 1, {1}, nine}};

static void test_write(void) {
  static const char *const metadata[] = {"format", "pt \"x\""};
  const char *path = in_directory("mixed.safetensors");
  size_t size = 0, header = sizeof reference_header - 1;
  ft_safetensors *file;
  float floats[4];
  int64_t integers[3];
  char *bytes, *temporary;
  CHECK(ft_safetensors_write(context, path, mixed, 10, metadata, 2) == FT_OK);
  bytes = ft__file_read(context, path, &size);
  CHECK(bytes && size == 8 + header + sizeof reference_data && size == 697);
  CHECK(bytes && size == 697 && (unsigned char)bytes[0] == (header & 255) && (unsigned char)bytes[1] == header >> 8);
  CHECK(bytes && size == 697 && memcmp(bytes + 8, reference_header, header) == 0);
  CHECK(bytes && size == 697 && memcmp(bytes + 8 + header, reference_data, sizeof reference_data) == 0);
  ft__release(context, bytes);
  file = ft_safetensors_open(context, path);
  CHECK(file != NULL);
  CHECK(ft_safetensors_read_float(context, file, ft_safetensors_find(file, "z.f32"), floats) == FT_OK &&
        floats[3] == 4);
  CHECK(ft_safetensors_read_float(context, file, ft_safetensors_find(file, "f64"), floats) == FT_OK &&
        floats[0] == 0.5f);
  CHECK(ft_safetensors_read_float(context, file, ft_safetensors_find(file, "bf16"), floats) == FT_OK &&
        floats[0] == 1.5f);
  CHECK(ft_safetensors_read_float(context, file, ft_safetensors_find(file, "f16"), floats) == FT_OK &&
        floats[1] == -0.25f);
  CHECK(ft_safetensors_read_float(context, file, ft_safetensors_find(file, "\xC3\xA9\"\\"), floats) == FT_OK);
  CHECK(floats[0] == 9);
  CHECK(ft_safetensors_read_int(context, file, ft_safetensors_find(file, "i64"), integers) == FT_OK &&
        integers[1] == -2);
  CHECK(ft_safetensors_read_int(context, file, ft_safetensors_find(file, "i32"), integers) == FT_OK &&
        integers[1] == -7);
  CHECK(ft_safetensors_read_int(context, file, ft_safetensors_find(file, "u8"), integers) == FT_OK &&
        integers[2] == 255);
  ft_safetensors_close(file);
  CHECK(ft_safetensors_write(context, path, NULL, 0, NULL, 0) == FT_OK); /* replaces the file */
  bytes = ft__file_read(context, path, &size);
  CHECK(bytes && size == 16 && memcmp(bytes + 8, "{}      ", 8) == 0);
  ft__release(context, bytes);
  temporary = (char *)ft__allocate(context, strlen(path) + 64);
  sprintf(temporary, "%s.%lu-%llx.tmp", path, ft__process(), (unsigned long long)(uintptr_t)context);
  CHECK(!ft__file_exists(temporary));
  ft__release(context, temporary);
  remove(path);
}

static void test_write_errors(void) {
  static const char *const metadata[] = {"a", "1", "a", "2"};
  static const char *const broken[] = {"a", "\xFF"};
  ft_safetensors_item items[2];
  const char *path = in_directory("broken.safetensors");
  memcpy(items, mixed, sizeof items);
  CHECK(ft_safetensors_write(context, path, items, 2, metadata, 3) == FT_ERROR_ARGUMENT);
  CHECK(ft_safetensors_write(context, path, items, 2, metadata, 4) == FT_ERROR_ARGUMENT);
  CHECK(ft_safetensors_write(context, path, items, 2, broken, 2) == FT_ERROR_ARGUMENT);
  items[1].name = items[0].name;
  CHECK(ft_safetensors_write(context, path, items, 2, NULL, 0) == FT_ERROR_ARGUMENT);
  CHECK(strstr(ft_error_message(context), "z.f32") != NULL);
  items[1].name = "__metadata__";
  CHECK(ft_safetensors_write(context, path, items, 2, NULL, 0) == FT_ERROR_ARGUMENT);
  items[1].name = "\xFF";
  CHECK(ft_safetensors_write(context, path, items, 2, NULL, 0) == FT_ERROR_ARGUMENT);
  items[1].name = NULL;
  CHECK(ft_safetensors_write(context, path, items, 2, NULL, 0) == FT_ERROR_ARGUMENT);
  items[1] = mixed[1];
  items[1].data = NULL;
  CHECK(ft_safetensors_write(context, path, items, 2, NULL, 0) == FT_ERROR_ARGUMENT);
  items[1] = mixed[1];
  items[1].shape[0] = -1;
  CHECK(ft_safetensors_write(context, path, items, 2, NULL, 0) == FT_ERROR_ARGUMENT);
  items[1].dimensions = 9;
  CHECK(ft_safetensors_write(context, path, items, 2, NULL, 0) == FT_ERROR_ARGUMENT);
  CHECK(!ft__file_exists(path));
  CHECK(ft_safetensors_write(context, in_directory("missing/x.safetensors"), mixed, 2, NULL, 0) == FT_ERROR_FILE);
  CHECK(strstr(ft_error_message(context), "missing/x.safetensors cannot be created") != NULL);
  CHECK(ft_safetensors_write(context, directory, mixed, 2, NULL, 0) == FT_ERROR_FILE); /* a directory is in the way */
}

/* Reads a model file that Python wrote and writes it again: the bytes must be the same. */
static void test_rewrite(const char *path) {
  ft_safetensors *file = ft_safetensors_open(context, path);
  const char *metadata[2] = {"format", NULL}, *copy = in_directory("copy.safetensors");
  int64_t i, count = ft_safetensors_count(file);
  size_t size = 0, copy_size = 0;
  char *bytes = ft__file_read(context, path, &size), *copy_bytes;
  ft_safetensors_item *items = (ft_safetensors_item *)ft__allocate_zero(context, (size_t)(count + 1) * sizeof *items);
  CHECK(file && count > 10 && bytes);
  metadata[1] = ft_safetensors_metadata(file, "format");
  for (i = 0; i < count; ++i) {
    const ft_safetensors_entry *entry = ft_safetensors_at(file, count - 1 - i);
    float *values = (float *)ft__allocate(context, (size_t)entry->count * sizeof *values);
    CHECK(ft_safetensors_read_float(context, file, entry, values) == FT_OK);
    items[i].name = entry->name;
    items[i].dtype = entry->dtype;
    items[i].dimensions = entry->dimensions;
    memcpy(items[i].shape, entry->shape, sizeof entry->shape);
    items[i].data = values;
  }
  CHECK(ft_safetensors_write(context, copy, items, count, metadata, 2) == FT_OK);
  copy_bytes = ft__file_read(context, copy, &copy_size);
  CHECK(copy_bytes && copy_size == size && memcmp(bytes, copy_bytes, size) == 0);
  for (i = 0; i < count; ++i) ft__release(context, (void *)items[i].data);
  ft__release(context, items);
  ft__release(context, bytes);
  ft__release(context, copy_bytes);
  ft_safetensors_close(file);
  remove(copy);
}

static void index_refused(const char *index, const char *message) {
  const char *path = in_directory("model.safetensors.index.json");
  ft_safetensors *file;
  CHECK(ft__file_write(context, path, index, strlen(index)) == FT_OK);
  file = ft_safetensors_open(context, directory);
  CHECK(file == NULL);
  CHECK(strstr(ft_error_message(context), message) != NULL);
  if (!strstr(ft_error_message(context), message)) printf("  %s\n", ft_error_message(context));
  ft_safetensors_close(file);
  remove(path);
}

static void test_sharded(void) {
  ft_safetensors *file = ft_safetensors_open(context, "tests/golden/bert-legacy"), *same;
  int64_t i;
  CHECK(file && ft_safetensors_count(file) > 30);
  for (i = 0; i < ft_safetensors_count(file); ++i) {
    float values[4096];
    const ft_safetensors_entry *entry = ft_safetensors_at(file, i);
    CHECK(ft_safetensors_find(file, entry->name) == entry);
    if (entry->count <= 4096) CHECK(ft_safetensors_read_float(context, file, entry, values) == FT_OK);
  }
  CHECK_TEXT(ft_safetensors_metadata(file, "format"), "pt");
  same = ft_safetensors_open(context, "tests/golden/bert-legacy/model.safetensors.index.json");
  CHECK(same && ft_safetensors_count(same) == ft_safetensors_count(file));
  ft_safetensors_close(file);
  ft_safetensors_close(same);
  CHECK(ft_safetensors_write(context, in_directory("one.safetensors"), mixed, 2, NULL, 0) == FT_OK);
  CHECK(ft_safetensors_write(context, in_directory("two.safetensors"), mixed + 2, 2, NULL, 0) == FT_OK);
  index_refused("{}", "no object \"weight_map\"");
  index_refused("[1]", "no object \"weight_map\"");
  index_refused("{\"weight_map\":{\"u8\":5}}", "must be a plain name");
  index_refused("{\"weight_map\":{\"u8\":\"../one.safetensors\"}}", "must be a plain name");
  index_refused("{\"weight_map\":{\"u8\":\"..\"}}", "must be a plain name");
  index_refused("{\"weight_map\":{\"u8\":\"\"}}", "must be a plain name");
  index_refused("{\"weight_map\":{\"u8\":\"one.safetensors\\u0000\"}}", "must be a plain name");
  index_refused("{\"weight_map\":{\"u8\":\"three.safetensors\"}}",
                "three.safetensors, which holds tensor \"u8\", is missing");
  index_refused("{\"weight_map\":{\"u8\":\"two.safetensors\"}}", "tensor \"u8\" is not in");
  index_refused("{\"weight_map\":{\"u8\":\"one.safetensors\",\"x\":\"one.safetensors\"}}", "tensor \"x\" is not in");
  {
    static const char index[] = "{\"weight_map\":{\"u8\":\"one.safetensors\",\"i64\":\"two.safetensors\"}}";
    int64_t value[2] = {0, 0};
    CHECK(ft__file_write(context, in_directory("model.safetensors.index.json"), index, sizeof index - 1) == FT_OK);
    file = ft_safetensors_open(context, directory);
    CHECK(file && ft_safetensors_count(file) == 2);
    CHECK(ft_safetensors_read_int(context, file, ft_safetensors_find(file, "i64"), value) == FT_OK && value[1] == -2);
    ft_safetensors_close(file);
    remove(in_directory("model.safetensors.index.json"));
  }
  remove(in_directory("one.safetensors"));
  remove(in_directory("two.safetensors"));
}

/* A tensor of many pieces, with conversion. */
static void test_large(void) {
  enum { COUNT = 50001 };
  uint16_t *halves = (uint16_t *)ft__allocate(context, COUNT * sizeof *halves);
  float *values = (float *)ft__allocate(context, COUNT * sizeof *values);
  ft_safetensors_item item;
  ft_safetensors *file;
  int64_t i, wrong = 0;
  memset(&item, 0, sizeof item);
  for (i = 0; i < COUNT; ++i) halves[i] = (uint16_t)(i % 30000);
  item.name = "halves";
  item.dtype = FT_F16;
  item.dimensions = 1;
  item.shape[0] = COUNT;
  item.data = halves;
  CHECK(ft_safetensors_write(context, in_directory("large.safetensors"), &item, 1, NULL, 0) == FT_OK);
  file = ft_safetensors_open(context, in_directory("large.safetensors"));
  CHECK(ft_safetensors_read_float(context, file, ft_safetensors_at(file, 0), values) == FT_OK);
  for (i = 0; i < COUNT; ++i)
    if (values[i] != ft__float_from_half(halves[i])) ++wrong;
  CHECK(wrong == 0);
  ft_safetensors_close(file);
  remove(in_directory("large.safetensors"));
  ft__release(context, halves);
  ft__release(context, values);
}

static void test_dtypes(void) {
  CHECK_TEXT(ft_dtype_name(FT_F32), "F32");
  CHECK_TEXT(ft_dtype_name(FT_BF16), "BF16");
  CHECK_TEXT(ft_dtype_name(FT_I64), "I64");
  CHECK(ft_dtype_size(FT_F32) == 4 && ft_dtype_size(FT_BF16) == 2 && ft_dtype_size(FT_F16) == 2);
  CHECK(ft_dtype_size(FT_F64) == 8 && ft_dtype_size(FT_I64) == 8 && ft_dtype_size(FT_I32) == 4);
  CHECK(ft_dtype_size(FT_U8) == 1);
}

static void test_directories(void) {
  char *joined = ft__path_join(context, "a/b/", "c");
  CHECK_TEXT(joined, "a/b/c");
  ft__release(context, joined);
  joined = ft__path_join(context, "", "c");
  CHECK_TEXT(joined, "c");
  ft__release(context, joined);
  CHECK(ft__directory_create(context, in_directory("a/b//c/")) == FT_OK);
  CHECK(ft__directory_create(context, in_directory("a/b")) == FT_OK);
  CHECK(ft__is_directory(in_directory("a/b/c")) && !ft__file_exists(in_directory("a/b/c")));
  CHECK(ft__file_write(context, in_directory("a/file"), "x", 1) == FT_OK && ft__file_exists(in_directory("a/file")));
  CHECK(ft__directory_create(context, in_directory("a/file/b")) == FT_ERROR_FILE);
  remove(in_directory("a/file"));
  remove(in_directory("a/b/c"));
  remove(in_directory("a/b"));
  remove(in_directory("a"));
}

int main(void) {
  ft_context_options options;
  const char *base = getenv("TMPDIR");
  memset(&options, 0, sizeof options);
  options.threads = 1;
  context = ft_context_create(&options);
  if (!context) return 1;
  snprintf(directory, sizeof directory, "%.500s/finetune-safetensors-%lu", base ? base : "/tmp", ft__process());
  CHECK(ft__directory_create(context, directory) == FT_OK);
  test_dtypes();
  test_read();
  test_errors();
  test_half();
  test_write();
  test_write_errors();
  test_rewrite("tests/golden/distilbert/model.safetensors");
  test_rewrite("tests/golden/bert-pairs/model.safetensors");
  test_sharded();
  test_large();
  test_directories();
  CHECK(remove(directory) == 0); /* nothing was left behind */
  ft_context_free(context);
  FINISH();
}
