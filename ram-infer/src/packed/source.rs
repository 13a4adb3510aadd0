//! The kernels' source, and how they are launched: plain text and numbers, which the tests on a processor share.
//!
//! The source of one format is `kernels.metal` with two lines behind it, which name the format and make its kernels.
//! A GPU then compiles the kernels of the formats that a model has, and no others.

/// How a matrix is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Packing {
    /// `w = scale * code + bias`.
    Affine {
        /// Bits of a code: 2, 3, 4, 5, 6 or 8.
        bits: usize,
        /// Weights that share a scale and a bias: 32, 64 or 128.
        group_size: usize,
        /// The type of scales and biases.
        scales: Float,
    },
    /// Floats of 4 bits; 32 share a power of two.
    Mxfp4,
    /// Floats of 4 bits; 16 share a scale that is a float of 8 bits.
    Nvfp4,
    /// Floats of 8 bits; 32 share a power of two.
    Mxfp8,
}

/// Kernels that are compiled together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Set {
    /// Those of a matrix.
    Matrix,
    /// Those of matrices that lie behind each other, of which each output takes one.
    Stack,
}

/// How the numbers of matrices follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// In any way.
    Any,
    /// The same in runs, which share what is read; each output has an input of its own.
    Runs,
}

/// A type of floats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Float {
    /// 32 bits.
    F32,
    /// 16 bits, 5 of them exponent.
    F16,
    /// 16 bits, 8 of them exponent.
    Bf16,
}

/// A kernel, and the threads that run it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Launch {
    /// Its name in the library of its packing.
    pub(crate) kernel: String,
    /// Threadgroups, along x and y.
    pub(crate) groups: [usize; 2],
    /// Threads of each.
    pub(crate) threads: usize,
}

/// The sizes that a kernel is told; `Shape` in the source.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    /// Rows R of the matrix, or of each expert's.
    pub(crate) rows: u32,
    /// Columns C.
    pub(crate) cols: u32,
    /// Outputs T.
    pub(crate) tokens: u32,
    /// Matrices that lie behind each other.
    pub(crate) experts: u32,
    /// Outputs that share an input.
    pub(crate) share: u32,
}

impl Packing {
    /// Bits of a code.
    pub(crate) const fn bits(self) -> usize {
        match self {
            Self::Affine { bits, .. } => bits,
            Self::Mxfp4 | Self::Nvfp4 => 4,
            Self::Mxfp8 => 8,
        }
    }

    /// Weights that share a scale.
    pub(crate) const fn group_size(self) -> usize {
        match self {
            Self::Affine { group_size, .. } => group_size,
            Self::Nvfp4 => 16,
            Self::Mxfp4 | Self::Mxfp8 => 32,
        }
    }

    /// Whether the kernels take rows of `cols` weights: whole words, whole groups, whole chunks.
    pub(crate) const fn takes(self, cols: usize) -> bool {
        cols > 0 && cols.is_multiple_of(CHUNK) && cols.is_multiple_of(self.group_size())
    }

    /// What the names of its kernels end in.
    pub(crate) fn label(self, inputs: Float) -> String {
        let inputs = inputs.name();
        match self {
            Self::Affine { bits, group_size, scales } => {
                format!("affine_{bits}_{group_size}_{}_{inputs}", scales.name())
            }
            Self::Mxfp4 => format!("mxfp4_{inputs}"),
            Self::Nvfp4 => format!("nvfp4_{inputs}"),
            Self::Mxfp8 => format!("mxfp8_{inputs}"),
        }
    }

    /// The lines that make a set of its kernels for inputs of a type.
    pub(crate) fn exports(self, inputs: Float, set: Set) -> String {
        let (codes, scales) = match self {
            Self::Affine { scales, .. } => ("Integer", format!("Plain<{}>", scales.name())),
            Self::Mxfp4 => ("E2m1", "E8m0".to_owned()),
            Self::Nvfp4 => ("E2m1", "SmallFloat".to_owned()),
            Self::Mxfp8 => ("E4m3", "E8m0".to_owned()),
        };
        let (label, bits, group_size) = (self.label(inputs), self.bits(), self.group_size());
        let inputs = inputs.name();
        let export = match set {
            Set::Matrix => "EXPORT_DENSE",
            Set::Stack => "EXPORT_GATHER",
        };
        format!(
            "typedef Format<{bits}, {group_size}, {codes}, {scales}> {label};\n\
             {export}(\"{label}\", {label}, {inputs})\n"
        )
    }

    /// The source of a set of its kernels for inputs of a type.
    pub(crate) fn source(self, inputs: Float, set: Set) -> String {
        format!("{KERNELS}\n{}", self.exports(inputs, set))
    }

    /// The product of `tokens` inputs with `rows` rows.
    pub(crate) fn product(self, inputs: Float, rows: usize, tokens: usize) -> Launch {
        let label = self.label(inputs);
        if tokens > FEW_TOKENS_MAX {
            let kernel = format!("qmm_{label}");
            return Launch { kernel, groups: tiles(rows, tokens), threads: QMM_THREADS };
        }
        let at_once = tokens.next_power_of_two();
        let groups = [rows.div_ceil(QMV_ROWS), tokens.div_ceil(at_once)];
        Launch { kernel: format!("qmv{at_once}_{label}"), groups, threads: QMV_THREADS }
    }

    /// The products of `outputs` inputs with `rows` rows, each of a matrix of its own.
    pub(crate) fn gather(self, inputs: Float, rows: usize, outputs: usize, order: Order) -> Launch {
        let label = self.label(inputs);
        match order {
            Order::Any => Launch {
                kernel: format!("gather_qmv_{label}"),
                groups: [rows.div_ceil(QMV_ROWS), outputs],
                threads: QMV_THREADS,
            },
            Order::Runs => Launch {
                kernel: format!("gather_qmm_{label}"),
                groups: tiles(rows, outputs),
                threads: QMM_THREADS,
            },
        }
    }

    /// The rows of `numbers` numbers, of `cols` columns.
    pub(crate) fn take_rows(self, outputs: Float, cols: usize, numbers: usize) -> Launch {
        let kernel = format!("take_rows_{}", self.label(outputs));
        Launch { kernel, groups: [cols.div_ceil(CHUNK * TAKE_THREADS), numbers], threads: TAKE_THREADS }
    }
}

impl Float {
    /// Its name in the source.
    const fn name(self) -> &'static str {
        match self {
            Self::F32 => "float",
            Self::F16 => "half",
            Self::Bf16 => "bfloat",
        }
    }
}

/// Threadgroups of the kernels that work tile by tile.
const fn tiles(rows: usize, tokens: usize) -> [usize; 2] {
    [rows.div_ceil(TILE_ROWS), tokens.div_ceil(TILE_TOKENS)]
}

/// The kernels of any format.
pub(crate) const KERNELS: &str = include_str!("kernels.metal");
/// Up to so many inputs the rows are read once for all of them; on Apple's GPU more are multiplied tile by tile.
pub(crate) const FEW_TOKENS_MAX: usize = 8;

// As the source has them.
const CHUNK: usize = 32;
const QMV_ROWS: usize = 8;
const QMV_THREADS: usize = 64;
const QMM_THREADS: usize = 128;
const TILE_ROWS: usize = 64;
const TILE_TOKENS: usize = 32;
const TAKE_THREADS: usize = 32;
