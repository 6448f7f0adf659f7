//! The report as JSON.

use serde_json::{Value, json};

use crate::measure::ErrorSums;

use super::{Report, Row};

fn numbers(sums: &ErrorSums) -> Value {
    json!({
        "relative_error": sums.relative_error(),
        "became_zero": sums.share(sums.became_zero),
        "became_subnormal": sums.share(sums.became_subnormal),
        "outlier_blocks": sums.outlier_share(),
        "non_finite": sums.non_finite,
        "elements": sums.elements,
        "blocks": sums.blocks,
    })
}

/// An object's members, and those of another.
fn joined(mut first: Value, second: Value) -> Value {
    if let (Value::Object(members), Value::Object(others)) = (&mut first, second) {
        members.extend(others);
    }
    first
}

fn row(row: &Row) -> Value {
    let layer = row.place.stack.is_some().then_some(row.place.layer);
    let place = json!({ "name": row.name, "layer": layer, "projection": row.place.projection });
    joined(place, numbers(&row.sums))
}

impl Report {
    pub fn to_json(&self) -> String {
        let layers: Vec<Value> = self
            .layers
            .iter()
            .map(|layer| match &layer.sums {
                Some(sums) => joined(json!({ "layer": layer.number, "kept": false }), numbers(sums)),
                None => json!({ "layer": layer.number, "kept": true }),
            })
            .collect();
        let projections: Vec<Value> = self
            .projections
            .iter()
            .map(|group| joined(json!({ "projection": group.name }), numbers(&group.sums)))
            .collect();
        let suggestion = &self.suggestion;
        let definitions: serde_json::Map<String, Value> =
            Report::definitions().into_iter().map(|(name, text)| (name.to_owned(), text.into())).collect();
        let report = json!({
            "suggestion": {
                "num_first_layers_in_bf16": suggestion.first,
                "num_last_layers_in_bf16": suggestion.last,
                "layers_that_stand_out": suggestion.standing_out,
                "median": suggestion.median,
                "bound": suggestion.bound,
                "rule": suggestion.rule(),
            },
            "total": numbers(&self.total),
            "stack": self.stack,
            "layers": layers,
            "projections": projections,
            "tensors": self.rows.iter().map(row).collect::<Vec<_>>(),
            "not_measured": self.kept,
            "definitions": definitions,
        });
        format!("{report:#}\n")
    }
}
