/* hub.c - models by their names: found in a Hugging Face cache as Python's libraries lay it out, wherever the
   environment says that the cache is; a directory of that name wins; what is not there is one sentence with the command
   that helps. */
#define FT_IMPLEMENTATION
#include "../finetune.h"
#include "check.h"
#include "files.h"

#define COMMIT "0123456789abcdef0123456789abcdef01234567"
static const char golden[] = "tests/golden/distilbert";

static ft_context *context;
static char root[600];    /* for this test */
static char cache[700];   /* root/cache */
static char path[2000];   /* what ft_model_path found */
static char folder[1000]; /* of the model last put into the cache */

/* The environment without any cache, but for one variable. */
static void environment(const char *name, const char *value) {
  static const char *const names[] = {"HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME", "HOME", "USERPROFILE"};
  int i;
  for (i = 0; i < 5; ++i) unsetenv(names[i]);
  if (name) setenv(name, value, 1);
}

static void make_directory(const char *name) { CHECK(ft__directory_create(context, name) == FT_OK); }

/* Puts the golden model into hub/FOLDER, its files as links into blobs/, as Python does. */
static void make_model(const char *hub, const char *name) {
  static const char *const files[] = {"config.json", "vocab.txt", "model.safetensors"};
  char refs[1100], blobs[1100], snapshot[1200], target[100], link[1300];
  int i;
  snprintf(folder, sizeof folder, "%s/%s", hub, name);
  snprintf(refs, sizeof refs, "%s/refs", folder);
  snprintf(blobs, sizeof blobs, "%s/blobs", folder);
  snprintf(snapshot, sizeof snapshot, "%s/snapshots/%s", folder, COMMIT);
  make_directory(refs), make_directory(blobs), make_directory(snapshot);
  files_write_text(refs, "main", COMMIT);
  for (i = 0; i < 3; ++i) {
    files_copy(context, golden, blobs, files[i]);
    snprintf(target, sizeof target, "../../blobs/%s", files[i]);
    snprintf(link, sizeof link, "%s/%s", snapshot, files[i]);
    CHECK(symlink(target, link) == 0);
  }
}

/* Removes a directory with all that is below it. */
static void remove_tree(const char *name) {
  DIR *list = opendir(name);
  struct dirent *entry;
  char below[1500];
  while (list && (entry = readdir(list)) != NULL) {
    struct stat information;
    if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0) continue;
    snprintf(below, sizeof below, "%.1200s/%.255s", name, entry->d_name);
    if (lstat(below, &information) == 0 && S_ISDIR(information.st_mode))
      remove_tree(below);
    else
      CHECK(remove(below) == 0);
  }
  if (list) closedir(list);
  CHECK(remove(name) == 0);
}

static bool found(const char *name, const char *expected) {
  path[0] = 0;
  if (ft_model_path(context, name, path, sizeof path) != FT_OK) printf("%s\n", ft_error_message(context));
  return strcmp(path, expected) == 0;
}

static bool refused(const char *name, ft_status status, const char *words) {
  bool ok = ft_model_path(context, name, path, sizeof path) == status && ft_error_status(context) == status &&
            strstr(ft_error_message(context), words) != NULL;
  if (!ok) printf("%s: %s\n", name, ft_error_message(context));
  return ok;
}

static void test_places(void) {
  static const struct {
    const char *variable, *value, *hub;
  } places[] = {{"HF_HUB_CACHE", "/a", "/a"},
                {"HF_HOME", "/b", "/b/hub"},
                {"XDG_CACHE_HOME", "/c", "/c/huggingface/hub"},
                {"HOME", "/d", "/d/.cache/huggingface/hub"}};
  char value[700], hub[800], expected[1300];
  int i;
  for (i = 0; i < 4; ++i) {
    snprintf(value, sizeof value, "%s%s", root, places[i].value);
    snprintf(hub, sizeof hub, "%s%s", root, places[i].hub);
    make_model(hub, "models--org--small.model-1");
    snprintf(expected, sizeof expected, "%s/snapshots/%s", folder, COMMIT);
    environment(places[i].variable, value);
    CHECK(found("org/small.model-1", expected));
  }
  for (i = 3; i >= 0; --i) { /* each goes before those below it, unless it is empty */
    setenv(places[i].variable, "", 1);
    CHECK(i == 3 || found("org/small.model-1", expected));
    snprintf(value, sizeof value, "%s%s", root, places[i].value);
    setenv(places[i].variable, value, 1);
    snprintf(expected, sizeof expected, "%s%s/models--org--small.model-1/snapshots/%s", root, places[i].hub, COMMIT);
    CHECK(found("org/small.model-1", expected));
  }
  environment(NULL, NULL);
  CHECK(refused("org/small.model-1", FT_ERROR_FILE, "./.cache/huggingface/hub/models--org--small.model-1"));
}

static bool same_weights(const ft_model *a, const ft_model *b) {
  int64_t i, k;
  bool same = ft_model_parameter_count(a) == ft_model_parameter_count(b);
  for (i = 0; same && i < ft_model_parameter_count(a); ++i) {
    const ft_tensor *x = ft_model_parameter(a, i)->tensor, *y = ft_model_parameter(b, i)->tensor;
    int64_t count = ft_tensor_count(x);
    ft_real *values = (ft_real *)malloc((size_t)(2 * count + 1) * sizeof *values);
    same = values && ft_tensor_read(context, x, values) == FT_OK && ft_tensor_read(context, y, values + count) == FT_OK;
    for (k = 0; same && k < count; ++k) same = values[k] == values[count + k];
    free(values);
  }
  return same;
}

/* The loaders go by names too. */
static void test_loading(void) {
  static const char *const names[] = {"small", "org/small"};
  int i;
  environment("HF_HUB_CACHE", cache);
  make_model(cache, "models--org--small");
  make_model(cache, "models--small");
  for (i = 0; i < 2; ++i) {
    ft_model *model = ft_model_load(context, names[i], NULL), *same = ft_model_load(context, golden, NULL);
    ft_tokenizer *tokenizer = ft_tokenizer_load(context, names[i]);
    CHECK(model && same && tokenizer);
    CHECK(model && same && same_weights(model, same));
    CHECK(ft_tokenizer_id(tokenizer, "[CLS]") >= 0);
    CHECK(ft_max_length(context, model, tokenizer, 0) > 0);
    ft_tokenizer_free(tokenizer);
    ft_model_free(model);
    ft_model_free(same);
  }
}

/* What exists is taken as it is. */
static void test_directories(void) {
  make_model(cache, "models--tests--golden");
  CHECK(found("tests/golden", "tests/golden")); /* there is such a directory */
  CHECK(found(golden, golden) && found("tests/golden/", "tests/golden/") && found(".", ".") && found("/", "/"));
  CHECK(found("tests/golden/distilbert/config.json", "tests/golden/distilbert/config.json"));
}

static void test_missing(void) {
  char expected[1500], small[8];
  ft_tokenizer *tokenizer;
  environment("HF_HUB_CACHE", cache);
  snprintf(expected, sizeof expected,
           "there is no directory some-org/nothing, and its snapshot is not in the Hugging Face cache, "
           "%s/models--some-org--nothing: \"bash tools/fetch.sh some-org/nothing\" downloads the model to ./nothing",
           cache);
  CHECK(ft_model_load(context, "some-org/nothing", NULL) == NULL);
  CHECK_TEXT(ft_error_message(context), expected);
  CHECK(ft_error_status(context) == FT_ERROR_FILE);
  CHECK(ft_error_set(context, FT_OK, "") == FT_OK);
  tokenizer = ft_tokenizer_load(context, "some-org/nothing");
  CHECK(tokenizer == NULL);
  CHECK_TEXT(ft_error_message(context), expected);
  CHECK(refused("nothing", FT_ERROR_FILE, "\"bash tools/fetch.sh nothing\" downloads the model to ./nothing"));
  /* No names of the hub: nothing is looked for in the cache. */
  make_model(cache, "models--..--up");
  CHECK(refused("../up", FT_ERROR_FILE, "there is no directory ../up"));
  CHECK(!strstr(ft_error_message(context), "cache"));
  CHECK(refused("/no/such/directory", FT_ERROR_FILE, "there is no directory /no/such/directory"));
  CHECK(!strstr(ft_error_message(context), "cache"));
  CHECK(refused("", FT_ERROR_FILE, "there is no directory"));
  CHECK(refused("small/", FT_ERROR_FILE, "there is no directory") && !strstr(ft_error_message(context), "cache"));
  CHECK(refused("/small", FT_ERROR_FILE, "there is no directory") && !strstr(ft_error_message(context), "cache"));
  CHECK(refused("org/small/x", FT_ERROR_FILE, "there is no directory") && !strstr(ft_error_message(context), "cache"));
  CHECK(refused("org/.small", FT_ERROR_FILE, "there is no directory") && !strstr(ft_error_message(context), "cache"));
  CHECK(refused("-small", FT_ERROR_FILE, "there is no directory") && !strstr(ft_error_message(context), "cache"));
  CHECK(refused("sm all", FT_ERROR_FILE, "there is no directory") && !strstr(ft_error_message(context), "cache"));
  CHECK(refused("sm..all", FT_ERROR_FILE, "there is no directory") && !strstr(ft_error_message(context), "cache"));
  /* Wrong calls. */
  CHECK(ft_model_path(NULL, "small", small, sizeof small) == FT_ERROR_ARGUMENT);
  CHECK(ft_model_path(context, "small", small, sizeof small) == FT_ERROR_ARGUMENT);
  CHECK(strstr(ft_error_message(context), "there is room for 8") != NULL);
  CHECK(ft_model_path(context, golden, small, sizeof small) == FT_ERROR_ARGUMENT);
  CHECK(ft_error_set(context, FT_OK, "") == FT_OK);
  CHECK(ft_model_path(context, NULL, path, sizeof path) == FT_ERROR_ARGUMENT);
  CHECK(ft_error_set(context, FT_OK, "") == FT_OK);
  CHECK(ft_model_load(context, NULL, NULL) == NULL && ft_error_status(context) == FT_ERROR_ARGUMENT);
  CHECK(ft_model_load(NULL, golden, NULL) == NULL && ft_tokenizer_load(NULL, golden) == NULL);
}

/* refs/main is a file like any other: whatever it holds, nothing outside snapshots/ is read. */
static void test_refs(void) {
  static const char *const broken[] = {"", "\n", "..", "../..", "/", "main", "0123456789abcdef", "\xFF\xFE", "G"};
  char refs[1100], expected[1200], target[1300];
  size_t i;
  make_model(cache, "models--refs");
  snprintf(refs, sizeof refs, "%s/refs", folder);
  snprintf(expected, sizeof expected, "%s/snapshots/%s", folder, COMMIT);
  CHECK(found("refs", expected));
  files_write_text(refs, "main", COMMIT "\r\n"); /* written by hand */
  CHECK(found("refs", expected));
  for (i = 0; i < sizeof broken / sizeof broken[0]; ++i) {
    files_write_text(refs, "main", broken[i]);
    CHECK(refused("refs", FT_ERROR_FILE, "its snapshot is not in the Hugging Face cache"));
  }
  snprintf(target, sizeof target, "%s/main", refs);
  CHECK(remove(target) == 0);
  CHECK(refused("refs", FT_ERROR_FILE, "models--refs"));
  make_directory(target); /* refs/main is a directory */
  CHECK(refused("refs", FT_ERROR_FILE, "models--refs"));
}

/* A directory whose weights are a pickle alone: the error names the program that converts it. */
static void test_pickle(void) {
  static const char *const pickles[] = {"pytorch_model.bin", "pytorch_model.bin.index.json"};
  char directory[700], expected[2000];
  ft_model_options options;
  ft_model *model;
  int i;
  memset(&options, 0, sizeof options);
  options.shapes_only = true;
  for (i = 0; i < 2; ++i) {
    snprintf(directory, sizeof directory, "%s/pickle%d", root, i);
    make_directory(directory);
    files_copy(context, golden, directory, "config.json");
    CHECK(ft_model_load(context, directory, NULL) == NULL && ft_error_status(context) == FT_ERROR_FILE);
    CHECK(strstr(ft_error_message(context), "holds neither model.safetensors nor") != NULL);
    files_write_text(directory, pickles[i], "\x80\x02");
    CHECK(ft_model_load(context, directory, NULL) == NULL && ft_error_status(context) == FT_ERROR_UNSUPPORTED);
    snprintf(expected, sizeof expected,
             "%s holds no model.safetensors but only %s, a pickle: \"python3 tools/to_safetensors.py %s\" converts it",
             directory, pickles[i], directory);
    CHECK_TEXT(ft_error_message(context), expected);
    model = ft_model_load(context, directory, &options); /* asks for no weights */
    CHECK(model != NULL);
    ft_model_free(model);
    files_copy(context, golden, directory, "model.safetensors"); /* with both, the pickle is left alone */
    model = ft_model_load(context, directory, NULL);
    CHECK(model != NULL);
    ft_model_free(model);
  }
}

int main(void) {
  context = ft_context_create(NULL);
  files_begin(context, root, "hub");
  snprintf(cache, sizeof cache, "%s/cache", root);
  test_places();
  test_loading();
  test_directories();
  test_missing();
  test_refs();
  test_pickle();
  remove_tree(root);
  ft_context_free(context);
  FINISH();
}
