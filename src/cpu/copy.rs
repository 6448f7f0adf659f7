//! Copies, on all threads.

use crate::copy::{Copy, Lines};
use crate::error::Result;

use super::Engine;

/// Bytes that a task copies, so that taking it costs little beside doing it.
const TASK_BYTES: usize = 1 << 20;

/// Runs a checked copy.
pub fn copy(engine: &Engine, copy: &Copy) -> Result<()> {
    if !copy.from.is_empty() {
        match copy.lines() {
            Some(lines) => copy_lines(engine, copy, &lines)?,
            None => copy_elements(copy),
        }
    }
    if copy.padding > 0 {
        // SAFETY: the caller gave the target to this call alone, and its strides were checked with the padding.
        unsafe { copy.to.zero_padding(copy.padding) };
    }
    Ok(())
}

fn copy_lines(engine: &Engine, copy: &Copy, lines: &Lines) -> Result<()> {
    let (total, pieces) = (lines.outer * lines.count, lines.bytes.div_ceil(TASK_BYTES));
    // Long lines are cut; of short ones a task takes many.
    let together = (TASK_BYTES / lines.bytes.max(1)).max(1);
    let (from, to) = (copy.from.address() as usize, copy.to.address() as usize);
    engine.threads.for_each(total.div_ceil(together) * pieces, |_, task| {
        let (first, piece) = (task / pieces * together, task % pieces * TASK_BYTES);
        let bytes = (lines.bytes - piece).min(TASK_BYTES);
        for line in first..(first + together).min(total) {
            let (outer, line) = (line / lines.count, line % lines.count);
            let from = from + outer * lines.from_outer + line * lines.from_pitch + piece;
            let to = to + outer * lines.to_outer + line * lines.to_pitch + piece;
            // SAFETY: lines within both tensors, which lie apart; no other task has this line.
            unsafe { std::ptr::copy_nonoverlapping(from as *const u8, to as *mut u8, bytes) };
        }
    })
}

/// Scales of two orientations: four bytes each.
fn copy_elements(copy: &Copy) {
    let [experts, rows, columns] = copy.from.shape;
    for expert in 0..experts {
        for row in 0..rows {
            for column in 0..columns {
                // SAFETY: within both, which have the same shape and are scales.
                unsafe {
                    let value = copy.from.at::<u32>(expert, row, column).read();
                    copy.to.at::<u32>(expert, row, column).write(value);
                }
            }
        }
    }
}
