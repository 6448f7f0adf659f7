"""The library by ctypes, for trainers and engines: nothing is built, and torch is needed only where tensors are."""
