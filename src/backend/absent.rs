//! A backend that this build does not contain. It is on the list so that a plan can say so.

use crate::context::Context;
use crate::linear::LinearSpec;

use super::{Backend, Linear};

pub struct Absent {
    pub name: &'static str,
    pub bit: u32,
    /// The feature that brings it.
    pub needs: &'static str,
}

impl Backend for Absent {
    fn name(&self) -> &'static str {
        self.name
    }

    fn bit(&self) -> u32 {
        self.bit
    }

    fn accept(&self, _: &Context, _: &LinearSpec) -> Result<Box<dyn Linear>, String> {
        Err(format!("not in this build (feature {})", self.needs))
    }
}
