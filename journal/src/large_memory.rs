//! Room for millions of rows, in large pages where the kernel has them: with pages of 4 KiB a quarter of the time that a map
//! takes goes to touching its memory for the first time, and more where the host of a virtual machine took it back.

use rustix::mm::{madvise, Advice};

/// A large page on x86-64; where they are larger, nothing is gained.
const PAGE: usize = 2 << 20;

/// Room for so many.
pub(crate) fn with_capacity<T>(count: usize) -> Vec<T> {
    let mut rows = Vec::new();
    reserve(&mut rows, count);
    rows
}

/// Room for so many more.
pub(crate) fn reserve<T>(rows: &mut Vec<T>, more: usize) {
    if rows.capacity() - rows.len() >= more {
        return;
    }
    rows.reserve(more);
    let spare = rows.spare_capacity_mut();
    let (bytes, begin) = (size_of_val(spare), spare.as_mut_ptr().cast::<u8>());
    let before = begin.align_offset(PAGE);
    let whole = bytes.saturating_sub(before) / PAGE * PAGE;
    if whole > 0 {
        // SAFETY: the range lies in the vector's spare capacity, which nothing refers to; and the advice changes no byte
        // of it. A kernel that doesn't take it does without.
        let _ = unsafe { madvise(begin.wrapping_add(before).cast(), whole, Advice::LinuxHugepage) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_room_and_nothing_moves() {
        for count in [0, 1, PAGE / 8, 3 * PAGE / 8 + 5] {
            let mut rows: Vec<u64> = with_capacity(count);
            let begin = rows.as_ptr();
            rows.extend(0..count as u64);
            assert_eq!(rows.as_ptr(), begin);
            reserve(&mut rows, 2 * count);
            assert!(rows.capacity() >= 3 * count);
            assert!(rows.iter().copied().eq(0..count as u64), "{count}");
        }
    }
}
