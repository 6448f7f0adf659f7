/* A user's program in C: it knows the installed header and library, and nothing of the source tree. */
#include <fp8rt.h>
#include <stdio.h>

int main(void) {
  fp8rt_context *context = NULL;
  if (fp8rt_abi_version() != FP8RT_ABI_VERSION || fp8rt_context_create(NULL, &context) != FP8RT_STATUS_OK) {
    fprintf(stderr, "%s\n", fp8rt_last_error());
    return 1;
  }
  puts(fp8rt_build_info());
  return fp8rt_context_destroy(context) == FP8RT_STATUS_OK ? 0 : 1;
}
