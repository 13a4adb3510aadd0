//! How packed weights lie in memory, and how a file's become them.
//!
//! A *tile* is 16 rows by one group of G columns. Four consecutive columns are a *quad*; in a vector of 16 lanes of 32
//! bits, lane r belongs to row r and holds a quad's four weights, one a byte. Weights of other than 8 bits are put
//! together of *planes*, so that a few shifts and masks make such vectors again:
//!
//! | plane | a vector of 64 bytes holds | used for |
//! |---|---|---|
//! | 8 bits | one quad | 8 bits, mxfp8 |
//! | 4 bits | two: quad 2j in the low halves of the bytes, 2j+1 in the high ones | 4, 5 and 6 bits, mxfp4, nvfp4 |
//! | 2 bits | four | 2 and 3 bits; the upper part of 6 |
//! | 1 bit | eight | the upper part of 3 and 5 |
//!
//! Behind the planes come 16 scales and, of affine formats, 16 biases. Floats that are not packed are a group of 16
//! columns without scales: of bf16 a lane holds columns (0, 2) of a quad and in the next vector (1, 3); of f16 and f32
//! the 16 rows of a column stand together.
//!
//! The tiles of 16 rows follow each other over the columns, and the 16 rows those before: a product reads the memory
//! from one end to the other.

use super::floats::{Float, e4m3_to_bf16, e8m0_to_bf16, from_e4m3};
use super::{Format, PackError, Source};

/// Rows of a tile.
pub(crate) const ROWS: usize = 16;

/// What a weight is, whatever its group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Bits2,
    Bits3,
    Bits4,
    Bits5,
    Bits6,
    Bits8,
    E2m1,
    E4m3,
    Bf16,
    F16,
    F32,
}

impl Kind {
    const fn bits(self) -> usize {
        match self {
            Self::Bits2 => 2,
            Self::Bits3 => 3,
            Self::Bits4 | Self::E2m1 => 4,
            Self::Bits5 => 5,
            Self::Bits6 => 6,
            Self::Bits8 | Self::E4m3 => 8,
            Self::Bf16 | Self::F16 => 16,
            Self::F32 => 32,
        }
    }

    /// Whether weights are codes of which sums of integers can be made.
    pub(super) const fn is_integer(self) -> bool {
        !matches!(self, Self::E4m3 | Self::Bf16 | Self::F16 | Self::F32)
    }

    const fn is_plain(self) -> bool {
        matches!(self, Self::Bf16 | Self::F16 | Self::F32)
    }

    /// The weight of a code, before scale and bias.
    fn value(self, code: u8) -> f32 {
        match self {
            Self::E2m1 => f32::from(E2M1_TWICE[usize::from(code)]) * 0.5,
            Self::E4m3 => from_e4m3(code),
            _ => f32::from(code),
        }
    }
}

/// Twice the value of each e2m1 float (OCP MX 1.0, 5.3.3).
pub(super) const E2M1_TWICE: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// Where everything is in a tile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) kind: Kind,
    /// Columns of a tile.
    pub(super) group: usize,
    /// Tiles that make 16 whole rows.
    pub(super) groups: usize,
    /// Bytes before the scales.
    pub(super) code_bytes: usize,
    /// What scales and biases are.
    pub(super) float: Float,
    /// Bytes of a tile.
    pub(super) tile_bytes: usize,
}

impl Layout {
    /// The layout of a format's rows of `cols` columns, whose scales are stored as `float`.
    pub(super) fn of(format: Format, cols: usize, float: Float) -> Result<Self, PackError> {
        let (kind, group, scales) = match format {
            Format::Affine { bits, group } => (affine(bits, group)?, usize::from(group), 2),
            Format::Mxfp4 => (Kind::E2m1, 32, 1),
            Format::Nvfp4 => (Kind::E2m1, 16, 1),
            Format::Mxfp8 => (Kind::E4m3, 32, 1),
            Format::Plain(Float::Bf16) => (Kind::Bf16, PLAIN_GROUP, 0),
            Format::Plain(Float::F16) => (Kind::F16, PLAIN_GROUP, 0),
            Format::Plain(Float::F32) => (Kind::F32, PLAIN_GROUP, 0),
        };
        if cols == 0 || !(kind.is_plain() || cols.is_multiple_of(group)) {
            return Err(PackError::Columns { cols, group });
        }
        let float = if matches!(format, Format::Affine { .. }) { float } else { Float::Bf16 };
        let code_bytes = ROWS * group * kind.bits() / 8;
        let tile_bytes = code_bytes + scales * ROWS * float.bytes();
        Ok(Self { kind, group, groups: cols.div_ceil(group), code_bytes, float, tile_bytes })
    }

    /// Bytes of 16 rows.
    pub(super) fn row_tile_bytes(&self) -> usize {
        self.groups * self.tile_bytes
    }

    /// Bytes of a row of `cols` codes in the file.
    pub(super) fn stored_row_bytes(&self, cols: usize) -> usize {
        // A product that large is no slice's length, and so refused; columns are at most those of a slice.
        cols.saturating_mul(self.kind.bits()) / 8
    }

    /// Writes 16 rows from `first` on to `out`, which is zero; rows past the last stay so.
    pub(super) fn pack(&self, shape: [usize; 2], source: &Source<'_>, first: usize, out: &mut [u8]) {
        let [rows, cols] = shape;
        for lane in 0..ROWS.min(rows - first) {
            let row = first + lane;
            let bytes = self.stored_row_bytes(cols);
            let codes = &source.codes[row * bytes..][..bytes];
            if self.kind.is_plain() {
                self.pack_plain(codes, lane, out);
            } else {
                self.pack_codes(codes, lane, out);
                self.pack_scales(source, row, lane, out);
            }
        }
    }

    fn pack_codes(&self, codes: &[u8], lane: usize, out: &mut [u8]) {
        match self.kind {
            Kind::Bits2 => self.pack_bits::<2>(codes, lane, out),
            Kind::Bits3 => self.pack_bits::<3>(codes, lane, out),
            Kind::Bits5 => self.pack_bits::<5>(codes, lane, out),
            Kind::Bits6 => self.pack_bits::<6>(codes, lane, out),
            Kind::Bits8 | Kind::E4m3 => self.pack_bits::<8>(codes, lane, out),
            Kind::Bits4 | Kind::E2m1 | Kind::Bf16 | Kind::F16 | Kind::F32 => {
                self.pack_bits::<4>(codes, lane, out);
            }
        }
    }

    fn pack_bits<const BITS: usize>(&self, codes: &[u8], lane: usize, out: &mut [u8]) {
        let tiles = out.chunks_exact_mut(self.tile_bytes);
        for (codes, tile) in codes.chunks_exact(self.group * BITS / 8).zip(tiles) {
            // Room behind the last code, for quads are read as words.
            let mut padded = [0; GROUP_MAX + 4];
            padded[..codes.len()].copy_from_slice(codes);
            let (low, high) = tile[..self.code_bytes].split_at_mut(self.group * low_bits(BITS) * ROWS / 8);
            for quad in 0..self.group / 4 {
                let spread = spread_quad::<BITS>(&padded, quad);
                match low_bits(BITS) {
                    8 => put::<8>(low, quad, lane, spread),
                    4 => put::<4>(low, quad, lane, spread & 0x0f0f_0f0f),
                    _ => put::<2>(low, quad, lane, spread & 0x0303_0303),
                }
                match BITS - low_bits(BITS) {
                    0 => {}
                    1 => put::<1>(high, quad, lane, (spread >> low_bits(BITS)) & 0x0101_0101),
                    _ => put::<2>(high, quad, lane, (spread >> low_bits(BITS)) & 0x0303_0303),
                }
            }
        }
    }

    fn pack_scales(&self, source: &Source<'_>, row: usize, lane: usize, out: &mut [u8]) {
        let size = self.float.bytes();
        for (group, tile) in out.chunks_exact_mut(self.tile_bytes).enumerate() {
            let (scales, biases) = tile[self.code_bytes..].split_at_mut(ROWS * size);
            let at = row * self.groups + group;
            let scale = &mut scales[lane * size..][..size];
            match source.scales {
                Scales::Floats { scales, biases: stored, .. } => {
                    scale.copy_from_slice(&scales[at * size..][..size]);
                    biases[lane * size..][..size].copy_from_slice(&stored[at * size..][..size]);
                }
                Scales::Bytes { scales, .. } if self.kind == Kind::E2m1 && self.group == NVFP4_GROUP => {
                    scale.copy_from_slice(&e4m3_to_bf16(scales[at]).to_le_bytes());
                }
                Scales::Bytes { scales, .. } => {
                    scale.copy_from_slice(&e8m0_to_bf16(scales[at]).to_le_bytes());
                }
                Scales::None => {}
            }
        }
    }

    fn pack_plain(&self, row: &[u8], lane: usize, out: &mut [u8]) {
        let size = self.kind.bits() / 8;
        let tiles = out.chunks_exact_mut(self.tile_bytes);
        for (floats, tile) in row.chunks(self.group * size).zip(tiles) {
            for (col, float) in floats.chunks_exact(size).enumerate() {
                tile[self.plain_at(lane, col)..][..size].copy_from_slice(float);
            }
        }
    }

    /// Where the float of a row and column of a tile is.
    fn plain_at(&self, lane: usize, col: usize) -> usize {
        match self.kind {
            Kind::Bf16 => (2 * (col / 4) + col % 2) * 64 + lane * 4 + (col % 4) / 2 * 2,
            _ => (col * ROWS + lane) * (self.kind.bits() / 8),
        }
    }

    /// Writes the weights of one row of `rows`, 16 packed rows, to `out`; all scales are taken times `factor`.
    pub(super) fn unpack(&self, rows: &[u8], lane: usize, factor: f32, out: &mut [f32]) {
        let tiles = rows.chunks_exact(self.tile_bytes);
        for (tile, out) in tiles.zip(out.chunks_mut(self.group)) {
            if self.kind.is_plain() {
                let float = match self.kind {
                    Kind::Bf16 => Float::Bf16,
                    Kind::F16 => Float::F16,
                    _ => Float::F32,
                };
                for (col, out) in out.iter_mut().enumerate() {
                    *out = float.read(&tile[self.plain_at(lane, col)..]);
                }
                continue;
            }
            let size = self.float.bytes();
            let scale = self.float.read(&tile[self.code_bytes + lane * size..]) * factor;
            let biases = &tile[self.code_bytes + ROWS * size..];
            let bias = if biases.is_empty() { 0.0 } else { self.float.read(&biases[lane * size..]) };
            for (col, out) in out.iter_mut().enumerate() {
                *out = scale * self.kind.value(self.code(tile, lane, col)) + bias;
            }
        }
    }

    /// The code of a row and column of a tile.
    fn code(&self, tile: &[u8], lane: usize, col: usize) -> u8 {
        let bits = self.kind.bits();
        let (low, high) = tile[..self.code_bytes].split_at(self.group * low_bits(bits) * ROWS / 8);
        let low_code = take(low, low_bits(bits), lane, col);
        match bits - low_bits(bits) {
            0 => low_code,
            rest => low_code | take(high, rest, lane, col) << low_bits(bits),
        }
    }
}

/// The kind of an affine format.
fn affine(bits: u8, group: u16) -> Result<Kind, PackError> {
    match (bits, group) {
        (2, 32 | 64 | 128) => Ok(Kind::Bits2),
        (3, 32 | 64 | 128) => Ok(Kind::Bits3),
        (4, 32 | 64 | 128) => Ok(Kind::Bits4),
        (5, 32 | 64 | 128) => Ok(Kind::Bits5),
        (6, 32 | 64 | 128) => Ok(Kind::Bits6),
        (8, 32 | 64 | 128) => Ok(Kind::Bits8),
        _ => Err(PackError::Format { bits, group }),
    }
}

/// Bits of the lower plane of a code.
const fn low_bits(bits: usize) -> usize {
    match bits {
        8 => 8,
        4..=7 => 4,
        _ => 2,
    }
}

/// Four codes, one a byte, out of a stream of bits.
#[inline(always)]
fn spread_quad<const BITS: usize>(stream: &[u8; GROUP_MAX + 4], quad: usize) -> u32 {
    let at = 4 * BITS * quad;
    let bytes: [u8; 4] = std::array::from_fn(|i| stream[at / 8 + i]);
    let word = u32::from_le_bytes(bytes) >> (at % 8);
    if BITS == 8 {
        return word;
    }
    let mask = (1 << BITS) - 1;
    (word & mask)
        | ((word >> BITS) & mask) << 8
        | ((word >> (2 * BITS)) & mask) << 16
        | ((word >> (3 * BITS)) & mask) << 24
}

/// Adds a quad's bits to a plane of `BITS`, where they are zero yet.
#[inline(always)]
fn put<const BITS: usize>(plane: &mut [u8], quad: usize, lane: usize, spread: u32) {
    let per_vector = 8 / BITS;
    let at = quad / per_vector * 64 + lane * 4;
    let word = &mut plane[at..at + 4];
    let before = u32::from_le_bytes([word[0], word[1], word[2], word[3]]);
    word.copy_from_slice(&(before | spread << (quad % per_vector * BITS)).to_le_bytes());
}

/// The bits of a row and column of a plane of `bits`.
fn take(plane: &[u8], bits: usize, lane: usize, col: usize) -> u8 {
    let (quad, per_vector) = (col / 4, 8 / bits);
    let byte = plane[quad / per_vector * 64 + lane * 4 + col % 4];
    let mask = u8::MAX >> (8 - bits);
    (byte >> (quad % per_vector * bits)) & mask
}

/// Scales, and what belongs to them, as a file has them: one for each group of a row, rows one after the other.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Scales<'a> {
    /// None: the weights are plain.
    None,
    /// Of affine formats: floats, and the biases beside them.
    Floats {
        /// What both are.
        float: Float,
        /// The scales.
        scales: &'a [u8],
        /// The biases.
        biases: &'a [u8],
    },
    /// Of the floating formats: a byte each, e8m0 or, of nvfp4, e4m3.
    Bytes {
        /// The scales.
        scales: &'a [u8],
        /// What all of them are multiplied with: 1, but for nvfp4 with a scale for the whole matrix.
        factor: f32,
    },
}

/// The most columns of a tile.
pub(super) const GROUP_MAX: usize = 128;
/// Columns of a tile of plain floats.
const PLAIN_GROUP: usize = 16;
const NVFP4_GROUP: usize = 16;
