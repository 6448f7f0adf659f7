//! What a refit did to its sources: sums for a report.

use std::ffi::c_void;

use crate::error::{Error, Result, ensure};
use crate::measure::{ErrorPointer, Measurement};
use crate::recipe::ScaleFormat;
use crate::tensor::Tensor;

use super::items::{Items, Work};
use super::plan::{Refit, name_item};

/// Values beside what the destinations hold of them.
struct Piece {
    source: Tensor,
    codes: Tensor,
    scales: Tensor,
    format: ScaleFormat,
    sums: ErrorPointer,
}

impl Refit {
    /// Compares items with what the destinations hold, or enqueues that. `sums`: one for each source.
    pub fn measure(&self, items: &dyn Items, sums: ErrorPointer, stream: *mut c_void) -> Result<()> {
        let (model, mut pieces) = (self.model(), Vec::new());
        items.visit(&mut |index, item| {
            let name = |error: Error| name_item(index, item.name)(error);
            let values = item.scales.is_none();
            ensure!(values, InvalidArgument, "items[{index}]: it has scales, there are no values to compare with");
            let placed = model.place(item).map_err(name)?;
            for &region in placed.regions {
                let Some((_, work)) = model.piece(item, &placed, region).map_err(name)? else { continue };
                let region = &model.regions[region as usize];
                let fp8 = model.destinations[region.destination as usize].fp8.as_ref();
                if let (Work::Quantize { source, codes, scales, .. }, Some(fp8)) = (work, fp8) {
                    // SAFETY: the caller has sums for each source.
                    let sums = ErrorPointer(unsafe { sums.0.add(region.source as usize) });
                    pieces.push((index, Piece { source, codes, scales, format: fp8.format, sums }));
                }
            }
            Ok(())
        })?;
        let mut requests = Vec::with_capacity(pieces.len());
        for (index, Piece { source, codes, scales, format, sums }) in &pieces {
            let request = Measurement::new(source, codes, scales, *format, *sums);
            let label = |error: Error| Error { message: format!("items[{index}]: {}", error.message), ..error };
            requests.push(request.map_err(label)?);
        }
        self.context().measure(&requests, stream)
    }
}
