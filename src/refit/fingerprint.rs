//! The fingerprint of what the destinations hold, source by source.

use std::ffi::c_void;

use crate::blocks::{BLOCK, Rows};
use crate::error::{Error, Result, fail};
use crate::fingerprint::{Name, Origin, Request, SumPointer};
use crate::quantize::{Scales, Subject};
use crate::tensor::Tensor;

use super::items::scales_of;
use super::model::{Model, Region};
use super::plan::Refit;

impl Model {
    /// What the regions are called, in order.
    pub fn fingerprint_names(&self) -> Vec<Name> {
        let name = |region: &Region| Name::new(&self.sources[region.source as usize].name, region.part);
        self.regions.iter().map(name).collect()
    }

    /// Codes, or what is kept, and scales of a region.
    fn region_tensors(&self, region: &Region) -> (Tensor, Option<Tensor>) {
        let destination = &self.destinations[region.destination as usize];
        let extent = region.target.extent;
        let scales = destination.fp8.as_ref();
        let scales = scales.map(|fp8| scales_of(fp8, region, [0; 3], region.target.first[2], extent));
        (destination.values.window(region.target.first, extent), scales)
    }

    /// Where a region lies in its source.
    fn origin(&self, region: &Region, name: Name) -> Result<Origin> {
        let size = self.destinations[region.destination as usize].values.dtype.bytes();
        let [expert, row, column] = region.source_first;
        let number = |value: usize| match u32::try_from(value) {
            Ok(value) => Ok(value),
            Err(_) => fail!(Unsupported, "it begins at {value} of its source, a fingerprint takes {}", u32::MAX),
        };
        let byte = column.saturating_mul(size);
        Ok(Origin {
            name,
            expert: number(expert)?,
            block_row: number(row / BLOCK)?,
            block_column: number(byte / BLOCK)?,
            offset: [(row % BLOCK) as u32, (byte % BLOCK) as u32],
        })
    }
}

impl Refit {
    /// Adds the blocks of every region to the sum of its source, or enqueues that.
    pub fn fingerprint(&self, sums: SumPointer, stream: *mut c_void) -> Result<()> {
        let model = self.model();
        let tensors: Vec<_> = model.regions.iter().map(|region| model.region_tensors(region)).collect();
        let mut requests = Vec::with_capacity(tensors.len());
        for (index, (region, (codes, scales))) in model.regions.iter().zip(&tensors).enumerate() {
            let request = || {
                let subject = Subject::Weight { part_rows: &[] };
                let fp8 = model.destinations[region.destination as usize].fp8.as_ref();
                let scales = scales.as_ref().zip(fp8);
                let scales =
                    scales.map(|(scales, fp8)| Scales::new(scales, fp8.format, &subject, codes)).transpose()?;
                let rows = Rows { first: 0, count: codes.rows(), bands: 0 };
                let origin = model.origin(region, self.name_of_region(index))?;
                // SAFETY: the caller has a sum for each source.
                let sum = SumPointer(unsafe { sums.0.add(region.source as usize) });
                Request::new(codes, scales, rows, origin, sum)
            };
            let name = &model.sources[region.source as usize].name;
            requests.push(request().map_err(|error| Error { message: format!("{name}: {}", error.message), ..error })?);
        }
        self.context().fingerprint(&requests, stream)
    }
}
