//! A place in a checkpoint while a model is loaded: `model.layers.3.self_attn`.
//!
//! Whoever loads a part of a model is handed the part's scope and knows nothing of where it stands.

use candle_core::{DType, Tensor};
use safetensors::tensor::Dtype;

use crate::config::{ModelConfig, ModuleFormat};
use crate::device::Device;
use crate::error::InferError;
use crate::weights::Weights;

/// A place in a checkpoint, with what every loader needs.
#[derive(Clone)]
pub(crate) struct Scope<'a> {
    weights: &'a Weights,
    config: &'a ModelConfig,
    device: Device,
    opened: &'a candle_core::Device,
    path: String,
}

impl<'a> Scope<'a> {
    /// The root of a checkpoint.
    pub(crate) const fn root(
        weights: &'a Weights,
        config: &'a ModelConfig,
        device: Device,
        opened: &'a candle_core::Device,
    ) -> Self {
        Self { weights, config, device, opened, path: String::new() }
    }

    /// The place `part` inside of this one.
    pub(crate) fn enter(&self, part: &str) -> Self {
        Self { path: self.named(part), ..self.clone() }
    }

    /// The full name of `part` of this place.
    pub(crate) fn named(&self, part: &str) -> String {
        if self.path.is_empty() { part.to_owned() } else { format!("{}.{part}", self.path) }
    }

    /// The path of this place.
    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    /// Whether the checkpoint has a tensor `part` here.
    pub(crate) fn has(&self, part: &str) -> bool {
        self.weights.has(&self.named(part))
    }

    /// All tensors.
    pub(crate) const fn weights(&self) -> &'a Weights {
        self.weights
    }

    /// What the model is.
    pub(crate) const fn config(&self) -> &'a ModelConfig {
        self.config
    }

    /// What config.json says of this module's packing in particular, if anything.
    pub(crate) fn format_override(&self) -> Option<ModuleFormat> {
        self.config.quantization.as_ref()?.overrides.get(&self.path).copied()
    }

    /// The device, opened.
    pub(crate) const fn opened(&self) -> &'a candle_core::Device {
        self.opened
    }

    /// The type of the numbers between the layers on the device.
    pub(crate) const fn activations(&self) -> DType {
        self.device.activations()
    }

    /// The vector `part` of this place: (width).
    ///
    /// # Errors
    /// [`InferError::MissingTensor`], [`InferError::TensorShape`], [`InferError::TensorDtype`].
    pub(crate) fn floats(&self, part: &str, width: usize) -> Result<Vec<f32>, InferError> {
        self.floats_shaped(part, &[width])
    }

    /// All numbers of the tensor `part` of this place.
    ///
    /// # Errors
    /// Those of [`Self::floats`].
    pub(crate) fn floats_shaped(&self, part: &str, shape: &[usize]) -> Result<Vec<f32>, InferError> {
        let name = self.named(part);
        let stored = self.weights.take_shaped(&name, shape)?;
        let dtype = match stored.dtype {
            Dtype::BF16 => DType::BF16,
            Dtype::F16 => DType::F16,
            Dtype::F32 => DType::F32,
            other => {
                let (expected, actual) = ("bf16, f16 or f32", other.to_string());
                return Err(InferError::TensorDtype { tensor: name, expected, actual });
            }
        };
        let cpu = candle_core::Device::Cpu;
        let stored = Tensor::from_raw_buffer(&stored.bytes, dtype, &[shape.iter().product()], &cpu);
        stored.and_then(|floats| floats.to_dtype(DType::F32)?.to_vec1()).map_err(InferError::device)
    }

    /// The vector `part` of this place, as activations are on the device: (width).
    ///
    /// # Errors
    /// Those of [`Self::floats`], and [`InferError::Device`].
    pub(crate) fn vector(&self, part: &str, width: usize) -> Result<Tensor, InferError> {
        self.upload(self.floats(part, width)?, &[width])
    }

    /// Numbers as a tensor of the device, of the type that activations have there.
    ///
    /// # Errors
    /// [`InferError::Device`].
    pub(crate) fn upload(&self, floats: Vec<f32>, shape: &[usize]) -> Result<Tensor, InferError> {
        let host = Tensor::from_vec(floats, shape, &candle_core::Device::Cpu);
        let typed = host.and_then(|host| host.to_dtype(self.device.activations()));
        typed.and_then(|typed| typed.to_device(self.opened)).map_err(InferError::device)
    }
}
