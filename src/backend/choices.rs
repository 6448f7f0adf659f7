//! Kernels by the number of rows, in steps: what backends with a set of kernels choose from.

/// A number of rows, and the name of the kernel that was the fastest for it.
pub type Row = (usize, &'static str);

/// N, K, and the measured kernels by rows.
pub type Measured = [(usize, usize, &'static [Row])];

/// The kernel of a set, by its place, for each number of rows.
pub struct Choices {
    /// Up to so many rows, this kernel. The last one holds for all above.
    steps: Vec<(usize, usize)>,
}

impl Choices {
    /// One kernel for every number of rows.
    pub fn only(kernel: usize) -> Choices {
        Choices { steps: vec![(usize::MAX, kernel)] }
    }

    /// What `choose` says for up to `max_m` rows.
    pub fn new(max_m: usize, choose: impl Fn(usize) -> usize) -> Choices {
        let mut steps: Vec<(usize, usize)> = Vec::new();
        let mut m = 0;
        while m < max_m.max(1) {
            m = next_step(m);
            let kernel = choose(m.min(MANY_ROWS));
            match steps.last_mut() {
                Some(last) if last.1 == kernel => last.0 = m,
                _ => steps.push((m, kernel)),
            }
        }
        Choices { steps }
    }

    pub fn at(&self, m: usize) -> usize {
        let at = self.steps.partition_point(|&(up_to, _)| up_to < m);
        self.steps[at.min(self.steps.len() - 1)].1
    }

    pub fn all(&self) -> impl Iterator<Item = usize> + '_ {
        self.steps.iter().map(|&(_, kernel)| kernel)
    }
}

/// Every kernel that these parts may run, once.
pub fn all_of(parts: &[Choices]) -> Vec<usize> {
    let mut kernels: Vec<_> = parts.iter().flat_map(Choices::all).collect();
    kernels.sort_unstable();
    kernels.dedup();
    kernels
}

/// Rows are told apart in steps that grow with them, so that a plan for any number of rows has few.
fn next_step(m: usize) -> usize {
    let step = match m {
        0 => 1,
        1 => 15,
        2..128 => 16,
        128..1024 => 64,
        1024..4096 => 256,
        4096..16384 => 1024,
        _ => return usize::MAX,
    };
    m + step
}

/// Rows that stand for all above the last step.
const MANY_ROWS: usize = 32768;

/// The row of this weight for `m` rows, or for the next number that was measured.
pub fn measured(table: &Measured, m: usize, n: usize, k: usize) -> Option<Row> {
    let (_, _, rows) = table.iter().find(|(measured_n, measured_k, _)| (*measured_n, *measured_k) == (n, k))?;
    rows.iter().find(|(measured_m, _)| m <= *measured_m).copied()
}

/// The kernel that an environment variable names, for measuring. `position` finds it in the set.
pub fn forced(variable: &str, position: impl Fn(&str) -> Option<usize>) -> Result<Option<usize>, String> {
    match std::env::var(variable) {
        Ok(name) if !name.is_empty() => match position(&name) {
            Some(kernel) => Ok(Some(kernel)),
            None => Err(format!("{variable} names \"{name}\", which this build does not have for this linear")),
        },
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_few_and_hold_for_any_number_of_rows() {
        let choices = Choices::new(usize::MAX, |m| m);
        assert!(choices.steps.len() < 80, "{} steps", choices.steps.len());
        for m in [1, 2, 16, 17, 100, 1000, 16384] {
            assert!((m..m + m.max(15)).contains(&choices.at(m)), "M = {m}: {}", choices.at(m));
        }
        assert_eq!(choices.at(usize::MAX), MANY_ROWS);
    }

    #[test]
    fn plans_of_fewer_rows_make_the_same_choices() {
        let (few, many) = (Choices::new(100, |m| m), Choices::new(8192, |m| m));
        assert!((1..=100).all(|m| few.at(m) == many.at(m)));
    }

    #[test]
    fn every_kernel_of_the_parts_is_named_once() {
        let parts = [Choices::new(4096, |m| m.min(64)), Choices::only(1), Choices::only(7)];
        assert_eq!(all_of(&parts), [1, 7, 16, 32, 48, 64]);
    }

    #[test]
    fn a_measured_row_answers_up_to_itself() {
        let table: &Measured = &[(64, 128, &[(1, "a"), (16, "b")])];
        assert_eq!(measured(table, 1, 64, 128), Some((1, "a")));
        assert_eq!(measured(table, 2, 64, 128), Some((16, "b")));
        assert_eq!(measured(table, 17, 64, 128), None);
        assert_eq!(measured(table, 1, 128, 64), None);
    }
}
