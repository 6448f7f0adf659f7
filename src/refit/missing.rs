//! What a refit has not filled, in words and as JSON.

use serde_json::{Value, json};

use super::accounting::Accounting;
use super::model::{Model, Region};

/// A region of which something is missing.
pub struct Missing<'a> {
    pub region: &'a Region,
    /// The first element that is, in the destination.
    pub first: [usize; 3],
    pub filled: usize,
    pub total: usize,
}

/// Whether all, some or nothing of a destination is filled.
pub fn filled_of(model: &Model, accounting: &Accounting, destination: usize) -> (usize, usize) {
    let regions = model.destinations[destination].regions.iter().map(|&region| region as usize);
    regions.fold((0, 0), |(filled, total), region| {
        (filled + accounting.filled_of(region), total + model.regions[region].total_units())
    })
}

/// Destinations of which everything is filled.
pub fn destinations_filled(model: &Model, accounting: &Accounting) -> usize {
    let whole = |&index: &usize| {
        let (filled, total) = filled_of(model, accounting, index);
        filled == total
    };
    (0..model.destinations.len()).filter(whole).count()
}

/// Regions of which something is missing, destination by destination. `partial`: not those of destinations that nothing
/// was written to.
pub fn missing<'a>(model: &'a Model, accounting: &'a Accounting, partial: bool) -> impl Iterator<Item = Missing<'a>> {
    let untouched = move |index: usize| partial && filled_of(model, accounting, index).0 == 0;
    let wanted = (0..model.destinations.len()).filter(move |&index| !untouched(index));
    wanted.flat_map(|index| &model.destinations[index].regions).filter_map(|&index| {
        let region = &model.regions[index as usize];
        let unit = model.destinations[region.destination as usize].unit();
        let at = accounting.first_missing(index as usize, region)?;
        let first = std::array::from_fn(|axis| region.target.first[axis] + at[axis] * unit[axis]);
        Some(Missing { region, first, filled: accounting.filled_of(index as usize), total: region.total_units() })
    })
}

/// An array of objects, one for each region of which something is missing.
pub fn to_json(model: &Model, accounting: &Accounting) -> String {
    let objects =
        missing(model, accounting, false).map(|Missing { region, first: [expert, row, column], filled, total }| {
            json!({
                "name": model.destinations[region.destination as usize].name,
                "source": model.sources[region.source as usize].name,
                "part": region.part,
                "expert": expert,
                "row": row,
                "column": column,
                "filled": filled,
                "total": total,
            })
        });
    Value::Array(objects.collect()).to_string()
}
