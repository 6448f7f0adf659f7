//! Ops of torch, registered by this library itself through libtorch's stable C interface. The library is linked to
//! neither torch nor Python: what it needs it finds in the process, if torch is there. Nothing else of the crate knows
//! torch.

mod arguments;
mod kernel;
mod ops;
mod owned;
mod place;
mod plans;
mod settings;
mod shim;
mod traced;

use std::ffi::CStr;
use std::sync::{Mutex, PoisonError};

use crate::error::{Result, ensure};

use kernel::Op;
use shim::{Handle, Kernel, Shim, VERSION};

const NAMESPACE: &CStr = c"fp8rt";

/// An op of any type.
struct Entry {
    name: &'static CStr,
    schema: &'static CStr,
    real: Kernel,
    fake: Kernel,
}

const fn entry<O: Op>() -> Entry {
    Entry { name: O::NAME, schema: O::SCHEMA, real: kernel::real::<O>, fake: kernel::fake::<O> }
}

static OPS: [Entry; 9] = [
    entry::<ops::QuantizeWeight>(),
    entry::<ops::QuantizeWeights>(),
    entry::<ops::QuantizeActivation>(),
    entry::<ops::QuantizeActivationOut>(),
    entry::<ops::Linear>(),
    entry::<ops::LinearOut>(),
    entry::<ops::LinearPrepare>(),
    entry::<ops::SiluAndMulQuantize>(),
    entry::<ops::RmsNormQuantize>(),
];

/// Registers the ops with the torch that is in the process. Once they are registered it does nothing.
pub fn register() -> Result<()> {
    static DONE: Mutex<bool> = Mutex::new(false);
    let mut done = DONE.lock().unwrap_or_else(PoisonError::into_inner);
    if !*done {
        register_with(Shim::load()?)?;
        *done = true;
    }
    Ok(())
}

fn register_with(shim: &Shim) -> Result<()> {
    let mut libraries = Libraries { shim, handles: Vec::new() };
    let definitions = libraries.open(c"the definitions", |file, library| {
        // SAFETY: names, and a place for the library.
        unsafe { (shim.base.library_fragment)(NAMESPACE.as_ptr(), file.as_ptr(), 0, library) }
    })?;
    for op in &OPS {
        // SAFETY: an open library and a schema.
        let code = unsafe { (shim.base.library_define)(definitions, op.schema.as_ptr()) };
        expect(code, op.name, "defined: has another copy of this library registered its ops?")?;
    }
    // Registered whether or not this build can run there: a call then says why not, and not that there is no kernel.
    let cuda = shim.cuda.is_some().then_some(c"CUDA");
    for key in [Some(c"CPU"), cuda, Some(c"Meta")].into_iter().flatten() {
        let library = libraries.open(key, |file, library| {
            // SAFETY: names, and a place for the library.
            unsafe { (shim.base.library_of_key)(NAMESPACE.as_ptr(), key.as_ptr(), file.as_ptr(), 0, library) }
        })?;
        for op in &OPS {
            let kernel = if key == c"Meta" { op.fake } else { op.real };
            // SAFETY: an open library, a name that was defined, and a kernel that keeps to its schema.
            let code = unsafe { (shim.base.library_implement)(library, op.name.as_ptr(), kernel, VERSION) };
            expect(code, op.name, "implemented")?;
        }
    }
    // Torch keeps the ops for as long as the libraries are open: for ever.
    libraries.handles.clear();
    Ok(())
}

fn expect(code: i32, op: &CStr, what: &str) -> Result<()> {
    let op = op.to_string_lossy();
    ensure!(code == 0, Unsupported, "torch did not let fp8rt::{op} be {what} (it printed why to stderr)");
    Ok(())
}

/// Torch's libraries, which take back what they registered if not all of it succeeds.
struct Libraries<'a> {
    shim: &'a Shim,
    handles: Vec<Handle>,
}

impl Libraries<'_> {
    fn open(&mut self, what: &CStr, make: impl FnOnce(&CStr, *mut Handle) -> i32) -> Result<Handle> {
        let mut library = std::ptr::null_mut();
        expect(make(c"libfp8rt.so", &mut library), what, "opened")?;
        self.handles.push(library);
        Ok(library)
    }
}

impl Drop for Libraries<'_> {
    fn drop(&mut self) {
        for &library in self.handles.iter().rev() {
            // SAFETY: made by `open`.
            unsafe { (self.shim.base.delete_library)(library) };
        }
    }
}

/// Runs when the library is loaded, which is all that `torch.ops.load_library` does. It starts no thread and touches no
/// GPU; without torch in the process it does nothing.
#[cfg(not(any(test, miri)))]
mod on_load {
    use crate::log::{Level, line};

    use super::shim::Shim;

    #[used]
    #[unsafe(link_section = ".init_array")]
    static ON_LOAD: extern "C" fn() = on_load;

    extern "C" fn on_load() {
        // Nothing may unwind into the loader.
        let _ = std::panic::catch_unwind(|| {
            if !Shim::is_torch_present() {
                return;
            }
            if let Err(error) = super::register() {
                line(Level::Warning, || format!("no ops for torch: {}", error.message));
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::arguments::Kind;
    use super::kernel::Op;
    use super::*;

    /// The types of a schema's arguments.
    fn kinds(schema: &str) -> Vec<Kind> {
        let arguments = schema.split_once('(').unwrap().1.rsplit_once(") -> ").unwrap().0;
        // Only annotations have a bang, so they are cut away first.
        let mut plain = arguments.to_owned();
        for letter in ['a', 'b', 'c', 'd'] {
            plain = plain.replace(&format!("({letter}!)"), "");
        }
        let kind = |argument: &str| match argument.trim().split(' ').next().unwrap() {
            "Tensor" => Kind::Tensor,
            "Tensor?" => Kind::OptionalTensor,
            "Tensor[]" => Kind::Tensors,
            "int" => Kind::Int,
            "bool" => Kind::Bool,
            "float" => Kind::Float,
            "float?" => Kind::OptionalFloat,
            "int[]?" => Kind::OptionalInts,
            "ScalarType?" => Kind::OptionalDtype,
            other => panic!("{other} in {schema}"),
        };
        plain.split(',').map(kind).collect()
    }

    fn check<O: Op>() {
        let (name, schema) = (O::NAME.to_str().unwrap(), O::SCHEMA.to_str().unwrap());
        assert!(schema.starts_with(&format!("{name}(")), "{schema}");
        assert_eq!(kinds(schema), O::KINDS.as_slice(), "{schema}");
    }

    #[test]
    fn kinds_are_those_of_the_schemas() {
        check::<ops::QuantizeWeight>();
        check::<ops::QuantizeWeights>();
        check::<ops::QuantizeActivation>();
        check::<ops::QuantizeActivationOut>();
        check::<ops::Linear>();
        check::<ops::LinearOut>();
        check::<ops::LinearPrepare>();
        check::<ops::SiluAndMulQuantize>();
        check::<ops::RmsNormQuantize>();
    }

    #[cfg(not(miri))]
    #[test]
    fn without_torch_the_reason_is_said() {
        let error = register().unwrap_err();
        assert_eq!(error.kind, crate::error::Kind::Unsupported);
        assert!(error.message.contains("import torch before"), "{}", error.message);
    }
}
