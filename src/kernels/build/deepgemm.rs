//! DeepGEMM's kernel for Hopper, one cubin a tile, from the headers of a package.

use std::env;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use crate::nvcc::Job;
use crate::tiles::{Cluster, TILES, Tile};

const OPTIONS: [&str; 7] = [
    "-gencode=arch=compute_90a,code=sm_90a",
    "-O3",
    "-std=c++20",
    "--expt-relaxed-constexpr",
    "--expt-extended-lambda",
    // Of the package's headers: unused variables and expressions.
    "-diag-suppress=174,177",
    "-I",
];

/// `FP8RT_DEEPGEMM_INCLUDE`, or what `make gpu` unpacks.
pub fn include(root: &Path) -> PathBuf {
    let unpacked = root.join(format!(".tools/deepgemm-{}/include", crate::DEEPGEMM_VERSION));
    let include = env::var_os("FP8RT_DEEPGEMM_INCLUDE").map_or(unpacked, PathBuf::from);
    let header = include.join("deep_gemm/impls/sm90_fp8_gemm_1d2d.cuh");
    assert!(header.exists(), "no {}: set FP8RT_DEEPGEMM_INCLUDE, or use `make gpu`", header.display());
    include
}

/// The package's version, or where the headers are instead.
pub fn version(root: &Path) -> String {
    match env::var("FP8RT_DEEPGEMM_INCLUDE") {
        Ok(_) => include(root).display().to_string(),
        Err(_) => format!("tokenspeed-deepgemm {}", crate::DEEPGEMM_VERSION),
    }
}

/// The version of the CUTLASS that comes with the headers.
pub fn cutlass_version(include: &Path) -> String {
    let text = std::fs::read_to_string(include.join("cutlass/version.h")).expect("CUTLASS's headers");
    let number = |name: &str| {
        let after = text.split(&format!("#define CUTLASS_{name}")).nth(1);
        after.and_then(|rest| rest.split_whitespace().next()).unwrap_or("?").to_owned()
    };
    ["MAJOR", "MINOR", "PATCH"].map(number).join(".")
}

fn cubin(out: &Path, tile: &Tile) -> PathBuf {
    out.join(format!("deepgemm_{}.cubin", tile.name()))
}

pub fn jobs(root: &Path, include: &Path, out: &Path) -> Vec<Job> {
    let job = |tile: &Tile| Job {
        source: root.join("src/kernels/deepgemm/kernel.cu"),
        options: options(tile, include),
        cubin: cubin(out, tile),
        most_spill: Some(tile.spill),
        seconds: 4,
    };
    TILES.iter().map(job).collect()
}

fn options(tile: &Tile, include: &Path) -> Vec<String> {
    let numbers = [
        ("BLOCK_ROWS", tile.rows),
        ("BLOCK_COLUMNS", tile.columns),
        ("OUTPUT_SWIZZLE", tile.output_swizzle()),
        ("STAGES", tile.stages()),
        ("MATH_THREADS", tile.math_threads()),
        ("CLUSTER", tile.cluster_size()),
        ("SHARES_ACTIVATION", u32::from(tile.cluster == Cluster::Activation)),
        ("THREAD_BLOCKS", crate::tiles::PROCESSORS * tile.per_processor),
        ("WEIGHT_ROWS", tile.n),
        ("WEIGHT_COLUMNS", tile.k),
    ];
    let options = OPTIONS.iter().map(|&option| option.to_owned()).chain([include.display().to_string()]);
    options.chain(numbers.map(|(name, value)| format!("-D{name}={value}"))).collect()
}

/// Rust that embeds them, in the order of the tiles, each with the name of its kernel.
pub fn table(out: &Path) -> String {
    let mut text =
        "/// Code of `deepgemm/kernel.cu`, a tile each.\npub static DEEPGEMM: &[(&CStr, &[u8])] = &[\n".to_owned();
    for tile in TILES {
        let cubin = cubin(out, tile);
        let (name, code) = (kernel_name(&cubin), crate::embed(&cubin));
        writeln!(text, "    (c{name:?}, {code}),").expect("a string");
    }
    text + "];\n"
}

/// The mangled name of the one kernel of a cubin: its code lies in the section `.text.NAME`.
fn kernel_name(cubin: &Path) -> String {
    let bytes = std::fs::read(cubin).expect("nvcc made it");
    let prefix = b"\0.text._Z";
    let at = bytes.windows(prefix.len()).position(|window| window == prefix).expect("a kernel in the cubin");
    let name = &bytes[at + "\0.text.".len()..];
    let end = name.iter().position(|&byte| byte == 0).expect("a string table ends with a zero");
    String::from_utf8(name[..end].to_vec()).expect("a mangled name")
}
