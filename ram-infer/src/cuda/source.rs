//! The kernels' source for CUDA's compiler, and how they are launched there: plain text and numbers, which the tests on
//! a processor share.

use crate::packed::source::{FEW_TOKENS_MAX, Float, Launch, Order, Packing, Set};

/// The source of a set of a packing's kernels for inputs of a type.
pub(crate) fn source(packing: Packing, inputs: Float, set: Set) -> String {
    format!("{METAL_STDLIB}{}", packing.source(inputs, set))
}

/// The product of `tokens` inputs with `rows` rows, eight inputs at a time.
pub(crate) fn product(packing: Packing, inputs: Float, rows: usize, tokens: usize) -> Launch {
    let launch = packing.product(inputs, rows, tokens.min(FEW_TOKENS_MAX));
    Launch { groups: [launch.groups[0], tokens.div_ceil(FEW_TOKENS_MAX)], ..launch }
}

/// The products of `outputs` inputs with `rows` rows, each of a matrix of its own; in runs, four inputs at a time.
///
/// Outputs lie along x, and rows along y: neighbours read the same weights.
pub(crate) fn gather(packing: Packing, inputs: Float, rows: usize, outputs: usize, order: Order) -> Launch {
    let mut launch = match order {
        Order::Any => packing.gather(inputs, rows, outputs, Order::Any),
        Order::Runs => {
            let kernel = format!("gather_qmv4_{}", packing.label(inputs));
            let turns = outputs.div_ceil(RUN_OUTPUTS);
            Launch { kernel, ..packing.gather(inputs, rows, turns, Order::Any) }
        }
    };
    launch.groups.reverse();
    launch
}

/// The rows of `numbers` numbers, of `cols` columns.
///
/// They lie along x, and columns along y: a grid is at most 65535 high, and vocabularies are larger.
pub(crate) fn take_rows(packing: Packing, outputs: Float, cols: usize, numbers: usize) -> Launch {
    let mut launch = packing.take_rows(outputs, cols, numbers);
    launch.groups.reverse();
    launch
}

/// Outputs of a run that are computed at a time: eight would take all registers, and in some formats more.
const RUN_OUTPUTS: usize = 4;
/// What stands in for Metal's header.
pub(crate) const METAL_STDLIB: &str = include_str!("metal_stdlib.cuh");
/// Functions are the GPU's unless they say otherwise; the language is Metal's, C++14.
pub(crate) const OPTIONS: [&str; 2] = ["-default-device", "--std=c++14"];
