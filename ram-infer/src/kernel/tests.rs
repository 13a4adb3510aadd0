//! Products and rows of random matrices in every format, against sums in f64; and matrices that MLX packed.

#![expect(clippy::cast_possible_truncation, reason = "random bits are cut off")]

use super::floats::to_bf16;
use super::isa::Processor;
use super::layout::E2M1_TWICE;
use super::product::STRETCH_BYTES;
use super::*;

/// Numbers of a linear congruential generator (Knuth's MMIX).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as u32
    }

    fn below(&mut self, end: usize) -> usize {
        self.next() as usize % end
    }

    /// Between -1 and 1.
    fn float(&mut self) -> f32 {
        self.next() as f32 / (1u32 << 30) as f32 - 1.0
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| (self.next() >> 3) as u8).collect()
    }
}

/// A matrix as a file has it, and its weights.
struct Stored {
    format: Format,
    rows: usize,
    cols: usize,
    float: Float,
    codes: Vec<u8>,
    scales: Vec<u8>,
    biases: Vec<u8>,
    factor: f32,
    weights: Vec<f64>,
}

impl Stored {
    /// Random codes, scales and biases.
    fn random(format: Format, rows: usize, cols: usize, float: Float, numbers: &mut Numbers) -> Self {
        let (bits, group) = match format {
            Format::Affine { bits, group } => (usize::from(bits), usize::from(group)),
            Format::Mxfp4 => (4, 32),
            Format::Nvfp4 => (4, 16),
            Format::Mxfp8 => (8, 32),
            Format::Plain(float) => (8 * float.bytes(), 1),
        };
        let mut codes = numbers.bytes(rows * cols * bits / 8);
        let (mut scales, mut biases, mut factor) = (Vec::new(), Vec::new(), 1.0);
        let count = rows * (cols / group);
        match format {
            Format::Affine { .. } => {
                let spread = (1 << bits) as f32;
                for _ in 0..count {
                    let scale = numbers.float() / spread;
                    scales.extend(stored(scale, float));
                    biases.extend(stored(-scale * spread / 2.0 + numbers.float() / 8.0, float));
                }
            }
            Format::Nvfp4 => {
                factor = if numbers.below(2) == 0 { 1.0 } else { 0.37 };
                scales = numbers.bytes(count).into_iter().map(|byte| byte & 0x3f).collect();
            }
            Format::Mxfp4 | Format::Mxfp8 => {
                scales = numbers.bytes(count).into_iter().map(|byte| 120 + byte % 9).collect();
            }
            Format::Plain(float) => {
                codes = (0..rows * cols).flat_map(|_| stored(numbers.float(), float)).collect();
            }
        }
        if format == Format::Mxfp8 {
            // No code for NaN.
            codes.iter_mut().for_each(|code| *code &= 0xf7);
        }
        let mut matrix =
            Self { format, rows, cols, float, codes, scales, biases, factor, weights: Vec::new() };
        matrix.weights = (0..rows * cols).map(|at| matrix.weight(at, bits, group)).collect();
        matrix
    }

    /// Weight number `at`, as MLX documents it: code `i` of a row is its bits from `bits * i` on.
    fn weight(&self, at: usize, bits: usize, group: usize) -> f64 {
        if let Format::Plain(float) = self.format {
            return f64::from(float.read(&self.codes[at * float.bytes()..]));
        }
        let code = (0..bits).fold(0, |code, bit| {
            let at = at * bits + bit;
            code | usize::from(self.codes[at / 8] >> (at % 8) & 1) << bit
        });
        let number = at / group;
        match self.format {
            Format::Affine { .. } => {
                let read = |stored: &[u8]| f64::from(self.float.read(&stored[number * self.float.bytes()..]));
                read(&self.scales) * code as f64 + read(&self.biases)
            }
            Format::Nvfp4 => {
                let scale = e4m3(self.scales[number]) * f64::from(self.factor);
                scale * f64::from(E2M1_TWICE[code]) / 2.0
            }
            Format::Mxfp4 => {
                2f64.powi(i32::from(self.scales[number]) - 127) * f64::from(E2M1_TWICE[code]) / 2.0
            }
            _ => 2f64.powi(i32::from(self.scales[number]) - 127) * e4m3(code as u8),
        }
    }

    fn source(&self) -> Source<'_> {
        let Self { codes, scales, biases, float, factor, .. } = self;
        let scales = match self.format {
            Format::Affine { .. } => Scales::Floats { float: *float, scales, biases },
            Format::Plain(_) => Scales::None,
            _ => Scales::Bytes { scales, factor: *factor },
        };
        Source { codes, scales }
    }

    fn pack(&self) -> Packed {
        Packed::pack(self.format, self.rows, self.cols, &self.source()).unwrap()
    }
}

/// e4m3 by its definition.
fn e4m3(code: u8) -> f64 {
    let (sign, exponent, mantissa) = (code >> 7, i32::from(code >> 3 & 15), f64::from(code & 7));
    let magnitude = if exponent == 0 {
        mantissa / 8.0 * 2f64.powi(-6)
    } else {
        (1.0 + mantissa / 8.0) * 2f64.powi(exponent - 7)
    };
    if sign == 1 { -magnitude } else { magnitude }
}

/// A float in its stored form; as f16 with its last bits cut off.
fn stored(float: f32, kind: Float) -> Vec<u8> {
    match kind {
        Float::F32 => float.to_le_bytes().to_vec(),
        Float::Bf16 => to_bf16(float).to_le_bytes().to_vec(),
        Float::F16 => {
            let bits = float.to_bits();
            let exponent = (bits >> 23 & 0xff).saturating_sub(112);
            let magnitude = if exponent == 0 { 0 } else { exponent << 10 | (bits >> 13 & 0x3ff) };
            ((bits >> 16 & 0x8000 | magnitude) as u16).to_le_bytes().to_vec()
        }
    }
}

/// All products, (T, R), by tiles.
fn products(packed: &Packed, inputs: &Inputs, tokens: Range<usize>) -> Vec<f32> {
    let mut out = vec![0.0; tokens.len() * packed.rows()];
    let mut tile_out = vec![0.0; tokens.len() * ROWS];
    for tile in 0..packed.tiles() {
        packed.tile(tile, inputs, tokens.clone(), &mut tile_out);
        for (token, results) in tile_out.chunks_exact(ROWS).enumerate() {
            let rows = ROWS.min(packed.rows() - tile * ROWS);
            out[token * packed.rows() + tile * ROWS..][..rows].copy_from_slice(&results[..rows]);
            assert!(
                results[rows..].iter().all(|result| result.to_bits() == 0),
                "rows past the last are zero"
            );
        }
    }
    out
}

/// Checks products in a kind of numbers on a processor against those in f64.
fn check_products(stored: &Stored, x: &[f32], numerics: Numerics, processor: Processor) {
    let packed = stored.pack();
    let mut inputs = Inputs::with(processor);
    packed.prepare(x, numerics, &mut inputs);
    let tokens = x.len() / stored.cols;
    let found = products(&packed, &inputs, 0..tokens);
    // What a kind of numbers may be wrong by, as a part of the root of the sum of the squares of the products; the
    // bias' products are as large as those of the codes.
    let bar = match numerics {
        Numerics::F32 => 1e-5,
        Numerics::Bf16 => 1.5e-2,
        Numerics::Int8 => 3e-2,
    };
    for (token, x) in x.chunks_exact(stored.cols).enumerate() {
        for (row, weights) in stored.weights.chunks_exact(stored.cols).enumerate() {
            let products = || x.iter().zip(weights).map(|(x, w)| f64::from(*x) * w);
            let (expected, size) = (products().sum::<f64>(), products().map(|y| y * y).sum::<f64>().sqrt());
            let y = f64::from(found[token * stored.rows + row]);
            let cols = stored.cols as f64;
            let size = size + if numerics == Numerics::F32 { cols.sqrt() } else { 1e-3 };
            assert!(
                (y - expected).abs() <= bar * size,
                "{y} for {expected} of {size}: {:?} {:?} on {processor:?}, {} x {cols}, token {token} of {tokens}",
                stored.format,
                numerics,
                stored.rows
            );
        }
    }
}

fn formats() -> impl Iterator<Item = (Format, Float)> {
    let affine = [2, 3, 4, 5, 6, 8].into_iter().flat_map(|bits| {
        [(32, Float::Bf16), (64, Float::Bf16), (128, Float::Bf16), (64, Float::F16), (32, Float::F32)]
            .map(|(group, float)| (Format::Affine { bits, group }, float))
    });
    let others = [
        Format::Mxfp4,
        Format::Nvfp4,
        Format::Mxfp8,
        Format::Plain(Float::Bf16),
        Format::Plain(Float::F16),
        Format::Plain(Float::F32),
    ];
    affine.chain(others.map(|format| (format, Float::Bf16)))
}

const ALL_NUMERICS: [Numerics; 3] = [Numerics::F32, Numerics::Bf16, Numerics::Int8];

/// All kinds of processor that can be tested here.
fn processors() -> impl Iterator<Item = Processor> {
    Processor::all().iter().copied().chain([Processor::PlainDots])
}

/// Random columns of a format: several groups, of plain floats any number.
fn columns(format: Format, numbers: &mut Numbers) -> usize {
    match format {
        Format::Affine { group, .. } => usize::from(group) * (1 + numbers.below(6)),
        Format::Plain(_) => 1 + numbers.below(300),
        _ => 32 * (1 + numbers.below(8)),
    }
}

#[test]
fn the_processor_is_the_one_that_is_meant() {
    // Who emulates a processor to test its kernels says which it should be taken for.
    if let Ok(name) = std::env::var("RAM_TEST_PROCESSOR") {
        assert_eq!(format!("{:?}", Processor::best()), name);
    }
}

#[test]
fn products_in_every_format_agree_with_those_in_f64() {
    let mut numbers = Numbers(1);
    for (format, float) in formats() {
        for _ in 0..4 {
            let (rows, cols) = (1 + numbers.below(40), columns(format, &mut numbers));
            let stored = Stored::random(format, rows, cols, float, &mut numbers);
            let tokens = 1 + numbers.below(20);
            let x: Vec<f32> = (0..tokens * cols).map(|_| numbers.float()).collect();
            for numerics in ALL_NUMERICS {
                for processor in processors() {
                    check_products(&stored, &x, numerics, processor);
                }
            }
        }
    }
}

/// What rounding inputs to 8 bits costs a product: the root of the mean square of the error over that of the results,
/// for inputs with a normal distribution. A group's largest input sets its step, so wider groups are rounded more.
#[test]
fn integer_products_are_within_six_thousandths() {
    let mut numbers = Numbers(9);
    let integers = |format: &Format| match format {
        Format::Affine { group, .. } => *group <= 64,
        _ => matches!(format, Format::Mxfp4 | Format::Nvfp4),
    };
    // An emulated processor is slow.
    let some = if std::env::var_os("RAM_TEST_PROCESSOR").is_some() { 1 } else { usize::MAX };
    for (format, float) in formats().filter(|(format, _)| integers(format)).take(some) {
        let stored = Stored::random(format, 64, 2048, float, &mut numbers);
        let packed = stored.pack();
        let mut normal = || (0..12).map(|_| numbers.float()).sum::<f32>() / 2.0;
        let x: Vec<f32> = (0..96 * stored.cols).map(|_| normal()).collect();
        let mut inputs = Inputs::default();
        packed.prepare(&x, Numerics::Int8, &mut inputs);
        let found = products(&packed, &inputs, 0..96);
        let (mut errors, mut sizes) = (0.0, 0.0);
        for (x, found) in x.chunks_exact(stored.cols).zip(found.chunks_exact(stored.rows)) {
            for (weights, y) in stored.weights.chunks_exact(stored.cols).zip(found) {
                let expected: f64 = x.iter().zip(weights).map(|(x, w)| f64::from(*x) * w).sum();
                errors += (f64::from(*y) - expected).powi(2);
                sizes += expected.powi(2);
            }
        }
        let error = (errors / sizes).sqrt();
        assert!((1e-3..=6e-3).contains(&error), "{format:?}: {error}");
    }
}

#[test]
fn columns_past_a_stretch_are_added_too() {
    let mut numbers = Numbers(2);
    for (format, float) in
        [(Format::Affine { bits: 4, group: 64 }, Float::Bf16), (Format::Mxfp8, Float::Bf16)]
    {
        let stored = Stored::random(format, 17, 8192, float, &mut numbers);
        let x: Vec<f32> = (0..29 * stored.cols).map(|_| numbers.float()).collect();
        for numerics in ALL_NUMERICS {
            for processor in processors() {
                check_products(&stored, &x, numerics, processor);
            }
        }
    }
}

#[test]
fn a_token_alone_has_the_results_that_it_has_among_others() {
    let mut numbers = Numbers(3);
    for (format, float) in formats() {
        // A little more than a stretch: of many tokens it is done by stretches, of one at once.
        let layout = Layout::of(format, 128, float).unwrap();
        let cols = (STRETCH_BYTES / layout.tile_bytes + 2) * layout.group;
        let stored = Stored::random(format, 16, cols, float, &mut numbers);
        let (packed, tokens) = (stored.pack(), 27);
        let x: Vec<f32> = (0..tokens * cols).map(|_| numbers.float()).collect();
        // An emulated processor is slow, and the others are compared elsewhere.
        let emulated = std::env::var_os("RAM_TEST_PROCESSOR").is_some();
        let processors = || processors().filter(|processor| !emulated || *processor == Processor::best());
        for (numerics, processor) in ALL_NUMERICS
            .into_iter()
            .flat_map(|numerics| processors().map(move |processor| (numerics, processor)))
        {
            let mut inputs = Inputs::with(processor);
            packed.prepare(&x, numerics, &mut inputs);
            let together = products(&packed, &inputs, 0..tokens);
            let apart: Vec<f32> = [0..1, 1..2, 2..9, 9..13, 13..27]
                .into_iter()
                .flat_map(|tokens| products(&packed, &inputs, tokens))
                .collect();
            let mut alone = Vec::new();
            for x in x.chunks_exact(cols) {
                packed.prepare(x, numerics, &mut inputs);
                alone.extend(products(&packed, &inputs, 0..1));
            }
            for (pair, among) in x.chunks(2 * cols).zip(together.chunks(2 * packed.rows())) {
                packed.prepare(pair, numerics, &mut inputs);
                assert_eq!(
                    products(&packed, &inputs, 0..pair.len() / cols),
                    among,
                    "{format:?} {numerics:?}"
                );
            }
            assert_eq!(apart, together, "{format:?} {numerics:?} {processor:?}");
            assert_eq!(alone, together, "{format:?} {numerics:?} {processor:?}");
        }
    }
}

#[test]
fn integer_products_are_the_same_on_every_processor() {
    let mut numbers = Numbers(4);
    for (format, float) in formats().filter(|(format, _)| !matches!(format, Format::Plain(_) | Format::Mxfp8))
    {
        // One group a row: no sums of floats, whose order and rounding a processor has of its own.
        let cols = match format {
            Format::Affine { group, .. } => usize::from(group),
            Format::Nvfp4 => 16,
            _ => 32,
        };
        let mut stored = Stored::random(format, 64, cols, float, &mut numbers);
        // The largest sums that there are.
        stored.codes[..cols / 4].fill(0xff);
        stored.biases.fill(0);
        let packed = stored.pack();
        let mut x: Vec<f32> = (0..8 * cols).map(|_| numbers.float()).collect();
        x[..cols].fill(1.0);
        x[cols..2 * cols].fill(-1.0);
        let results: Vec<Vec<f32>> = processors()
            .map(|processor| {
                let mut inputs = Inputs::with(processor);
                packed.prepare(&x, Numerics::Int8, &mut inputs);
                products(&packed, &inputs, 0..8)
            })
            .collect();
        assert!(results.iter().all(|other| *other == results[0]), "{format:?}");
    }
}

#[test]
fn rows_have_the_weights_of_the_file() {
    let mut numbers = Numbers(5);
    for (format, float) in formats() {
        let (rows, cols) = (1 + numbers.below(40), columns(format, &mut numbers));
        let stored = Stored::random(format, rows, cols, float, &mut numbers);
        let packed = stored.pack();
        let mut row = vec![0.0; cols];
        for (number, weights) in stored.weights.chunks_exact(cols).enumerate() {
            packed.row(number, &mut row);
            for (found, weight) in row.iter().zip(weights) {
                assert!((f64::from(*found) - weight).abs() <= 2e-7 * (1.0 + weight.abs()), "{format:?}");
            }
        }
    }
}

#[test]
fn rows_of_matrices_that_mlx_packed_are_those_that_mlx_unpacks() {
    for line in include_str!("../../tests/vectors/quantized.txt").lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        let [name, group, dtype, rows, cols, factor, codes, scales, biases, weights] = fields[..] else {
            panic!("{} fields", fields.len())
        };
        let bytes = |hex: &str| -> Vec<u8> {
            let digits = |at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
            (0..hex.len()).step_by(2).map(digits).collect()
        };
        let (rows, cols): (usize, usize) = (rows.parse().unwrap(), cols.parse().unwrap());
        let format = match name {
            "mxfp4" => Format::Mxfp4,
            "nvfp4" => Format::Nvfp4,
            "mxfp8" => Format::Mxfp8,
            affine => Format::Affine {
                bits: affine.strip_prefix("affine").unwrap().parse().unwrap(),
                group: group.parse().unwrap(),
            },
        };
        let (codes, scales, weights) = (bytes(codes), bytes(scales), bytes(weights));
        let biases = if biases == "-" { Vec::new() } else { bytes(biases) };
        let scales = match dtype {
            "u8" => Scales::Bytes { scales: &scales, factor: factor.parse().unwrap() },
            "bf16" => Scales::Floats { float: Float::Bf16, scales: &scales, biases: &biases },
            "f16" => Scales::Floats { float: Float::F16, scales: &scales, biases: &biases },
            _ => Scales::Floats { float: Float::F32, scales: &scales, biases: &biases },
        };
        let packed = Packed::pack(format, rows, cols, &Source { codes: &codes, scales }).unwrap();
        let mut found = vec![0.0; cols];
        for (row, weights) in weights.chunks_exact(4 * cols).enumerate() {
            packed.row(row, &mut found);
            for (found, weight) in found.iter().zip(weights.as_chunks::<4>().0) {
                let weight = f32::from_le_bytes(*weight);
                // A scale for the whole is multiplied in another order.
                let bar = if factor == "1.0" { 0.0 } else { 2e-7 * weight.abs() };
                assert!((found - weight).abs() <= bar, "{name}: {found} for {weight}");
            }
        }
    }
}

#[test]
fn packed_weights_take_hardly_more_memory_than_the_file() {
    let mut numbers = Numbers(6);
    for (format, float) in formats() {
        let stored = Stored::random(format, 64, 1024, float, &mut numbers);
        let file = stored.codes.len() + stored.scales.len() + stored.biases.len();
        let packed = stored.pack().bytes();
        assert!(packed as f64 <= 1.12 * file as f64, "{format:?}: {packed} for {file}");
    }
}

#[test]
fn threads_share_the_making_of_inputs() {
    let mut numbers = Numbers(7);
    let stored = Stored::random(Format::Mxfp4, 16, 64, Float::Bf16, &mut numbers);
    let (packed, tokens) = (stored.pack(), 51);
    let x: Vec<f32> = (0..tokens * 64).map(|_| numbers.float()).collect();
    for numerics in ALL_NUMERICS {
        let (mut inputs, mut shared) = (Inputs::default(), Inputs::default());
        packed.prepare(&x, numerics, &mut inputs);
        let filling = shared.fill(&packed, tokens, numerics);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| filling.work(&x));
            }
        });
        assert!(filling.claim().is_none());
        assert_eq!(products(&packed, &inputs, 0..tokens), products(&packed, &shared, 0..tokens));
    }
}

#[test]
fn inputs_serve_every_matrix_of_their_format_and_no_other() {
    let mut numbers = Numbers(8);
    let x: Vec<f32> = (0..64).map(|_| numbers.float()).collect();
    let mut packed = |format, float| Stored::random(format, 16, 64, float, &mut numbers).pack();
    let affine = Format::Affine { bits: 4, group: 64 };
    let (first, second) = (packed(affine, Float::Bf16), packed(affine, Float::F32));
    let third = packed(Format::Mxfp4, Float::Bf16);
    let mut inputs = Inputs::default();
    first.prepare(&x, Numerics::Int8, &mut inputs);
    second.tile(0, &inputs, 0..1, &mut [0.0; ROWS]);
    let refused = std::panic::catch_unwind(|| third.tile(0, &inputs, 0..1, &mut [0.0; ROWS]));
    assert!(refused.is_err());
}

#[test]
fn inputs_that_are_no_numbers_spoil_no_other_token() {
    let mut numbers = Numbers(9);
    for (format, float) in formats() {
        let stored = Stored::random(format, 16, 128, float, &mut numbers);
        let packed = stored.pack();
        let x: Vec<f32> = (0..5 * 128).map(|_| numbers.float()).collect();
        let mut bad = x.clone();
        bad[2 * 128..3 * 128].fill(1e-42);
        (bad[3], bad[128 + 5]) = (f32::NAN, f32::INFINITY);
        for numerics in ALL_NUMERICS {
            let mut inputs = Inputs::default();
            packed.prepare(&x, numerics, &mut inputs);
            let good = products(&packed, &inputs, 0..5);
            packed.prepare(&bad, numerics, &mut inputs);
            let found = products(&packed, &inputs, 0..5);
            assert_eq!(good[3 * 16..], found[3 * 16..]);
            assert!(found[..2 * 16].iter().all(|y| !y.is_finite()), "{format:?} {numerics:?}");
            assert!(found[2 * 16..3 * 16].iter().all(|y| y.abs() < 1e-20), "{format:?} {numerics:?}");
        }
    }
}

#[test]
fn a_source_of_another_shape_is_refused() {
    let affine = Format::Affine { bits: 4, group: 64 };
    let pack = |format, rows, cols, codes: usize, scales| {
        Packed::pack(format, rows, cols, &Source { codes: &vec![0; codes], scales }).err()
    };
    let floats = |scales, biases| Scales::Floats { float: Float::Bf16, scales, biases };
    let (two, four) = (&[0; 2][..], &[0; 4][..]);
    assert_eq!(pack(affine, 1, 64, 32, floats(two, two)), None);
    assert_eq!(
        pack(Format::Affine { bits: 7, group: 64 }, 1, 64, 56, floats(two, two)),
        Some(PackError::Format { bits: 7, group: 64 })
    );
    assert_eq!(pack(affine, 1, 96, 48, floats(two, two)), Some(PackError::Columns { cols: 96, group: 64 }));
    assert_eq!(
        pack(affine, 1, 64, 31, floats(two, two)),
        Some(PackError::Length { part: "codes", expected: 32, actual: 31 })
    );
    assert_eq!(
        pack(affine, 1, 64, 32, floats(four, two)),
        Some(PackError::Length { part: "scales", expected: 2, actual: 4 })
    );
    assert_eq!(
        pack(affine, 1, 64, 32, floats(two, four)),
        Some(PackError::Length { part: "biases", expected: 2, actual: 4 })
    );
    assert_eq!(pack(affine, 1, 64, 32, Scales::None), Some(PackError::Scales));
    assert_eq!(pack(Format::Mxfp4, 1, 64, 32, floats(two, two)), Some(PackError::Scales));
    assert!(matches!(pack(affine, usize::MAX, 64, 32, floats(two, two)), Some(PackError::Length { .. })));
    assert!(matches!(
        pack(Format::Plain(Float::F32), 1, usize::MAX, 32, Scales::None),
        Some(PackError::Length { .. })
    ));
    assert_eq!(pack(affine, 0, 64, 0, floats(&[], &[])), None);
}
