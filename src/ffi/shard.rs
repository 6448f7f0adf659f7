//! Shards: what a tensor-parallel rank holds.

use crate::error::{Result, ensure, fail};
use crate::shard::{Cut, Part, Split};

use super::convert::{
    array, descriptor, expect_aligned, expect_flags, expect_present, extent, part_rows, write_descriptor,
};
use super::guard::guard;
use super::types::*;

/// Says what rank desc->rank holds of a weight. `parts` (may be NULL) receives desc->num_parts entries; `part_rows` (may be
/// NULL) the rows of each, as fp8rt_quantize_desc.part_rows of the rank's weight. Set info->struct_size first.
///
/// The rank's weight is quantized from its own rows and columns, with its own edge blocks. Only where on_blocks is 1 are its
/// codes and scales slices of the whole weight's.
/// Errors: SHAPE if rows, heads or columns cannot be cut evenly, with both numbers; INVALID_ARGUMENT, NULL_POINTER.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fp8rt_shard_layout(
    desc: *const fp8rt_shard_desc,
    info: *mut fp8rt_shard_info,
    parts: *mut fp8rt_shard_part,
    part_rows: *mut i64,
) -> fp8rt_status {
    // SAFETY: pointers as the header asks.
    guard("fp8rt_shard_layout", || unsafe {
        expect_present(desc, "desc")?;
        let desc = descriptor(desc, "desc")?;
        expect_flags(desc.flags, 0)?;
        let shard = cut(&desc)?.shard(desc.rank as usize)?;
        expect_present(info, "info")?;
        expect_aligned(parts, "parts")?;
        expect_aligned(part_rows, "part_rows")?;
        let value = fp8rt_shard_info {
            struct_size: 0,
            on_blocks: shard.on_blocks as u32,
            rows: shard.rows as i64,
            first_column: shard.first_column as i64,
            columns: shard.columns as i64,
            scale_rows: shard.scale_rows as i64,
            scale_columns: shard.scale_columns as i64,
        };
        write_descriptor(info, "info", &value)?;
        for (index, part) in shard.parts.iter().enumerate() {
            if !parts.is_null() {
                parts.add(index).write(shown(part));
            }
            if !part_rows.is_null() {
                part_rows.add(index).write(part.rows as i64);
            }
        }
        Ok(())
    })
}

/// # Safety
/// The arrays of the descriptor are as long as it says.
unsafe fn cut<'a>(desc: &fp8rt_shard_desc) -> Result<Cut<'a>> {
    const SPLITS: [Split; 3] = [Split::None, Split::Rows, Split::Columns];
    let Some(&split) = SPLITS.get(desc.split as usize) else {
        fail!(InvalidArgument, "split is {}, the largest split is 2", desc.split);
    };
    let columns = extent(desc.k, "k")?;
    // SAFETY: the caller's promise.
    let (part_rows, part_heads) = unsafe {
        let rows = part_rows(desc.part_rows, desc.num_parts)?;
        let heads = if desc.part_heads.is_null() {
            &[][..]
        } else {
            array(desc.part_heads, desc.num_parts, "part_heads", "num_parts")?
        };
        (rows, heads)
    };
    let total = part_rows.iter().try_fold(0i64, |sum, &rows| sum.checked_add(rows.max(0)));
    ensure!(total.is_some(), Shape, "part_rows adds up to more than {} rows", i64::MAX);
    Ok(Cut { part_rows, part_heads, columns, split, ranks: desc.ranks as usize })
}

fn shown(part: &Part) -> fp8rt_shard_part {
    fp8rt_shard_part {
        first_row: part.first_row as i64,
        rows: part.rows as i64,
        local_first_row: part.local_first_row as i64,
        first_scale_row: part.first_scale_row as i64,
        replicas: part.replicas as u32,
        on_blocks: part.on_blocks as u32,
    }
}
