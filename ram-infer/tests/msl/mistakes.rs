//! Mistakes planted in the kernels, each of which the tests must find, and by what.

use crate::harness::Watch;

/// A change of the source that makes it wrong.
pub(crate) struct Mistake {
    /// What is replaced, where it comes first.
    pub(crate) right: &'static str,
    pub(crate) wrong: &'static str,
    pub(crate) watch: Watch,
    /// What the finding says.
    pub(crate) found_by: &'static str,
}

const fn mistake(right: &'static str, wrong: &'static str, watch: Watch, found_by: &'static str) -> Mistake {
    Mistake { right, wrong, watch, found_by }
}

const NUMBERS: &str = "output ";

pub(crate) const MISTAKES: [Mistake; 12] = [
    // A code that two words share loses its upper part.
    mistake("bits |= words[word + 1] << (32 - shift)", "bits |= 0u", Watch::None, NUMBERS),
    // A row past the end is read.
    mistake("min(row0 + r, rows - 1u)", "(row0 + r)", Watch::Addresses, "AddressSanitizer"),
    // The second group of a chunk gets the first's scale.
    mistake("matrix.group(at[r], span)", "matrix.group(at[r], 0)", Watch::None, NUMBERS),
    mistake(
        "simd_sum(sums[t][r])",
        "lane < 31u ? simd_sum(sums[t][r]) : 0.0f",
        Watch::None,
        "simdgroup operation in divergent control flow",
    ),
    // Outputs that share an input take each their own.
    mistake("input = token / shape.share", "input = token", Watch::Addresses, "AddressSanitizer"),
    // The next columns are staged while others still multiply; and multiplied before all are staged.
    mistake(
        "    threadgroup_barrier(mem_flags::mem_threadgroup);\n    {  // Two",
        "    {  // Two",
        Watch::Threads,
        "ThreadSanitizer",
    ),
    mistake(
        "    threadgroup_barrier(mem_flags::mem_threadgroup);\n    for (uint col",
        "    for (uint col",
        Watch::None,
        NUMBERS,
    ),
    // Transposing is forgotten.
    mistake(", STRIDE, ulong2(0), true)", ", STRIDE)", Watch::None, NUMBERS),
    mistake(
        "  threadgroup_barrier(mem_flags::mem_threadgroup);\n  for (uint i = thread_index",
        "  if (simd_index < 2u) threadgroup_barrier(mem_flags::mem_threadgroup);\n  for (uint i = thread_index",
        Watch::None,
        "barrier",
    ),
    // Outputs between two runs of equal experts are left out.
    mistake("begin = end;", "begin = min(end + 1u, count);", Watch::None, NUMBERS),
    // Columns past the end count.
    mistake("token < tile.end && col < shape.cols", "token < tile.end", Watch::Addresses, "AddressSanitizer"),
    // An unpacked row lands in the next one's place.
    mistake(
        "ulong(at.y) * shape.cols + chunk",
        "ulong(at.y + 1u) * shape.cols + chunk",
        Watch::Addresses,
        "AddressSanitizer",
    ),
];
