//! Link options of the shared library, and with the feature `cuda` its kernels. rustc passes its own version script, so
//! exports are not listed here.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    // Only the shared library: an executable that links the rlib keeps its own options.
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libfp8rt.so.0");
    // Worker threads and thread-local state outlive a dlclose, so the library stays mapped.
    println!("cargo:rustc-cdylib-link-arg=-Wl,-z,nodelete");
    if std::env::var_os("CARGO_FEATURE_CUDA").is_some() {
        kernels::compile();
    }
}

/// nvcc turns `src/kernels/*.cu` into machine code for each architecture; `cubins.rs` embeds it.
mod kernels {
    use std::env;
    use std::fmt::Write;
    use std::path::{Path, PathBuf};
    use std::process::Command;
    use std::sync::Mutex;

    const SOURCES: [&str; 4] = ["blocks", "groups", "dequantize", "fused"];

    /// Compute capability times ten, and what nvcc calls the target. The quantizers run on Hopper; the others are compiled.
    const ARCHITECTURES: [(u32, &str); 5] = [(80, "80"), (89, "89"), (90, "90a"), (100, "100"), (120, "120")];

    /// The numbers are IEEE's: no contraction, no flushing, division as it is defined.
    const OPTIONS: [&str; 6] = ["-cubin", "-O3", "-std=c++17", "-fmad=false", "-ftz=false", "-prec-div=true"];

    pub fn compile() {
        println!("cargo:rerun-if-changed=src/kernels");
        println!("cargo:rerun-if-env-changed=CUDA_HOME");
        let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("set by cargo"));
        let out = PathBuf::from(env::var_os("OUT_DIR").expect("set by cargo"));
        let nvcc = find_nvcc(&root);
        println!("cargo:rustc-env=FP8RT_NVCC={}", version(&nvcc));
        let jobs = SOURCES.iter().flat_map(|&source| ARCHITECTURES.map(|(number, target)| (source, number, target)));
        let jobs = Mutex::new(jobs.collect::<Vec<_>>());
        let threads = env::var("NUM_JOBS").ok().and_then(|n| n.parse().ok()).unwrap_or(1);
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    loop {
                        let job = jobs.lock().expect("a compilation failed").pop();
                        let Some((source, number, target)) = job else { break };
                        one(&nvcc, &root, &out.join(format!("{source}_{number}.cubin")), source, target);
                    }
                });
            }
        });
        std::fs::write(out.join("cubins.rs"), table(&out)).expect("OUT_DIR is writable");
    }

    /// The toolkit of `CUDA_HOME`, or the one that `make gpu` unpacks.
    fn find_nvcc(root: &Path) -> PathBuf {
        let home = env::var_os("CUDA_HOME").map_or(root.join(".tools/cuda/nvidia/cu13"), PathBuf::from);
        let nvcc = home.join("bin/nvcc");
        assert!(nvcc.exists(), "no {}: set CUDA_HOME, or use `make gpu`, which brings a toolkit", nvcc.display());
        nvcc
    }

    fn version(nvcc: &Path) -> String {
        let output = Command::new(nvcc).arg("--version").output().expect("nvcc runs");
        let text = String::from_utf8_lossy(&output.stdout);
        let release = text.split("release ").nth(1).and_then(|rest| rest.split(',').next());
        release.unwrap_or("unknown").to_owned()
    }

    fn one(nvcc: &Path, root: &Path, cubin: &Path, source: &str, target: &str) {
        let architecture = format!("-gencode=arch=compute_{target},code=sm_{target}");
        let file = root.join(format!("src/kernels/{source}.cu"));
        let status = Command::new(nvcc).args(OPTIONS).arg(architecture).arg(&file).arg("-o").arg(cubin).status();
        assert!(status.is_ok_and(|status| status.success()), "nvcc failed on {} for sm_{target}", file.display());
    }

    fn table(out: &Path) -> String {
        let mut text = String::new();
        for source in SOURCES {
            let name = source.to_uppercase();
            writeln!(text, "/// Code of `{source}.cu`.\npub static {name}: &[Cubin] = &[").expect("a string");
            for (number, _) in ARCHITECTURES {
                let file = out.join(format!("{source}_{number}.cubin"));
                let code = format!("include_bytes!({:?})", file.display().to_string());
                writeln!(text, "    Cubin {{ architecture: {number}, code: {code} }},").expect("a string");
            }
            writeln!(text, "];").expect("a string");
        }
        text
    }
}
