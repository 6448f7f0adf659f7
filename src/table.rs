//! A table of weights: descriptions that stay, and on a GPU their form in device memory.

use std::ffi::c_void;
use std::sync::Arc;

use crate::context::Context;
use crate::copy::Copy;
#[cfg(feature = "cuda")]
use crate::device::DeviceTable;
use crate::error::Result;
use crate::quantize::HealthPointer;
use crate::refit::{Entries, Manner, OwnedEntries};

/// Entries that are quantized in one manner.
struct Group {
    #[cfg(feature = "cuda")]
    on_device: Option<DeviceTable>,
    entries: OwnedEntries,
    manner: Manner,
}

pub struct WeightTable {
    /// Before the context: it frees them.
    groups: Vec<Group>,
    copies: Vec<Copy>,
    context: Arc<Context>,
}

impl WeightTable {
    /// An empty table, to be filled by `add` and `add_copy`.
    pub fn new(context: Arc<Context>) -> WeightTable {
        WeightTable { groups: Vec::new(), copies: Vec::new(), context }
    }

    /// Adds checked entries.
    pub fn add(&mut self, entries: &dyn Entries, manner: Manner) -> Result<()> {
        self.groups.push(Group {
            #[cfg(feature = "cuda")]
            on_device: self.context.upload(entries, manner)?,
            entries: OwnedEntries::new(entries)?,
            manner,
        });
        Ok(())
    }

    /// Adds a checked copy.
    pub fn add_copy(&mut self, copy: Copy) {
        self.copies.push(copy);
    }

    pub fn context(&self) -> &Context {
        &self.context
    }

    pub fn run(&self, health: Option<HealthPointer>, stream: *mut c_void) -> Result<()> {
        // Only the counters are new since the entries were checked.
        if health.is_some() {
            self.groups.iter().try_for_each(|group| group.entries.check(Manner { health, ..group.manner }))?;
        }
        if !self.copies.is_empty() {
            self.context.expect_ready(stream)?;
        }
        self.copies.iter().try_for_each(|copy| self.context.copy(copy, stream))?;
        self.groups.iter().try_for_each(|group| self.run_group(group, health, stream))
    }

    fn run_group(&self, group: &Group, health: Option<HealthPointer>, stream: *mut c_void) -> Result<()> {
        let manner = Manner { health, ..group.manner };
        #[cfg(feature = "cuda")]
        if let Some(table) = &group.on_device {
            return self.context.run_table(table, manner, stream);
        }
        self.context.quantize_many(&group.entries, manner, stream)
    }
}

#[cfg(feature = "cuda")]
impl Drop for WeightTable {
    fn drop(&mut self) {
        for table in self.groups.iter_mut().filter_map(|group| group.on_device.take()) {
            self.context.free_table(table);
        }
    }
}
