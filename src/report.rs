//! A report that helps to choose what stays in bf16: what FP8 did to each tensor, each layer and each projection.

mod chart;
mod html;
mod json;
mod names;
mod suggestion;
mod text;

use std::collections::BTreeMap;

use crate::measure::{ErrorSums, OUTLIER};

pub use names::Place;
pub use suggestion::Suggestion;

/// One measured tensor.
pub struct Row {
    pub name: String,
    pub place: Place,
    pub sums: ErrorSums,
}

/// Tensors that were measured together.
pub struct Group {
    pub name: String,
    pub sums: ErrorSums,
}

/// A layer of the stack that has the most elements.
pub struct Layer {
    pub number: u32,
    /// `None`: everything of it is kept.
    pub sums: Option<ErrorSums>,
}

pub struct Report {
    /// The worst first.
    pub rows: Vec<Row>,
    /// Names of tensors that were not measured: kept, or not brought.
    pub kept: Vec<String>,
    /// Layers 0, 1, ...
    pub layers: Vec<Layer>,
    /// The stack that they are of.
    pub stack: String,
    /// The worst first.
    pub projections: Vec<Group>,
    pub total: ErrorSums,
    pub suggestion: Suggestion,
}

/// A layer with a higher number is taken for another number.
const MOST_LAYERS: u32 = 10_000;

impl Report {
    pub fn new<'a>(sources: impl Iterator<Item = (&'a str, ErrorSums)>) -> Report {
        let (mut rows, mut kept, mut total) = (Vec::new(), Vec::new(), ErrorSums::default());
        for (name, sums) in sources {
            let row = Row { name: name.to_owned(), place: names::parse(name), sums };
            total.add(&sums);
            if sums.blocks > 0 { rows.push(row) } else { kept.push(row) }
        }
        rows.sort_by(|a, b| b.sums.relative_error().total_cmp(&a.sums.relative_error()));
        let stack = largest_stack(&rows);
        let layers = layers(&rows, &kept, &stack);
        let suggestion = Suggestion::new(&layers);
        let projections = projections(&rows);
        let kept = kept.into_iter().map(|row| row.name).collect();
        Report { rows, kept, layers, stack, projections, total, suggestion }
    }

    /// What the columns mean, for every form of the report.
    pub fn definitions() -> [(&'static str, String); 4] {
        [
            (
                "relative_error",
                "sqrt(sum of (x - code * scale)^2 / sum of x^2) over the finite elements x of the weight; one \
                 quantization of normally distributed values has 0.026"
                    .to_owned(),
            ),
            ("became_zero", "share of the elements that are not zero and whose code is".to_owned()),
            (
                "became_subnormal",
                "share of the elements whose code is a subnormal of E4M3: below 1/28672 of their block's largest magnitude \
                 (power-of-two scales: up to 1/14336), where steps no longer shrink with the value"
                    .to_owned(),
            ),
            (
                "outlier_blocks",
                format!(
                    "share of the 128x128 blocks whose largest magnitude exceeds {OUTLIER} times the root of their mean \
                     square. Six is the customary bound of LLM.int8() (Dettmers et al., 2022, arXiv 2208.07339), there on \
                     activations of unit size; of blocks of normally distributed values it finds 3 in 100,000. E4M3 bears \
                     far larger ones before the other elements of a block lose digits"
                ),
            ),
        ]
    }
}

/// The numbers of sums, in the order of [`Report::definitions`].
fn shares(sums: &ErrorSums) -> [f64; 4] {
    let part = |elements| sums.share(elements);
    [sums.relative_error(), part(sums.became_zero), part(sums.became_subnormal), sums.outlier_share()]
}

/// A share as people read it.
fn percent(share: f64) -> String {
    format!("{:.3}%", 100.0 * share)
}

/// The stack of layers with the most elements: a vision tower has layers of its own.
fn largest_stack(rows: &[Row]) -> String {
    let mut elements = BTreeMap::new();
    for row in rows {
        if let Some(stack) = &row.place.stack {
            let sum: &mut u64 = elements.entry(stack).or_default();
            *sum = sum.saturating_add(row.sums.elements);
        }
    }
    elements.into_iter().max_by_key(|&(_, elements)| elements).map_or(String::new(), |(stack, _)| stack.clone())
}

fn layers(rows: &[Row], kept: &[Row], stack: &str) -> Vec<Layer> {
    let ours = |row: &&Row| row.place.stack.as_deref() == Some(stack) && row.place.layer < MOST_LAYERS;
    let count = rows.iter().chain(kept).filter(ours).map(|row| row.place.layer + 1).max().unwrap_or(0);
    let mut layers: Vec<_> = (0..count).map(|number| Layer { number, sums: None }).collect();
    for row in rows.iter().filter(ours) {
        layers[row.place.layer as usize].sums.get_or_insert_default().add(&row.sums);
    }
    layers
}

fn projections(rows: &[Row]) -> Vec<Group> {
    let mut groups: BTreeMap<&str, ErrorSums> = BTreeMap::new();
    for row in rows {
        groups.entry(&row.place.projection).or_default().add(&row.sums);
    }
    let mut groups: Vec<_> = groups.into_iter().map(|(name, sums)| Group { name: name.to_owned(), sums }).collect();
    groups.sort_by(|a, b| b.sums.relative_error().total_cmp(&a.sums.relative_error()));
    groups
}
