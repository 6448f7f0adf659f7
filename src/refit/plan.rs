//! A refit plan at work: begin, run after run, finish.

use std::ffi::c_void;
use std::sync::Arc;

use crate::context::{Context, HOST, Staging};
use crate::error::{Error, Kind, Result, ensure, fail, make};
use crate::fingerprint::Name;
use crate::quantize::{HealthPointer, Subject};
use crate::table::WeightTable;
use crate::tensor::Dtype;

use super::accounting::Accounting;
use super::items::{Item, Items, Piece, Work};
use super::many::{Entries, Entry, Manner, staging_bytes};
use super::missing;
use super::model::Model;

/// Where a refit stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Idle,
    Open,
    /// A run failed after something was enqueued.
    Failed,
}

/// What was done since `begin`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Receipt {
    pub items: u64,
    pub regions_written: u64,
    pub bytes_read: u64,
    pub bytes_written: u64,
}

/// A model that is refitted, and how far that is.
pub struct Refit {
    context: Arc<Context>,
    model: Model,
    accounting: Accounting,
    state: State,
    receipt: Receipt,
    /// Those of the run that is on its way; kept for its memory.
    pieces: Vec<Piece>,
    /// What the regions are called in fingerprints.
    names: Vec<Name>,
}

impl Refit {
    pub fn new(context: Arc<Context>, model: Model) -> Refit {
        let (accounting, names) = (Accounting::new(&model), model.fingerprint_names());
        let (state, receipt) = (State::Idle, Receipt::default());
        Refit { context, model, accounting, state, receipt, pieces: Vec::new(), names }
    }

    pub fn context(&self) -> &Context {
        &self.context
    }

    pub fn model(&self) -> &Model {
        &self.model
    }

    pub(super) fn name_of_region(&self, index: usize) -> Name {
        self.names[index]
    }

    pub fn state(&self) -> State {
        self.state
    }

    pub fn receipt(&self) -> Receipt {
        self.receipt
    }

    pub fn blocks_filled(&self) -> usize {
        self.accounting.filled()
    }

    pub fn destinations_filled(&self) -> usize {
        missing::destinations_filled(&self.model, &self.accounting)
    }

    /// What is missing, as JSON.
    pub fn missing(&self) -> String {
        missing::to_json(&self.model, &self.accounting)
    }

    /// Bytes that a whole refit reads, from 16 bits where it quantizes, and writes.
    pub fn whole_bytes(&self) -> (usize, usize) {
        self.model.regions.iter().fold((0, 0), |(read, written), region| {
            let destination = &self.model.destinations[region.destination as usize];
            let (elements, size) = (region.target.volume(), destination.values.dtype.bytes());
            match &destination.fp8 {
                None => (read + elements * size, written + elements * size),
                Some(fp8) => (read + 2 * elements, written + elements + fp8.scale_bytes(region.target.extent)),
            }
        })
    }

    /// Least staging memory for any source on the host.
    pub fn staging_bytes(&self) -> usize {
        let quantized = |index: u32| self.model.destinations[index as usize].fp8.is_some();
        let regions = self.model.regions.iter().filter(|region| quantized(region.destination));
        let most = regions.map(|region| staging_bytes(region.target.extent[2], Dtype::F32)).max();
        if self.context.device == HOST { 0 } else { most.unwrap_or(0) }
    }

    /// Forgets what was filled.
    pub fn begin(&mut self) {
        self.accounting.clear();
        self.receipt = Receipt::default();
        self.state = State::Open;
    }

    fn expect_open(&self) -> Result<()> {
        match self.state {
            State::Open => Ok(()),
            State::Idle => fail!(State, "the refit is not begun: call fp8rt_refit_begin"),
            State::Failed => fail!(
                State,
                "a run failed after work was enqueued, so what the destinations hold is not known: call fp8rt_refit_begin \
                 and bring everything again"
            ),
        }
    }

    /// Enqueues what the items fill, and counts it. Gives the number of boxes written. An item that is wrong changes
    /// nothing.
    pub fn run(
        &mut self,
        items: &dyn Items,
        staging: Staging,
        health: Option<HealthPointer>,
        stream: *mut c_void,
    ) -> Result<usize> {
        self.expect_open()?;
        let mut pieces = std::mem::take(&mut self.pieces);
        let taken = self.take(items, &mut pieces, staging, health, stream);
        let done = match taken {
            Ok(count) => self.enqueue(&pieces, staging, health, stream).map(|()| self.count(count, &pieces)),
            Err(error) => {
                self.release(&pieces);
                Err(error)
            }
        };
        let written = pieces.len();
        self.pieces = pieces;
        done.map(|()| written)
    }

    /// Checks everything that can be, and marks what will be filled. Gives the number of items.
    fn take(
        &mut self,
        items: &dyn Items,
        pieces: &mut Vec<Piece>,
        staging: Staging,
        health: Option<HealthPointer>,
        stream: *mut c_void,
    ) -> Result<usize> {
        pieces.clear();
        let mut count = 0;
        self.context.check_health(health)?;
        items.visit(&mut |index, item| {
            count += 1;
            take(&self.context, &self.model, &mut self.accounting, pieces, health, (index, item))
                .map_err(name_item(index, item.name))
        })?;
        if !pieces.is_empty() {
            self.context.expect_ready(stream)?;
        }
        // What is copied straight from there asks for no room, but for the same state of the stream.
        if pieces.iter().any(|piece| piece.work.source_device() != self.context.device) {
            let theirs = Chosen { from_host: true, ..self.chosen(pieces) };
            self.context.expect_staging(&theirs, staging, stream)?;
        }
        Ok(count)
    }

    /// Takes back what was marked.
    fn release(&mut self, pieces: &[Piece]) {
        for piece in pieces {
            let index = piece.region as usize;
            self.accounting.unfill(index, &self.model.regions[index], &piece.units);
        }
    }

    fn enqueue(
        &mut self,
        pieces: &[Piece],
        staging: Staging,
        health: Option<HealthPointer>,
        stream: *mut c_void,
    ) -> Result<()> {
        let enqueued = self.enqueue_all(pieces, staging, health, stream);
        if enqueued.is_err() {
            self.state = State::Failed;
        }
        enqueued.map_err(|error| Error {
            message: format!("{}; the refit has failed, begin it again", error.message),
            ..error
        })
    }

    fn enqueue_all(
        &self,
        pieces: &[Piece],
        staging: Staging,
        health: Option<HealthPointer>,
        stream: *mut c_void,
    ) -> Result<()> {
        for piece in pieces {
            match &piece.work {
                Work::Quantize { .. } => {}
                Work::CopyCodes { codes, scales } => {
                    self.context.copy(codes, stream)?;
                    self.context.copy(scales, stream)?;
                }
                Work::Keep(copy) => self.context.copy(copy, stream)?,
            }
        }
        for (index, &manner) in self.model.manners.iter().enumerate() {
            let manner = Manner { health, ..manner };
            let ours = Chosen { manner: Some(index), ..self.chosen(pieces) };
            self.context.quantize_many(&ours, manner, stream)?;
            let theirs = Chosen { from_host: true, ..ours };
            if self.context.device != HOST && !theirs.is_empty() {
                self.context.quantize_many_from_host(&theirs, manner, staging, stream)?;
            }
        }
        Ok(())
    }

    /// All pieces that are quantized from the context's device.
    fn chosen<'a>(&'a self, pieces: &'a [Piece]) -> Chosen<'a> {
        Chosen { pieces, model: &self.model, device: self.context.device, from_host: false, manner: None }
    }

    fn count(&mut self, items: usize, pieces: &[Piece]) {
        self.receipt.items += items as u64;
        self.receipt.regions_written += pieces.len() as u64;
        for piece in pieces {
            let (read, written) = piece.work.bytes();
            self.receipt.bytes_read += read as u64;
            self.receipt.bytes_written += written as u64;
        }
    }

    /// Ends the refit if everything is filled. `partial`: destinations that nothing was written to do not count.
    pub fn finish(&mut self, partial: bool) -> Result<()> {
        self.expect_open()?;
        let mut missing = missing::missing(&self.model, &self.accounting, partial);
        if let Some(first) = missing.next() {
            return Err(self.incomplete(&first, 1 + missing.count()));
        }
        self.state = State::Idle;
        Ok(())
    }

    fn incomplete(&self, first: &missing::Missing, count: usize) -> Error {
        let name = &self.model.destinations[first.region.destination as usize].name;
        let source = &self.model.sources[first.region.source as usize].name;
        let ([expert, row, column], filled, total) = (first.first, first.filled, first.total);
        make(Kind::Incomplete, || {
            format!(
                "{count} of {} regions are not filled; the first is of {name}, from {source}, with {filled} of {total} \
                 blocks, from expert {expert}, row {row}, column {column} on",
                self.model.regions.len()
            )
        })
    }

    /// A table of items at fixed addresses. What its runs write is not counted as filled.
    pub fn bind(&self, items: &dyn Items) -> Result<WeightTable> {
        let (mut pieces, mut accounting) = (Vec::new(), Accounting::new(&self.model));
        items.visit(&mut |index, item| {
            take(&self.context, &self.model, &mut accounting, &mut pieces, None, (index, item))
                .map_err(name_item(index, item.name))
        })?;
        let mut table = WeightTable::new(self.context.clone());
        for piece in &pieces {
            match piece.work {
                Work::Quantize { .. } => {}
                Work::CopyCodes { codes, scales } => {
                    table.add_copy(codes);
                    table.add_copy(scales);
                }
                Work::Keep(copy) => table.add_copy(copy),
            }
        }
        for (index, &manner) in self.model.manners.iter().enumerate() {
            let chosen = Chosen { manner: Some(index), ..self.chosen(&pieces) };
            if !chosen.is_empty() {
                table.add(&chosen, manner)?;
            }
        }
        Ok(table)
    }

    /// Quantizes items as the plan would, into memory that they name.
    pub fn quantize_into(&self, items: &dyn Items, health: Option<HealthPointer>, stream: *mut c_void) -> Result<()> {
        for index in 0..self.model.manners.len() {
            let into = Into { model: &self.model, items, manner: index };
            into.check(Manner { health, ..self.model.manners[index] })?;
        }
        self.context.check_health(health)?;
        self.context.expect_ready(stream)?;
        for (index, &manner) in self.model.manners.iter().enumerate() {
            let into = Into { model: &self.model, items, manner: index };
            self.context.quantize_many(&into, Manner { health, ..manner }, stream)?;
        }
        Ok(())
    }
}

/// Checks an item, and adds the pieces that regions want.
fn take(
    context: &Context,
    model: &Model,
    accounting: &mut Accounting,
    pieces: &mut Vec<Piece>,
    health: Option<HealthPointer>,
    (index, item): (usize, &Item),
) -> Result<()> {
    let placed = model.place(item)?;
    for &region in placed.regions {
        let Some((units, work)) = model.piece(item, &placed, region)? else { continue };
        let piece = Piece { item: index as u32, region, units, work };
        let region = &model.regions[region as usize];
        let destination = &model.destinations[region.destination as usize];
        if let (Work::Quantize { .. }, Some(fp8)) = (&piece.work, &destination.fp8) {
            piece.entry().request(Manner { health, ..model.manners[fp8.manner] })?;
        }
        context.check_memory(&piece.work.tensors())?;
        if let Err(unit) = accounting.fill(piece.region as usize, region, &piece.units) {
            let (unit, size, first) = (unit, destination.unit(), region.target.first);
            let at = |axis: usize| first[axis] + unit[axis] * size[axis];
            let (name, expert, row, column) = (destination.name.clone(), at(0), at(1), at(2));
            fail!(
                InvalidArgument,
                "expert {expert}, row {row}, column {column} of {name} is filled already since fp8rt_refit_begin"
            );
        }
        pieces.push(piece);
    }
    Ok(())
}

/// Puts number and name of an item before a message about it.
pub(super) fn name_item(index: usize, name: &str) -> impl FnOnce(Error) -> Error + '_ {
    move |error| Error { message: format!("items[{index}] ({name}): {}", error.message), ..error }
}

impl Piece {
    /// What is quantized. Not for a copy.
    fn entry(&self) -> Entry<'_> {
        match &self.work {
            Work::Quantize { source, codes, scales, padding } => {
                Entry { weight: source, codes, scales, subject: Subject::Bands { padding: *padding } }
            }
            _ => unreachable!("a copy is no entry"),
        }
    }
}

/// The pieces that are quantized in one manner, from one place.
#[derive(Clone, Copy)]
struct Chosen<'a> {
    pieces: &'a [Piece],
    model: &'a Model,
    device: i32,
    /// From the host to another device.
    from_host: bool,
    /// `None`: any.
    manner: Option<usize>,
}

impl Chosen<'_> {
    fn has(&self, piece: &Piece) -> bool {
        let region = &self.model.regions[piece.region as usize];
        let Some(fp8) = &self.model.destinations[region.destination as usize].fp8 else { return false };
        matches!(piece.work, Work::Quantize { .. })
            && (piece.work.source_device() != self.device) == self.from_host
            && self.manner.is_none_or(|manner| manner == fp8.manner)
    }

    fn is_empty(&self) -> bool {
        !self.pieces.iter().any(|piece| self.has(piece))
    }
}

impl Entries for Chosen<'_> {
    fn visit(&self, visitor: &mut dyn FnMut(usize, &Entry) -> Result<()>) -> Result<()> {
        let ours = self.pieces.iter().filter(|piece| self.has(piece));
        ours.into_iter().try_for_each(|piece| visitor(piece.item as usize, &piece.entry()))
    }

    fn label(&self) -> &'static str {
        "items"
    }
}

/// Items that are quantized in one manner into memory that they name.
struct Into<'a> {
    model: &'a Model,
    items: &'a dyn Items,
    manner: usize,
}

impl Entries for Into<'_> {
    fn visit(&self, visitor: &mut dyn FnMut(usize, &Entry) -> Result<()>) -> Result<()> {
        self.items.visit(&mut |index, item| {
            let name = |error| name_item(index, item.name)(error);
            let placed = self.model.place(item).map_err(name)?;
            let manner = self.model.manner_of(item, &placed).map_err(name)?;
            let Some((codes, scales)) = item.target else { fail!(Internal, "an item without a target") };
            let given = item.scales.is_some();
            ensure!(!given, InvalidArgument, "items[{index}]: it has scales, so it is quantized already");
            let subject = Subject::Weight { part_rows: self.model.part_rows(&placed, item) };
            let entry = Entry { weight: item.weight, codes, scales, subject };
            if manner == self.manner { visitor(index, &entry) } else { Ok(()) }
        })
    }

    fn label(&self) -> &'static str {
        "items"
    }
}
