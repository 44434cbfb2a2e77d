/* files.h - a temporary directory and small files for a test program. Include it after finetune.h and check.h. */
#ifndef FILES_H
#define FILES_H
#include <dirent.h>
#include <stdlib.h>

/* Makes a new directory for files, below $TMPDIR or /tmp; directory has 600 bytes. */
FT__UNUSED static void files_begin(ft_context *context, char *directory, const char *test) {
  const char *base = getenv("TMPDIR");
  snprintf(directory, 600, "%.500s/finetune-%.60s-%lu", base ? base : "/tmp", test, ft__process());
  CHECK(ft__directory_create(context, directory) == FT_OK);
}

/* directory/name in one of four static buffers, which take turns. */
FT__UNUSED static const char *files_path(const char *directory, const char *name) {
  static char paths[4][1000];
  static int next;
  char *path = paths[next++ % 4];
  snprintf(path, sizeof paths[0], "%.600s/%.300s", directory, name);
  return path;
}

FT__UNUSED static void files_write(const char *directory, const char *name, const void *bytes, size_t size) {
  FILE *file = fopen(files_path(directory, name), "wb");
  CHECK(file && fwrite(bytes, 1, size, file) == size);
  if (file) fclose(file);
}

FT__UNUSED static void files_write_text(const char *directory, const char *name, const char *text) {
  files_write(directory, name, text, strlen(text));
}

/* Copies from/name to directory/name. */
FT__UNUSED static void files_copy(ft_context *context, const char *from, const char *directory, const char *name) {
  size_t size = 0;
  char *bytes = ft__file_read(context, files_path(from, name), &size);
  CHECK(bytes != NULL);
  if (bytes) files_write(directory, name, bytes, size);
  ft__release(context, bytes);
}

/* Removes a directory and the files in it. */
FT__UNUSED static void files_end(const char *directory) {
  DIR *list = opendir(directory);
  struct dirent *entry;
  while (list && (entry = readdir(list)) != NULL)
    if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
      remove(files_path(directory, entry->d_name));
  if (list) closedir(list);
  CHECK(remove(directory) == 0);
}

#endif
