//! Link options of the shared library, and with the feature `cuda` its kernels. rustc passes its own version script, so
//! exports are not listed here.

#[cfg(feature = "cutlass")]
#[path = "src/kernels/build/cutlass.rs"]
mod cutlass;
#[cfg(feature = "cutlass")]
#[path = "src/kernels/cutlass/kernels.rs"]
mod cutlass_kernels;
#[path = "src/kernels/build/deepgemm.rs"]
mod deepgemm;
#[path = "src/kernels/build/nvcc.rs"]
mod nvcc;
#[path = "src/kernels/build/quantizers.rs"]
mod quantizers;
#[path = "src/kernels/tiles.rs"]
mod tiles;

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

/// The package whose headers the kernels are built from, unless `FP8RT_DEEPGEMM_INCLUDE` names others.
const DEEPGEMM_VERSION: &str = "2.8.2.post20261020";

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    // Only the shared library: an executable that links the rlib keeps its own options.
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libfp8rt.so.0");
    // Worker threads and thread-local state outlive a dlclose, so the library stays mapped.
    println!("cargo:rustc-cdylib-link-arg=-Wl,-z,nodelete");
    let gpu = if env::var_os("CARGO_FEATURE_CUDA").is_some() {
        compile_kernels()
    } else {
        "features: none; cuda: not built; deepgemm: none; cutlass: none".to_owned()
    };
    println!("cargo:rustc-env=FP8RT_GPU={gpu}");
}

/// Returns what `fp8rt_build_info` says of them.
fn compile_kernels() -> String {
    println!("cargo:rerun-if-changed=src/kernels");
    for variable in ["CUDA_HOME", "FP8RT_DEEPGEMM_INCLUDE", "FP8RT_KERNEL_CACHE"] {
        println!("cargo:rerun-if-env-changed={variable}");
    }
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("set by cargo"));
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("set by cargo"));
    let nvcc = nvcc::Nvcc::find(&root);
    let include = deepgemm::include(&root);
    let mut jobs = quantizers::jobs(&root, &out);
    jobs.extend(deepgemm::jobs(&root, &include, &out));
    #[cfg(feature = "cutlass")]
    jobs.extend(cutlass::jobs(&root, &include, &out));
    nvcc.compile(jobs);
    #[cfg(feature = "cutlass")]
    {
        cutlass::compile_host(&root, &include, &nvcc.home.join("include"), &out);
        fs::write(out.join("cutlass.rs"), cutlass::table(&out)).expect("OUT_DIR is writable");
    }
    fs::write(out.join("cubins.rs"), quantizers::table(&out) + &deepgemm::table(&out)).expect("OUT_DIR is writable");
    let deepgemm = deepgemm::version(&root);
    let (features, cutlass) = if cfg!(feature = "cutlass") {
        ("cuda, cutlass", deepgemm::cutlass_version(&include))
    } else {
        ("cuda", "none".to_owned())
    };
    let kernels = "sm_90a, untested sm_80, sm_89, sm_100, sm_120";
    let nvcc = &nvcc.version;
    format!("features: {features}; kernels: {kernels}; nvcc: {nvcc}; deepgemm: {deepgemm}; cutlass: {cutlass}")
}

/// Compresses a cubin, and gives the Rust that embeds it.
fn embed(cubin: &Path) -> String {
    let code = fs::read(cubin).expect("nvcc made it");
    let compressed = cubin.with_extension("z");
    fs::write(&compressed, miniz_oxide::deflate::compress_to_vec_zlib(&code, 9)).expect("OUT_DIR is writable");
    format!("include_bytes!({:?})", compressed.display().to_string())
}
