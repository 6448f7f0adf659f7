//! Many weights in one go: entries of a call, or a table that is made once and run again and again.

use crate::blocks::BLOCK;
use crate::error::{Error, Result, fail};
use crate::quantize::{HealthPointer, Operands, Quantize, Rule, Subject};
use crate::recipe::{Formula, ScaleFormat};
use crate::tensor::{Dtype, Tensor};

/// The source types, one launch each.
pub const SOURCES: [Dtype; 3] = [Dtype::Bf16, Dtype::F16, Dtype::F32];

/// One weight, checked as to memory, not yet against the others of its entry.
#[derive(Clone)]
pub struct Entry<'a> {
    pub weight: &'a Tensor,
    pub codes: &'a Tensor,
    pub scales: &'a Tensor,
    pub subject: Subject<'a>,
}

/// How all entries are quantized.
#[derive(Clone, Copy)]
pub struct Manner {
    pub formula: Formula,
    pub format: ScaleFormat,
    pub health: Option<HealthPointer>,
}

impl<'a> Entry<'a> {
    /// The checked request.
    pub fn request(&self, manner: Manner) -> Result<Quantize<'a>> {
        let operands = Operands { source: self.weight, codes: Some(self.codes), scales: self.scales };
        Quantize::new(self.subject, operands, manner.format, Rule::Compute(manner.formula), manner.health)
    }
}

/// Least staging memory for weights on the host of this many columns: 128 rows twice.
pub fn staging_bytes(columns: usize, dtype: Dtype) -> usize {
    2 * (BLOCK * columns * dtype.bytes()).next_multiple_of(256)
}

/// Puts label and number of an entry before a message about it.
pub fn name_entry(label: &'static str, index: usize) -> impl FnOnce(Error) -> Error {
    move |error| Error { message: format!("{label}[{index}]: {}", error.message), ..error }
}

/// Entries that can be visited more than once: all are checked before the first is enqueued. They are made anew at each
/// visit, so that a call of any length allocates nothing.
pub trait Entries {
    /// Visits every entry in order, until a visit fails.
    fn visit(&self, visitor: &mut dyn FnMut(usize, &Entry) -> Result<()>) -> Result<()>;

    /// What messages call them.
    fn label(&self) -> &'static str {
        "entries"
    }

    /// Checks every entry.
    fn check(&self, manner: Manner) -> Result<()> {
        self.visit(&mut |index, entry| entry.request(manner).map(drop).map_err(name_entry(self.label(), index)))
    }
}

/// An entry that owns its descriptions.
struct Owned {
    weight: Tensor,
    codes: Tensor,
    scales: Tensor,
    shares: Shares,
}

/// An owned [`Subject`] of a weight.
enum Shares {
    Parts(Vec<i64>),
    Bands { padding: usize },
}

/// The entries of a table.
pub struct OwnedEntries(Vec<Owned>);

impl OwnedEntries {
    /// Copies the descriptions, not the memory.
    pub fn new(entries: &dyn Entries) -> Result<OwnedEntries> {
        let mut owned = Vec::new();
        entries.visit(&mut |_, entry| {
            let shares = match entry.subject {
                Subject::Weight { part_rows } => Shares::Parts(part_rows.to_vec()),
                Subject::Bands { padding } => Shares::Bands { padding },
                Subject::Activation => fail!(Internal, "an activation in a refit"),
            };
            owned.push(Owned { weight: *entry.weight, codes: *entry.codes, scales: *entry.scales, shares });
            Ok(())
        })?;
        Ok(OwnedEntries(owned))
    }
}

impl Entries for OwnedEntries {
    fn visit(&self, visitor: &mut dyn FnMut(usize, &Entry) -> Result<()>) -> Result<()> {
        self.0.iter().enumerate().try_for_each(|(index, owned)| {
            let Owned { weight, codes, scales, shares } = owned;
            let subject = match shares {
                Shares::Parts(part_rows) => Subject::Weight { part_rows },
                &Shares::Bands { padding } => Subject::Bands { padding },
            };
            visitor(index, &Entry { weight, codes, scales, subject })
        })
    }
}
