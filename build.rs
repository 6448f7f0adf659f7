//! Link options of the shared library. rustc passes its own version script, so exports are not listed here.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    // Only the shared library: an executable that links the rlib keeps its own options.
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libfp8rt.so.0");
    // Worker threads and thread-local state outlive a dlclose, so the library stays mapped.
    println!("cargo:rustc-cdylib-link-arg=-Wl,-z,nodelete");
}
