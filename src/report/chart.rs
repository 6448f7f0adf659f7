//! Charts over the layers, as SVG whose colors are those of the page.

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::measure::ErrorSums;

use super::html::escape;
use super::{Layer, Report, percent, shares};

const WIDTH: f64 = 960.0;
/// Room for the labels on the left, and at the right end.
const LEFT: f64 = 190.0;
const RIGHT: f64 = 20.0;
const PLOT: f64 = WIDTH - LEFT - RIGHT;

/// Room for the labels below, and their place.
const BELOW: f64 = 46.0;
const LABELS: f64 = 16.0;
const TITLE: f64 = 38.0;

/// What the pointer shows.
fn hint(what: &str, sums: &ErrorSums) -> String {
    let [error, zero, subnormal, outlier] = shares(sums).map(percent);
    format!("{what}\nrelative error {error}\nzero {zero}\nsubnormal {subnormal}\noutlier blocks {outlier}")
}

/// The x axis: a number a layer, as many as there is room for.
struct Axis {
    step: f64,
    every: usize,
    count: usize,
}

impl Axis {
    fn new(layers: &[Layer]) -> Axis {
        let step = PLOT / layers.len().max(1) as f64;
        let every = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000].into_iter().find(|&every| every as f64 * step >= 24.0);
        Axis { step, every: every.unwrap_or(2000), count: layers.len() }
    }

    /// The middle of a layer.
    fn x(&self, layer: usize) -> f64 {
        LEFT + (layer as f64 + 0.5) * self.step
    }

    fn draw(&self, svg: &mut String, bottom: f64) {
        for layer in (0..self.count).step_by(self.every) {
            let (x, y) = (self.x(layer), bottom + LABELS);
            push(svg, format!(r#"<text class="tick" x="{x:.1}" y="{y:.1}" text-anchor="middle">{layer}</text>"#));
        }
        let (x, y) = (LEFT + PLOT / 2.0, bottom + TITLE);
        push(svg, format!(r#"<text class="axis" x="{x:.1}" y="{y:.1}" text-anchor="middle">layer</text>"#));
    }
}

fn push(svg: &mut String, element: String) {
    svg.push_str(&element);
    svg.push('\n');
}

fn open(svg: &mut String, height: f64, label: &str) {
    push(svg, format!(r#"<svg viewBox="0 0 {WIDTH} {height:.0}" role="img" aria-label="{}">"#, escape(label)));
}

/// Values from the lowest to the highest that is drawn, and where they lie.
struct Scale {
    low: f64,
    high: f64,
    top: f64,
    bottom: f64,
}

impl Scale {
    fn new(values: impl Iterator<Item = f64> + Clone, top: f64, bottom: f64) -> Scale {
        let (low, high) = (values.clone().fold(f64::INFINITY, f64::min), values.fold(0.0, f64::max));
        let low = low.min(high);
        let room = (0.12 * (high - low)).max(0.02 * high).max(1e-6);
        Scale { low: (low - room).max(0.0), high: high + room, top, bottom }
    }

    fn y(&self, value: f64) -> f64 {
        self.bottom - (value - self.low) / (self.high - self.low) * (self.bottom - self.top)
    }

    /// Four to ten round values.
    fn ticks(&self) -> Vec<f64> {
        let rough = (self.high - self.low) / 5.0;
        let power = 10f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|digit| digit * power).find(|step| *step >= rough);
        let step = step.unwrap_or(10.0 * power);
        let first = (self.low / step).ceil() as u64;
        (first..).map(|index| index as f64 * step).take_while(|value| *value <= self.high).collect()
    }
}

/// The relative error of each layer.
pub fn errors(report: &Report) -> String {
    const HEIGHT: f64 = 330.0;
    let mut svg = String::new();
    open(&mut svg, HEIGHT, "Relative error of each layer");
    let axis = Axis::new(&report.layers);
    let suggestion = &report.suggestion;
    let values = report.layers.iter().filter_map(|layer| layer.sums.as_ref()).map(ErrorSums::relative_error);
    let scale = Scale::new(values.chain([suggestion.median, suggestion.bound]), 14.0, HEIGHT - BELOW);
    for tick in scale.ticks() {
        let (y, x, end, label) = (scale.y(tick), LEFT - 8.0, LEFT + PLOT, percent(tick));
        push(&mut svg, format!(r#"<line class="grid" x1="{LEFT}" x2="{end}" y1="{y:.1}" y2="{y:.1}"/>"#));
        let y = y + 4.0;
        push(&mut svg, format!(r#"<text class="tick" x="{x}" y="{y:.1}" text-anchor="end">{label}</text>"#));
    }
    let middle = (scale.top + scale.bottom) / 2.0;
    let turned = format!(r#"transform="rotate(-90 90 {middle:.1})""#);
    push(
        &mut svg,
        format!(r#"<text class="axis" x="90" y="{middle:.1}" {turned} text-anchor="middle">relative error</text>"#),
    );
    for (name, value) in [("median", suggestion.median), ("bound", suggestion.bound)] {
        let (y, end, label) = (scale.y(value), LEFT + PLOT, percent(value));
        let line = format!(r#"<line class="{name}" x1="{LEFT}" x2="{end}" y1="{y:.1}" y2="{y:.1}">"#);
        push(&mut svg, format!("{line}<title>{name} {label}</title></line>"));
    }
    points(&mut svg, report, &axis, &scale);
    for (name, value) in [("median", suggestion.median), ("bound", suggestion.bound)] {
        let (x, y, label) = (LEFT + PLOT - 4.0, scale.y(value) - 9.0, percent(value));
        push(&mut svg, format!(r#"<text class="{name}" x="{x}" y="{y:.1}" text-anchor="end">{name} {label}</text>"#));
    }
    axis.draw(&mut svg, scale.bottom);
    svg.push_str("</svg>\n");
    svg
}

/// A line through the layers, and a point for each; a kept one is a ring on the axis.
fn points(svg: &mut String, report: &Report, axis: &Axis, scale: &Scale) {
    let mut path = String::new();
    let mut before = false;
    for (index, layer) in report.layers.iter().enumerate() {
        if let Some(sums) = &layer.sums {
            let step = if before { 'L' } else { 'M' };
            write!(path, "{step}{:.1} {:.1}", axis.x(index), scale.y(sums.relative_error()))
                .expect("memory takes text");
        }
        before = layer.sums.is_some();
    }
    push(svg, format!(r#"<path class="line" d="{path}"/>"#));
    let radius = (axis.step / 3.0).clamp(1.5, 5.0);
    for (index, layer) in report.layers.iter().enumerate() {
        let x = axis.x(index);
        let (class, y, title) = match &layer.sums {
            None => ("kept", scale.bottom, format!("layer {}: kept", layer.number)),
            Some(sums) => {
                let out = report.suggestion.standing_out.contains(&layer.number);
                let (class, note) = if out { ("out", ", stands out") } else { ("point", "") };
                (class, scale.y(sums.relative_error()), hint(&format!("layer {}{note}", layer.number), sums))
            }
        };
        let circle = format!(r#"<circle class="{class}" cx="{x:.1}" cy="{y:.1}" r="{radius:.1}">"#);
        push(svg, format!("{circle}<title>{}</title></circle>", escape(&title)));
    }
}

/// The relative error of each projection in each layer, the darker the larger.
pub fn map(report: &Report) -> String {
    const ROW: f64 = 20.0;
    const ABOVE: f64 = 26.0;
    let mut cells: BTreeMap<&str, BTreeMap<u32, ErrorSums>> = BTreeMap::new();
    for row in report.rows.iter().filter(|row| row.place.stack.as_deref() == Some(report.stack.as_str())) {
        cells.entry(&row.place.projection).or_default().entry(row.place.layer).or_default().add(&row.sums);
    }
    let errors = || cells.values().flat_map(|row| row.values()).map(ErrorSums::relative_error);
    let (low, high) = (errors().fold(f64::INFINITY, f64::min), errors().fold(0.0, f64::max));
    let axis = Axis::new(&report.layers);
    let bottom = ABOVE + ROW * cells.len() as f64;
    let mut svg = String::new();
    open(&mut svg, bottom + BELOW, "Relative error of each projection in each layer");
    for (index, (projection, row)) in cells.iter().enumerate() {
        let (x, top) = (LEFT - 8.0, ABOVE + ROW * index as f64);
        let (label, y) = (escape(&shortened(projection)), top + 14.0);
        let title = escape(projection);
        let text = format!(r#"<text class="tick" x="{x}" y="{y:.1}" text-anchor="end">{label}"#);
        push(&mut svg, format!("{text}<title>{title}</title></text>"));
        for (&layer, sums) in row.iter().filter(|(layer, _)| (**layer as usize) < report.layers.len()) {
            let (x, width) = (axis.x(layer as usize) - axis.step / 2.0, (axis.step - 1.0).max(0.5));
            let opacity = strength(sums.relative_error(), low, high);
            let place = format!(r#"x="{x:.2}" y="{top:.1}" width="{width:.2}" height="{}""#, ROW - 1.0);
            let title = escape(&hint(&format!("layer {layer}, {projection}"), sums));
            push(
                &mut svg,
                format!(r#"<rect class="cell" {place} fill-opacity="{opacity:.3}"><title>{title}</title></rect>"#),
            );
        }
    }
    legend(&mut svg, low.min(high), high);
    axis.draw(&mut svg, bottom);
    svg.push_str("</svg>\n");
    svg
}

/// How strongly a cell is colored.
fn strength(value: f64, low: f64, high: f64) -> f64 {
    if high > low { 0.1 + 0.9 * (value - low) / (high - low) } else { 0.1 }
}

/// What the weakest and the strongest color stand for.
fn legend(svg: &mut String, low: f64, high: f64) {
    let x = LEFT + PLOT - 260.0;
    let text = |x: f64, anchor: &str, value: f64| {
        format!(r#"<text class="tick" x="{x}" y="14" text-anchor="{anchor}">{}</text>"#, percent(value))
    };
    push(svg, text(x - 6.0, "end", low));
    for step in 0..10 {
        let (x, opacity) = (x + 20.0 * step as f64, 0.1 + 0.1 * step as f64);
        push(svg, format!(r#"<rect class="cell" x="{x}" y="5" width="20" height="10" fill-opacity="{opacity:.1}"/>"#));
    }
    push(svg, text(x + 206.0, "start", high));
}

/// What fits on the left of a row.
fn shortened(name: &str) -> String {
    const MOST: usize = 27;
    let count = name.chars().count();
    if count <= MOST {
        name.to_owned()
    } else {
        format!("…{}", name.chars().skip(count - MOST + 1).collect::<String>())
    }
}
