//! How many of the first and last layers stand out, and so may better stay in bf16.

use super::{Layer, percent};

/// Medians of absolute deviations that make one standard deviation of normally distributed numbers.
const DEVIATION: f64 = 1.4826;
/// Standard deviations above the median at which a layer stands out.
const DEVIATIONS: f64 = 3.0;
/// Part of the median by which it must at least.
const LEAST: f64 = 0.05;

/// Settings of NeMo-RL, and why.
pub struct Suggestion {
    pub first: usize,
    pub last: usize,
    /// Relative error of the layer in the middle, and the one above which a layer stands out.
    pub median: f64,
    pub bound: f64,
    /// Numbers of the layers that stand out, wherever they are.
    pub standing_out: Vec<u32>,
}

impl Suggestion {
    pub fn new(layers: &[Layer]) -> Suggestion {
        let errors: Vec<f64> = layers.iter().filter_map(error).collect();
        let middle = median(errors.clone());
        let spread = median(errors.iter().map(|error| (error - middle).abs()).collect());
        let bound = middle + (DEVIATIONS * DEVIATION * spread).max(LEAST * middle);
        let stands_out = |layer: &&Layer| error(layer).is_some_and(|error| error > bound);
        let standing_out = layers.iter().filter(stands_out).map(|layer| layer.number).collect();
        let (first, last) = (run(layers.iter(), stands_out), run(layers.iter().rev(), stands_out));
        let all = layers.len();
        // Only where every layer is kept can both runs meet.
        Suggestion { first, last: last.min(all - first), median: middle, bound, standing_out }
    }

    /// The rule, in words.
    pub fn rule(&self) -> String {
        format!(
            "A layer stands out if the relative error of its quantized weights together exceeds the median over the layers, \
             {}, by {DEVIATIONS} standard deviations ({DEVIATIONS} * {DEVIATION} * the median absolute deviation) and by at \
             least {:.0}% of the median: here if it exceeds {}. num_first_layers_in_bf16 counts the layers from the first on that all stand \
             out or are kept already, num_last_layers_in_bf16 those from the last back. Weights alone are looked at, not \
             activations: layers may be sensitive for other reasons, so compare with a run.",
            percent(self.median),
            100.0 * LEAST,
            percent(self.bound)
        )
    }
}

fn error(layer: &Layer) -> Option<f64> {
    layer.sums.as_ref().map(|sums| sums.relative_error())
}

/// Layers from the beginning on that stand out, or are kept.
fn run<'a>(layers: impl Iterator<Item = &'a Layer>, stands_out: impl Fn(&&Layer) -> bool) -> usize {
    layers.take_while(|layer| layer.sums.is_none() || stands_out(layer)).count()
}

/// 0 of nothing.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let half = values.len() / 2;
    match values.len() {
        0 => 0.0,
        count if count % 2 == 1 => values[half],
        _ => (values[half - 1] + values[half]) / 2.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::ErrorSums;

    /// Relative errors in 1/1000; 0: kept.
    fn suggest(errors: &[u32]) -> (usize, usize, Vec<u32>) {
        let layer = |(number, &error): (u32, &u32)| {
            let error = error as f64 / 1000.0;
            let sums = ErrorSums { squares: 1.0, errors: error * error, blocks: 1, ..ErrorSums::default() };
            Layer { number, sums: (error > 0.0).then_some(sums) }
        };
        let layers: Vec<Layer> = (0u32..).zip(errors).map(layer).collect();
        let Suggestion { first, last, standing_out, .. } = Suggestion::new(&layers);
        (first, last, standing_out)
    }

    #[test]
    fn layers_that_stand_out_at_the_ends_are_counted() {
        assert_eq!(suggest(&[26, 26, 27, 26, 26, 26, 26, 26]), (0, 0, vec![]));
        assert_eq!(suggest(&[40, 33, 26, 26, 26, 26, 26, 31]), (2, 1, vec![0, 1, 7]));
        assert_eq!(suggest(&[26, 26, 26, 40, 26, 26, 26]), (0, 0, vec![3]));
    }

    #[test]
    fn kept_layers_at_the_ends_stay_kept() {
        assert_eq!(suggest(&[0, 33, 26, 26, 26, 26, 26, 0]), (2, 1, vec![1]));
        assert_eq!(suggest(&[0, 0, 0]), (3, 0, vec![]));
        assert_eq!(suggest(&[]), (0, 0, vec![]));
    }

    #[test]
    fn a_wide_spread_is_no_reason() {
        assert_eq!(suggest(&[32, 22, 26, 30, 24, 28, 34, 20, 26]), (0, 0, vec![]));
    }
}
