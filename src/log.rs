//! One line for each decision. It goes to the callback of the process's owner, or to stderr under `FP8RT_VERBOSE`.

use std::ffi::{CString, c_char, c_void};
use std::sync::{Once, RwLock};

/// Levels, as the C ABI numbers them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    Info = 1,
    Warning = 2,
}

/// What receives the lines.
pub type Callback = unsafe extern "C" fn(u32, *const c_char, *mut c_void);

struct Sink {
    callback: Callback,
    user: *mut c_void,
}

// SAFETY: the owner of the callback promises that it may be called on any thread with its pointer.
unsafe impl Send for Sink {}
// SAFETY: as above.
unsafe impl Sync for Sink {}

static SINK: RwLock<Option<Sink>> = RwLock::new(None);

/// Replaces the callback. When this returns, the one before runs no more.
pub fn set(callback: Option<Callback>, user: *mut c_void) {
    *SINK.write().unwrap_or_else(|poisoned| poisoned.into_inner()) = callback.map(|callback| Sink { callback, user });
}

fn verbose() -> bool {
    std::env::var_os("FP8RT_VERBOSE").is_some_and(|value| !value.is_empty() && value != "0")
}

/// Sends one line. The text is made only if somebody listens.
pub fn line(level: Level, text: impl FnOnce() -> String) {
    let sink = SINK.read().unwrap_or_else(|poisoned| poisoned.into_inner());
    match &*sink {
        Some(sink) if verbose() || level == Level::Warning => {
            let message = CString::new(text().replace('\0', "?")).expect("no zero is left");
            // SAFETY: the callback's owner keeps it callable until it is replaced, which waits for the lock held here.
            unsafe { (sink.callback)(level as u32, message.as_ptr(), sink.user) };
        }
        None if verbose() => eprintln!("fp8rt: {}", text()),
        _ => {}
    }
}

/// A panic is reported to the caller; its text goes to the log and not to somebody else's stderr. The hook is that of
/// this library's own copy of the standard library, so it touches no panic but ours.
pub fn quiet_panics() {
    static HOOK: Once = Once::new();
    if !cfg!(test) {
        HOOK.call_once(|| {
            std::panic::set_hook(Box::new(|info| line(Level::Warning, || info.to_string())));
        });
    }
}
