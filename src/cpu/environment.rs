//! The floating-point mode. Callers change it (`torch.set_flush_denormal`, fast-math start-up code, `fesetround`); our
//! arithmetic is defined for rounding to nearest with subnormals, so each call and each task of a thread sets that and
//! puts back what it found.

/// Holds the default mode until dropped.
pub struct Environment {
    saved: Mode,
}

impl Environment {
    /// Runs `work` in the default mode, on this thread. The work is a call of its own, so that no arithmetic of it can be
    /// moved before the mode is set.
    #[inline]
    pub fn with<R>(work: impl FnOnce() -> R) -> R {
        let _default = Environment::enter();
        isolated(work)
    }

    #[inline]
    fn enter() -> Environment {
        let saved = read();
        if saved != DEFAULT {
            write(DEFAULT);
        }
        Environment { saved }
    }
}

impl Drop for Environment {
    #[inline]
    fn drop(&mut self) {
        // The status bits that the work raised are dropped too: the caller sees its own word again.
        write(self.saved);
    }
}

#[inline(never)]
fn isolated<R>(work: impl FnOnce() -> R) -> R {
    work()
}

#[cfg(all(target_arch = "x86_64", not(miri)))]
mod register {
    use std::arch::asm;

    /// The control and status word of SSE.
    pub type Mode = u32;
    /// All exceptions masked, nearest even, no FTZ, no DAZ.
    pub const DEFAULT: Mode = 0x1F80;

    #[inline]
    pub fn read() -> Mode {
        let mut word = 0u32;
        // SAFETY: stores 4 bytes to a local.
        unsafe { asm!("stmxcsr [{}]", in(reg) &mut word, options(nostack, preserves_flags)) };
        word
    }

    #[inline]
    pub fn write(word: Mode) {
        // SAFETY: the word is the default or one that `read` returned, so no reserved bit is set.
        unsafe { asm!("ldmxcsr [{}]", in(reg) &word, options(nostack, preserves_flags)) };
    }
}

#[cfg(all(target_arch = "aarch64", not(miri)))]
mod register {
    use std::arch::asm;

    /// The floating-point control register.
    pub type Mode = u64;
    /// Nearest even, no FZ, no traps.
    pub const DEFAULT: Mode = 0;

    #[inline]
    pub fn read() -> Mode {
        let word: u64;
        // SAFETY: reads a control register.
        unsafe { asm!("mrs {}, fpcr", out(reg) word, options(nostack, preserves_flags)) };
        word
    }

    #[inline]
    pub fn write(word: Mode) {
        // SAFETY: the word is the default or one that `read` returned.
        unsafe { asm!("msr fpcr, {}", in(reg) word, options(nostack, preserves_flags)) };
    }
}

/// An interpreter has one mode, the default one.
#[cfg(miri)]
mod register {
    pub type Mode = ();
    pub const DEFAULT: Mode = ();
    pub fn read() -> Mode {}
    pub fn write(_: Mode) {}
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
compile_error!("the floating-point mode of this architecture is not handled");

use register::{DEFAULT, Mode, read, write};

#[cfg(all(test, target_arch = "x86_64", not(miri)))]
mod tests {
    use super::*;

    #[test]
    fn the_callers_mode_is_replaced_and_put_back() {
        let hostile = 0x1F80 | 0x8040 | 0x4000; // FTZ, DAZ, round upward
        let saved = read();
        write(hostile);
        let inside = Environment::with(read);
        let after = read();
        write(saved);
        assert_eq!((inside & !0x3F, after), (DEFAULT, hostile));
    }
}
