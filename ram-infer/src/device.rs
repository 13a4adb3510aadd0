//! Where the mathematics runs. The only file that asks about the platform.

use std::fmt;

use candle_core::DType;

use crate::error::InferError;

/// Where a model's mathematics runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Device {
    /// The processor, over weights that stay packed.
    Cpu,
    /// Apple's GPU; needs the feature `metal`.
    Metal,
    /// The first NVIDIA GPU; needs the feature `cuda`.
    Cuda,
}

impl Device {
    /// The fastest device that this build knows and this machine has.
    #[must_use]
    pub fn best() -> Self {
        // candle's own "is available" only tells what was built; whether the machine has it shows when it is opened.
        let built = [(cfg!(feature = "metal"), Self::Metal), (cfg!(feature = "cuda"), Self::Cuda)];
        let has = |&(built, device): &(bool, Self)| built && device.open().is_ok();
        built.into_iter().find(has).map_or(Self::Cpu, |(_, device)| device)
    }

    /// Opens the device.
    ///
    /// # Errors
    /// [`InferError::DeviceUnavailable`] when the build or the machine has none of the kind.
    pub(crate) fn open(self) -> Result<candle_core::Device, InferError> {
        let opened = match self {
            Self::Cpu => Ok(candle_core::Device::Cpu),
            Self::Metal => candle_core::Device::new_metal(0),
            Self::Cuda => candle_core::Device::new_cuda(0),
        };
        opened.map_err(|_| InferError::DeviceUnavailable { device: self })
    }

    /// The type of the numbers between the layers: f32 on the processor, bf16 on a GPU.
    pub(crate) const fn activations(self) -> DType {
        match self {
            Self::Cpu => DType::F32,
            Self::Metal | Self::Cuda => DType::BF16,
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cpu => "cpu",
            Self::Metal => "metal",
            Self::Cuda => "cuda",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_device_opens() {
        assert!(Device::best().open().is_ok());
    }

    #[test]
    #[cfg(not(any(feature = "metal", feature = "cuda")))]
    fn a_build_without_gpu_features_says_so() {
        for device in [Device::Metal, Device::Cuda] {
            assert_eq!(device.open().unwrap_err(), InferError::DeviceUnavailable { device });
        }
        assert_eq!(Device::best(), Device::Cpu);
    }
}
