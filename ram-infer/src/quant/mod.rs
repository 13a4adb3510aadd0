//! Weight matrices: packed as MLX packs them or plain, and the linear layers and embeddings made of them.
//!
//! | file | owns |
//! |---|---|
//! | [`affine`] | MLX's affine quantisation, 4 and 8 bits |
//! | [`plain`] | bf16, f16 and f32 |
//! | [`floats`] | stored floats, read as f32 |
//! | [`simd`] | one kernel for several kinds of processor |
//!
//! A [`Matrix`] hides the device. On the processor the weights stay as the file has them and the mathematics is f32: a
//! few inputs are multiplied with the packed rows, many with rows that are unpacked tile by tile. On Apple's GPU packed
//! weights stay packed too; on NVIDIA's they are unpacked into bf16 when they are loaded.
//!
//! Letters of shapes: T tokens, R rows (outputs), C columns (inputs).

mod affine;
mod floats;
mod plain;
mod simd;

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, Layout, Shape, Tensor};
use rayon::prelude::*;

pub(crate) use self::floats::Floats;

use self::affine::Affine;
use self::plain::Plain;
use crate::config::ModuleFormat;
use crate::device::Device;
use crate::error::InferError;
#[cfg(feature = "metal")]
use crate::metal::PackedMatrix;
use crate::scope::Scope;

/// A weight matrix (R, C), wherever it lies.
pub(crate) enum Matrix {
    /// In a mapped file, for the processor.
    Host(Arc<HostMatrix>),
    /// On Apple's GPU, packed.
    #[cfg(feature = "metal")]
    Packed(PackedMatrix),
    /// On a GPU, in bf16.
    Device(Tensor),
}

/// A weight matrix (R, C) as its file has it.
pub(crate) struct HostMatrix {
    rows: usize,
    cols: usize,
    weights: Weights,
}

enum Weights {
    Affine(Affine),
    Plain(Plain),
}

/// Inputs (T, C) in the order that a kernel wants, and their sums by groups where it wants those.
struct Inputs {
    tokens: usize,
    values: Vec<f32>,
    sums: Vec<f32>,
}

impl Matrix {
    /// Loads the matrix of the module at this place: packed when it has `scales`, plain when not.
    ///
    /// # Errors
    /// [`InferError::MissingTensor`], [`InferError::TensorShape`], [`InferError::TensorDtype`],
    /// [`InferError::UnsupportedQuantization`].
    pub(crate) fn load(at: &Scope<'_>, rows: usize, cols: usize) -> Result<Self, InferError> {
        #[cfg(feature = "metal")]
        if let Some(packed) = PackedMatrix::load(at, rows, cols)? {
            return Ok(Self::Packed(packed));
        }
        let stated_packed = matches!(at.format_override(), Some(ModuleFormat::Affine(_)));
        let weights = if at.has("scales") || stated_packed {
            Weights::Affine(Affine::load(at, rows, cols)?)
        } else {
            Weights::Plain(Plain::load(at, rows, cols)?)
        };
        let host = HostMatrix { rows, cols, weights };
        match at.device() {
            Device::Cpu => Ok(Self::Host(Arc::new(host))),
            Device::Metal | Device::Cuda => {
                Ok(Self::Device(at.upload(host.unpacked(0, rows), &[rows, cols])?))
            }
        }
    }

    /// The product of inputs (T, C) with every row: (T, R).
    pub(crate) fn forward(&self, inputs: &Tensor) -> candle_core::Result<Tensor> {
        match self {
            #[cfg(feature = "metal")]
            Self::Packed(matrix) => matrix.forward(inputs),
            // (T, C) x (C, R) -> (T, R)
            Self::Device(weight) => inputs.matmul(&weight.t()?),
            Self::Host(host) if inputs.dim(0)? <= PACKED_TOKENS_MAX => {
                inputs.apply_op1_no_bwd(&PackedProducts(Arc::clone(host)))
            }
            Self::Host(host) => host.tiled(inputs),
        }
    }

    /// The rows of these numbers: (T, C).
    ///
    /// # Errors
    /// Those of the device; the caller has checked that there are such rows.
    pub(crate) fn rows(&self, numbers: &[u32]) -> candle_core::Result<Tensor> {
        match self {
            #[cfg(feature = "metal")]
            Self::Packed(matrix) => matrix.rows(numbers),
            Self::Device(weight) => weight.index_select(&Tensor::new(numbers, weight.device())?, 0),
            Self::Host(host) => {
                let mut rows = vec![0.0; numbers.len() * host.cols];
                for (number, row) in numbers.iter().zip(rows.chunks_exact_mut(host.cols)) {
                    host.unpack(*number as usize, row);
                }
                Tensor::from_vec(rows, (numbers.len(), host.cols), &candle_core::Device::Cpu)
            }
        }
    }
}

impl HostMatrix {
    fn unpack(&self, row: usize, out: &mut [f32]) {
        match &self.weights {
            Weights::Affine(matrix) => matrix.unpack(row, out),
            Weights::Plain(matrix) => matrix.unpack(row, out),
        }
    }

    /// Some rows from `first` on, as f32.
    fn unpacked(&self, first: usize, rows: usize) -> Vec<f32> {
        let mut out = vec![0.0; rows * self.cols];
        out.par_chunks_exact_mut(self.cols)
            .zip(first..first + rows)
            .for_each(|(out, row)| self.unpack(row, out));
        out
    }

    /// The product with many inputs: each tile of rows is unpacked once and multiplied with all of them.
    fn tiled(&self, inputs: &Tensor) -> candle_core::Result<Tensor> {
        let step = (TILE_WEIGHTS / self.cols).max(1);
        let tile = |first: usize| {
            let rows = step.min(self.rows - first);
            let tile = Tensor::from_vec(self.unpacked(first, rows), (rows, self.cols), inputs.device())?;
            // (T, C) x (C, tile) -> (T, tile)
            inputs.matmul(&tile.t()?)
        };
        let tiles = (0..self.rows).step_by(step).map(tile).collect::<candle_core::Result<Vec<_>>>()?;
        Tensor::cat(&tiles, 1)
    }

    /// The product with few inputs, (T, C), over the packed rows: (T, R).
    fn products(&self, inputs: &[f32]) -> Vec<f32> {
        let inputs = match &self.weights {
            Weights::Affine(matrix) => matrix.prepare(inputs),
            Weights::Plain(matrix) => matrix.prepare(inputs),
        };
        let tokens = inputs.tokens;
        let step = (PART_WEIGHTS / self.cols).max(1);
        // (R, T)
        let mut by_rows = vec![0.0; self.rows * tokens];
        by_rows.par_chunks_mut(step * tokens).enumerate().for_each(|(part, out)| match &self.weights {
            Weights::Affine(matrix) => matrix.products(part * step, &inputs, out),
            Weights::Plain(matrix) => matrix.products(part * step, &inputs, out),
        });
        if tokens == 1 {
            return by_rows;
        }
        // (R, T) -> (T, R)
        let token = |token| by_rows.iter().skip(token).step_by(tokens).copied();
        (0..tokens).flat_map(token).collect()
    }
}

/// `products` as an operation of candle.
struct PackedProducts(Arc<HostMatrix>);

impl CustomOp1 for PackedProducts {
    fn name(&self) -> &'static str {
        "packed-products"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let (tokens, cols) = layout.shape().dims2()?;
        let inputs = layout.contiguous_offsets().filter(|_| cols == self.0.cols);
        let Some((start, end)) = inputs else {
            candle_core::bail!("inputs {:?} for a matrix of {} columns", layout.shape(), self.0.cols)
        };
        let products = self.0.products(&storage.as_slice::<f32>()?[start..end]);
        Ok((CpuStorage::F32(products), (tokens, self.0.rows).into()))
    }
}

/// A linear layer: `y = x W^T + b`.
pub(crate) struct Linear {
    weight: Matrix,
    bias: Option<Tensor>,
}

/// Whether a linear layer adds a bias.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bias {
    /// It does.
    Added,
    /// It does not.
    None,
}

impl Bias {
    /// As config.json says it.
    pub(crate) const fn when(added: bool) -> Self {
        if added { Self::Added } else { Self::None }
    }
}

impl Linear {
    /// Loads the layer at this place: `outputs` by `inputs`.
    ///
    /// # Errors
    /// Those of [`Matrix::load`].
    pub(crate) fn load(
        at: &Scope<'_>,
        outputs: usize,
        inputs: usize,
        bias: Bias,
    ) -> Result<Self, InferError> {
        let bias = (bias == Bias::Added).then(|| at.vector("bias", outputs)).transpose()?;
        Ok(Self { weight: Matrix::load(at, outputs, inputs)?, bias })
    }

    /// `x` is (T, inputs); returns (T, outputs).
    pub(crate) fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let product = self.weight.forward(x)?;
        match &self.bias {
            Some(bias) => product.broadcast_add(bias),
            None => Ok(product),
        }
    }
}

/// Up to so many tokens the packed rows are read once for each, out of the cache; above, unpacking pays.
const PACKED_TOKENS_MAX: usize = 8;
/// Weights unpacked at a time: 2 MiB of f32 share a core's second cache with the inputs.
const TILE_WEIGHTS: usize = 1 << 19;
/// Weights that one thread takes at a time: some 10 µs of work, so that handing out costs little.
const PART_WEIGHTS: usize = 1 << 18;

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;
    use safetensors::tensor::{Dtype, TensorView};

    use super::*;
    use crate::config::ModelConfig;

    /// A packed matrix, as numbers.
    #[derive(Clone, Debug)]
    struct Case {
        bits: usize,
        group_size: usize,
        rows: usize,
        groups: usize,
        tokens: usize,
        floats: Dtype,
        seed: u32,
    }

    fn cases() -> impl Strategy<Value = Case> {
        let floats = prop_oneof![Just(Dtype::BF16), Just(Dtype::F16), Just(Dtype::F32)];
        let format = (prop_oneof![Just(4usize), Just(8)], prop_oneof![Just(32usize), Just(64), Just(128)]);
        (format, 1usize..40, 1usize..5, 1usize..14, floats, any::<u32>()).prop_map(
            |((bits, group_size), rows, groups, tokens, floats, seed)| Case {
                bits,
                group_size,
                rows,
                groups,
                tokens,
                floats,
                seed,
            },
        )
    }

    /// Numbers of a linear congruential generator (Numerical Recipes).
    fn numbers(seed: u32) -> impl Iterator<Item = u32> {
        std::iter::successors(Some(seed), |x| Some(x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223)))
            .skip(1)
    }

    /// Multiples of 1/64 below 2: every format holds them exactly.
    fn floats(seed: u32, count: usize) -> Vec<f32> {
        numbers(seed).map(|number| (f32::from((number >> 24) as u8) - 128.0) / 64.0).take(count).collect()
    }

    /// A float in its stored form; of f16 only what `floats` makes.
    fn stored(float: f32, dtype: Dtype) -> Vec<u8> {
        let bits = float.to_bits();
        match dtype {
            Dtype::F32 => bits.to_le_bytes().to_vec(),
            Dtype::BF16 => bits.to_le_bytes()[2..].to_vec(),
            Dtype::F16 if float == 0.0 => vec![0, 0],
            Dtype::F16 => {
                let half = (bits >> 16 & 0x8000) | (((bits >> 23 & 0xff) - 112) << 10) | (bits >> 13 & 0x3ff);
                half.to_le_bytes()[..2].to_vec()
            }
            other => panic!("{other} is no float"),
        }
    }

    fn write(dir: &Path, tensors: &[(&str, Dtype, Vec<usize>, Vec<u8>)]) {
        let view = |(name, dtype, shape, data): &'_ (&str, Dtype, Vec<usize>, Vec<u8>)| {
            ((*name).to_owned(), *dtype, shape.clone(), data.clone())
        };
        let owned: Vec<_> = tensors.iter().map(view).collect();
        let views = owned
            .iter()
            .map(|(name, dtype, shape, data)| (name, TensorView::new(*dtype, shape.clone(), data).unwrap()));
        safetensors::serialize_to_file(views, None, &dir.join("model.safetensors")).unwrap();
        let config = r#"{"model_type": "llama", "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1,
            "num_attention_heads": 1, "vocab_size": 1, "rms_norm_eps": 1e-5, "max_position_embeddings": 1}"#;
        std::fs::write(dir.join("config.json"), config).unwrap();
    }

    /// Loads the module `m` of a folder.
    fn load(dir: &Path, rows: usize, cols: usize) -> Matrix {
        let (weights, config) =
            (crate::weights::Weights::open(dir).unwrap(), ModelConfig::read(dir).unwrap());
        let root = Scope::root(&weights, &config, Device::Cpu, &candle_core::Device::Cpu);
        Matrix::load(&root.enter("m"), rows, cols).unwrap()
    }

    /// Products and rows of a matrix against those of its weights, in f64.
    fn check(matrix: &Matrix, weights: &[f64], cols: usize, inputs: &[f32]) {
        let (rows, tokens) = (weights.len() / cols, inputs.len() / cols);
        let x = Tensor::from_slice(inputs, (tokens, cols), &candle_core::Device::Cpu).unwrap();
        let found = matrix.forward(&x).unwrap().to_vec2::<f32>().unwrap();
        for (x, y) in inputs.chunks_exact(cols).zip(found) {
            for (weights, y) in weights.chunks_exact(cols).zip(y) {
                let products = || x.iter().zip(weights).map(|(x, w)| f64::from(*x) * w);
                let (expected, size) = (products().sum::<f64>(), products().map(f64::abs).sum::<f64>());
                // Centring by the bias cancels terms up to 256 times the weights'.
                assert!((f64::from(y) - expected).abs() <= 1e-5 * (1.0 + size), "{y} for {expected}");
            }
        }
        let numbers: Vec<u32> = (0..u32::try_from(rows).unwrap()).rev().collect();
        let found = matrix.rows(&numbers).unwrap().to_vec2::<f32>().unwrap();
        for (weights, found) in weights.chunks_exact(cols).rev().zip(found) {
            assert!(
                weights.iter().zip(found).all(|(w, y)| (f64::from(y) - w).abs() <= 1e-6 * (1.0 + w.abs()))
            );
        }
    }

    proptest! {
        #[test]
        fn packed_products_agree_with_unpacked_ones_in_f64(case in cases()) {
            let Case { bits, group_size, rows, groups, tokens, floats: dtype, seed } = case;
            let cols = groups * group_size;
            let words: Vec<u32> = numbers(seed).take(rows * cols * bits / 32).collect();
            let (scales, biases) = (floats(seed ^ 1, rows * groups), floats(seed ^ 2, rows * groups));
            let dir = tempfile::tempdir().unwrap();
            let bytes = |numbers: &[f32]| numbers.iter().flat_map(|x| stored(*x, dtype)).collect::<Vec<u8>>();
            write(dir.path(), &[
                ("m.weight", Dtype::U32, vec![rows, cols * bits / 32], words.iter().flat_map(|w| w.to_le_bytes()).collect()),
                ("m.scales", dtype, vec![rows, groups], bytes(&scales)),
                ("m.biases", dtype, vec![rows, groups], bytes(&biases)),
            ]);
            // As MLX documents it: weight i of a word is its bits from `bits * i` on.
            let weights: Vec<f64> = (0..rows * cols).map(|i| {
                let per_word = 32 / bits;
                let q = words[i / per_word] >> (bits * (i % per_word)) & ((1 << bits) - 1);
                f64::from(q) * f64::from(scales[i / group_size]) + f64::from(biases[i / group_size])
            }).collect();
            check(&load(dir.path(), rows, cols), &weights, cols, &floats(seed ^ 3, tokens * cols));
        }

        #[test]
        fn plain_products_agree_with_those_in_f64(case in cases(), cols in 1usize..600) {
            let Case { rows, tokens, floats: dtype, seed, .. } = case;
            let weights = floats(seed, rows * cols);
            let dir = tempfile::tempdir().unwrap();
            let bytes = weights.iter().flat_map(|x| stored(*x, dtype)).collect();
            write(dir.path(), &[("m.weight", dtype, vec![rows, cols], bytes)]);
            let weights: Vec<f64> = weights.into_iter().map(f64::from).collect();
            check(&load(dir.path(), rows, cols), &weights, cols, &floats(seed ^ 3, tokens * cols));
        }
    }

    #[test]
    fn matrices_of_several_parts_and_tiles_are_whole() {
        // More weights than a part and a tile hold, and not a multiple of either.
        let (rows, cols) = (3000, 192);
        let weights = floats(5, rows * cols);
        let dir = tempfile::tempdir().unwrap();
        let bytes = weights.iter().flat_map(|x| stored(*x, Dtype::BF16)).collect();
        write(dir.path(), &[("m.weight", Dtype::BF16, vec![rows, cols], bytes)]);
        let weights: Vec<f64> = weights.into_iter().map(f64::from).collect();
        let matrix = load(dir.path(), rows, cols);
        for tokens in [1, 2, PACKED_TOKENS_MAX, PACKED_TOKENS_MAX + 1, 20] {
            check(&matrix, &weights, cols, &floats(6, tokens * cols));
        }
    }

    #[test]
    fn inputs_of_another_width_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &[("m.weight", Dtype::F32, vec![2, 3], vec![0; 24])]);
        let matrix = load(dir.path(), 2, 3);
        let inputs = Tensor::zeros((1, 4), candle_core::DType::F32, &candle_core::Device::Cpu).unwrap();
        assert!(matrix.forward(&inputs).is_err());
    }
}
