/* arguments.h - command-line options for tools/ft.c: a table per command says what there is.

   An option is written --name VALUE or --name=VALUE (a flag without value); everything else is a positional argument.
   Wrong usage is reported on stderr, and the command exits with status 2; --help goes to stdout, with status 0. */
#ifndef FT_ARGUMENTS_H
#define FT_ARGUMENTS_H

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef enum arguments_kind {
  ARGUMENT_TEXT,
  ARGUMENT_INTEGER,
  ARGUMENT_NUMBER,
  ARGUMENT_FLAG,
  ARGUMENT_LIST /* a text that may be given many times */
} arguments_kind;

typedef struct arguments_option {
  const char *name; /* "--epochs" */
  arguments_kind kind;
  void *value; /* const char **, long long *, double *, bool * or arguments_list *: keeps its default when absent */
  const char *help;
} arguments_option;

enum { ARGUMENTS_MAX = 8, ARGUMENTS_LIST_MAX = 64 };

typedef struct arguments_list { /* options may share one: it keeps the order in which they were given */
  const char *option[ARGUMENTS_LIST_MAX], *value[ARGUMENTS_LIST_MAX];
  int count;
} arguments_list;

typedef struct arguments_positional {
  const char *value[ARGUMENTS_MAX];
  int count;
} arguments_positional;

static void arguments_help(const char *usage, const arguments_option *options, int count) {
  static const char *const value_names[] = {" TEXT", " N", " X", "", " TEXT"};
  int i;
  printf("usage: %s\n", usage);
  for (i = 0; i < count; ++i) {
    char left[64];
    snprintf(left, sizeof left, "%s%s", options[i].name, value_names[options[i].kind]);
    printf("  %-26s %s\n", left, options[i].help);
  }
}

/* Stores one value; false if it is no number, or one too many. */
static bool arguments_store(const arguments_option *option, const char *text) {
  arguments_list *list;
  char *end;
  errno = 0;
  switch (option->kind) {
    case ARGUMENT_TEXT:
      *(const char **)option->value = text;
      return true;
    case ARGUMENT_LIST:
      list = (arguments_list *)option->value;
      if (list->count == ARGUMENTS_LIST_MAX) return false;
      list->option[list->count] = option->name;
      list->value[list->count++] = text;
      return true;
    case ARGUMENT_INTEGER:
      *(long long *)option->value = strtoll(text, &end, 10);
      break;
    case ARGUMENT_NUMBER:
      *(double *)option->value = strtod(text, &end);
      break;
    default:
      return false;
  }
  return *text && !*end && errno == 0;
}

/* Reads argv[2..]; false after saying on stderr what was wrong. */
static bool arguments_parse(int argc, char **argv, const char *usage, const arguments_option *options, int count,
                            arguments_positional *positional) {
  int i, k;
  memset(positional, 0, sizeof *positional);
  for (i = 2; i < argc; ++i) {
    const char *argument = argv[i], *equals = strchr(argument, '=');
    size_t length = equals ? (size_t)(equals - argument) : strlen(argument);
    if (strcmp(argument, "--help") == 0) {
      arguments_help(usage, options, count);
      exit(0);
    }
    if (strncmp(argument, "--", 2) != 0) {
      if (positional->count == ARGUMENTS_MAX) {
        fprintf(stderr, "ft %s: too many arguments\n", argv[1]);
        return false;
      }
      positional->value[positional->count++] = argument;
      continue;
    }
    for (k = 0; k < count; ++k)
      if (strlen(options[k].name) == length && strncmp(options[k].name, argument, length) == 0) break;
    if (k == count) {
      fprintf(stderr, "ft %s: there is no option %.*s; see ft %s --help\n", argv[1], (int)length, argument, argv[1]);
      return false;
    }
    if (options[k].kind == ARGUMENT_FLAG) {
      if (equals) {
        fprintf(stderr, "ft %s: %s takes no value\n", argv[1], options[k].name);
        return false;
      }
      *(bool *)options[k].value = true;
      continue;
    }
    if (!equals && i + 1 == argc) {
      fprintf(stderr, "ft %s: %s wants a value\n", argv[1], options[k].name);
      return false;
    }
    if (!arguments_store(&options[k], equals ? equals + 1 : argv[++i])) {
      fprintf(stderr, "ft %s: %s %s, not \"%s\"\n", argv[1], options[k].name,
              options[k].kind == ARGUMENT_LIST ? "was given 64 times" : "wants a number",
              equals ? equals + 1 : argv[i]);
      return false;
    }
  }
  return true;
}

#define ARGUMENTS_COUNT(options) ((int)(sizeof(options) / sizeof(options)[0]))

#endif
