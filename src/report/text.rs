//! The report as a table for a terminal.

use std::fmt::Write;

use crate::measure::ErrorSums;

use super::{Report, percent, shares};

/// Tensors that the table shows.
const SHOWN: usize = 20;
/// Characters of a line of words.
const WIDTH: usize = 100;

/// The numbers of a line, as wide as their headings.
fn numbers(sums: &ErrorSums) -> String {
    let [error, zero, subnormal, outlier] = shares(sums).map(percent);
    format!("{error:>14} {zero:>10} {subnormal:>10} {outlier:>10}")
}

/// A table with a first column of names.
fn table<'a>(text: &mut String, heading: &str, rows: impl Iterator<Item = (String, Option<&'a ErrorSums>)>) {
    let rows: Vec<_> = rows.collect();
    let names = rows.iter().map(|(name, _)| name.chars().count());
    let width = names.chain([heading.chars().count()]).max().unwrap_or(0);
    let [error, zero, subnormal, outlier] = ["relative error", "zero", "subnormal", "outliers"];
    text.push_str(&format!("\n{heading:<width$} {error:>14} {zero:>10} {subnormal:>10} {outlier:>10}\n"));
    for (name, sums) in rows {
        let shown = sums.map_or_else(|| format!("{:>14}", "kept"), numbers);
        text.push_str(&format!("{name:<width$} {shown}\n"));
    }
}

/// Words in lines of [`WIDTH`] characters.
fn wrapped(text: &mut String, words: &str) {
    let mut column = 0;
    for word in words.split_whitespace() {
        let length = word.chars().count();
        if column > 0 && column + 1 + length > WIDTH {
            text.push('\n');
            column = 0;
        } else if column > 0 {
            text.push(' ');
            column += 1;
        }
        text.push_str(word);
        column += length;
    }
    text.push('\n');
}

/// A name that is no danger to a terminal.
fn printable(name: &str) -> String {
    name.chars().map(|c| if c.is_control() { '\u{FFFD}' } else { c }).collect()
}

impl Report {
    pub fn to_text(&self) -> String {
        let mut text = String::from("What FP8 did to the weights\n");
        let Report { rows, kept, suggestion, .. } = self;
        let counts = format!("{} tensors were measured, {} were not (kept, or not brought).", rows.len(), kept.len());
        text.push_str(&format!("{counts} All together:\n"));
        table(&mut text, "", [("total".to_owned(), Some(&self.total))].into_iter());
        let (first, last) = (suggestion.first, suggestion.last);
        text.push_str(&format!("\nSuggested: num_first_layers_in_bf16={first} num_last_layers_in_bf16={last}\n"));
        wrapped(&mut text, &suggestion.rule());
        if !self.layers.is_empty() {
            let mark = |number| if suggestion.standing_out.contains(&number) { " *" } else { "" };
            let layer = |layer: &super::Layer| format!("{}{}", layer.number, mark(layer.number));
            let heading = format!("layer of {} (* stands out)", printable(&self.stack));
            table(&mut text, &heading, self.layers.iter().map(|l| (layer(l), l.sums.as_ref())));
        }
        table(&mut text, "projection", self.projections.iter().map(|g| (printable(&g.name), Some(&g.sums))));
        let worst = rows.iter().take(SHOWN).map(|row| (printable(&row.name), Some(&row.sums)));
        table(&mut text, &format!("tensor, the worst {} of {}", rows.len().min(SHOWN), rows.len()), worst);
        text.push('\n');
        for (name, meaning) in Report::definitions() {
            wrapped(&mut text, &format!("{name}: {meaning}."));
        }
        if self.total.non_finite > 0 {
            writeln!(text, "{} elements are not finite; they are in no sum.", self.total.non_finite)
                .expect("memory takes text");
        }
        text
    }
}
