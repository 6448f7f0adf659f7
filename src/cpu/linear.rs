//! stub
use crate::error::Result;
use crate::linear::{LinearRun, LinearSpec};
use super::Engine;
pub fn workspace(_: &Engine, _: &LinearSpec, _: usize) -> usize { 0 }
pub fn linear(_: &Engine, _: &LinearRun) -> Result<()> { todo!() }
