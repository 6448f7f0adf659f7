//! CUTLASS's kernels: a cubin each, and one archive of the C++ that fills their parameters.

use std::collections::hash_map::DefaultHasher;
use std::env;
use std::fmt::Write;
use std::fs;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cutlass_kernels::{GEMMS, Gemm, Operands, Output};
use crate::nvcc::Job;

const DEVICE_OPTIONS: [&str; 7] = [
    "-O3",
    "-std=c++17",
    "--expt-relaxed-constexpr",
    // A failed assertion is a call, and calls in a kernel keep its products from overlapping.
    "-DNDEBUG",
    // The kernels wait for the one before them by themselves.
    "-DCUTLASS_ENABLE_GDC_FOR_SM90=1",
    "-DCUTLASS_ENABLE_GDC_FOR_SM100=1",
    // Of the package's headers: annotations without effect.
    "-diag-suppress=20012",
];

/// Nothing throws, and none of libstdc++ is needed; `plain_cpp.h` says how. A header has a `throw` that no call
/// reaches, so exceptions are not forbidden to the compiler.
const HOST_OPTIONS: [&str; 9] =
    ["-c", "-O2", "-std=c++17", "-fPIC", "-fno-rtti", "-fvisibility=hidden", "-DNDEBUG", "-Wall", "-Wextra"];

/// Sources of `src/kernels/cutlass` that decide the archive.
const HOST_SOURCES: [&str; 4] = ["fill.cpp", "gemm.h", "plain_cpp.h", "problem.h"];

fn function(gemm: &Gemm) -> String {
    format!("fp8rt_cutlass_{}", gemm.name())
}

fn cubin(out: &Path, gemm: &Gemm) -> PathBuf {
    out.join(format!("cutlass_{}.cubin", gemm.name()))
}

/// What `Gemm` of gemm.h takes, in its order.
fn arguments(gemm: &Gemm) -> [(&'static str, String); 7] {
    let operands = match gemm.operands {
        Operands::Plain => "kPlain",
        Operands::Swapped => "kSwapped",
    };
    let output = match gemm.output {
        Output::Bf16 => "Bf16",
        Output::F16 => "F16",
        Output::F32 => "F32",
    };
    [
        ("ARCHITECTURE", format!("kSm{}", gemm.architecture)),
        ("OPERANDS", operands.to_owned()),
        ("TILE_ROWS", gemm.rows.to_string()),
        ("TILE_COLUMNS", gemm.columns.to_string()),
        ("CLUSTER_ROWS", gemm.cluster[0].to_string()),
        ("CLUSTER_COLUMNS", gemm.cluster[1].to_string()),
        ("OUTPUT", output.to_owned()),
    ]
}

/// The code of the device. `include` holds CUTLASS's headers.
pub fn jobs(root: &Path, include: &Path, out: &Path) -> Vec<Job> {
    let job = |gemm: &Gemm| Job {
        source: root.join("src/kernels/cutlass/kernel.cu"),
        options: device_options(gemm, include),
        cubin: cubin(out, gemm),
        most_spill: Some(gemm.spill),
        seconds: 20,
    };
    GEMMS.iter().map(job).collect()
}

fn device_options(gemm: &Gemm, include: &Path) -> Vec<String> {
    let target = format!("{}a", gemm.architecture);
    let own = [
        format!("-gencode=arch=compute_{target},code=sm_{target}"),
        format!("-I{}", include.display()),
        format!("-DNAME={}", function(gemm)),
    ];
    let options = DEVICE_OPTIONS.iter().map(|&option| option.to_owned()).chain(own);
    options.chain(arguments(gemm).map(|(name, value)| format!("-D{name}={value}"))).collect()
}

/// Compiles the C++ of the host into an archive and has it linked, hidden. `cuda` holds CUDA's headers.
pub fn compile_host(root: &Path, include: &Path, cuda: &Path, out: &Path) {
    println!("cargo:rerun-if-env-changed=CXX");
    println!("cargo:rerun-if-env-changed=AR");
    let source = root.join("src/kernels/cutlass");
    let archive = out.join("libfp8rt_cutlass.a");
    let compiler = env::var("CXX").unwrap_or_else(|_| "g++".to_owned());
    let options = host_options(include, cuda);
    let key = key(&source, &compiler, &options);
    let stamp = out.join("libfp8rt_cutlass.key");
    if !archive.exists() || fs::read_to_string(&stamp).ok().as_ref() != Some(&key) {
        let object = out.join("cutlass_fill.o");
        run(Command::new(&compiler).args(&options).arg(source.join("fill.cpp")).arg("-o").arg(&object));
        fs::remove_file(&archive).ok();
        let archiver = env::var("AR").unwrap_or_else(|_| "ar".to_owned());
        run(Command::new(archiver).arg("crs").arg(&archive).arg(&object));
        fs::write(&stamp, &key).expect("OUT_DIR is writable");
    }
    println!("cargo:rustc-link-search=native={}", out.display());
    println!("cargo:rustc-link-lib=static=fp8rt_cutlass");
}

fn host_options(include: &Path, cuda: &Path) -> Vec<String> {
    let fill = |gemm: &Gemm| {
        let arguments = arguments(gemm).map(|(_, value)| value).join(", ");
        format!("FILL({}, {arguments})", function(gemm))
    };
    let instances = GEMMS.iter().map(fill).collect::<Vec<_>>().join(" ");
    let includes = [include.to_owned(), cuda.to_owned(), cuda.join("cccl")];
    let mut options: Vec<_> = HOST_OPTIONS.iter().map(|&option| option.to_owned()).collect();
    options.extend(includes.iter().flat_map(|path| ["-isystem".to_owned(), path.display().to_string()]));
    options.push(format!("-DINSTANCES={instances}"));
    options
}

/// What decides the archive. A package's headers are named by their path alone, which has the version in it.
fn key(source: &Path, compiler: &str, options: &[String]) -> String {
    let mut hasher = DefaultHasher::new();
    let version = Command::new(compiler).arg("--version").output();
    let version = version.unwrap_or_else(|error| panic!("{compiler} does not run: {error}"));
    (compiler, version.stdout, options).hash(&mut hasher);
    for name in HOST_SOURCES {
        fs::read(source.join(name)).expect("a source file").hash(&mut hasher);
    }
    format!("{:016x}", hasher.finish())
}

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?} does not run: {error}"));
    let report = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?} failed:\n{report}");
}

/// Rust that embeds them, in the order of the list.
pub fn table(out: &Path) -> String {
    let mut text = "unsafe extern \"C\" {\n".to_owned();
    for gemm in GEMMS {
        let arguments = "_: *const Problem, _: *const c_void, _: *mut c_void, _: *mut Launch";
        writeln!(text, "    fn {}({arguments}) -> i32;", function(gemm)).expect("a string");
    }
    text += "}\n/// Code of `cutlass/kernel.cu`, an instantiation each, in the order of the list.\n";
    text += "pub static COMPILED: &[Compiled] = &[\n";
    for gemm in GEMMS {
        let (name, code) = (function(gemm), crate::embed(&cubin(out, gemm)));
        writeln!(text, "    Compiled {{ fill: {name}, name: c{name:?}, code: {code} }},").expect("a string");
    }
    text + "];\n"
}
