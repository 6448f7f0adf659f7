//! Our own kernels, for every architecture.

use std::fmt::Write;
use std::path::Path;

use crate::nvcc::Job;

/// Files of `src/kernels` that are compiled as they are.
const SOURCES: [&str; 8] = ["blocks", "groups", "dequantize", "fused", "plain", "passes", "fingerprint", "measure"];

/// Compute capability times ten, and what nvcc calls the target. Hopper is run; the others are compiled.
const ARCHITECTURES: [(u32, &str); 5] = [(80, "80"), (89, "89"), (90, "90a"), (100, "100"), (120, "120")];

/// The numbers are IEEE's: no contraction, no flushing, division as it is defined.
const OPTIONS: [&str; 5] = ["-O3", "-std=c++17", "-fmad=false", "-ftz=false", "-prec-div=true"];

pub fn jobs(root: &Path, out: &Path) -> Vec<Job> {
    let all = SOURCES.iter().flat_map(|&source| ARCHITECTURES.map(|(number, target)| (source, number, target)));
    all.map(|(source, number, target)| {
        let architecture = format!("-gencode=arch=compute_{target},code=sm_{target}");
        Job {
            source: root.join(format!("src/kernels/{source}.cu")),
            options: OPTIONS.iter().map(|&option| option.to_owned()).chain([architecture]).collect(),
            cubin: out.join(format!("{source}_{number}.cubin")),
            most_spill: None,
            seconds: 10,
        }
    })
    .collect()
}

/// Rust that embeds them: a table for each source file.
pub fn table(out: &Path) -> String {
    let mut text = String::new();
    for source in SOURCES {
        let name = source.to_uppercase();
        writeln!(text, "/// Code of `{source}.cu`.\npub static {name}: &[Cubin] = &[").expect("a string");
        for (number, _) in ARCHITECTURES {
            let code = crate::embed(&out.join(format!("{source}_{number}.cubin")));
            writeln!(text, "    Cubin {{ architecture: {number}, code: {code} }},").expect("a string");
        }
        writeln!(text, "];").expect("a string");
    }
    text
}
