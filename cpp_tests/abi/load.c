// Loading is inert: it starts no thread, maps no CUDA and keeps its symbols to itself. Needs nothing but dlopen.
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define REQUIRE(condition)                                              \
  do {                                                                  \
    if (!(condition)) {                                                 \
      fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);   \
      exit(1);                                                          \
    }                                                                   \
  } while (0)

static int count_threads(void) {
  DIR *tasks = opendir("/proc/self/task");
  REQUIRE(tasks != NULL);
  int count = 0;
  for (struct dirent *entry = readdir(tasks); entry != NULL; entry = readdir(tasks)) {
    count += entry->d_name[0] != '.';
  }
  closedir(tasks);
  return count;
}

static int is_mapped(const char *name) {
  FILE *maps = fopen("/proc/self/maps", "r");
  REQUIRE(maps != NULL);
  char line[4096];
  int found = 0;
  while (fgets(line, sizeof line, maps) != NULL) {
    found = found || strstr(line, name) != NULL;
  }
  fclose(maps);
  return found;
}

// ISO C has no cast from an object pointer to a function pointer; POSIX promises that the bits are the same.
static uint32_t call_version(void *symbol) {
  uint32_t (*version)(void);
  memcpy(&version, &symbol, sizeof version);
  return version();
}

int main(int argc, char **argv) {
  REQUIRE(argc == 2);
  int threads = count_threads();

  void *library = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
  if (library == NULL) {
    fprintf(stderr, "%s\n", dlerror());
    return 1;
  }
  REQUIRE(count_threads() == threads);
  REQUIRE(!is_mapped("libcuda") && !is_mapped("libtorch"));
  REQUIRE(dlsym(RTLD_DEFAULT, "fp8rt_abi_version") == NULL);

  void *symbol = dlsym(library, "fp8rt_abi_version");
  REQUIRE(symbol != NULL);
  REQUIRE(call_version(symbol) == 0);
  REQUIRE(count_threads() == threads);

  // NODELETE: the code stays mapped, so that a thread of a context can end after this.
  REQUIRE(dlclose(library) == 0);
  REQUIRE(is_mapped("libfp8rt"));
  REQUIRE(call_version(symbol) == 0);
  return 0;
}
