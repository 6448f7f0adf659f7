//! What a refit is about: destinations at fixed addresses, the sources that fill them, and the regions in between.

use std::collections::HashMap;

use crate::blocks::{BLOCK, PACKED, RowGrid, Rows};
use crate::error::{Error, Result, ensure, fail};
use crate::quantize::{Subject, expect_weight};
use crate::recipe::{Formula, ScaleFormat};
use crate::tensor::{Dtype, FLOATS, Tensor};

use super::many::Manner;

/// Bytes of a row of a kept tensor that are accounted for, and counted in fingerprints, together.
pub const KEPT_BYTES: usize = 128;

/// A box of a tensor: experts, rows, columns, in elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    pub first: [usize; 3],
    pub extent: [usize; 3],
}

impl Window {
    pub fn end(&self, axis: usize) -> usize {
        self.first[axis] + self.extent[axis]
    }

    pub fn volume(&self) -> usize {
        self.extent.iter().product()
    }

    /// What two boxes share; `None` if that is nothing.
    pub fn shared(&self, other: &Window) -> Option<Window> {
        let mut shared = *self;
        for axis in 0..3 {
            let first = self.first[axis].max(other.first[axis]);
            let end = self.end(axis).min(other.end(axis));
            if first >= end {
                return None;
            }
            (shared.first[axis], shared.extent[axis]) = (first, end - first);
        }
        Some(shared)
    }
}

/// How a destination is quantized, and where its scales are.
#[derive(Clone, Debug)]
pub struct Fp8 {
    pub scales: Tensor,
    pub formula: Formula,
    pub format: ScaleFormat,
    /// Index into [`Model::manners`].
    pub manner: usize,
}

impl Fp8 {
    /// Bytes of the scales of a box.
    pub fn scale_bytes(&self, extent: [usize; 3]) -> usize {
        let [height, width] = scale_extent(self.format);
        4 * extent[0] * extent[1].div_ceil(height) * extent[2].div_ceil(width)
    }
}

/// Rows and columns of values that a row and a column of scales cover.
pub fn scale_extent(format: ScaleFormat) -> [usize; 2] {
    if format == ScaleFormat::Ue8m0Packed { [1, PACKED * BLOCK] } else { [BLOCK, BLOCK] }
}

/// A parameter of the running model.
pub struct Destination {
    pub name: String,
    /// Codes, or what is kept.
    pub values: Tensor,
    /// `None`: kept.
    pub fp8: Option<Fp8>,
    /// Rows of each part; empty: one part.
    pub part_rows: Vec<i64>,
    /// What fills it, as indices into [`Model::regions`], by where it begins.
    pub regions: Vec<u32>,
}

impl Destination {
    /// The cut of its rows.
    pub fn grid(&self) -> RowGrid<'_> {
        RowGrid::of_weight(self.values.rows(), &self.part_rows).expect("checked when it was made")
    }

    /// What a box of it counts in, in elements: a block, or a row of [`KEPT_BYTES`].
    pub fn unit(&self) -> [usize; 3] {
        match &self.fp8 {
            // Four groups share a word of the scales.
            Some(fp8) if fp8.format == ScaleFormat::Ue8m0Packed => [1, BLOCK, PACKED * BLOCK],
            Some(_) => [1, BLOCK, BLOCK],
            None => [1, 1, KEPT_BYTES / self.values.dtype.bytes()],
        }
    }
}

/// A name that a tensor may have, and what it fills.
pub struct Source {
    pub name: String,
    /// Indices into [`Model::regions`].
    pub regions: Vec<u32>,
}

/// A box of a source that fills a box of a destination. Of a quantized destination it lies within one part.
#[derive(Clone, Debug)]
pub struct Region {
    pub source: u32,
    pub destination: u32,
    /// Index of the part if the source is the destination itself, which nobody recorded; else 0.
    pub part: u32,
    /// Where it begins in the source; in the part, if the source is the destination itself.
    pub source_first: [usize; 3],
    /// The box of the destination.
    pub target: Window,
    /// Row of the destination's scales that it begins at; 0 if it is kept.
    pub first_scale_row: usize,
    /// Its extents in units of the destination.
    pub units: [usize; 3],
    /// Units of the regions before it.
    pub first_unit: usize,
}

impl Region {
    pub fn total_units(&self) -> usize {
        self.units.iter().product()
    }
}

/// What a name stands for.
#[derive(Clone, Copy)]
pub enum Named {
    /// Boxes are counted in the source.
    Source(u32),
    /// Boxes are counted in the destination.
    Destination(u32),
}

/// Destinations, sources and regions, checked against one another.
#[derive(Default)]
pub struct Model {
    pub destinations: Vec<Destination>,
    pub sources: Vec<Source>,
    pub regions: Vec<Region>,
    /// The ways in which destinations are quantized.
    pub manners: Vec<Manner>,
    names: HashMap<String, Named>,
}

/// A destination as a caller describes it. The tensors are checked as to memory.
pub struct DestinationSpec<'a> {
    pub name: &'a str,
    pub values: Tensor,
    pub scales: Option<Tensor>,
    pub part_rows: &'a [i64],
    pub formula: Formula,
    pub format: ScaleFormat,
    /// Its regions need not fill all of it.
    pub partly: bool,
}

/// A region as a caller describes it.
pub struct RegionSpec<'a> {
    pub source: &'a str,
    pub destination: usize,
    pub source_first: [usize; 3],
    pub target: Window,
}

impl Model {
    /// Checks everything. A destination that no region mentions is filled by its own name, part by part.
    pub fn new(destinations: &[DestinationSpec], regions: &[RegionSpec]) -> Result<Model> {
        let mut model = Model::default();
        let mut own = HashMap::new();
        for (index, spec) in destinations.iter().enumerate() {
            let made = model.destination(spec).map_err(within("destinations", index, spec.name))?;
            model.destinations.push(made);
            if let Some(before) = own.insert(spec.name, index) {
                let name = spec.name.to_owned();
                fail!(InvalidArgument, "destinations[{before}] and destinations[{index}] both have the name {name}");
            }
        }
        for (index, spec) in regions.iter().enumerate() {
            model.add_region(spec).map_err(within("regions", index, spec.source))?;
        }
        for (index, spec) in destinations.iter().enumerate() {
            model.complete(index, spec.partly).map_err(within("destinations", index, spec.name))?;
        }
        let mut units = 0;
        for (index, region) in model.regions.iter_mut().enumerate() {
            region.first_unit = units;
            units += region.total_units();
            model.sources[region.source as usize].regions.push(index as u32);
        }
        Ok(model)
    }

    /// What a name stands for.
    pub fn find(&self, name: &str) -> Option<Named> {
        self.names.get(name).copied()
    }

    /// Blocks of all regions.
    pub fn total_units(&self) -> usize {
        self.regions.last().map_or(0, |last| last.first_unit + last.total_units())
    }

    /// Whether every region lies on blocks of its source too, those of fingerprints where it is kept. A box that ends off
    /// one is taken to end where its source does, unless another region shows that the source goes on.
    pub fn cut_on_blocks(&self) -> bool {
        self.sources.iter().all(|source| {
            let regions = || source.regions.iter().map(|&index| &self.regions[index as usize]);
            let end = |region: &Region, axis: usize| region.source_first[axis] + region.target.extent[axis];
            regions().all(|region| {
                let width = KEPT_BYTES / self.destinations[region.destination as usize].values.dtype.bytes();
                [(1, BLOCK), (2, width)].into_iter().all(|(axis, block)| {
                    let goes_on =
                        || regions().any(|other| other.part == region.part && end(other, axis) > end(region, axis));
                    region.source_first[axis].is_multiple_of(block)
                        && (end(region, axis).is_multiple_of(block) || !goes_on())
                })
            })
        })
    }

    /// Adds a recorded region: of a quantized destination one for each part that it touches.
    fn add_region(&mut self, spec: &RegionSpec) -> Result<()> {
        let RegionSpec { source, destination, source_first, target } = *spec;
        ensure!(
            destination < self.destinations.len(),
            InvalidArgument,
            "destination is {destination}, there are {}",
            self.destinations.len()
        );
        check_box(&self.destinations[destination], source_first, &target)?;
        let source = self.source(source, Named::Source);
        for (band, part) in cuts(&self.destinations[destination], &target)? {
            let mut first = source_first;
            first[1] += part.first[1] - target.first[1];
            self.push(source, destination, 0, first, part, band);
        }
        Ok(())
    }

    /// Gives a destination its own regions if nobody recorded any, and sees that the recorded ones fill it once.
    fn complete(&mut self, index: usize, partly: bool) -> Result<()> {
        if self.destinations[index].regions.is_empty() {
            return self.fill_by_own_name(index);
        }
        let name = self.destinations[index].name.clone();
        self.names.entry(name).or_insert(Named::Destination(index as u32));
        let Destination { regions, values, .. } = &mut self.destinations[index];
        let all = &self.regions;
        let target = |region: u32| &all[region as usize].target;
        regions.sort_by_key(|&region| target(region).first);
        for (at, &region) in regions.iter().enumerate() {
            let near = regions[at + 1..].iter().take_while(|&&next| target(next).first[0] < target(region).end(0));
            for &next in near {
                if let Some(shared) = target(region).shared(target(next)) {
                    let (one, other) = (self.sources[all[region as usize].source as usize].name.clone(), next);
                    let other = self.sources[all[other as usize].source as usize].name.clone();
                    fail!(
                        Overlap,
                        "the regions of {one} and {other} both fill expert {}, row {}, column {}",
                        shared.first[0],
                        shared.first[1],
                        shared.first[2]
                    );
                }
            }
        }
        let filled: usize = regions.iter().map(|&region| target(region).volume()).sum();
        let whole: usize = values.shape.iter().product();
        ensure!(
            partly || filled == whole,
            InvalidArgument,
            "its regions fill {filled} of {whole} elements, and nothing fills the others"
        );
        Ok(())
    }

    fn fill_by_own_name(&mut self, index: usize) -> Result<()> {
        let name = self.destinations[index].name.clone();
        ensure!(
            !self.names.contains_key(&name),
            InvalidArgument,
            "it has no region, and its name is that of a source of other destinations"
        );
        let source = self.source(&name, |_| Named::Destination(index as u32));
        let values = self.destinations[index].values;
        let parts: Vec<Rows> = self.destinations[index].grid().parts().collect();
        for (part, rows) in parts.into_iter().enumerate() {
            let first = [0, rows.first, 0];
            let target = Window { first, extent: [values.experts(), rows.count, values.columns()] };
            self.push(source, index, part as u32, [0; 3], target, rows.bands);
        }
        Ok(())
    }

    /// The source of a name, made if it is new.
    fn source(&mut self, name: &str, named: impl FnOnce(u32) -> Named) -> u32 {
        match self.names.get(name) {
            Some(&Named::Source(index)) => index,
            _ => {
                let index = self.sources.len() as u32;
                self.sources.push(Source { name: name.to_owned(), regions: Vec::new() });
                self.names.insert(name.to_owned(), named(index));
                index
            }
        }
    }

    fn push(&mut self, source: u32, to: usize, part: u32, source_first: [usize; 3], target: Window, band: usize) {
        let destination = &mut self.destinations[to];
        let first_scale_row = match &destination.fp8 {
            Some(Fp8 { format: ScaleFormat::Ue8m0Packed, .. }) => target.first[1],
            Some(_) => band,
            None => 0,
        };
        let unit = destination.unit();
        let units = std::array::from_fn(|axis| target.extent[axis].div_ceil(unit[axis]));
        destination.regions.push(self.regions.len() as u32);
        self.regions.push(Region {
            source,
            destination: to as u32,
            part,
            source_first,
            target,
            first_scale_row,
            units,
            first_unit: 0,
        });
    }
}

/// Puts index and name of an argument before a message about it.
fn within<'a>(what: &'a str, index: usize, name: &'a str) -> impl FnOnce(Error) -> Error + 'a {
    move |error| Error { message: format!("{what}[{index}] ({name}): {}", error.message), ..error }
}

impl Model {
    fn destination(&mut self, spec: &DestinationSpec) -> Result<Destination> {
        let DestinationSpec { name, values, scales, part_rows, formula, format, .. } = *spec;
        ensure!(!name.is_empty(), InvalidArgument, "the name is empty");
        RowGrid::of_weight(values.rows(), part_rows)?;
        ensure!(
            values.shape.iter().try_fold(1usize, |product, &extent| product.checked_mul(extent)).is_some(),
            Shape,
            "its elements are more than can be counted"
        );
        let fp8 = match scales {
            Some(scales) => {
                expect_weight(&values, &scales, &Subject::Weight { part_rows }, format)?;
                Some(Fp8 { scales, formula, format, manner: self.manner(formula, format) })
            }
            None => {
                ensure!(values.dtype != Dtype::E4m3, NullPointer, "codes has dtype e4m3 and there are no scales");
                values.expect_dtype(FLOATS)?;
                values.expect_rows_contiguous()?;
                None
            }
        };
        Ok(Destination { name: name.to_owned(), values, fp8, part_rows: part_rows.to_vec(), regions: Vec::new() })
    }

    /// The index of a manner, added if it is new.
    fn manner(&mut self, formula: Formula, format: ScaleFormat) -> usize {
        let same = |manner: &Manner| manner.formula == formula && manner.format == format;
        self.manners.iter().position(same).unwrap_or_else(|| {
            self.manners.push(Manner { formula, format, health: None });
            self.manners.len() - 1
        })
    }
}

/// The box lies within the destination, and its end in the source can be counted.
fn check_box(destination: &Destination, source_first: [usize; 3], target: &Window) -> Result<()> {
    for (axis, what) in ["experts", "rows", "columns"].into_iter().enumerate() {
        let (first, extent, whole) = (target.first[axis], target.extent[axis], destination.values.shape[axis]);
        let name = &destination.name;
        ensure!(extent > 0, Shape, "extent[{axis}] is 0");
        if first.checked_add(extent).is_none_or(|end| end > whole) {
            let name = name.clone();
            fail!(Shape, "{what} {first} to {} are beyond the {whole} of {name}", first.saturating_add(extent));
        }
        ensure!(
            source_first[axis].checked_add(extent).is_some(),
            Shape,
            "source_first[{axis}] is {}, the box ends beyond what can be counted",
            source_first[axis]
        );
    }
    Ok(())
}

/// The box cut at the parts, each with the band that it begins at. What is kept is not cut.
fn cuts(destination: &Destination, target: &Window) -> Result<Vec<(usize, Window)>> {
    if destination.fp8.is_none() {
        return Ok(vec![(0, *target)]);
    }
    let [_, height, width] = destination.unit();
    let columns = destination.values.columns();
    for (what, column) in [("begins", target.first[2]), ("ends", target.end(2))] {
        let name = &destination.name;
        let good = column.is_multiple_of(width) || (what == "ends" && column == columns);
        if !good {
            let name = name.clone();
            fail!(Shape, "{what} at column {column} of {name}, must be a multiple of {width} or the end of the row");
        }
    }
    let mut made = Vec::new();
    for (index, part) in destination.grid().parts().enumerate() {
        let rows = Window { first: [target.first[0], part.first, target.first[2]], ..*target };
        let rows = Window { extent: [target.extent[0], part.count, target.extent[2]], ..rows };
        let Some(cut) = target.shared(&rows) else { continue };
        let (first, end) = (cut.first[1] - part.first, cut.end(1) - part.first);
        for (what, row) in [("begins", first), ("ends", end)] {
            let good = row.is_multiple_of(height) || (what == "ends" && row == part.count);
            if !good {
                let (name, whole) = (destination.name.clone(), part.first + row);
                fail!(
                    Shape,
                    "{what} at row {whole} of {name}, row {row} of part {index}, must be a multiple of {height} or the \
                     end of the part"
                );
            }
        }
        made.push((part.bands + first / height, cut));
    }
    Ok(made)
}
