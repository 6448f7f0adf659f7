// A plain C11 program: what a runtime written in C does first. It quantizes to known bytes, reads a message, and forks
// after the library has started its threads.
#define _POSIX_C_SOURCE 200809L
#include "functions.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define REQUIRE(condition)                                              \
  do {                                                                  \
    if (!(condition)) {                                                 \
      fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);   \
      exit(1);                                                          \
    }                                                                   \
  } while (0)

enum { ROWS = 256, COLUMNS = 384, BLOCKS = 6, CHILDREN = 8 };

static float weight[ROWS * COLUMNS];
static uint8_t codes[ROWS * COLUMNS];
static float scales[BLOCKS];

static fp8rt_tensor matrix(void *data, uint64_t bytes, uint32_t dtype, int64_t rows, int64_t columns) {
  fp8rt_tensor tensor = {data, bytes, dtype, -1, 2, 0, {rows, columns, 0}, {columns, 1, 0}};
  return tensor;
}

static fp8rt_status quantize(const struct functions *library, fp8rt_context *context, int64_t scale_columns) {
  fp8rt_tensor input = matrix(weight, sizeof weight, FP8RT_DTYPE_F32, ROWS, COLUMNS);
  fp8rt_tensor output = matrix(codes, sizeof codes, FP8RT_DTYPE_E4M3, ROWS, COLUMNS);
  fp8rt_tensor factors = matrix(scales, sizeof scales, FP8RT_DTYPE_F32, 2, scale_columns);
  fp8rt_quantize_desc desc = {0};
  desc.struct_size = sizeof desc;
  desc.scale_format = FP8RT_SCALE_FORMAT_POW2;
  return library->quantize_weight(context, &desc, &input, &output, &factors, NULL, NULL);
}

// Block b holds the magnitudes 448 * 2^b and 2^b: its power-of-two scale is 2^b, and the codes are those of 448 and 1.
static float block_scale(int row, int column) { return (float)(1 << (row / 128 * 3 + column / 128)); }

static void fill_weight(void) {
  for (int row = 0; row < ROWS; row++) {
    for (int column = 0; column < COLUMNS; column++) {
      float magnitude = (row + column) % 2 == 0 ? 448.0F : 1.0F;
      weight[row * COLUMNS + column] = (row % 2 == 0 ? magnitude : -magnitude) * block_scale(row, column);
    }
  }
}

static uint8_t expected_code(int row, int column) {
  uint8_t magnitude = (row + column) % 2 == 0 ? 0x7E : 0x38;
  return (uint8_t)(magnitude | (row % 2 == 0 ? 0x00 : 0x80));
}

static void check_quantize(const struct functions *library, fp8rt_context *context) {
  memset(codes, 0xAA, sizeof codes);
  memset(scales, 0xAA, sizeof scales);
  REQUIRE(quantize(library, context, 3) == FP8RT_STATUS_OK);
  for (int block = 0; block < BLOCKS; block++) {
    REQUIRE(scales[block] == (float)(1 << block));
  }
  for (int row = 0; row < ROWS; row++) {
    for (int column = 0; column < COLUMNS; column++) {
      REQUIRE(codes[row * COLUMNS + column] == expected_code(row, column));
    }
  }
}

// The message names the function, the argument and both numbers, and nothing was written.
static void check_message(const struct functions *library, fp8rt_context *context) {
  memset(codes, 0xAA, sizeof codes);
  REQUIRE(quantize(library, context, 2) == FP8RT_STATUS_SHAPE);
  const char *message = library->last_error();
  REQUIRE(strstr(message, "fp8rt_quantize_weight: ") == message);
  REQUIRE(strstr(message, "scales") != NULL);
  REQUIRE(strchr(message, '2') != NULL && strchr(message, '3') != NULL);
  for (size_t i = 0; i < sizeof codes; i++) {
    REQUIRE(codes[i] == 0xAA);
  }
}

// Asks by name which parameters are FP8, and what the second of two ranks holds of one.
static void check_policy(const struct functions *library) {
  fp8rt_policy_desc desc = {0};
  desc.struct_size = sizeof desc;
  desc.settings = "{\"precision\": \"fp8\"}";
  fp8rt_policy *policy = NULL;
  REQUIRE(library->policy_create(&desc, &policy) == FP8RT_STATUS_OK);
  fp8rt_policy_decision decision = {0};
  decision.struct_size = sizeof decision;
  char reason[64];
  int64_t shape[] = {ROWS, COLUMNS};
  REQUIRE(library->policy_decide(policy, "model.layers.0.mlp.up_proj.weight", 2, shape, &decision, reason,
                                 sizeof reason, NULL) == FP8RT_STATUS_OK);
  REQUIRE(decision.action == FP8RT_POLICY_ACTION_FP8 && decision.weight_recipe == FP8RT_RECIPE_NEMO_RL);
  REQUIRE(library->policy_decide(policy, "lm_head.weight", 2, shape, &decision, reason, sizeof reason, NULL) ==
          FP8RT_STATUS_OK);
  REQUIRE(decision.action == FP8RT_POLICY_ACTION_KEEP && strcmp(reason, "the output head") == 0);
  REQUIRE(library->policy_destroy(policy) == FP8RT_STATUS_OK);

  int64_t rows[] = {ROWS}, local = 0;
  fp8rt_shard_desc cut = {sizeof cut, 0, FP8RT_SPLIT_ROWS, 2, 1, 1, rows, NULL, COLUMNS};
  fp8rt_shard_info info = {0};
  fp8rt_shard_part part;
  info.struct_size = sizeof info;
  REQUIRE(library->shard_layout(&cut, &info, &part, &local) == FP8RT_STATUS_OK);
  REQUIRE(info.on_blocks == 1 && info.scale_columns == 3 && part.first_row == ROWS / 2 && local == ROWS / 2);
}

// Torch is not in this process, which is no fault and is said.
static void check_without_torch(const struct functions *library) {
  REQUIRE(library->torch_register() == FP8RT_STATUS_UNSUPPORTED);
  REQUIRE(strstr(library->last_error(), "fp8rt_torch_register: ") == library->last_error());
  REQUIRE(strstr(library->last_error(), "import torch") != NULL);
}

// A child uses the context that its parent made, then one of its own.
static void run_child(const struct functions *library, fp8rt_context *parents) {
  check_quantize(library, parents);
  fp8rt_context *own = NULL;
  REQUIRE(library->context_create(NULL, &own) == FP8RT_STATUS_OK);
  check_quantize(library, own);
  check_message(library, own);
  REQUIRE(library->context_destroy(own) == FP8RT_STATUS_OK);
  REQUIRE(library->context_destroy(parents) == FP8RT_STATUS_OK);
  // Not exit: the memory of the parent's threads, which do not exist here, is no leak to look for.
  _exit(0);
}

static void fork_children(const struct functions *library, fp8rt_context *context) {
  pid_t children[CHILDREN];
  for (int i = 0; i < CHILDREN; i++) {
    children[i] = fork();
    REQUIRE(children[i] >= 0);
    if (children[i] == 0) {
      run_child(library, context);
    }
  }
  for (int i = 0; i < CHILDREN; i++) {
    int status = 0;
    REQUIRE(waitpid(children[i], &status, 0) == children[i]);
    REQUIRE(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  }
}

// Any argument: no children, for a tool that looks for leaks in each process.
int main(int argc, char **argv) {
  (void)argv;
  struct functions library = find_functions();
  REQUIRE(library.abi_version() == FP8RT_ABI_VERSION);
  check_without_torch(&library);
  fill_weight();
  check_policy(&library);

  fp8rt_context_desc desc = {sizeof desc, 0, -1, 2};
  fp8rt_context *context = NULL;
  REQUIRE(library.context_create(&desc, &context) == FP8RT_STATUS_OK);
  check_quantize(&library, context);
  check_message(&library, context);
  if (argc == 1) {
    fork_children(&library, context);
  }
  check_quantize(&library, context);
  REQUIRE(library.context_destroy(context) == FP8RT_STATUS_OK);
  return 0;
}
