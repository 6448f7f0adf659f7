//! The report as one page that needs nothing else: no script, no font, no network.

use crate::measure::ErrorSums;

use super::{Report, chart, percent, shares};

/// Tensors that the page lists.
const SHOWN: usize = 200;

const STYLE: &str = r#"
:root { --page: #ffffff; --text: #1c2127; --quiet: #57606a; --line: #d5dae0; --panel: #f5f7f9; --mark: #2563ab;
  --out: #c2410c; --good: #2f7d4f; }
@media (prefers-color-scheme: dark) {
  :root { --page: #14181d; --text: #e6e9ec; --quiet: #a3adb8; --line: #37404a; --panel: #1c2228; --mark: #74aef5;
    --out: #ff9a5c; --good: #6cc893; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 24px 20px 60px; max-width: 1040px; background: var(--page); color: var(--text);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 24px; margin: 0 0 4px; }
h2 { font-size: 18px; margin: 36px 0 8px; }
p { margin: 6px 0; max-width: 76ch; }
.quiet { color: var(--quiet); }
.suggestion { margin: 20px 0; padding: 14px 18px; background: var(--panel); border-left: 4px solid var(--mark); }
.suggestion code { font-size: 17px; font-weight: 600; display: inline-block; margin-right: 20px; }
svg { display: block; width: 100%; height: auto; }
svg text { fill: var(--text); font: 12px system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
svg .tick { fill: var(--quiet); }
svg .axis { font-size: 13px; }
svg text.median, svg text.bound { paint-order: stroke; stroke: var(--page); stroke-width: 4px; }
svg line { stroke-width: 1; }
svg .grid { stroke: var(--line); }
svg line.median { stroke: var(--good); stroke-dasharray: 2 4; stroke-width: 1.5; }
svg text.median { fill: var(--good); }
svg line.bound { stroke: var(--out); stroke-dasharray: 6 4; stroke-width: 1.5; }
svg text.bound { fill: var(--out); }
svg .line { fill: none; stroke: var(--mark); stroke-width: 1.5; }
svg .point { fill: var(--mark); }
svg .out { fill: var(--out); stroke: var(--page); }
svg .kept { fill: var(--page); stroke: var(--quiet); stroke-width: 1.5; }
svg .cell { fill: var(--mark); }
svg .cell:hover, svg circle:hover { stroke: var(--text); stroke-width: 1.5; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: 4px 10px; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { color: var(--quiet); font-weight: 600; }
th:first-child, td:first-child { text-align: left; white-space: normal; overflow-wrap: anywhere; }
tr.out td:first-child { color: var(--out); font-weight: 600; }
dt { font-weight: 600; margin-top: 10px; }
dd { margin: 0; max-width: 76ch; color: var(--quiet); }
"#;

/// Text as it may stand in an element or an attribute.
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            '\n' => escaped.push_str("&#10;"),
            // No other control character may stand in a document.
            control if control.is_control() => escaped.push('\u{FFFD}'),
            other => escaped.push(other),
        }
    }
    escaped
}

/// The cells of a row after its name.
fn cells(sums: Option<&ErrorSums>) -> String {
    let Some(sums) = sums else { return r#"<td class="quiet">kept</td><td></td><td></td><td></td>"#.to_owned() };
    shares(sums).map(|share| format!("<td>{}</td>", percent(share))).concat()
}

/// Rows of a name, whether it stands out, and sums.
fn table<'a>(heading: &str, rows: impl Iterator<Item = (String, bool, Option<&'a ErrorSums>)>) -> String {
    let columns = "<th>relative error</th><th>zero</th><th>subnormal</th><th>outlier blocks</th>";
    let rows: String = rows
        .map(|(name, out, sums)| {
            let class = if out { r#" class="out""# } else { "" };
            format!("<tr{class}><td>{}</td>{}</tr>\n", escape(&name), cells(sums))
        })
        .collect();
    let head = format!("<thead><tr><th>{}</th>{columns}</tr></thead>", escape(heading));
    format!("<div class=\"scroll\"><table>{head}\n<tbody>\n{rows}</tbody></table></div>\n")
}

impl Report {
    pub fn to_html(&self) -> String {
        let charts = if self.layers.is_empty() { String::new() } else { self.charts() };
        let all = table("", [("all measured tensors".to_owned(), false, Some(&self.total))].into_iter());
        let projections =
            table("projection", self.projections.iter().map(|group| (group.name.clone(), false, Some(&group.sums))));
        let worst = self.rows.iter().take(SHOWN).map(|row| (row.name.clone(), false, Some(&row.sums)));
        let (shown, measured) = (self.rows.len().min(SHOWN), self.rows.len());
        let tensors = table(&format!("the worst {shown} of {measured}"), worst);
        let meanings: String = Report::definitions()
            .iter()
            .map(|(name, meaning)| {
                format!("<dt>{}</dt><dd>{}.</dd>\n", escape(&name.replace('_', " ")), escape(meaning))
            })
            .collect();
        let not_finite = match self.total.non_finite {
            0 => String::new(),
            count => format!("<p>{count} elements are not finite; they are in no sum.</p>\n"),
        };
        format!(
            "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
             <meta name=\"color-scheme\" content=\"light dark\">\n\
             <title>What FP8 did to the weights</title>\n<style>{STYLE}</style>\n</head>\n<body>\n\
             <h1>What FP8 did to the weights</h1>\n\
             <p class=\"quiet\">{measured} tensors were measured, {} were not (kept, or not brought).</p>\n\
             {}{not_finite}{charts}<h2>The whole model</h2>\n{all}\
             <h2>Projections, the worst first</h2>\n{projections}{}<h2>Tensors, the worst first</h2>\n{tensors}\
             <h2>What the numbers mean</h2>\n<dl>\n{meanings}</dl>\n</body>\n</html>\n",
            self.kept.len(),
            self.suggestion_box(),
            self.layer_table(),
        )
    }

    fn suggestion_box(&self) -> String {
        let suggestion = &self.suggestion;
        format!(
            "<div class=\"suggestion\">\n<code>num_first_layers_in_bf16: {}</code><code>num_last_layers_in_bf16: {}</code>\n\
             <p>{}</p>\n</div>\n",
            suggestion.first,
            suggestion.last,
            escape(&suggestion.rule())
        )
    }

    fn charts(&self) -> String {
        format!(
            "<h2>Relative error of each layer</h2>\n<p class=\"quiet\">Layers of {}. A ring on the axis is a layer that is \
             kept.</p>\n{}<h2>Relative error of each projection in each layer</h2>\n{}",
            escape(&self.stack),
            chart::errors(self),
            chart::map(self)
        )
    }

    fn layer_table(&self) -> String {
        if self.layers.is_empty() {
            return String::new();
        }
        let out = |number| self.suggestion.standing_out.contains(&number);
        let rows = self.layers.iter().map(|layer| (layer.number.to_string(), out(layer.number), layer.sums.as_ref()));
        format!("<h2>Layers</h2>\n{}", table("layer", rows))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_no_markup() {
        assert_eq!(escape("<a b='\"'>&\u{1}"), "&lt;a b=&#39;&quot;&#39;&gt;&amp;\u{FFFD}");
    }
}
