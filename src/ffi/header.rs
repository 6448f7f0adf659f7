//! The committed header is what cbindgen makes of this module. `make header` writes it, `cargo test` compares.

use std::path::Path;

/// The chapters of the header, in order.
const CHAPTERS: [&str; 14] = [
    "types",
    "version",
    "context",
    "scales",
    "quantize",
    "fused",
    "refit",
    "refit_plan",
    "fingerprint",
    "report",
    "linear",
    "policy",
    "shard",
    "torch",
];

#[test]
fn the_committed_header_is_current() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let config = cbindgen::Config::from_file(root.join("cbindgen.toml")).expect("cbindgen.toml");
    let builder = cbindgen::Builder::new().with_config(config);
    let builder = CHAPTERS.iter().fold(builder, |b, name| b.with_src(root.join(format!("src/ffi/{name}.rs"))));
    let bindings = builder.generate().expect("bindings");
    let mut made = Vec::new();
    bindings.write(&mut made);
    let (made, path) = (String::from_utf8(made).unwrap(), root.join("include/fp8rt.h"));
    if std::env::var_os("FP8RT_WRITE_HEADER").is_some() {
        std::fs::write(&path, &made).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(committed == made, "include/fp8rt.h is not what cbindgen makes: run `make header` and commit it");
}
