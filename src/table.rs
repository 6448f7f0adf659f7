//! A table of weights: descriptions that stay, and on a GPU their form in device memory.

use std::ffi::c_void;
use std::sync::Arc;

use crate::context::Context;
#[cfg(feature = "cuda")]
use crate::device::DeviceTable;
use crate::error::Result;
use crate::quantize::HealthPointer;
use crate::refit::{Entries, Manner, OwnedEntries};

pub struct WeightTable {
    /// Before the context: it is freed there.
    #[cfg(feature = "cuda")]
    on_device: Option<DeviceTable>,
    context: Arc<Context>,
    entries: OwnedEntries,
    manner: Manner,
}

impl WeightTable {
    /// The entries are checked.
    pub fn new(context: Arc<Context>, entries: OwnedEntries, manner: Manner) -> Result<WeightTable> {
        Ok(WeightTable {
            #[cfg(feature = "cuda")]
            on_device: context.upload(&entries, manner)?,
            context,
            entries,
            manner,
        })
    }

    pub fn context(&self) -> &Context {
        &self.context
    }

    pub fn run(&self, health: Option<HealthPointer>, stream: *mut c_void) -> Result<()> {
        let manner = Manner { health, ..self.manner };
        // Only the counters are new since the entries were checked.
        if health.is_some() {
            self.entries.check(manner)?;
        }
        #[cfg(feature = "cuda")]
        if let Some(table) = &self.on_device {
            return self.context.run_table(table, manner, stream);
        }
        self.context.quantize_many(&self.entries, manner, stream)
    }
}

#[cfg(feature = "cuda")]
impl Drop for WeightTable {
    fn drop(&mut self) {
        if let Some(table) = self.on_device.take() {
            self.context.free_table(table);
        }
    }
}
