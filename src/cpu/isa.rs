//! Which instructions the kernels are compiled for, chosen once for a context.
//!
//! A kernel is written once, as plain loops that vectorize, and compiled for each of these: the bodies are inlined into
//! functions that have the features enabled.

use crate::error::{Result, fail};

#[cfg(target_arch = "x86_64")]
use super::lanes::{Avx2, Avx512};
use super::lanes::{Baseline, Instructions};

/// An instruction set that this processor has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// What every processor of the architecture has: SSE2, or NEON.
    Baseline,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

/// A loop nest to compile for each instruction set. `run` must be `#[inline(always)]`, and so must all that it calls.
pub trait Kernel {
    type Output;
    fn run<I: Instructions>(self) -> Self::Output;
}

impl Isa {
    /// The widest that this processor has, or the one that `FP8RT_CPU_ISA` names.
    pub fn choose() -> Result<Isa> {
        let available = Isa::available();
        match std::env::var("FP8RT_CPU_ISA") {
            Ok(name) if !name.is_empty() => match available.iter().find(|isa| isa.name() == name) {
                Some(&isa) => Ok(isa),
                None => {
                    let names: Vec<_> = available.iter().map(|isa| isa.name()).collect();
                    fail!(InvalidArgument, "FP8RT_CPU_ISA is \"{name}\", this processor has {}", names.join(", "))
                }
            },
            _ => Ok(available[available.len() - 1]),
        }
    }

    /// All that this processor has, narrowest first.
    pub fn available() -> Vec<Isa> {
        #[allow(unused_mut)]
        let mut found = vec![Isa::Baseline];
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                found.push(Isa::Avx2);
            }
            let wide = is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw");
            if wide && is_x86_feature_detected!("avx512vl") && is_x86_feature_detected!("avx512dq") {
                found.push(Isa::Avx512);
            }
        }
        found
    }

    /// The name that `FP8RT_CPU_ISA` takes.
    pub fn name(self) -> &'static str {
        match self {
            #[cfg(target_arch = "aarch64")]
            Isa::Baseline => "neon",
            #[cfg(target_arch = "x86_64")]
            Isa::Baseline => "sse2",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => "avx512",
        }
    }

    /// Runs a kernel compiled for this instruction set.
    #[inline]
    pub fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self {
            Isa::Baseline => kernel.run::<Baseline>(),
            // SAFETY: `available` found these features on this processor.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => unsafe { run_avx2(kernel) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => unsafe { run_avx512(kernel) },
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn run_avx2<K: Kernel>(kernel: K) -> K::Output {
    kernel.run::<Avx2>()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma")]
fn run_avx512<K: Kernel>(kernel: K) -> K::Output {
    kernel.run::<Avx512>()
}
