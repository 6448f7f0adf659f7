//! What a run brings: tensors by name, and the pieces of them that regions want.

use crate::blocks::{BLOCK, RowGrid, aligned_rows};
use crate::copy::Copy;
use crate::error::{Result, ensure, fail};
use crate::quantize::{Subject, expect_weight};
use crate::recipe::ScaleFormat;
use crate::tensor::{FLOATS, Tensor};

use super::accounting::Units;
use super::model::{Destination, Fp8, Model, Named, Region, Window, scale_extent};

/// A tensor of a run, checked as to memory.
pub struct Item<'a> {
    pub name: &'a str,
    /// The part of the destination that it is.
    pub part: Option<u32>,
    /// Its first expert.
    pub expert: Option<usize>,
    /// Row and column where it begins.
    pub first: [usize; 2],
    pub weight: &'a Tensor,
    /// `None`: values. Else the scales of codes.
    pub scales: Option<&'a Tensor>,
    /// Codes and scales that it becomes, if not those of the destinations.
    pub target: Option<(&'a Tensor, &'a Tensor)>,
}

/// Items that can be visited more than once, made anew at each visit.
pub trait Items {
    /// Visits every item in order, until a visit fails.
    fn visit(&self, visitor: &mut dyn FnMut(usize, &Item) -> Result<()>) -> Result<()>;
}

/// What is done with a piece.
#[derive(Clone, Copy)]
pub enum Work {
    /// Values become codes and scales.
    Quantize { source: Tensor, codes: Tensor, scales: Tensor, padding: usize },
    /// Codes and scales come as they are.
    CopyCodes { codes: Copy, scales: Copy },
    /// What is kept.
    Keep(Copy),
}

/// A piece of an item that fills a region or a cut of one.
#[derive(Clone, Copy)]
pub struct Piece {
    pub item: u32,
    pub region: u32,
    pub units: Units,
    pub work: Work,
}

impl Work {
    /// Bytes that are read and written.
    pub fn bytes(&self) -> (usize, usize) {
        let size = |tensor: &Tensor| tensor.shape.iter().product::<usize>() * tensor.dtype.bytes();
        match self {
            Work::Quantize { source, codes, scales, .. } => (size(source), size(codes) + size(scales)),
            Work::CopyCodes { codes, scales } => (codes.bytes() + scales.bytes(), codes.bytes() + scales.bytes()),
            Work::Keep(copy) => (copy.bytes(), copy.bytes()),
        }
    }

    /// The memory that it reads and writes.
    pub fn tensors(&self) -> [Option<&Tensor>; 4] {
        match self {
            Work::Quantize { source, codes, scales, .. } => [Some(source), Some(codes), Some(scales), None],
            Work::CopyCodes { codes, scales } => [&codes.from, &codes.to, &scales.from, &scales.to].map(Some),
            Work::Keep(copy) => [Some(&copy.from), Some(&copy.to), None, None],
        }
    }

    /// Where its source is.
    pub fn source_device(&self) -> i32 {
        match self {
            Work::Quantize { source, .. } => source.device,
            Work::CopyCodes { codes: copy, .. } | Work::Keep(copy) => copy.from.device,
        }
    }
}

/// Where an item lies, and in whose rows that is counted.
pub struct Placed<'m> {
    named: Named,
    /// Regions that may want some of it.
    pub regions: &'m [u32],
    window: Window,
}

impl Placed<'_> {
    /// A region's box, counted as the item's.
    fn window_of(&self, region: &Region) -> Window {
        match self.named {
            Named::Source(_) => Window { first: region.source_first, ..region.target },
            Named::Destination(_) => region.target,
        }
    }
}

impl Model {
    /// Where an item lies.
    pub fn place(&self, item: &Item) -> Result<Placed<'_>> {
        let Some(named) = self.find(item.name) else {
            fail!(InvalidArgument, "no source and no destination has this name")
        };
        item.weight.expect_rows_contiguous()?;
        let mut first = [item.expert.unwrap_or(0), item.first[0], item.first[1]];
        let regions = match named {
            Named::Source(source) => {
                ensure!(item.part.is_none(), InvalidArgument, "it is a source of recorded regions, which has no parts");
                &self.sources[source as usize].regions
            }
            Named::Destination(index) => {
                let destination = &self.destinations[index as usize];
                first[1] += first_row(destination, item)?;
                &destination.regions
            }
        };
        let window = Window { first, extent: item.weight.shape };
        for axis in 0..3 {
            let (begin, extent) = (first[axis], window.extent[axis]);
            ensure!(begin.checked_add(extent).is_some(), Shape, "it ends beyond what can be counted");
            if let Named::Destination(index) = named {
                let whole = self.destinations[index as usize].values.shape[axis];
                let what = ["experts", "rows", "columns"][axis];
                let end = begin + extent;
                ensure!(end <= whole, Shape, "it holds {what} {begin} to {end}, the destination has {whole}");
            }
        }
        Ok(Placed { named, regions, window })
    }

    /// The piece of an item that a region wants; `None` if it wants nothing of it.
    pub fn piece(&self, item: &Item, placed: &Placed, index: u32) -> Result<Option<(Units, Work)>> {
        let region = &self.regions[index as usize];
        let window = placed.window_of(region);
        let Some(shared) = window.shared(&placed.window) else { return Ok(None) };
        let destination = &self.destinations[region.destination as usize];
        let units = units(destination, region, &window, &shared)?;
        let within =
            |outer: &Window| -> [usize; 3] { std::array::from_fn(|axis| shared.first[axis] - outer.first[axis]) };
        let (in_item, in_region) = (within(&placed.window), within(&window));
        let in_target = std::array::from_fn(|axis| region.target.first[axis] + in_region[axis]);
        let source = item.weight.window(in_item, shared.extent);
        let target = destination.values.window(in_target, shared.extent);
        let Some(fp8) = &destination.fp8 else {
            ensure!(item.scales.is_none(), InvalidArgument, "it has scales, {} is kept as it is", destination.name);
            source.expect_dtype(&[target.dtype])?;
            return Ok(Some((units, Work::Keep(Copy::new(&source, &target, 0)?))));
        };
        let rank = item.weight.rank;
        ensure!(rank >= 2, Shape, "weight has rank {rank}, must be 2 or, with experts, 3");
        let scales = scales_of(fp8, region, in_region, in_target[2], shared.extent);
        let ends = shared.extent[1] + in_target[1] == destination.values.rows();
        let rows = destination.values.rows();
        let packed = fp8.format == ScaleFormat::Ue8m0Packed;
        let padding = if packed && ends { aligned_rows(rows) - rows } else { 0 };
        let Some(given) = item.scales else {
            source.expect_dtype(FLOATS)?;
            return Ok(Some((units, Work::Quantize { source, codes: target, scales, padding })));
        };
        let part_rows = self.part_rows(placed, item);
        let subject = Subject::Weight { part_rows };
        expect_weight(item.weight, given, &subject, fp8.format)?;
        let (row, column) = on_grid(item.weight, part_rows, fp8.format, in_item, shared.extent)?;
        let given = given.window([in_item[0], row, column], scales.shape);
        let (codes, scales) = (Copy::new(&source, &target, 0)?, Copy::new(&given, &scales, padding)?);
        Ok(Some((units, Work::CopyCodes { codes, scales })))
    }

    /// How an item becomes codes, and in which grids, if its blocks are those of every region that wants some of it.
    pub fn manner_of(&self, item: &Item, placed: &Placed) -> Result<usize> {
        let mut found = None;
        for &index in placed.regions {
            let region = &self.regions[index as usize];
            let destination = &self.destinations[region.destination as usize];
            let name = &destination.name;
            let Some(fp8) = &destination.fp8 else {
                let name = name.clone();
                fail!(InvalidArgument, "{name} is kept as it is")
            };
            if let Some(shared) = placed.window_of(region).shared(&placed.window) {
                let first = std::array::from_fn(|axis| shared.first[axis] - placed.window.first[axis]);
                on_grid(item.weight, self.part_rows(placed, item), fp8.format, first, shared.extent)?;
            }
            if found.is_some_and(|before| before != fp8.manner) {
                let name = name.clone();
                fail!(InvalidArgument, "{name} is quantized in another way than the other destinations of this source");
            }
            found = Some(fp8.manner);
        }
        match found {
            Some(manner) => Ok(manner),
            None => fail!(Internal, "a name without regions"),
        }
    }

    /// The parts of an item that is a whole destination; otherwise it is one.
    pub fn part_rows(&self, placed: &Placed, item: &Item) -> &[i64] {
        match placed.named {
            Named::Destination(index) if item.part.is_none() => {
                let destination = &self.destinations[index as usize];
                let whole = placed.window.extent[1] == destination.values.rows();
                if whole { &destination.part_rows } else { &[] }
            }
            _ => &[],
        }
    }
}

/// The row of the destination that rows of the item are counted from.
fn first_row(destination: &Destination, item: &Item) -> Result<usize> {
    let (rank, experts) = (item.weight.rank, destination.values.experts());
    ensure!(
        rank == 3 || item.expert.is_some() || experts == 1,
        Shape,
        "it has rank {rank} and no expert, the destination has {experts} experts"
    );
    let Some(part) = item.part else { return Ok(0) };
    let Some(rows) = destination.grid().parts().nth(part as usize) else {
        fail!(InvalidArgument, "part is {part}, the destination has {}", destination.part_rows.len().max(1))
    };
    let end = item.first[0].saturating_add(item.weight.rows());
    ensure!(
        end <= rows.count,
        Shape,
        "it holds rows {} to {end} of part {part}, which has {}",
        item.first[0],
        rows.count
    );
    Ok(rows.first)
}

/// The units of a region that `shared` fills; it must begin and end on such.
fn units(destination: &Destination, region: &Region, window: &Window, shared: &Window) -> Result<Units> {
    let unit = destination.unit();
    let mut units = Units { first: [0; 3], count: [0; 3] };
    for axis in 0..3 {
        let (size, what) = (unit[axis], ["expert", "row", "column"][axis]);
        let begin = shared.first[axis] - window.first[axis];
        let end = begin + shared.extent[axis];
        for (verb, at) in [("begins", begin), ("ends", end)] {
            let good = at.is_multiple_of(size) || (verb == "ends" && at == window.extent[axis]);
            if !good {
                let (name, place) = (destination.name.clone(), window.first[axis] + at);
                fail!(
                    Shape,
                    "it {verb} at {what} {place}, which is {what} {at} of a region of {name}: must be a multiple of {size} \
                     there, or its end"
                );
            }
        }
        units.first[axis] = begin / size;
        units.count[axis] = end.div_ceil(size) - begin / size;
    }
    debug_assert!((0..3).all(|axis| units.first[axis] + units.count[axis] <= region.units[axis]));
    Ok(units)
}

/// The scales of a box of a region. `offset`: where it begins in the region; `column`: in the destination.
pub(super) fn scales_of(fp8: &Fp8, region: &Region, offset: [usize; 3], column: usize, extent: [usize; 3]) -> Tensor {
    let [height, width] = scale_extent(fp8.format);
    let first = [region.target.first[0] + offset[0], region.first_scale_row + offset[1] / height, column / width];
    fp8.scales.window(first, [extent[0], extent[1].div_ceil(height), extent[2].div_ceil(width)])
}

/// Row and column of the scales of codes at which a box of the codes begins. It must lie on their blocks.
fn on_grid(
    codes: &Tensor,
    part_rows: &[i64],
    format: ScaleFormat,
    first: [usize; 3],
    extent: [usize; 3],
) -> Result<(usize, usize)> {
    let [_, width] = scale_extent(format);
    let (column, end) = (first[2], first[2] + extent[2]);
    ensure!(
        column.is_multiple_of(width) && (end.is_multiple_of(width) || end == codes.columns()),
        Shape,
        "columns {column} to {end} of its codes are wanted, which share scales with others: must be multiples of {width} or \
         the end"
    );
    let (row, end) = (first[1], first[1] + extent[1]);
    let grid = RowGrid::of_weight(codes.rows(), part_rows)?;
    let part = grid.parts().find(|part| row < part.first + part.count);
    let Some(part) = part else { fail!(Internal, "row {row} is in no part") };
    let (begin, stop) = (row - part.first, end - part.first);
    ensure!(
        begin.is_multiple_of(BLOCK) && (stop.is_multiple_of(BLOCK) || stop == part.count) && stop <= part.count,
        Shape,
        "rows {row} to {end} of its codes are wanted, which share scales with others: must be multiples of {BLOCK} or the \
         end"
    );
    let packed = format == ScaleFormat::Ue8m0Packed;
    Ok((if packed { row } else { part.bands + begin / BLOCK }, column / width))
}
