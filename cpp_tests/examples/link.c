// Quantizes a weight from C, linked with -lfp8rt.
// [readme]
#include <fp8rt.h>
#include <stdio.h>
#include <stdlib.h>

enum { N = 256, K = 512 };

static void check(fp8rt_status status) {
    if (status == FP8RT_STATUS_OK) return;
    fprintf(stderr, "%s\n", fp8rt_last_error());
    exit(1);
}

static fp8rt_tensor matrix(void *data, uint64_t bytes, uint32_t dtype) {
    fp8rt_tensor tensor = {.data = data, .bytes = bytes, .dtype = dtype, .device = -1, .rank = 2};
    tensor.shape[0] = N;
    tensor.shape[1] = tensor.stride[0] = K;
    tensor.stride[1] = 1;
    return tensor;
}

int main(void) {
    static uint16_t values[N * K];  // bfloat16
    static uint8_t codes[N * K];
    for (int i = 0; i < N * K; ++i) values[i] = 0x3F80;  // 1.0

    fp8rt_context *context;
    check(fp8rt_context_create(NULL, &context));  // host memory, all cores

    fp8rt_tensor weight = matrix(values, sizeof values, FP8RT_DTYPE_BF16);
    fp8rt_tensor code_view = matrix(codes, sizeof codes, FP8RT_DTYPE_E4M3);
    fp8rt_tensor scale_view;  // the library says shape and bytes
    check(fp8rt_weight_scales_layout(NULL, 0, N, K, &scale_view));
    float *scales = scale_view.data = malloc(scale_view.bytes);
    if (scales == NULL) return 1;

    check(fp8rt_quantize_weight(context, NULL, &weight, &code_view, &scale_view, NULL, NULL));
    printf("1.0 is code 0x%02X times scale %g\n", codes[0], scales[0]);

    free(scales);
    check(fp8rt_context_destroy(context));
    return 0;
}
// [/readme]
