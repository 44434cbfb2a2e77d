/* check.h - what every test program needs: checks that count, say where they failed, and go on. */
#ifndef CHECK_H
#define CHECK_H
#include <math.h>
#include <stdio.h>
#include <string.h>

static int check_passed, check_failed, check_skipped;

static void check_report(int condition, const char *file, int line, const char *text) {
  if (condition) {
    ++check_passed;
  } else if (++check_failed <= 20) {
    printf("%s:%d: failed: %s\n", file, line, text);
  }
}

static void check_near(double a, double b, double tolerance, const char *file, int line, const char *text) {
  int near = fabs(a - b) <= tolerance;
  if (!near && check_failed < 20) printf("%s:%d: %.9g against %.9g\n", file, line, a, b);
  check_report(near, file, line, text);
}

static void check_text(const char *a, const char *b, const char *file, int line) {
  int same = a && b && strcmp(a, b) == 0;
  if (!same && check_failed < 20) printf("%s:%d: \"%s\" against \"%s\"\n", file, line, a ? a : "NULL", b ? b : "NULL");
  check_report(same, file, line, "texts are the same");
}

#define CHECK(condition) check_report((condition) ? 1 : 0, __FILE__, __LINE__, #condition)
#define CHECK_NEAR(a, b, tolerance) check_near(a, b, tolerance, __FILE__, __LINE__, #a " near " #b)
#define CHECK_TEXT(a, b) check_text(a, b, __FILE__, __LINE__)
/* Something that cannot be tested here, and why: printed and counted. */
#define SKIP(text) (printf("skipped: %s\n", text), ++check_skipped)
/* The last statement of main: prints the counts, and the exit status says whether all passed. */
#define FINISH()                                                                     \
  do {                                                                               \
    (void)check_near, (void)check_text;                                              \
    printf("%s: %d checks passed, %d failed", __FILE__, check_passed, check_failed); \
    if (check_skipped) printf(", %d skipped", check_skipped);                        \
    printf("\n");                                                                    \
    return check_failed != 0;                                                        \
  } while (0)

#endif
