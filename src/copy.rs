//! A checked copy of a tensor to another of the same extents, byte for byte.

use crate::error::{Result, ensure};
use crate::tensor::Tensor;

/// What is copied. Both have one dtype and shape.
#[derive(Clone, Copy)]
pub struct Copy {
    pub from: Tensor,
    pub to: Tensor,
    /// Rows below the last of a column-major target that become zero, as far as its memory reaches.
    pub padding: usize,
}

/// Neighboring bytes, as often as `count` says, and all of that as often as `outer` says. Distances are in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lines {
    pub bytes: usize,
    pub count: usize,
    pub from_pitch: usize,
    pub to_pitch: usize,
    pub outer: usize,
    pub from_outer: usize,
    pub to_outer: usize,
}

impl Copy {
    /// Checks that the two lie apart, and that a source elsewhere can be copied line by line.
    pub fn new(from: &Tensor, to: &Tensor, padding: usize) -> Result<Copy> {
        debug_assert!(from.shape == to.shape && from.dtype == to.dtype);
        let copy = Copy { from: *from, to: *to, padding };
        (if padding > 0 { to.padded(padding) } else { *to }).expect_apart(from)?;
        ensure!(
            from.device == to.device || from.is_empty() || copy.lines().is_some(),
            Unsupported,
            "{} is on device {} with strides {} and {}, the target on device {} with {} and {}: neighbors must be neighbors \
             there too",
            from.name,
            from.device,
            from.stride[1],
            from.stride[2],
            to.device,
            to.stride[1],
            to.stride[2]
        );
        Ok(copy)
    }

    /// Bytes that are read.
    pub fn bytes(&self) -> usize {
        self.from.shape.iter().product::<usize>() * self.from.dtype.bytes()
    }

    /// The lines of the copy, as few and long as they are; `None` if neighbors in one are none in the other.
    pub fn lines(&self) -> Option<Lines> {
        let (shape, size) = (self.from.shape, self.from.dtype.bytes());
        let neighbors = |axis: usize| shape[axis] <= 1 || (self.from.stride[axis] == 1 && self.to.stride[axis] == 1);
        let inner = [2, 1].into_iter().find(|&axis| neighbors(axis))?;
        let other = 3 - inner;
        let mut lines = Lines {
            bytes: shape[inner] * size,
            count: shape[other],
            from_pitch: self.from.stride[other] * size,
            to_pitch: self.to.stride[other] * size,
            outer: shape[0],
            from_outer: self.from.stride[0] * size,
            to_outer: self.to.stride[0] * size,
        };
        lines.merge();
        // Longer lines may now follow one another.
        lines.merge();
        Some(lines)
    }
}

impl Lines {
    fn merge(&mut self) {
        if self.count == 1 || (self.from_pitch == self.bytes && self.to_pitch == self.bytes) {
            self.bytes *= self.count;
            (self.count, self.from_pitch, self.to_pitch) = (self.outer, self.from_outer, self.to_outer);
            self.outer = 1;
        } else if self.outer > 1
            && self.from_outer == self.count * self.from_pitch
            && self.to_outer == self.count * self.to_pitch
        {
            self.count *= self.outer;
            self.outer = 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::{Description, Dtype};

    fn lines(shape: [i64; 3], from: [i64; 3], to: [i64; 3]) -> Option<Lines> {
        let mut memory = [[0u32; 4096]; 2];
        let [source, target] = memory.each_mut().map(|memory| memory.as_mut_ptr().cast());
        let tensor = |data, stride| {
            let description =
                Description { data, bytes: 4 * 4096, dtype: Dtype::F32, device: -1, rank: 3, shape: &shape, stride };
            Tensor::new("x", &description).unwrap()
        };
        Copy::new(&tensor(source, &from), &tensor(target, &to), 0).unwrap().lines()
    }

    #[test]
    fn what_is_dense_is_one_line() {
        let found = lines([2, 3, 5], [15, 5, 1], [15, 5, 1]).unwrap();
        assert_eq!((found.bytes, found.count, found.outer), (120, 1, 1));
    }

    #[test]
    fn rows_apart_are_lines() {
        let found = lines([2, 3, 5], [24, 8, 1], [15, 5, 1]).unwrap();
        assert_eq!((found.bytes, found.count, found.from_pitch, found.to_pitch, found.outer), (20, 6, 32, 20, 1));
        let found = lines([2, 3, 5], [30, 8, 1], [15, 5, 1]).unwrap();
        assert_eq!((found.count, found.outer, found.from_outer, found.to_outer), (3, 2, 120, 60));
    }

    #[test]
    fn columns_are_lines_where_rows_are_neighbors() {
        let found = lines([1, 3, 5], [0, 1, 4], [0, 1, 8]).unwrap();
        assert_eq!((found.bytes, found.count, found.from_pitch, found.to_pitch), (12, 5, 16, 32));
        assert_eq!(lines([1, 3, 5], [0, 1, 4], [0, 5, 1]), None);
    }
}
