// A libtorch_cpu.so of a torch that lacks what the ops need. FAKE_VERSION: the version that it says, or nothing.
#include <stdint.h>

#ifdef FAKE_VERSION
uint64_t aoti_torch_abi_version(void);
uint64_t aoti_torch_abi_version(void) { return FAKE_VERSION; }
#else
int fake_libtorch_is_empty;
#endif
